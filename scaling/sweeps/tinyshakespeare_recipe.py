# python -m scaling.sweep scaling/sweeps/tinyshakespeare_recipe.py   (about 10 minutes of one core)
#
# The models, tokens and steps of tinyshakespeare.py with a recipe: muP, tied head, no dropout, warmup and
# decay, and one learning rate for all, the best of .005, .01, .02 and .04 at 4x64 and 6x128
# (scaling/LOG.md).
prepare = {"tinyshakespeare_100k": "tinyshakespeare --max_tokens=100000"}
base = dict(dataset="tinyshakespeare_100k", block_size=128, batch_size=8, epochs=1, n_head=2, seeds=5,
            parametrization="mup", base_width=32, learning_rate=0.01, schedule="linear", warmup_frac=0.1,
            weight_decay=0.0)
runs = [dict(name=f"{layers}x{d}", n_layer=layers, n_embd=d) for layers, d in ((2, 32), (4, 64), (6, 128))]
