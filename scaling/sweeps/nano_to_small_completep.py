# python -m scaling.sweep scaling/sweeps/nano_to_small_completep.py   (16 minutes of one core)
#
# nano_to_small_cpu.py with CompleteP in place of muP: its models have 2, 4, 6 and 12 layers, and what a block
# adds shrinks with depth, so that one rate may suit them all. Is the forecast of small closer, and tighter?
_models = {"nano": (2, 2, 16), "micro": (4, 4, 32), "mini": (6, 8, 64), "small": (12, 8, 128)}
base = dict(dataset="shakespeare", block_size=32, batch_size=16, parametrization="completep",
            base_width=32, base_depth=4, learning_rate=8e-3, schedule="wsd", warmup_iters=100,
            beta2=0.99, weight_decay=0.0, eval_interval=0)


def _run(name, tokens):
    layers, heads, d = _models[name]
    return dict(name=f"{name}_{tokens:g}", n_layer=layers, n_head=heads, n_embd=d, target_tokens=tokens)


runs = [_run(name, D) for name in ("nano", "micro", "mini") for D in (1.6e6, 8e5, 4e5, 2e5)]
held_out = [_run("small", 1.6e6)]
