# python -m scaling.sweep scaling/sweeps/tune.py, then
# python -m scaling.recipe.tune out/tune --write=config/tuned.py
#
# Which batch and learning rate does a dataset want? Name yours here. Two widths under muP with tokens in
# proportion to N, three batches each, four rates a factor 2 apart around a square-root rule (Malladi et
# al. 2022). Where scaling.recipe.tune finds a best at an edge, extend the grid: only new runs train. About 5
# minutes of one core.
base = dict(dataset="shakespeare", n_layer=3, n_head=2, block_size=32, tokens_per_param=6,
            parametrization="mup", base_width=32, schedule="wsd", warmup_frac=0.1, beta2=0.99,
            weight_decay=0.0, eval_interval=0, eval_iters=2000, device="cpu")

_batches = {16: (1, 2, 4), 32: (2, 4, 8)}      # by width, in sequences: more tokens want a larger batch
runs = [dict(name=f"{base['dataset']}_d{d}_b{rows}_lr{k}", n_embd=d, batch_size=rows,
             learning_rate=0.01 * k * (rows / 8) ** 0.5)
        for d in _batches for rows in _batches[d] for k in (1, 0.5, 0.25, 2)]
