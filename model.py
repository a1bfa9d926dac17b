"""GPT-2 in one file: the blocks, the initialisation, the forward pass, which weight learns and decays how.

Names follow nanoGPT and GPT-2 (wte, wpe, h, c_attn, c_proj, c_fc, ln_f), so that weights copy across by name.
Shapes: B sequences, T tokens, D = n_embd, H = n_head, V = vocab_size. The loss is in nats per token. How many
parameters and FLOPs such a model has is arithmetic on its settings: count_params and count_flops in
config/settings.py. What stands behind `cpu.` gives the same numbers as plain PyTorch, faster on CPU.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from config.settings import Config, mlp_widths
from runtime import cpu, gpu

# ---- the parts ----


class LayerNorm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


def new_norm(c: Config) -> nn.Module:
    """LayerNorm, or RMSNorm (Zhang & Sennrich 2019), which subtracts no mean and adds no bias."""
    if c.norm == "rms":
        return nn.RMSNorm(c.n_embd, eps=1e-5)
    return LayerNorm(c.n_embd, c.bias)


class CausalSelfAttention(nn.Module):
    """Each token looks at itself and at those before it, with H heads of D/H numbers."""

    def __init__(self, c: Config):
        super().__init__()
        # Queries, keys and values of all heads in one product: three small ones would take longer.
        self.c_attn = cpu.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = cpu.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.n_head = c.n_head
        self.dropout = c.dropout
        self.rope = c.position == "rope"
        d_head = c.n_embd // c.n_head
        if self.rope:
            # RoPE (Su et al. 2021, eq. 34): pair i turns by position / 10000^(2i/d_head), from fast to slow.
            angle = torch.arange(c.block_size)[:, None] / 10000 ** (torch.arange(0, d_head, 2) / d_head)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)
        # Queries and keys of one length each, up to a learned gain: their product cannot run away.
        self.ln_q = nn.RMSNorm(d_head, eps=1e-5) if c.qk_norm else nn.Identity()
        self.ln_k = nn.RMSNorm(d_head, eps=1e-5) if c.qk_norm else nn.Identity()
        self.scale = 1 / math.sqrt(d_head)
        if c.parametrization != "gpt2":
            # muP wants 1/d_head: trained queries and keys align, so that q.k grows as d_head, not as its root
            # (Yang et al. 2022, definition 4.1). The 4 makes both scales equal at d_head 16.
            self.scale = 4 / d_head

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.c_attn(x).split(D, dim=2)
        heads = B, T, self.n_head, D // self.n_head
        q, k, v = (y.view(heads).transpose(1, 2) for y in (q, k, v))      # each (B, H, T, D/H)
        q = self.ln_q(q)
        k = self.ln_k(k)
        if self.rope:
            past = cache[0].shape[2] if cache else 0
            angles = self.cos[past:past + T], self.sin[past:past + T]
            q = rotate(q, *angles)
            k = rotate(k, *angles)                            # the cache keeps them turned
        if cache is not None:
            k, v = remember(cache, k, v)
        dropout = self.dropout if self.training else 0.0
        # Either way softmax(scale q k^T) v is computed without keeping the T x T matrix.
        if cpu.attention_wins(q, k, dropout):
            y = cpu.BlockedAttention.apply(q, k, v, self.scale)
        else:
            # A single new token may look at everything in the cache: nothing there is its future.
            causal = T > 1
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=self.scale)
        y = y.transpose(1, 2).reshape(B, T, D)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def rotate(x, cos, sin):
    """x (B, H, T, d) with pairs of its numbers, i and i + d/2, turned by the angles of cos, sin (T, d/2).

    The product of a turned query and key depends on how far apart they stand, not on where.
    """
    a, b = x.chunk(2, dim=3)
    cos = cos.to(x.dtype)
    sin = sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3)


def remember(cache: list, k, v):
    """Keys and values so far and these, (B, H, past + T, D/H); `cache` holds them from now on."""
    if cache:
        # The mask that hides the future is square, so several new tokens would need another one.
        if k.shape[2] > 1:
            raise ValueError(f"{k.shape[2]} tokens at once on a filled cache would see their future: "
                             "give one")
        k = torch.cat([cache[0], k], dim=2)
        v = torch.cat([cache[1], v], dim=2)
    cache[:] = k, v
    return k, v


class MLP(nn.Module):
    """Two matrices with a non-linearity between them: two thirds of a block's parameters."""

    def __init__(self, c: Config):
        super().__init__()
        into, out = mlp_widths(c)
        self.kind = c.mlp
        self.c_fc = cpu.Linear(c.n_embd, into, bias=c.bias)
        self.c_proj = cpu.Linear(out, c.n_embd, bias=c.bias)
        self.dropout = c.dropout

    def forward(self, x):
        x = self.c_fc(x)
        if self.kind == "gelu":
            x = cpu.gelu(x)                                   # with tanh: GPT-2 was trained with that form
        elif self.kind == "relu2":
            x = F.relu(x).square()                            # So et al. 2021
        else:
            gate, x = x.chunk(2, dim=2)                       # SwiGLU: Shazeer 2020, eq. 6
            x = F.silu(gate) * x
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    """Attention moves information between tokens, the MLP works on each; both add to the residual stream."""

    def __init__(self, c: Config):
        super().__init__()
        self.ln_1 = new_norm(c)
        self.attn = CausalSelfAttention(c)
        self.ln_2 = new_norm(c)
        self.mlp = MLP(c)
        # CompleteP: what a block adds shrinks with depth, so that each layer of a deep model learns as much.
        self.share = c.base_depth / c.n_layer if c.parametrization == "completep" else 1.0

    def forward(self, x, cache=None):
        # The norms stand before what they feed (GPT-2), not after (the first transformer): so the stream
        # itself is never rescaled, and gradients reach the first block undiminished.
        if self.share == 1.0:
            x = x + self.attn(self.ln_1(x), cache)
            return x + self.mlp(self.ln_2(x))
        x = x + self.share * self.attn(self.ln_1(x), cache)
        return x + self.share * self.mlp(self.ln_2(x))


# ---- the model ----


class GPT(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        assert c.n_embd % c.n_head == 0, f"n_embd {c.n_embd} is not divisible by n_head {c.n_head}"
        self.config = c
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(c.vocab_size, c.n_embd),
            wpe=nn.Embedding(c.block_size, c.n_embd) if c.position == "learned" else None,
            h=nn.ModuleList([Block(c) for _ in range(c.n_layer)]),
            ln_f=new_norm(c)))
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        if c.tie_weights:
            # What a token looks like and what predicts it share a matrix (Press & Wolf 2017): in small models
            # it is most of the parameters.
            self.lm_head.weight = self.transformer.wte.weight
        # By how much the model is wider than the one whose learning rate was tuned.
        self.width_ratio = c.n_embd / c.base_width if c.parametrization != "gpt2" else 1.0
        self.init_weights()

    def init_weights(self):
        """GPT-2: std .02. muP: Yang et al. 2022, table 8 (Adam), tied embeddings. Both: c_proj is smaller.

        | muP          | init std           | learning rate  | forward             |
        |--------------|--------------------|----------------|---------------------|
        | embeddings   | .1                 | lr             |                     |
        | hidden       | 1/sqrt(fan_in)     | lr/width_ratio | attention 4/d_head  |
        | head (tied)  | .1                 | lr             | logits /width_ratio |

        CompleteP is muP with blocks scaled by base_depth/n_layer (Dey et al. 2025, table 1, alpha 1): at
        base_depth they are the same.
        """
        c = self.config
        mup = c.parametrization != "gpt2"
        depth = c.base_depth if c.parametrization == "completep" else c.n_layer
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue                                      # LayerNorm gains stay 1
            std = 0.02
            if mup:
                std = 1 / math.sqrt(p.shape[1]) if is_hidden(name) else 0.1
            if name.endswith("c_proj.weight"):
                # 2 n_layer of these add to the residual stream, whose variance must not grow with depth
                # (Radford et al. 2019, section 2.3).
                std /= math.sqrt(2 * depth)
            nn.init.normal_(p, std=std)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, idx, targets=None, cache=None):
        """idx (B, T) int64 -> (logits (B, T, V), None), or with targets (B, T) -> (None, mean loss in nats).

        Targets of -1 do not count. `cache` is a list of n_layer lists, empty at first, that holds keys and
        values while sampling.
        """
        # While sampling, `idx` is first the prompt, then one token at a time behind the `past` ones.
        past = cache[0][0].shape[2] if cache and cache[0] else 0
        x = self.transformer.wte(idx)
        if self.config.position == "learned":
            x = x + self.transformer.wpe(torch.arange(past, past + idx.shape[1], device=idx.device))
        x = F.dropout(x, self.config.dropout, self.training)
        for i, block in enumerate(self.transformer.h):
            x = block(x, cache[i] if cache is not None else None)
        x = self.transformer.ln_f(x)
        if self.width_ratio != 1.0:
            x = x / self.width_ratio                          # muP: the logits of a wider model must not grow
        if targets is None:
            return self.lm_head(x), None
        # With GPT-2's vocabulary the logits are the largest array of all: these two never have them whole.
        x = x.flatten(0, 1)
        targets = targets.flatten()
        wanted = torch.is_grad_enabled()
        if cpu.loss_wins(x, self.config.vocab_size):
            return None, cpu.BlockedCrossEntropy.apply(x, self.lm_head.weight, targets, wanted)
        if gpu.loss_wins(x):
            return None, gpu.FusedCrossEntropy.apply(x, self.lm_head.weight, targets, wanted)
        return None, self.logits_loss(x, targets)

    def logits_loss(self, x, targets):
        """Mean loss of x (N, D), targets (N,), with all logits at once."""
        logits = self.lm_head(x).float()                      # the softmax is float32, whatever autocast says
        return F.cross_entropy(logits, targets, ignore_index=-1)

    def count_params(self) -> dict:
        """Parameters by group, counted on the model itself; settings.count_params says it beforehand."""
        groups = dict(token_embedding=self.transformer.wte.weight.numel(), position_embedding=0,
                      attention=0, mlp=0, norms=0)
        for name, p in self.transformer.named_parameters():
            if name.startswith("wpe"):
                groups["position_embedding"] += p.numel()
            elif "ln_" in name:
                groups["norms"] += p.numel()
            elif ".attn." in name:
                groups["attention"] += p.numel()
            elif ".mlp." in name:
                groups["mlp"] += p.numel()
        groups["non_embedding"] = groups["attention"] + groups["mlp"] + groups["norms"]
        groups["head"] = self.lm_head.weight.numel()
        groups["total"] = sum(p.numel() for p in self.parameters())
        return groups

    def optimizer_groups(self, weight_decay: float) -> list[dict]:
        """The blocks' matrices, the tables of the vocabulary, and vectors, each with its rate and decay.

        `lr_scale` multiplies the scheduled learning rate. Under muP hidden matrices learn at lr/width_ratio.
        AdamW's decay per step is rate times weight_decay: so the latter is multiplied by the ratio, and the
        decay stays what it was. The first group is Muon's, where that is on.
        """
        c = self.config
        hidden, tables, vectors = [], [], []
        for name, p in self.named_parameters():
            # Decay pulls towards 0, which for a gain or a bias is no simpler than another value.
            if p.dim() < 2:
                vectors.append(p)
            elif is_hidden(name):
                hidden.append(p)
            else:
                tables.append(p)
        ratio = self.width_ratio
        eps = eps_blocks = 1e-8
        if c.parametrization == "completep":                  # gradients of wide and deep models are smaller
            eps /= ratio
            eps_blocks = eps * c.base_depth / c.n_layer
        blocks = dict(params=hidden, weight_decay=weight_decay * ratio, lr_scale=1 / ratio, eps=eps_blocks)
        if c.optimizer == "muon":
            # Its step has all singular values near 1, whatever the width: no ratio.
            blocks = dict(params=hidden, weight_decay=weight_decay * c.muon_decay, lr_scale=c.muon_rate)
        return [blocks,
                dict(params=tables, weight_decay=weight_decay, lr_scale=1.0, eps=eps),
                dict(params=vectors, weight_decay=0.0, lr_scale=1.0, eps=eps_blocks)]


def is_hidden(name: str) -> bool:
    """Whether a weight maps width to width (a block's), and not between the vocabulary and the width."""
    return name.startswith("transformer.h.")
