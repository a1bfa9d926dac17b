# python -m scaling.sweep scaling/sweeps/far_wikitext2.py   (half an hour of one core of a Zen 5)
#
# far.py on a third text: bytes of WikiText-2. Eleven megabytes let no budget grow by more than a hundred: 20
# runs of 9 widths on four budgets, then models at 3, 10, 30 and 100 times the largest, each about the best
# size, and one at 10 times that is four times too large: all forecast and sealed before they train. The
# recipe is the laptop study's.
#
# Without a network: python data/wikitext2/prepare.py --tokenizer=byte --input TRAIN --val_input VALID
# --out_dir=data/wikitext2_resplit_byte, and it is used. scaling/results/far_wikitext2 comes from such a
# re-split.
from pathlib import Path as _Path

_here = (_Path(__file__).resolve().parents[2] / "data" / "wikitext2_resplit_byte").exists()
base = dict(dataset="wikitext2_resplit_byte" if _here else "wikitext2_byte", n_layer=3, n_head=2,
            block_size=32, batch_size=16, parametrization="mup", base_width=32, learning_rate=8e-3,
            schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0, eval_interval=0, eval_iters=8000)

_grid = {5e10: (8, 12, 16, 20, 24),        # budget 6 N D in FLOPs: widths, chosen around each optimum
         1e11: (12, 16, 20, 24, 28),
         2e11: (12, 16, 20, 24, 32),
         4e11: (16, 20, 24, 32, 40)}
_widths = sorted(set().union(*_grid.values()))
runs = [dict(name=f"d{d}", n_embd=d, budgets=[C for C in _grid if d in _grid[C]]) for d in _widths]
held_out = [dict(name="d136_4e13", n_embd=136, budget=4e13),
            dict(name="d72_1.2e13", n_embd=72, budget=1.2e13),
            dict(name="d104_4e12", n_embd=104, budget=4e12),
            dict(name="d52_4e12", n_embd=52, budget=4e12),
            dict(name="d40_1.2e12", n_embd=40, budget=1.2e12)]
