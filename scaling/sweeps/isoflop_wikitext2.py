# python -m scaling.sweep scaling/sweeps/isoflop_wikitext2.py   (about half an hour of one core)
#
# isoflop.py on other text: bytes of WikiText-2, 30 runs of 12 widths on five budgets, every byte new to
# its model; then one model of 3 times the largest budget, forecast and sealed before it trains. The
# recipe is the laptop study's; here too a context of 32 beats 64 at 1.5M bytes (d 32: 1.719 and 1.743;
# scaling/LOG.md).
#
# Without a network: python data/wikitext2/prepare.py --tokenizer=byte --input TRAIN --val_input VALID
# --out_dir=data/wikitext2_resplit_byte, and it is used. scaling/results/isoflop_wikitext2 comes from such
# a re-split.
from pathlib import Path as _Path

_here = (_Path(__file__).resolve().parents[2] / "data" / "wikitext2_resplit_byte").exists()
base = dict(dataset="wikitext2_resplit_byte" if _here else "wikitext2_byte", n_layer=3, n_head=2,
            block_size=32, batch_size=16, parametrization="mup", base_width=32, learning_rate=8e-3,
            schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0, eval_interval=500,
            eval_iters=4000)

_grid = {1e11: (12, 16, 20, 24, 28),       # budget 6 N D in FLOPs: widths, chosen around each optimum
         2.2e11: (16, 20, 24, 28, 32, 40),
         4.8e11: (20, 24, 28, 32, 40, 48),
         1.1e12: (24, 28, 32, 40, 48, 56, 64),
         2.5e12: (32, 40, 48, 56, 64, 80)}  # narrower models would need more text than there is
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"d{d}", n_embd=d, budgets=[C for C in _grid if d in _grid[C]]) for d in _widths]
held_out = [dict(name="d72_7.7e12", n_embd=72, budget=7.7e12)]
