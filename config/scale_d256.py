# python train.py config/scale_d256.py
# 3 layers, width 256, one pass over the characters of Shakespeare, with the recipe of the laptop study.
# About 10 minutes on one CPU core (AMD Zen 5, 2026); ends at val_loss 1.58 nats per character.
n_layer, n_head, n_embd = 3, 2, 256
block_size, batch_size = 32, 16
epochs = 1
parametrization, base_width = "mup", 32        # the learning rate was tuned at width 32 and holds at others
learning_rate, schedule, warmup_iters = 8e-3, "wsd", 100
beta2, weight_decay = 0.99, 0.0
out_dir = "out/scale_d256"
