"""The gradient noise scale of a run: how large a batch could be before it stops paying.

Each micro-batch, or each rank, has the gradient of a part of the batch, and parts are noisier than the whole.
How much noisier gives tr(Sigma), the variance of one sequence's gradient, and |G|^2, the square of the true
gradient's norm. Their ratio is the noise scale (McCandlish et al. 2018, appendix A.1): batches much larger
than it save few steps. It costs one copy of the gradient per micro-batch.
"""
import torch

STEPS = 50                              # the averages are over about as many steps


class NoiseScale:
    """Averages of tr(Sigma) and |G|^2 along a run: a call for each part of a batch, then `step`."""

    def __init__(self, batch_size: int, world: int):
        self.batch_size = batch_size
        self.world = world
        self.average = None             # tensor (tr(Sigma), |G|^2), None before the first step with parts
        self.parts = []                 # (|gradient|^2, rows) of each part of this batch
        self.before = 0.0               # the gradient that the earlier micro-batches have summed up
        self.square = 0.0               # this rank's |gradient|^2 under DDP

    def micro_batch(self, weights: list, rows: int) -> None:
        """After the backward pass of one of several micro-batches of `rows` sequences, in one process."""
        gradient = torch.cat([p.grad.flatten() for p in weights])
        self.parts.append(((gradient - self.before).square().sum(), rows))
        self.before = gradient

    def rank(self, rows: int, measured: bool) -> None:
        """Under DDP, after the backward pass: `average_gradients` has seen this rank's gradient of `rows`."""
        if measured:
            self.parts = [(self.square, rows)]
        self.square = 0.0

    def step(self, grad_norm: torch.Tensor, step: int) -> None:
        """Take in the parts of the batch whose whole gradient has the norm `grad_norm`. Both are unbiased."""
        if self.parts:
            B = self.batch_size
            whole = grad_norm ** 2
            # Each square is of rows/B of a part's mean gradient (DDP: times the ranks). The mean's expected
            # square is |G|^2 + tr(Sigma)/rows, that of the whole |G|^2 + tr(Sigma)/B: solved for tr(Sigma).
            trace = sum((square * (B / self.world / rows) ** 2 - whole) / (1 / rows - 1 / B)
                        for square, rows in self.parts) / len(self.parts)
            new = torch.stack([trace, whole - trace / B])
            weight = 1 / min(STEPS, step + 1)
            self.average = new if self.average is None else torch.lerp(self.average, new, weight)
        self.parts = []
        self.before = 0.0

    def log_entry(self, sum_over_ranks, block_size: int) -> dict:
        """{noise_scale: tr(Sigma)/|G|^2 in tokens}; {} where it is not known, or noise hides it."""
        if self.average is None:
            return {}
        trace, square = sum_over_ranks(self.average.clone()).tolist()
        if min(trace, square) <= 0:
            return {}
        return {"noise_scale": round(block_size * trace / square, 1)}


def average_gradients(noise: NoiseScale, bucket):
    """DDP's averaging of gradients over ranks; before it, this rank's own |gradient|^2 is noted."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    noise.square = noise.square + bucket.buffer().square().sum()
    return allreduce_hook(None, bucket)
