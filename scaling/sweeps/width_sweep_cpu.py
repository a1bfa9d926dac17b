# python -m scaling.sweep scaling/sweeps/width_sweep_cpu.py   (about 15 minutes of one core)
#
# width_sweep.py made small, for the same figure on a laptop: nine widths, one depth, one learning rate
# for all as the published project has it, loss along the way; 3 layers, 2 heads, context 64, bytes of
# WikiText-2. For its data see isoflop_wikitext2.py.
from pathlib import Path as _Path

_here = (_Path(__file__).resolve().parents[2] / "data" / "wikitext2_resplit_byte").exists()
base = dict(dataset="wikitext2_resplit_byte" if _here else "wikitext2_byte", n_layer=3, n_head=2,
            block_size=64, batch_size=16, learning_rate=2e-3, weight_decay=0.0, schedule="linear",
            warmup_iters=0, beta2=0.999, eval_iters=500, eval_interval=40, log_interval=20)
_steps = {8: 2000, 12: 2000, 16: 2000, 24: 2000, 32: 2000, 48: 2000, 64: 2000, 80: 2000, 112: 2500}
runs = [dict(name=f"d{d}", n_embd=d, max_iters=steps) for d, steps in _steps.items()]
