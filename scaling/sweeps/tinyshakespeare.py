# python -m scaling.sweep scaling/sweeps/tinyshakespeare.py                    (about 20 minutes of one core)
#
# The published project (Forgingalex/scaling-laws-llms): 2x32, 4x64 and 6x128 (layers x width), 8 heads each,
# untied head, dropout .1; the first 100,000 GPT-2 tokens of Tiny Shakespeare, 90/10; one epoch of 8 x 128
# tokens a step; AdamW 3e-4, weight decay .01, no schedule, no clipping. Ours is pre-LayerNorm, theirs post-.
# Then the same 88 steps with a recipe: muP at the rate that `rate` finds, tied head, warmup and decay.
_stated = dict(n_head=8, tie_weights=False, bias=True, dropout=0.1, learning_rate=3e-4, schedule="constant",
               warmup_iters=0, weight_decay=0.01, beta2=0.999, grad_clip=0.0)
_recipe = dict(n_head=2, parametrization="mup", base_width=32, schedule="linear", warmup_frac=0.1, beta2=0.95,
               weight_decay=0.0)
_models = [dict(n_layer=2, n_embd=32), dict(n_layer=4, n_embd=64), dict(n_layer=6, n_embd=128)]

prepare = {"tinyshakespeare_100k": "tinyshakespeare --max_tokens=100000"}
base = dict(dataset="tinyshakespeare_100k", block_size=128, batch_size=8, epochs=1)
runs = [dict(name=f"stated_{m['n_layer']}x{m['n_embd']}", seeds=5) | m | _stated for m in _models]
runs += [dict(name=f"recipe_{m['n_layer']}x{m['n_embd']}", seeds=5, learning_rate=0.02) | m | _recipe
         for m in _models]
runs += [dict(name=f"rate_{m['n_layer']}x{m['n_embd']}_{lr:g}", learning_rate=lr) | m | _recipe
         for m in _models for lr in (0.005, 0.01, 0.04)]
