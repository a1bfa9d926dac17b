# python -m scaling.sweep scaling/sweeps/width_sweep.py   (needs a GPU; width_sweep_cpu.py does not)
#
# The published project (davidmoser/scaling_laws): nine GPT-2s of 12 layers and 8 heads, d 32 to 256, on
# C4 with the GPT-2 tokenizer, context 1,024, batch 32, AdamW 1e-3 without decay, linear to 0 (the Hugging
# Face Trainer's default). Its ninth width, 196, is not divisible by 8 heads: 192 here. 8.85B tokens in
# all.
prepare = {"c4": "c4 --num_tokens=1.4e9"}               # 3 GB: no run sees a token twice
base = dict(dataset="c4", n_layer=12, n_head=8, block_size=1024, batch_size=32, vocab_size=50304,
            learning_rate=1e-3, weight_decay=0.0, schedule="linear", warmup_iters=0, beta2=0.999,
            eval_interval=250, eval_iters=512, log_interval=50)
_steps = {32: 20_000, 48: 30_000, 64: 30_000, 96: 30_000, 112: 30_000, 128: 30_000, 160: 30_000, 192: 30_000,
          256: 40_000}
runs = [dict(name=f"d{d}", n_embd=d, max_iters=steps) for d, steps in _steps.items()]
