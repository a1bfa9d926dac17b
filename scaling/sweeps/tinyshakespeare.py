# python -m scaling.sweep scaling/sweeps/tinyshakespeare.py   (about 10 minutes of one core)
#
# The published project (Forgingalex/scaling-laws-llms) as stated: 2x32, 4x64 and 6x128 (layers x width),
# 8 heads each, untied head, dropout .1; the first 100,000 GPT-2 tokens of Tiny Shakespeare, 90/10; one
# epoch of 8 x 128 tokens a step; AdamW 3e-4, weight decay .01, no schedule, no clipping. Five seeds. One
# difference: our blocks have LayerNorm first, theirs last.
prepare = {"tinyshakespeare_100k": "tinyshakespeare --max_tokens=100000"}
base = dict(dataset="tinyshakespeare_100k", block_size=128, batch_size=8, epochs=1, n_head=8, seeds=5,
            tie_weights=False, bias=True, dropout=0.1, learning_rate=3e-4, schedule="constant",
            warmup_iters=0, weight_decay=0.01, beta2=0.999, grad_clip=0.0)
runs = [dict(name=f"{layers}x{d}", n_layer=layers, n_embd=d) for layers, d in ((2, 32), (4, 64), (6, 128))]
