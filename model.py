"""GPT-2 in one file: the model, its parameters by group, its FLOPs by part, its loss.

Names follow nanoGPT and GPT-2 (wte, wpe, h, c_attn, c_proj, c_fc, ln_f), so that weights copy across by name.
Shapes: B sequences, T tokens, D = n_embd, H = n_head, V = vocab_size. Loss is in nats per token.
"""
import functools
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclass
class GPTConfig:
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 64
    block_size: int = 128
    vocab_size: int = 50257
    dropout: float = 0.0
    bias: bool = False             # biases in the linear layers and LayerNorms, as GPT-2 has
    tie_weights: bool = True       # the head shares the token embedding's weights
    parametrization: str = "gpt2"  # or "mup": see GPT.init_weights
    base_width: int = 64           # n_embd at which mup and its learning rates were tuned


class LayerNorm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.c_attn = Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.n_head, self.dropout = c.n_head, c.dropout
        # muP scales attention by 1/d_head, not 1/sqrt(d_head) (Yang et al. 2022, def. 4.1); 4: equal at 16.
        d_head = c.n_embd // c.n_head
        self.scale = 4 / d_head if c.parametrization == "mup" else 1 / math.sqrt(d_head)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.n_head, D // self.n_head).transpose(1, 2)
                   for y in self.c_attn(x).split(D, dim=2))                      # each (B, H, T, D/H)
        if cache is not None:                                                    # keys and values so far
            if cache and T > 1:
                raise ValueError(f"{T} tokens at once on a filled cache would see their future: give one")
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(cache, (k, v))) if cache else (k, v)
            cache[:] = k, v
        dropout = self.dropout if self.training else 0.0
        if T >= 256 and T == k.shape[2] and not dropout and on_cpu(q) and onednn_pays():
            y = BlockedAttention.apply(q, k, v, self.scale)
        else:
            causal = T == k.shape[2] and T > 1
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=self.scale)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, D))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.c_fc = Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.c_proj = Linear(4 * c.n_embd, c.n_embd, bias=c.bias)
        self.dropout = c.dropout

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))                # GPT-2's GELU: the tanh form
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(c.n_embd, c.bias), CausalSelfAttention(c)
        self.ln_2, self.mlp = LayerNorm(c.n_embd, c.bias), MLP(c)

    def forward(self, x, cache=None):
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        assert c.n_embd % c.n_head == 0, f"n_embd {c.n_embd} is not divisible by n_head {c.n_head}"
        self.config = c
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(c.vocab_size, c.n_embd), wpe=nn.Embedding(c.block_size, c.n_embd),
            h=nn.ModuleList([Block(c) for _ in range(c.n_layer)]), ln_f=LayerNorm(c.n_embd, c.bias)))
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        if c.tie_weights:
            self.lm_head.weight = self.transformer.wte.weight
        self.width_ratio = c.n_embd / c.base_width if c.parametrization == "mup" else 1.0
        self.init_weights()

    def init_weights(self):
        """GPT-2: std .02 everywhere. muP: Yang et al. 2022, table 8 (Adam), with tied embeddings.

        | muP          | init std           | learning rate  | forward             |
        |--------------|--------------------|----------------|---------------------|
        | embeddings   | .1                 | lr             |                     |
        | hidden       | 1/sqrt(fan_in)     | lr/width_ratio | attention 4/d_head  |
        | head (tied)  | .1                 | lr             | logits /width_ratio |

        Both: projections into the residual stream are divided by sqrt(2 n_layer) (Radford et al. 2019).
        """
        mup = self.config.parametrization == "mup"
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue                                      # LayerNorm gains stay 1, biases 0
            hidden = name.startswith("transformer.h.")
            std = (1 / math.sqrt(p.shape[1]) if hidden else 0.1) if mup else 0.02
            depth = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 1.0
            nn.init.normal_(p, std=std / depth)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, idx, targets=None, cache=None):
        """idx (B, T) int64 -> (logits (B, T, V), None), or with targets (B, T) -> (None, mean loss in nats).

        Targets of -1 do not count. `cache` is a list of n_layer lists, empty at first, that holds keys and
        values while sampling.
        """
        past = cache[0][0].shape[2] if cache and cache[0] else 0
        position = torch.arange(past, past + idx.shape[1], device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(position)
        x = F.dropout(x, self.config.dropout, self.training)
        for i, block in enumerate(self.transformer.h):
            x = block(x, cache[i] if cache is not None else None)
        x = self.transformer.ln_f(x)
        if self.width_ratio != 1.0:
            x = x / self.width_ratio
        if targets is None:
            return self.lm_head(x), None
        x, targets = x.flatten(0, 1), targets.flatten()
        if self.config.vocab_size >= 1024 and on_cpu(x):
            return None, BlockedCrossEntropy.apply(x, self.lm_head.weight, targets, torch.is_grad_enabled())
        logits = self.lm_head(x).float()                      # the softmax is always float32
        return None, F.cross_entropy(logits, targets, ignore_index=-1)

    def count_params(self) -> dict:
        """Parameters by group. `head` is what works in the head, V x D; tied, `total` counts it once."""
        groups = dict(token_embedding=self.transformer.wte.weight.numel(),
                      position_embedding=self.transformer.wpe.weight.numel(), attention=0, mlp=0, norms=0)
        for name, p in self.transformer.named_parameters():
            kind = "norms" if "ln_" in name else "attention" if ".attn." in name else "mlp"
            groups[kind] += p.numel() if not name.startswith(("wte", "wpe")) else 0
        groups["non_embedding"] = groups["attention"] + groups["mlp"] + groups["norms"]
        groups["head"] = self.lm_head.weight.numel()
        groups["total"] = sum(p.numel() for p in self.parameters())
        return groups

    def flops_per_token(self) -> dict:
        """FLOPs per trained token by part: each matmul, forward (2 per multiply-add) and backward (twice it).

        Attention is counted as the full T x T square, as torch.utils.flop_counter counts it; a causal kernel
        executes about half of `scores`. LayerNorm, softmax, GELU and embedding look-ups are not matmuls.
        """
        c = self.config
        attention, mlp = 4 * c.n_embd ** 2, 8 * c.n_embd ** 2
        parts = dict(attention=6 * c.n_layer * attention, scores=12 * c.n_layer * c.block_size * c.n_embd,
                     mlp=6 * c.n_layer * mlp, head=6 * c.n_embd * c.vocab_size)
        return parts | dict(total=sum(parts.values()))

    def optimizer_groups(self, weight_decay: float) -> list[dict]:
        """AdamW groups: matrices decay, vectors do not; `lr_scale` multiplies the scheduled learning rate.

        Under muP hidden matrices learn at lr/width_ratio, and their decay per step stays what it was.
        """
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        hidden = [p for n, p in named if p.dim() >= 2 and n.startswith("transformer.h.")]
        tables = [p for n, p in named if p.dim() >= 2 and not n.startswith("transformer.h.")]
        vectors = [p for n, p in named if p.dim() < 2]
        ratio = self.width_ratio
        return [dict(params=hidden, weight_decay=weight_decay * ratio, lr_scale=1 / ratio),
                dict(params=tables, weight_decay=weight_decay, lr_scale=1.0),
                dict(params=vectors, weight_decay=0.0, lr_scale=1.0)]


# ---------------------------------------------------------------- the same, faster on CPU (scaling/LOG.md)


LOG2E = 1 / math.log(2)        # exp(x) = exp2(x LOG2E), and torch.exp2 can be four times as fast as torch.exp


def on_cpu(x: torch.Tensor) -> bool:
    """Whether `x` is for the kernels below: they do their own arithmetic, so not under autocast."""
    return x.is_cpu and not torch.is_autocast_enabled("cpu")


@functools.cache
def onednn_pays() -> bool:
    """Whether oneDNN's matmuls are worth having here: the CPU has AVX-512, and they are true float32.

    PyTorch takes float32 matmuls to MKL, which uses only AVX2 on AMD: half the speed. At precision "medium"
    it takes them to oneDNN, which computes in float32 all the same, except with AMX, where it rounds to
    bfloat16.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    a, before = torch.arange(65536.0).view(256, 256) % 251 / 251, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = a @ a - a.double() @ a.double()
    torch.set_float32_matmul_precision(before)
    return error.abs().max().item() < 1e-3                   # of values near 70; bfloat16 would be off by .07


def onednn_matmul(function):
    """`function` with its matmuls taken to oneDNN, where that pays."""
    @functools.wraps(function)
    def wrapped(*args):
        if not onednn_pays():
            return function(*args)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            return function(*args)
        finally:
            torch.set_float32_matmul_precision(before)
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
        return dy @ w, rows.T @ x.flatten(0, -2), rows.sum(0) if ctx.needs_input_grad[2] else None


class BlockedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(x w^T) in nats: x (N, D), w (V, D), targets (N,); -1 do not count.

    F.cross_entropy(x @ w.T, targets, ignore_index=-1) without its N x V logits: they live for ROWS tokens at
    a time, in blocks of COLUMNS that fit the cache. The gradients are made in the forward pass, while
    exp(logits) is at hand, and backward scales them. Autograd does not tell forward that it is off: then
    leave `gradients` out.
    """
    ROWS, COLUMNS = 512, 2048

    @staticmethod
    @onednn_matmul
    def forward(ctx, x, w, targets, gradients=True):
        rows, columns = BlockedCrossEntropy.ROWS, BlockedCrossEntropy.COLUMNS
        weights = (targets != -1).to(x.dtype)[:, None]
        weights /= weights.sum()                              # the share of each token in the mean
        dx, dw = (torch.empty_like(x), torch.zeros_like(w)) if gradients else (x, w)
        loss = x.new_zeros(())
        blocks = (y.split(rows) for y in (x, targets.clamp(min=0), weights, dx))
        for x_b, t_b, weight, dx_b in zip(*blocks):
            exps, tops, sums = [], [], []
            for w_b in w.split(columns):
                e = (x_b * LOG2E) @ w_b.T                     # logits in base 2
                tops.append(e.amax(1, keepdim=True))
                sums.append(e.sub_(tops[-1]).exp2_().sum(1, keepdim=True))
                exps.append(e if gradients else None)
            tops = torch.cat(tops, 1)                         # (rows, blocks), as are the sums
            top = tops.amax(1, keepdim=True)
            lse = top + (torch.cat(sums, 1) * (tops - top).exp2_()).sum(1, keepdim=True).log2_()
            w_t = w[t_b]
            loss += (weight * (lse / LOG2E - (x_b * w_t).sum(1, keepdim=True))).sum()
            if gradients:                                     # d loss / d logits = weight (softmax - one-hot)
                scales = weight * (tops - lse).exp2_()
                dx_b.copy_(w_t.mul_(-weight))
                dw.index_add_(0, t_b, x_b * -weight)
                scales = scales.split(1, dim=1)
                for e, s, w_b, dw_b in zip(exps, scales, w.split(columns), dw.split(columns)):
                    dx_b.addcmul_(e @ w_b, s)
                    dw_b.addmm_(e.T, x_b * s)
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        dx, dw = ctx.saved_tensors
        return (dx, dw, None, None) if dloss == 1 else (dx * dloss, dw * dloss, None, None)


class BlockedAttention(torch.autograd.Function):
    """Causal softmax(scale q k^T) v; q, k, v (B, H, T, d) -> (B, H, T, d). Dao et al. 2022, algorithms 2, 4.

    Blocks of 64 queries meet all keys up to their own. Of the T x T scores only the log-sum-exp is kept.
    """
    @staticmethod
    def exp_scores(q, k, i, lse=None):
        """exp(scores) of the queries from i on, and lse, in base 2; by default lse is each row's maximum."""
        e = q[:, i:i + 64] @ k[:, :i + 64].transpose(1, 2)
        e[:, :, i:] += torch.full_like(e[0, :, i:], -math.inf).triu_(1)
        lse = e.amax(2, keepdim=True) if lse is None else lse
        return e.sub_(lse).exp2_(), lse

    @staticmethod
    @onednn_matmul
    def forward(ctx, q, k, v, scale):
        shape, (q, k, v) = q.shape, (y.flatten(0, 1) for y in (q * (scale * LOG2E), k, v))
        y, lse = torch.empty_like(q), torch.empty_like(q[:, :, :1])
        for i in range(0, q.shape[1], 64):
            e, top = BlockedAttention.exp_scores(q, k, i)
            total = e.sum(2, keepdim=True)
            y[:, i:i + 64] = (e @ v[:, :i + 64]) / total
            lse[:, i:i + 64] = total.log2_() + top
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, y, lse)
        return y.view(shape)

    @staticmethod
    @once_differentiable
    @onednn_matmul
    def backward(ctx, dy):
        q, k, v, y, lse = ctx.saved_tensors
        shape, dy = dy.shape, dy.reshape(y.shape)
        dq, dk, dv = (torch.zeros_like(y) for _ in range(3))
        delta = (dy * y).sum(2, keepdim=True)
        for i in range(0, q.shape[1], 64):
            rows, past = slice(i, i + 64), slice(0, i + 64)
            p, _ = BlockedAttention.exp_scores(q, k, i, lse[:, rows])
            dv[:, past] += p.transpose(1, 2) @ dy[:, rows]
            p *= (dy[:, rows] @ v[:, past].transpose(1, 2)).sub_(delta[:, rows])    # now d loss / d scores
            dq[:, rows] = p @ k[:, past]
            dk[:, past] += p.transpose(1, 2) @ q[:, rows]
        return (dq * ctx.scale).view(shape), (dk / LOG2E).view(shape), dv.view(shape), None
