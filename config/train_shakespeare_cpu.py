# python train.py config/train_shakespeare_cpu.py
# A first model in about a minute: 3 layers, width 48, a context of 64, 2M characters of Shakespeare.
# About 1 minute on one CPU core (AMD Zen 5, 2026); ends at val_loss 1.76 nats per character.
n_layer, n_head, n_embd = 3, 2, 48
block_size, batch_size = 64, 8
target_tokens = 2e6
parametrization, base_width = "mup", 32
learning_rate, schedule, warmup_iters = 8e-3, "wsd", 100
beta2, weight_decay = 0.99, 0.0
out_dir = "out/train_shakespeare_cpu"
