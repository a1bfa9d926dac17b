# python -m scaling.sweep scaling/sweeps/isoflop_code_tune.py, then
# python -m scaling.recipe.tune out/isoflop_code_tune   (two minutes of one H100, with --jobs=6)
#
# Batch and rate for isoflop_code.py: two widths under muP, two or three batches each, rates a factor 2
# apart around a square-root rule.
base = dict(dataset="pycode_pinned", n_layer=6, n_head=4, block_size=256, parametrization="mup",
            base_width=64, schedule="wsd", warmup_frac=0.1, beta2=0.95, weight_decay=0.0, eval_interval=0,
            eval_iters=4000)
prepare = dict(pycode_pinned="pycode --tokenizer=byte --packages=data/py_packages")

_grid = {128: (1e7, (8, 16, 32)), 256: (1e7, (16, 64))}       # width: tokens, batches in sequences
runs = [dict(name=f"d{d}_b{rows}_lr{k}", n_embd=d, batch_size=rows, target_tokens=tokens,
             learning_rate=0.016 * k * (rows / 32) ** 0.5)
        for d, (tokens, batches) in _grid.items() for rows in batches for k in (1, 0.5, 0.25)]
