"""What the training loop stands on: files of a run, faster CPU kernels, the noise scale, the machine."""
