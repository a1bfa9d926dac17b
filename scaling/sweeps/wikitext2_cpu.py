# python -m scaling.sweep scaling/sweeps/wikitext2_cpu.py   (about 30 minutes of one core)
#
# wikitext2.py at a quarter of the width, so that a laptop shows the same effect: small 2x64 and medium
# 4x128 (a quarter of 2x256 and 4x512), and four more sizes between and around them, so that a line means
# something. GPT-2 tokens of WikiText-2, 500,000 of them, each seen once; muP carries one learning rate
# over all widths. Without a network: python data/wikitext2/prepare.py --input TRAIN --val_input VALID
# --out_dir=data/wikitext2_resplit, and it is used. scaling/results/wikitext2_cpu comes from such a
# re-split.
from pathlib import Path as _Path

_here = (_Path(__file__).resolve().parents[2] / "data" / "wikitext2_resplit").exists()
base = dict(dataset="wikitext2_resplit" if _here else "wikitext2", block_size=128, batch_size=8,
            target_tokens=5e5, parametrization="mup", base_width=32, n_head=4, learning_rate=1.6e-2,
            schedule="linear", warmup_frac=0.1, beta2=0.95, weight_decay=0.0, eval_interval=0,
            eval_iters=1000)
_sizes = {"2x32": (2, 32), "2x48": (2, 48), "small_2x64": (2, 64), "4x64": (4, 64), "4x96": (4, 96),
          "medium_4x128": (4, 128)}
runs = [dict(name=name, n_layer=layers, n_embd=d) for name, (layers, d) in _sizes.items()]
