# python train.py config/train_shakespeare.py
# The model to sample from: 4 layers, width 128, a context of 128 characters, one pass over Shakespeare.
# About 5 minutes on one CPU core (AMD Zen 5, 2026); ends at val_loss 1.55 nats per character.
n_layer, n_head, n_embd = 4, 4, 128
block_size, batch_size = 128, 16
epochs = 1
parametrization, base_width = "mup", 32
learning_rate, schedule, warmup_iters = 6e-3, "wsd", 300
beta2, weight_decay = 0.99, 0.0
out_dir = "out/train_shakespeare"
