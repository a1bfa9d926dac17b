# python -m scaling.sweep scaling/sweeps/far_shakespeare.py   (20 minutes of one core of a Zen 3 server)
#
# far.py on other text: characters of Shakespeare, 23 runs on four budgets of a quarter of far's, so that
# the text lasts for models at 3, 10 and 25 times the largest, and one at 10 times that is five times too
# large; all sealed before they train.
base = dict(dataset="shakespeare", n_layer=3, n_head=2, block_size=32, batch_size=16, parametrization="mup",
            base_width=32, learning_rate=8e-3, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0,
            eval_interval=500)

_grid = {2.5e10: (8, 12, 16, 20, 24),      # budget 6 N D in FLOPs: widths, chosen around each optimum
         5e10: (8, 12, 16, 20, 24, 28),
         1e11: (12, 16, 20, 24, 28, 32),
         2e11: (16, 20, 24, 28, 32, 40)}
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"d{d}", n_embd=d, budgets=[C for C in _grid if d in _grid[C]]) for d in _widths]
held_out = [dict(name="d72_5e12", n_embd=72, budget=5e12),
            dict(name="d52_2e12", n_embd=52, budget=2e12),
            dict(name="d108_2e12", n_embd=108, budget=2e12),
            dict(name="d36_6e11", n_embd=36, budget=6e11)]
