# python -m scaling.sweep scaling/sweeps/isoflop_code.py --jobs=6   (needs a GPU, and has not been run)
#
# Once before it:
# pip install --no-deps --no-compile --target=data/py_packages -r data/pycode/packages.txt
#
# isoflop.py a thousand times larger: bytes of Python source, six layers, context 256, five budgets up to
# 2e15 FLOPs, then the best size at 3 times that, forecast and sealed before it trains. No byte is seen
# twice by a model. Batch and rate are those of isoflop_code_tune.py.
base = dict(dataset="pycode_pinned", n_layer=6, n_head=4, block_size=256, batch_size=16,
            parametrization="mup", base_width=64, learning_rate=7e-3, schedule="wsd", warmup_iters=100,
            beta2=0.95, weight_decay=0.0, eval_interval=1000, eval_iters=2000)
prepare = dict(pycode_pinned="pycode --tokenizer=byte --packages=data/py_packages")

_grid = {3.2e13: (48, 64, 80, 96, 128),    # budget 6 N D in FLOPs: widths, chosen around each optimum
         9e13: (64, 80, 96, 128, 160),
         2.5e14: (96, 128, 160, 192),
         7e14: (128, 160, 192, 256, 320),
         2e15: (192, 256, 320, 384)}       # narrower models would need more text than there is
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"d{d}", n_embd=d, budgets=[C for C in _grid if d in _grid[C]]) for d in _widths]
held_out = [dict(name="d352_6e15", n_embd=352, budget=6e15)]
