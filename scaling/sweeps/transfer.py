# python -m scaling.sweep scaling/sweeps/transfer.py          (about 10 minutes of two cores)
#
# Does the best learning rate stay where it is as the model widens? Four widths, each with learning rates
# a factor 2 apart, under muP and under GPT-2's parametrization: characters of Shakespeare, 150k tokens a
# run, the laptop recipe. Under muP it should (Yang et al. 2022, figure 1); see
# python -m scaling.recipe.transfer out/transfer.
base = dict(dataset="shakespeare", n_layer=3, n_head=2, block_size=32, batch_size=16, base_width=32,
            target_tokens=1.5e5, schedule="wsd", warmup_iters=100, beta2=0.99, weight_decay=0.0,
            eval_interval=0, eval_iters=2000, device="cpu")

_rates = dict(mup=(0.008, 0.004, 0.016, 0.032, 0.064), gpt2=(0.008, 0.004, 0.002, 0.016, 0.001))
runs = [dict(name=f"{p}_d{d}_lr{lr:g}", parametrization=p, n_embd=d, learning_rate=lr)
        for p in _rates for d in (32, 64, 128, 256) for lr in _rates[p]]
