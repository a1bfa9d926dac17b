# python -m scaling.sweep scaling/sweeps/nano_to_small.py   (needs a GPU; nano_to_small_cpu.py does not)
#
# The published exercise (fajarnawawi/llm-engineering-project-learn, 16): nano 2x64, micro 4x128, mini
# 6x256 and small 12x512 (layers x width, d_ff = 4 d); fit the first three, predict small, train it,
# compare. It states 6 heads for mini, which do not divide 256: 8 here. It names no data and no tokens: C4
# here, four horizons so that the law knows tokens too; muP carries one learning rate over all widths.
_models = {"nano": (2, 2, 64), "micro": (4, 4, 128), "mini": (6, 8, 256), "small": (12, 8, 512)}
prepare = {"c4": "c4 --num_tokens=1.4e9"}               # 3 GB: no run sees a token twice
base = dict(dataset="c4", block_size=512, batch_size=64, vocab_size=50304, parametrization="mup",
            base_width=64, learning_rate=4e-3, schedule="wsd", warmup_iters=100, weight_decay=0.0,
            eval_interval=0, eval_iters=1000)


def _run(name, tokens):
    layers, heads, d = _models[name]
    return dict(name=f"{name}_{tokens:g}", n_layer=layers, n_head=heads, n_embd=d, target_tokens=tokens)


runs = [_run(name, D) for name in ("nano", "micro", "mini") for D in (4e8, 2e8, 1e8, 5e7)]
held_out = [_run("small", 4e8)]
