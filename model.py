"""GPT-2 in one file: the model, its parameters by group, its FLOPs by part, its loss.

Names follow nanoGPT and GPT-2 (wte, wpe, h, c_attn, c_proj, c_fc, ln_f), so that weights copy across by name.
Shapes: B sequences, T tokens, D = n_embd, H = n_head, V = vocab_size. Loss is in nats per token.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
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
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.n_head, self.dropout = c.n_head, c.dropout
        # muP scales attention by 1/d_head, not 1/sqrt(d_head) (Yang et al. 2022, def. 4.1); 4 makes them agree at 16.
        d_head = c.n_embd // c.n_head
        self.scale = 4 / d_head if c.parametrization == "mup" else 1 / math.sqrt(d_head)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.n_head, D // self.n_head).transpose(1, 2)
                   for y in self.c_attn(x).split(D, dim=2))                      # each (B, H, T, D/H)
        if cache is not None:                                                    # sampling: keys and values so far
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(cache, (k, v))) if cache else (k, v)
            cache[:] = k, v
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0,
                                           is_causal=T == k.shape[2] and T > 1, scale=self.scale)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, D))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)
        self.dropout = c.dropout

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))                # GPT-2's GELU is the tanh form
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

        `cache` is a list of n_layer lists, empty at first, that holds keys and values while sampling.
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
        logits = self.lm_head(x).float()                      # the softmax is always float32
        return None, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def count_params(self) -> dict:
        """Parameters by group. `head` is what works in the head, V x D; tied, it is not added to `total` again."""
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
        """FLOPs per trained token by part: every matmul, forward (2 per multiply-add) and backward (twice that).

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
