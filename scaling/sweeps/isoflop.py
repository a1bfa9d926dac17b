# python -m scaling.sweep scaling/sweeps/isoflop.py   (about 40 minutes of one core)
#
# The study that the notebook teaches with: the laptop study with a sixth budget, two seeds of every run, and
# validation losses along the way for the envelope of curves. Characters of Shakespeare, none seen twice by a
# model; then one model of 3 times the largest budget, forecast and sealed before it trains.
base = dict(dataset="shakespeare", n_layer=3, n_head=2, block_size=32, batch_size=16, parametrization="mup",
            base_width=32, learning_rate=8e-3, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0,
            eval_interval=500, eval_iters=4000)

_grid = {5e10: (8, 12, 16, 20, 24),        # budget 6 N D in FLOPs: widths, chosen around each optimum
         1e11: (12, 16, 20, 24, 28, 32),
         2e11: (16, 20, 24, 28, 32, 40),
         4e11: (20, 24, 28, 32, 40, 48),
         8e11: (28, 32, 40, 48, 56, 64),
         1.6e12: (40, 44, 48, 56, 64, 80)}  # narrower models would need more text than there is
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"d{d}", n_embd=d, seeds=2, budgets=[C for C in _grid if d in _grid[C]]) for d in _widths]
held_out = [dict(name="d72_5e12", n_embd=72, budget=5e12)]
