# python -m scaling.sweep scaling/sweeps/far.py   (70 minutes of one core of a Xeon with AVX-512)
#
# Once before it:
# pip install --no-deps --no-compile --target=data/py_packages -r data/pycode/packages.txt
#
# Is a five-minute study worth anything far beyond itself? 23 runs of 10 widths on four budgets, then models
# at 3, 10, 30, 100 and 300 times the largest, each about the best size for its budget, and one at 10 times
# that is four times too small: all forecast and sealed before they train. Bytes of Python source, since it
# takes 32M that no model has seen twice; the recipe is the laptop study's.
base = dict(dataset="pycode_pinned", n_layer=3, n_head=2, block_size=32, batch_size=16, parametrization="mup",
            base_width=32, learning_rate=8e-3, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0,
            eval_interval=0, eval_iters=8000)
prepare = dict(pycode_pinned="pycode --tokenizer=byte --packages=data/py_packages")

_grid = {1e11: (12, 16, 20, 24, 28, 32),   # budget 6 N D in FLOPs: widths, chosen around each optimum
         2e11: (16, 20, 24, 28, 32, 40),
         4e11: (20, 24, 28, 32, 40, 48),
         8e11: (28, 32, 40, 48, 56)}
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"d{d}", n_embd=d, budgets=[C for C in _grid if d in _grid[C]]) for d in _widths]
held_out = [dict(name="d184_2.4e14", n_embd=184, budget=2.4e14),
            dict(name="d136_8e13", n_embd=136, budget=8e13),
            dict(name="d104_2.4e13", n_embd=104, budget=2.4e13),
            dict(name="d80_8e12", n_embd=80, budget=8e12),
            dict(name="d40_8e12", n_embd=40, budget=8e12),
            dict(name="d56_2.4e12", n_embd=56, budget=2.4e12)]
