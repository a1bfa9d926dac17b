# python -m scaling.sweep scaling/sweeps/modern.py   (2 hours of one core of a Zen 3 server)
#
# From GPT-2 to a modern model, one change at a time, and what each is worth: eight arms on the same grid of
# sizes and budgets, two seeds each; then one model of all changes at 3 times the largest budget, forecast
# and sealed before it trains. Characters of Shakespeare, the laptop study's recipe; each arm at its own best
# rate: the vertex of a parabola in log rate through the best three of modern_tune.py.
base = dict(dataset="shakespeare", n_layer=3, n_head=2, block_size=32, batch_size=16, parametrization="mup",
            base_width=32, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0, eval_interval=0)

_arms = dict(
    base=dict(learning_rate=8.5e-3),
    rms=dict(norm="rms", learning_rate=8.7e-3),
    rope=dict(position="rope", learning_rate=6e-3),
    swiglu=dict(mlp="swiglu", learning_rate=9.9e-3),
    relu2=dict(mlp="relu2", learning_rate=7.8e-3),
    qk_norm=dict(qk_norm=True, learning_rate=9.6e-3),
    muon=dict(optimizer="muon", learning_rate=1.2e-2),
    all=dict(norm="rms", position="rope", mlp="swiglu", qk_norm=True, optimizer="muon", learning_rate=1.4e-2))

_grid = {1e11: (16, 24, 32),               # budget 6 N D in FLOPs: widths around each optimum
         2.8e11: (24, 32, 48),
         8e11: (32, 48, 64)}
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"{arm}_d{d}", arm=arm, n_embd=d, budgets=[C for C in _grid if d in _grid[C]], seeds=2,
             **change)
        for arm, change in _arms.items() for d in _widths]
held_out = [dict(name="all_d80_2.4e12", arm="all", n_embd=80, budget=2.4e12, **_arms["all"])]
