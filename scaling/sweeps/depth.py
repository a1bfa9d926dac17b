# python -m scaling.sweep scaling/sweeps/depth.py          (15 minutes of one core of a Zen 3 server)
#
# Does the best learning rate stay where it is as the model deepens? Four depths, each with learning rates a
# factor 2 apart, under GPT-2's parametrization, muP and CompleteP: characters of Shakespeare, 200k a run, the
# laptop recipe. Under CompleteP it should (Dey et al. 2025, figure 1); see python -m scaling.recipe.transfer
# out/depth.
base = dict(dataset="shakespeare", n_embd=32, n_head=2, block_size=32, batch_size=16, base_width=32,
            base_depth=4, target_tokens=2e5, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0,
            eval_interval=0, eval_iters=2000, device="cpu")

_rates = (0.002, 0.004, 0.008, 0.016, 0.032)
runs = [dict(name=f"{p}_L{L}_lr{lr:g}", parametrization=p, n_layer=L, learning_rate=lr)
        for p in ("gpt2", "mup", "completep") for L in (2, 4, 8, 16) for lr in _rates]
