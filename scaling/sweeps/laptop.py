# python -m scaling.sweep scaling/sweeps/laptop.py   (`make study` does this, and all that comes before)
#
# Characters of Shakespeare, 27 runs of 8 widths on an IsoFLOP grid. Then two models, forecast and sealed
# before they train: about the best for 3 times the compute of the largest, and one that lies beyond all runs
# both in size and in tokens. No run sees a character twice. The recipe is what the lab log (scaling/LOG.md)
# found to measure size, not tuning: muP, 512 tokens a step, a context of 32, WSD with branches.
base = dict(dataset="shakespeare", n_layer=3, n_head=2, block_size=32, batch_size=16, parametrization="mup",
            base_width=32, learning_rate=8e-3, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0,
            eval_interval=0)

# Few widths at many budgets, for a branch costs a fifth of a run, and tiny models take most of the seconds.
_grid = {2.5e10: (12, 16, 20),             # budget 6 N D in FLOPs: widths, chosen around each optimum
         5e10: (12, 16, 20, 24),
         1e11: (12, 16, 20, 24, 32, 40),
         2e11: (20, 24, 32, 40, 56),
         4e11: (24, 32, 40, 48, 56),
         8e11: (32, 40, 48, 56)}           # narrower models would need more text than there is
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"d{d}", n_embd=d, budgets=[C for C in _grid if d in _grid[C]]) for d in _widths]
held_out = [dict(name="d52_2.5e12", n_embd=52, budget=2.5e12), dict(name="d60_3e12", n_embd=60, budget=3e12)]
