# python -m scaling.sweep scaling/sweeps/nano_to_small_cpu.py   (about 20 minutes of one core)
#
# nano_to_small.py at a quarter of the width, for a laptop: fit nano, micro and mini, each at four
# horizons so that the law knows tokens too, seal the forecast of small, train it, score it. Characters of
# Shakespeare, none seen twice by a model; the laptop study's recipe.
_models = {"nano": (2, 2, 16), "micro": (4, 4, 32), "mini": (6, 8, 64), "small": (12, 8, 128)}
base = dict(dataset="shakespeare", block_size=32, batch_size=16, parametrization="mup", base_width=32,
            learning_rate=8e-3, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0,
            eval_interval=0)


def _run(name, tokens):
    layers, heads, d = _models[name]
    return dict(name=f"{name}_{tokens:g}", n_layer=layers, n_head=heads, n_embd=d, target_tokens=tokens)


runs = [_run(name, D) for name in ("nano", "micro", "mini") for D in (1.6e6, 8e5, 4e5, 2e5)]
held_out = [_run("small", 1.6e6)]
