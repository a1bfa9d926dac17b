"""The same numbers as plain PyTorch, faster on CPU: linear layers, loss, attention, AdamW, clipping.

What each gains, and what was tried without gain, is in scaling/LOG.md; `scaling.bench` measures it. model.py
and train.py call these where they win, and read as well without them.
"""
import functools
import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LOG2E = 1 / math.log(2)        # exp(x) = exp2(x LOG2E), and torch.exp2 can be four times as fast as torch.exp


def on_cpu(x: torch.Tensor) -> bool:
    """Whether `x` is for the kernels below: they do their own arithmetic, so not under autocast."""
    return x.is_cpu and not torch.is_autocast_enabled("cpu")


def attention_wins(q: torch.Tensor, k: torch.Tensor, dropout: float) -> bool:
    """Whether BlockedAttention is the faster: a long causal square, no dropout, oneDNN or narrow heads."""
    T = q.shape[2]
    if T < 256 or T != k.shape[2] or dropout or not on_cpu(q):
        return False
    return q.shape[3] < NARROW or onednn_pays()


def loss_wins(x: torch.Tensor, vocab_size: int) -> bool:
    """Whether BlockedCrossEntropy is the faster: on CPU, with enough logits to fall out of the cache."""
    return vocab_size >= 1024 and on_cpu(x)


@functools.cache
def onednn_pays() -> bool:
    """Whether oneDNN's matmuls are worth having here: the CPU has AVX-512, and they are true float32.

    PyTorch takes float32 matmuls to MKL, which uses only AVX2 on AMD: half the speed. At precision "medium"
    it takes them to oneDNN, which computes in float32 all the same, except with AMX, where it rounds to
    bfloat16.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    a = torch.arange(65536.0).view(256, 256) % 251 / 251
    error = at_medium(torch.mm, a, a) - a.double() @ a.double()
    return error.abs().max().item() < 1e-3                   # of values near 70; bfloat16 would be off by .07


def at_medium(function, *args):
    """function(*args) at matmul precision "medium", which is put back: on GPUs it would bring TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return function(*args)
    finally:
        torch.set_float32_matmul_precision(before)


def onednn_matmul(function):
    """`function` with its matmuls taken to oneDNN, where that pays."""
    @functools.wraps(function)
    def wrapped(*args):
        if onednn_pays():
            return at_medium(function, *args)
        return function(*args)
    return wrapped


class Linear(nn.Linear):
    """nn.Linear through oneDNN, where the matrix is wide enough to repay oneDNN's longer calls."""

    def forward(self, x):
        if min(self.in_features, self.out_features) >= 48 and on_cpu(x) and onednn_pays():
            return LinearFunction.apply(x, self.weight, self.bias)
        return super().forward(x)


class LinearFunction(torch.autograd.Function):
    @staticmethod
    @onednn_matmul
    def forward(ctx, x, w, bias):
        ctx.save_for_backward(x, w)
        return F.linear(x, w, bias)

    @staticmethod
    @once_differentiable
    @onednn_matmul
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        rows = dy.flatten(0, -2)
        dbias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return dy @ w, rows.T @ x.flatten(0, -2), dbias


ROWS = 512                     # tokens whose logits live at a time
COLUMNS = 2048                 # ids a block, so that a block's logits fit the cache


class BlockedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(x w^T) in nats: x (N, D), w (V, D), targets (N,); -1 do not count.

    F.cross_entropy(x @ w.T, targets, ignore_index=-1) without its N x V logits: they live for ROWS tokens at
    a time, in blocks of COLUMNS. The gradients are made in the forward pass, while exp(logits) is at hand,
    and backward scales them. Autograd does not tell forward that it is off: then leave `gradients` out.
    """
    @staticmethod
    @onednn_matmul
    def forward(ctx, x, w, targets, gradients=True):
        shares = (targets != -1).to(x.dtype)[:, None]
        shares /= shares.sum()                                # of each token in the mean
        targets = targets.clamp(min=0)                        # -1 is no index; its share is 0
        dx = torch.empty_like(x) if gradients else x          # without gradients nobody looks at these two
        dw = torch.zeros_like(w) if gradients else w
        loss = x.new_zeros(())
        rows = (y.split(ROWS) for y in (x, targets, shares, dx))
        for x_b, target, share, dx_b in zip(*rows):
            exps, tops, lse = exp_logits(x_b, w, gradients)
            w_target = w[target]
            loss += (share * (lse / LOG2E - (x_b * w_target).sum(1, keepdim=True))).sum()
            if gradients:
                # d loss / d logits = share (softmax - one-hot). First the one-hot, which is rows of w and x;
                # then the softmax by blocks: it is exps 2^(tops - lse), and these factors go to one column.
                dx_b.copy_(w_target.mul_(-share))
                dw.index_add_(0, target, x_b * -share)
                factors = (share * (tops - lse).exp2_()).split(1, dim=1)
                for e, factor, w_b, dw_b in zip(exps, factors, w.split(COLUMNS), dw.split(COLUMNS)):
                    dx_b.addcmul_(e @ w_b, factor)
                    dw_b.addmm_(e.T, x_b * factor)
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        dx, dw = ctx.saved_tensors
        if dloss != 1:
            dx = dx * dloss
            dw = dw * dloss
        return dx, dw, None, None


def exp_logits(x: torch.Tensor, w: torch.Tensor, keep: bool) -> tuple:
    """exp(x w^T - tops) as a list of blocks of columns, `tops` (N, blocks), and log-sum-exp (N, 1).

    Each block is less its own maximum, its column of `tops`, so that nothing overflows. All logarithms are of
    base 2. The blocks are None unless they are to be kept.
    """
    exps, tops, sums = [], [], []
    x = x * LOG2E
    for w_b in w.split(COLUMNS):
        e = x @ w_b.T
        tops.append(e.amax(1, keepdim=True))
        e.sub_(tops[-1]).exp2_()
        sums.append(e.sum(1, keepdim=True))
        exps.append(e if keep else None)
    tops = torch.cat(tops, 1)
    top = tops.amax(1, keepdim=True)
    total = (torch.cat(sums, 1) * (tops - top).exp2_()).sum(1, keepdim=True)
    return exps, tops, top + total.log2_()


NARROW = 16                    # where a product has fewer columns, MKL is slow


class BlockedAttention(torch.autograd.Function):
    """Causal softmax(scale q k^T) v; q, k, v (B, H, T, d) -> (B, H, T, d). Dao et al. 2022, algorithms 2, 4.

    Blocks of 64 queries meet all keys up to their own. Of the T x T scores only the log-sum-exp of each row
    is kept, in base 2, from which the backward pass makes the softmax again.
    """
    @staticmethod
    @onednn_matmul
    def forward(ctx, q, k, v, scale):
        shape = q.shape
        q = (q * (scale * LOG2E)).flatten(0, 1)
        k = k.flatten(0, 1)
        v = v.flatten(0, 1)
        y = torch.empty_like(q)
        lse = torch.empty_like(q[:, :, :1])
        for i in range(0, q.shape[1], 64):
            rows = slice(i, i + 64)
            past = slice(0, i + 64)
            scores = causal_scores(q[:, rows], k[:, past])
            top = scores.amax(2, keepdim=True)
            e = scores.sub_(top).exp2_()
            total = e.sum(2, keepdim=True)
            y[:, rows] = narrow_product(e, v[:, past]) / total
            lse[:, rows] = total.log2_() + top
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, y, lse)
        return y.view(shape)

    @staticmethod
    @once_differentiable
    @onednn_matmul
    def backward(ctx, dy):
        q, k, v, y, lse = ctx.saved_tensors
        shape = dy.shape
        dy = dy.reshape(y.shape)
        dq = torch.zeros_like(q)
        dk = torch.zeros_like(k)
        dv = torch.zeros_like(v)
        delta = (dy * y).sum(2, keepdim=True)
        for i in range(0, q.shape[1], 64):
            rows = slice(i, i + 64)
            past = slice(0, i + 64)
            p = causal_scores(q[:, rows], k[:, past]).sub_(lse[:, rows]).exp2_()    # the softmax
            dv[:, past] += narrow_product(p.transpose(1, 2), dy[:, rows])
            p *= (dy[:, rows] @ v[:, past].transpose(1, 2)).sub_(delta[:, rows])    # now d loss / d scores
            dq[:, rows] = narrow_product(p, k[:, past])
            dk[:, past] += narrow_product(p.transpose(1, 2), q[:, rows])
        # q came scaled by scale log2(e), while d loss / d scores is of natural logarithms.
        return (dq * ctx.scale).view(shape), (dk / LOG2E).view(shape), dv.view(shape), None


def causal_scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """q k^T of a block of queries and all keys up to the block's last; what lies in the future is -inf."""
    scores = q @ k.transpose(1, 2)
    own = scores[:, :, -q.shape[1]:]                          # the block's own keys: only there is a future
    own += torch.full_like(own[0], -math.inf).triu_(1)
    return scores


def narrow_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in batches: where b is narrow, turned, which takes MKL down to a quarter of the time."""
    if b.shape[2] < NARROW:
        return (b.transpose(1, 2) @ a.transpose(1, 2)).transpose(1, 2)
    return a @ b


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in the form with tanh, which GPT-2 was trained with."""
    if on_cpu(x) and x.numel() >= 2 ** 15:                    # of less Python would take what it saves
        return Gelu.apply(x)
    return F.gelu(x, approximate="tanh")


class Gelu(torch.autograd.Function):
    """x (1 + tanh u) / 2, u = sqrt(2/pi) (x + .044715 x^3), as x sigmoid(2u): PyTorch's tanh is slow."""

    @staticmethod
    def forward(ctx, x):
        rate = 2 * math.sqrt(2 / math.pi)
        square = x * x
        share = torch.addcmul(x, x, square, value=0.044715).mul_(rate).sigmoid_()
        y = x * share
        if ctx.needs_input_grad[0]:
            # The derivative, share + y (1 - share) (2u)', of what is at hand now.
            slope = torch.addcmul(y, y, share, value=-1)
            slope.addcmul_(slope, square, value=3 * 0.044715)
            ctx.save_for_backward(share.add_(slope, alpha=rate))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        slope, = ctx.saved_tensors
        return dy * slope


class FusedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW(fused=True) less the Python around its kernel, 6 % of a small step on CPU."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.listed = None                             # the state that `lists` are of
        # GradScaler would hand over `found_inf` for torch's own step to obey; so it leaves such a step out.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self) -> None:
        if self.listed is not self.state:              # at the start, and after load_state_dict
            super().step()
            self.lists = [self.state_lists(group["params"]) for group in self.param_groups]
            self.listed = self.state
            return
        for group, (m, v, steps) in zip(self.param_groups, self.lists):
            gradients = [p.grad for p in group["params"]]
            beta1, beta2 = group["betas"]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(group["params"], gradients, m, v, [], steps, lr=group["lr"], beta1=beta1,
                                beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                                amsgrad=False, maximize=False)

    step.hooked = True                                 # torch would wrap it for its profiler: half the gain

    def state_lists(self, params: list) -> list[list]:
        """Both moments and the step count of each of `params`, as the kernel wants them."""
        return [[self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step")]


class Muon(torch.optim.Muon):
    """torch.optim.Muon with its products in float32, those of all matrices of one shape at once.

    torch's are in bfloat16, one by one: at width 64 that took 4.6 times a step of AdamW on a CPU without
    bfloat16, and this takes 1.3 times.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for shape in {p.shape: None for p in group["params"]}:
                self.step_shape(group, [p for p in group["params"] if p.shape == shape])

    def step_shape(self, group: dict, params: list) -> None:
        """One step of `params`, which have one shape."""
        gradients = [p.grad for p in params]
        averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])      # Nesterov's
        rows, columns = params[0].shape
        rate = group["lr"] * math.sqrt(max(1, rows / columns))        # perhaps a tensor: gpu.StepGraph
        steps = orthogonalized(torch.stack(ahead), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(params, (steps * rate).unbind())


def orthogonalized(x: torch.Tensor, coefficients: tuple, rounds: int, eps: float) -> torch.Tensor:
    """Matrices x (n, rows, columns) with all singular values brought near 1, by Newton and Schulz.

    Jordan et al. 2024, as in torch.optim.Muon: each round takes X to a X + b (X X^T) X + c (X X^T)^2 X.
    """
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)                                 # the smaller side makes the smaller squares
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    a, b, c = coefficients
    for _ in range(rounds):
        square = x @ x.transpose(1, 2)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x.transpose(1, 2) if tall else x


def clip(weights: list, max_norm: float) -> torch.Tensor:
    """torch.nn.utils.clip_grad_norm_, bit for bit, at half the calls. Returns the norm before."""
    gradients = [p.grad for p in weights]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1))
    return norm
