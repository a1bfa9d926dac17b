# python -m scaling.sweep scaling/sweeps/batch.py, then python -m scaling.recipe.batch out/batch
#
# How many steps and tokens does a given loss cost at each batch size, and what does the gradient noise
# scale say? One small model, a constant learning rate so that every point of a curve counts, three rates
# per batch around a square-root rule (Malladi et al. 2022), two micro-batches so that the noise scale is
# measured. About 10 minutes of one core.
base = dict(dataset="shakespeare", n_layer=3, n_head=2, n_embd=32, block_size=32, parametrization="mup",
            base_width=32, schedule="constant", warmup_iters=30, beta2=0.99, weight_decay=0.0,
            gradient_accumulation_steps=2, eval_iters=400, device="cpu")

_tokens = {4: 3e5, 8: 3.5e5, 16: 4.5e5, 32: 6e5, 64: 9e5, 128: 1.4e6}    # by batch size in sequences of 32
runs = [dict(name=f"b{rows}_lr{k}", batch_size=rows, target_tokens=tokens,
             learning_rate=0.006 * k * (rows / 16) ** 0.5, eval_interval=int(tokens / 32 / rows / 40),
             log_interval=int(tokens / 32 / rows / 40))
        for k in (1, 2, 0.5) for rows, tokens in _tokens.items()]
