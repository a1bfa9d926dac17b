# python -m scaling.sweep scaling/sweeps/tinyshakespeare_recipe.py   (about 15 minutes of one core)
#
# The models, tokens and steps of tinyshakespeare.py with a recipe: muP, tied head, no dropout, warmup and
# decay, and the best of four learning rates for each size. Five seeds at the rate that was best.
prepare = {"tinyshakespeare_100k": "tinyshakespeare --max_tokens=100000"}
base = dict(dataset="tinyshakespeare_100k", block_size=128, batch_size=8, epochs=1, n_head=2,
            parametrization="mup", base_width=32, schedule="linear", warmup_frac=0.1, weight_decay=0.0)
_best = {(2, 32): 0.02, (4, 64): 0.02, (6, 128): 0.02}
runs = [dict(name=f"{layers}x{d}", n_layer=layers, n_embd=d, learning_rate=lr, seeds=5)
        for (layers, d), lr in _best.items()]
runs += [dict(name=f"{layers}x{d}_lr{lr:g}", n_layer=layers, n_embd=d, learning_rate=lr)
         for layers, d in _best for lr in (0.005, 0.01, 0.02, 0.04) if lr != _best[layers, d]]
