"""A step on one GPU: its text at hand, a loss that keeps no logits, and the whole step as one CUDA graph.

What each gains is in scaling/results/bench/gpu.json (`python -m runtime.bench_gpu`), and what was tried
without gain in scaling/LOG.md. model.py and train.py call these where they win, and read as well without.
"""
import math

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:                                   # comes with PyTorch for CUDA on Linux
    import triton
    from triton import language as tl
except ImportError:
    triton = None

# ---- the text ----


def resident(tokens: np.ndarray, device: str) -> torch.Tensor | None:
    """uint16 `tokens` on the GPU, as int16; None on another device, or where they would fill half of it."""
    if not device.startswith("cuda") or tokens.nbytes > torch.cuda.mem_get_info()[0] / 2:
        return None
    return torch.tensor(tokens.view(np.int16), device=device)


def upload(ids: np.ndarray | torch.Tensor, device: str) -> torch.Tensor:
    """Row numbers on the GPU. Only pinned memory is copied beside the step before."""
    if torch.is_tensor(ids):
        return ids
    return torch.from_numpy(ids).pin_memory().to(device, non_blocking=True)


def gather(tokens: torch.Tensor, ids: torch.Tensor, T: int) -> torch.Tensor:
    """Tokens [rT, rT + T] of each row r of `ids`, (len(ids), T + 1) int64."""
    window = ids[:, None] * T + torch.arange(T + 1, device=ids.device)
    return tokens[window].long() & 0xFFFF


# ---- the loss ----

def loss_wins(x: torch.Tensor) -> bool:
    """Whether FusedCrossEntropy is for `x` (N, D): in half precision on a GPU, and narrow enough for it."""
    return triton is not None and x.is_cuda and torch.is_autocast_enabled("cuda") and x.shape[1] <= 256


class FusedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(x w^T) in nats: x (N, D), w (V, D), targets (N,); -1 do not count.

    The N x V logits are made twice, tile by tile, and never leave the chip. The gradient of a row of x is its
    mean of the rows of w, by softmax, less the target's row: attention with the vocabulary for keys and
    values, and it comes with the loss (Dao et al. 2022). The second pass makes the gradient of w. Both are
    made in the forward pass, as in cpu.py, and backward scales them. Autograd does not tell forward that it
    is off: then leave `gradients` out.
    """
    @staticmethod
    def forward(ctx, x, w, targets, gradients=True):
        dtype = torch.get_autocast_dtype("cuda")
        D = x.shape[1]
        width = max(16, triton.next_power_of_2(D))            # of tiles; zeros add nothing to a product
        x16, w16 = (F.pad(y.to(dtype), (0, width - D)) for y in (x, w))
        lse, mean = softmax_means(x16, w16, gradients)
        counts = targets >= 0
        share = 1 / counts.sum()
        w_target = w16[targets.clamp(min=0)].float()
        losses = lse * math.log(2) - (x16.float() * w_target).sum(1)
        if gradients:
            dx = (mean - w_target).mul_(counts[:, None])
            # Where the target does not count, the softmax of the second pass shall be 0.
            dw = weight_gradient(x16, w16, targets, lse.masked_fill(~counts, math.inf))
            ctx.save_for_backward(dx[:, :D], dw[:, :D], share)
        return losses.mul_(counts).sum() * share

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        dx, dw, share = ctx.saved_tensors
        scale = dloss * share
        return dx * scale, dw * scale, None, None


def tiling(width: int) -> dict:
    """Rows and columns of a tile of logits and how to place it: the fastest of eight, on an H100."""
    if width <= 128:
        return dict(rows=64, columns=128, num_warps=4, num_stages=3)
    return dict(rows=128, columns=64, num_warps=8, num_stages=3)


def softmax_means(x, w, gradients: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of x: log2-sum-exp of its logits (N,), and mean of the rows of w, by softmax (N, width)."""
    N, width = x.shape
    lse = torch.empty(N, device=x.device)
    mean = torch.empty(N, width, device=x.device) if gradients else lse
    tile = tiling(width)
    rows_kernel[triton.cdiv(N, tile["rows"]),](x, w, lse, mean, N, len(w), gradients, width, **tile)
    return lse, mean


def weight_gradient(x, w, targets, lse) -> torch.Tensor:
    """(softmax - one-hot)^T x, (V, width)."""
    V, width = w.shape
    dw = torch.empty(V, width, device=x.device)
    targets = targets.int()
    tile = tiling(width)
    columns_kernel[triton.cdiv(V, tile["rows"]),](x, w, targets, lse, dw, len(x), V, width, **tile)
    return dw


if triton:
    LOG2E = tl.constexpr(1 / math.log(2))      # exp(x) = exp2(x LOG2E), and exp2 is what the hardware has

    @triton.jit
    def rows_kernel(x, w, lse, mean, N, V, gradients: tl.constexpr, width: tl.constexpr, rows: tl.constexpr,
                    columns: tl.constexpr):
        """A block of rows of x meets all of w; the softmax grows as in flash attention."""
        n = tl.program_id(0) * rows + tl.arange(0, rows)
        d = tl.arange(0, width)
        column = tl.arange(0, columns)
        x_tile = tl.load(x + n[:, None] * width + d, mask=(n < N)[:, None], other=0.0)
        top = tl.full([rows], -1e30, tl.float32)
        total = tl.zeros([rows], tl.float32)
        sums = tl.zeros([rows, width], tl.float32)
        for start in range(0, V, columns):
            v = start + column
            w_tile = tl.load(w + v[:, None] * width + d, mask=(v < V)[:, None], other=0.0)
            logits = tl.where(v < V, tl.dot(x_tile, tl.trans(w_tile)) * LOG2E, -1e30)
            new_top = tl.maximum(top, tl.max(logits, 1))
            fade = tl.exp2(top - new_top)
            exps = tl.exp2(logits - new_top[:, None])
            total = total * fade + tl.sum(exps, 1)
            if gradients:
                sums = tl.dot(exps.to(x_tile.dtype), w_tile, sums * fade[:, None])
            top = new_top
        tl.store(lse + n, top + tl.log2(total), mask=n < N)
        if gradients:
            tl.store(mean + n[:, None] * width + d, sums / total[:, None], mask=(n < N)[:, None])

    @triton.jit
    def columns_kernel(x, w, targets, lse, dw, N, V, width: tl.constexpr, rows: tl.constexpr,
                       columns: tl.constexpr):
        """A block of `rows` ids, rows of w, meets all of x."""
        v = tl.program_id(0) * rows + tl.arange(0, rows)
        d = tl.arange(0, width)
        column = tl.arange(0, columns)
        w_tile = tl.load(w + v[:, None] * width + d, mask=(v < V)[:, None], other=0.0)
        sums = tl.zeros([rows, width], tl.float32)
        for start in range(0, N, columns):
            n = start + column
            x_tile = tl.load(x + n[:, None] * width + d, mask=(n < N)[:, None], other=0.0)
            target = tl.load(targets + n, mask=n < N, other=-1)
            log_total = tl.load(lse + n, mask=n < N, other=float("inf"))
            p = tl.exp2(tl.dot(w_tile, tl.trans(x_tile)) * LOG2E - log_total)
            slope = p - (v[:, None] == target).to(tl.float32)
            sums = tl.dot(slope.to(x_tile.dtype), x_tile, sums)
        tl.store(dw + v[:, None] * width + d, sums, mask=(v < V)[:, None])


# ---- the step ----


def prefer_cudnn(c) -> None:
    """Have attention computed by cuDNN, faster than flash attention by a third at these widths of heads."""
    fits = (c.n_embd // c.n_head) % 8 == 0 and not c.dropout and c.dtype != "float32"
    torch.backends.cuda.enable_flash_sdp(not fits)     # PyTorch would ask it first


def graph_fits(run) -> bool:
    """Whether every step of `run` (train.Run) is the same work on the same GPU, with nothing from outside."""
    c = run.c
    alone = run.world == 1 and c.gradient_accumulation_steps == 1
    return alone and c.dtype != "float16" and run.data.resident is not None


def set_rate(group: dict, rate: float) -> None:
    """Set the learning rate of an optimizer's group, which StepGraph has made a tensor."""
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


class StepGraph:
    """A function of rows that trains, replayed on the GPU as one CUDA graph.

    The first calls run as they are, and count: they warm up what may not start inside a capture. Learning
    rates become tensors, for a graph keeps the numbers that it has seen and reads tensors anew.
    """
    WARM_UP = 3

    def __init__(self, function, optimizers: list, device: str):
        self.function = function
        self.optimizers = optimizers
        self.device = device
        self.calls = 0
        self.graph = None
        self.stream = torch.cuda.Stream()
        for group in self.groups():
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)

    def groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        rows = upload(rows, self.device)
        self.calls += 1
        if self.calls <= self.WARM_UP:
            return self.aside(rows)
        if self.graph is None:
            self.capture(rows)
        self.rows.copy_(rows)
        self.graph.replay()
        return self.result.clone()

    def aside(self, rows: torch.Tensor) -> torch.Tensor:
        """The function, run on a stream of its own, as captures are."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(rows)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def capture(self, rows: torch.Tensor) -> None:
        for group in self.groups():
            group["capturable"] = True                 # torch asks; before a capture it would warn
        self.rows = rows.clone()
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()                       # the graph brings a memory of its own
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.result = self.function(self.rows)
