"""What a run is: every setting, what it may be, what -1 becomes; and from it N, D, C and the learning rate.

Whatever plans, trains, forecasts or compares runs takes these facts from here, and needs no torch for them.
"""
import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from config.configurator import read_command, set_fields
from config.corpus import load_meta
from runtime.basics import UserError


def free(default):
    """A setting that two runs may differ in and still be the same run: where it lies, and how it is computed.

    So it may change when a run goes on. (With dropout another number of micro-batches draws other masks.)
    """
    return field(default=default, metadata={"free": True})


@dataclass
class Config:
    # run
    out_dir: str = free("out/run")         # run directory; a study uses out/STUDY/RUN
    resume: str = free("auto")             # auto: go on from ckpt.pt if there is one; never: start over
    seed: int = 1337                       # initial weights, order of the data, dropout
    forecast: str = free("")               # sha256 of the forecast sealed for this run; the sweep sets it
    arm: str = ""                          # the variant it belongs to where variants are compared; a name
    # data
    dataset: str = "shakespeare"           # directory under data/ with train.bin, val.bin, meta.json
    batch_size: int = 32                   # sequences a step, over devices and micro-batches; -1: by rule
    gradient_accumulation_steps: int = free(1)    # micro-batches per step; -1: as few as memory allows
    block_size: int = 128                  # tokens of context
    # model
    n_layer: int = 4                       # transformer blocks
    n_head: int = 4                        # attention heads; divides n_embd
    n_embd: int = 64                       # width
    dropout: float = 0.0                   # raise it when a run repeats its data
    bias: bool = False                     # biases in linear layers and LayerNorms, as GPT-2 has
    tie_weights: bool = True               # head and token embedding share weights
    position: str = "learned"              # learned (GPT-2), or rope: queries and keys turned by position
    norm: str = "layer"                    # layer (GPT-2), or rms: no mean subtracted, no bias
    mlp: str = "gelu"                      # gelu (GPT-2), relu2: relu squared, or swiglu: gated
    qk_norm: bool = False                  # RMSNorm of each head's queries and keys
    vocab_size: int = -1                   # -1: the dataset's; larger pads it (50304 is faster on GPUs)
    parametrization: str = "gpt2"          # gpt2; mup: rates carry over in width; completep: in depth too
    base_width: int = 64                   # mup, completep: n_embd at which learning_rate was tuned
    base_depth: int = 4                    # completep: n_layer at which it was tuned
    # horizon: set exactly one
    max_iters: int = -1                    # optimizer steps
    target_tokens: float = -1              # training tokens
    target_flops: float = -1               # FLOPs, counted exactly (count_flops)
    tokens_per_param: float = -1           # tokens per non-embedding-plus-head parameter; Chinchilla: 20
    epochs: float = -1                     # passes over train.bin
    # optimizer
    optimizer: str = "adamw"               # adamw, or muon for the blocks' matrices, AdamW for the rest
    muon_rate: float = 1.0                 # muon: its rate, as a multiple of learning_rate
    muon_decay: float = 1.0                # muon: its weight decay, as a multiple of weight_decay
    learning_rate: float = 1e-3            # peak; -1: by a rule of C (rate_by_rule)
    schedule: str = "cosine"               # cosine, linear, constant, or wsd (warmup, stable, decay)
    warmup_iters: int = -1                 # steps of linear warmup; -1: warmup_frac of the run
    warmup_frac: float = 0.02              # used when warmup_iters is -1
    lr_decay_iters: int = -1               # step where the decay ends; -1: where the run ends
    cooldown_frac: float = 0.2             # wsd: share of lr_decay_iters that decays, as 1 - sqrt
    min_lr: float = 0.0                    # learning rate at the end of the decay
    weight_decay: float = 0.1              # on matrices and embeddings
    beta1: float = 0.9                     # AdamW
    beta2: float = 0.95                    # AdamW; nearer to 1 for small batches
    grad_clip: float = 1.0                 # global norm; 0: off
    # evaluation, log, checkpoints
    eval_interval: int = free(-1)          # steps; -1: a tenth of the run; 0: only at the end
    eval_iters: int = -1                   # validation sequences of block_size, from the start; -1: all
    log_interval: int = free(-1)           # steps; -1: 1/200 of the run
    wandb_log: bool = free(False)          # log to Weights & Biases, too, or to trackio: what is installed
    wandb_project: str = free("nanoscale")  # what they file it under
    wandb_run_name: str = free("")         # empty: out_dir
    ckpt_minutes: float = free(5.0)        # checkpoint this often, and when interrupted
    keep_steps: str = free("")             # "1000,2000": keep the checkpoints of these steps as ckpt_STEP.pt
    branch: str = free("")                 # begin from such a checkpoint of a run that is equal up to there
    # machine
    device: str = free("auto")             # auto: cuda, else mps, else cpu
    dtype: str = "auto"                    # auto: bfloat16 or float16 on cuda, else float32
    compile: bool = free(True)             # cuda: torch.compile, and steps as CUDA graphs; elsewhere nothing


FREE = {f.name for f in dataclasses.fields(Config) if f.metadata.get("free")}
HORIZONS = ("max_iters", "target_tokens", "target_flops", "tokens_per_param", "epochs")


# ---- what each setting may be ----


def one_of(*words: str) -> tuple:
    return "one of " + ", ".join(words), lambda value: value in words


# (settings, what they must be, in words and as a test); the reader of the command line has checked the types.
MAY_BE = (
    ("block_size n_layer n_head n_embd base_width base_depth muon_rate", "positive", lambda x: x > 0),
    ("batch_size learning_rate", "positive, or -1 to follow a rule", lambda x: x == -1 or 0 < x < 1e300),
    ("seed weight_decay muon_decay grad_clip min_lr ckpt_minutes", "0 or positive (and below 2^63)",
     lambda x: 0 <= x < 2 ** 63),
    ("gradient_accumulation_steps eval_iters log_interval", "positive, or -1 to derive it",
     lambda x: x == -1 or x > 0),
    ("eval_interval", "positive, 0 (only at the end) or -1 to derive it", lambda x: x >= -1),
    ("dropout beta1 beta2", "between 0 and 1", lambda x: 0 <= x < 1),
    ("warmup_frac cooldown_frac", "between 0 and 1", lambda x: 0 <= x <= 1),
    ("resume", *one_of("auto", "never")),
    ("position", *one_of("learned", "rope")),
    ("norm", *one_of("layer", "rms")),
    ("mlp", *one_of("gelu", "relu2", "swiglu")),
    ("parametrization", *one_of("gpt2", "mup", "completep")),
    ("optimizer", *one_of("adamw", "muon")),
    ("dtype", *one_of("auto", "float32", "bfloat16", "float16")),
    ("forecast", "empty, or the sha256 of a seal", lambda x: re.fullmatch("([0-9a-f]{64})?", x)),
)


def check(c: Config, meta: dict, world: int) -> None:
    """Raise UserError for a setting outside its range, or settings that contradict each other or the data."""
    for names, words, good in (*MAY_BE, ("schedule", *one_of(*SCHEDULES))):
        for name in names.split():
            if not good(getattr(c, name)):
                raise UserError(f"{name} must be {words}, not {getattr(c, name)!r}")
    if c.n_embd % c.n_head:
        near = next(h for h in range(min(c.n_head, c.n_embd), 0, -1) if c.n_embd % h == 0)
        raise UserError(f"n_embd {c.n_embd} is not divisible by n_head {c.n_head}; try n_head={near}")
    if c.position == "rope" and c.n_embd // c.n_head % 2:
        raise UserError(f"position=rope turns pairs of numbers, and a head of n_embd {c.n_embd} / n_head "
                        f"{c.n_head} has {c.n_embd // c.n_head}; choose an even width of head")
    check_horizon(c)
    if not c.out_dir:
        raise UserError("out_dir is empty; give the run a directory, such as out/run")
    if c.branch and os.path.dirname(os.path.abspath(c.branch)) == os.path.abspath(c.out_dir):
        raise UserError(f"branch {c.branch} lies in out_dir, whose log a branch begins anew; choose another "
                        "out_dir")
    if c.vocab_size != -1 and c.vocab_size < meta["vocab_size"]:
        raise UserError(f"vocab_size {c.vocab_size} is smaller than the dataset's {meta['vocab_size']}; "
                        "set it to -1")
    for split in ("train", "val"):
        tokens = meta[f"{split}_tokens"]
        if tokens <= c.block_size:
            raise UserError(f"block_size {c.block_size} needs more than the {tokens:,} tokens of {split}.bin "
                            f"in {c.dataset!r}; lower block_size or prepare more text")
    if not all(step.strip().isdecimal() for step in c.keep_steps.split(",") if c.keep_steps):
        raise UserError(f"keep_steps must list steps such as '1000,2000', not {c.keep_steps!r}")
    if c.batch_size == -1 and c.max_iters != -1:
        raise UserError("batch_size=-1 follows from the run's compute, which max_iters does not give; set "
                        "target_tokens, target_flops, tokens_per_param or epochs instead, or batch_size")
    if c.batch_size != -1 and c.batch_size < world * max(1, c.gradient_accumulation_steps):
        raise UserError(f"batch_size {c.batch_size} is smaller than {world} processes x "
                        f"{c.gradient_accumulation_steps} gradient_accumulation_steps; raise batch_size")


def check_horizon(c: Config) -> None:
    """Raise UserError unless exactly one horizon is set, to a positive number."""
    given = [name for name in HORIZONS if getattr(c, name) != -1]
    if len(given) != 1:
        found = f"got {' and '.join(given)}; -1 takes one away" if given else (
            "none is set; try --tokens_per_param=20")
        raise UserError(f"set exactly one horizon of {', '.join(HORIZONS)} ({found})")
    if not 0 < getattr(c, given[0]) < 1e40:            # far above any run, and still a float
        raise UserError(f"{given[0]} must be positive and below 1e40, not {str(getattr(c, given[0])):.30}")


# ---- a quick look: another horizon than the config file's ----


def configure_run(args: list[str]) -> Config:
    """The run of config files and overrides. A horizon given as an override takes the place of the files'.

    Warmup and decay, where the files give them in steps, keep their share of the run: so `--max_iters=30` is
    a quick look at any config. Raises UserError.
    """
    values, overrides = read_command(Config, args)
    c = set_fields(Config(), values | overrides)
    others = {name: value for name, value in overrides.items() if name not in HORIZONS}
    long = set_fields(Config(), values | others)
    theirs = [name for name in HORIZONS if getattr(long, name) != -1]
    given = [name for name in HORIZONS if name in overrides and getattr(c, name) != -1]
    if not theirs or not given:
        return c
    c = dataclasses.replace(c, **{name: -1 for name in theirs if name not in given})
    return in_proportion(c, long, set(overrides))


def in_proportion(c: Config, long: Config, given: set) -> Config:
    """`c`, a quick look at the run `long`: warmup and decay are in proportion, unless they were `given`."""
    steps_long = resolve(long).config.max_iters
    bare = dataclasses.replace(c, warmup_iters=-1, lr_decay_iters=-1, keep_steps="")
    steps = resolve(bare).config.max_iters
    said = [f"{steps:,} steps instead of the config's {steps_long:,}"]
    if c.keep_steps and "keep_steps" not in given:
        c.keep_steps = ""                              # they are steps of the long run
        said.append("keep_steps none")
    for name in ("warmup_iters", "lr_decay_iters"):
        was = getattr(long, name)
        if was != -1 and name not in given:
            setattr(c, name, min(steps, round(was * steps / steps_long)))
            said.append(f"{name} {was} -> {getattr(c, name)}")
    print("; ".join(said), flush=True)
    return c


# ---- what is counted: parameters, FLOPs, bytes ----


def count_params(c: Config) -> dict:
    """Parameters by group, as GPT has them. The head's V x D work on every token; `total` has each once."""
    L, D, bias = c.n_layer, c.n_embd, int(c.bias)
    head = c.vocab_size * D
    into, out = mlp_widths(c)
    gains = (2 * L + 1) * D * (2 if c.bias and c.norm == "layer" else 1)
    groups = dict(
        token_embedding=head,
        position_embedding=c.block_size * D if c.position == "learned" else 0,
        attention=L * 4 * D * (D + bias),
        mlp=L * (D * (into + out) + (into + D) * bias),
        norms=gains + (2 * L * (D // c.n_head) if c.qk_norm else 0))
    groups["non_embedding"] = groups["attention"] + groups["mlp"] + groups["norms"]
    groups["head"] = head
    embeddings = groups["position_embedding"] + (head if c.tie_weights else 2 * head)
    groups["total"] = groups["non_embedding"] + embeddings
    return groups


def mlp_widths(c: Config) -> tuple[int, int]:
    """How many numbers c_fc gives and c_proj takes. SwiGLU has three matrices, two of them in c_fc.

    So that its parameters are as many, its width is 8/3 n_embd, to the nearest integer (Shazeer 2020).
    """
    if c.mlp == "swiglu":
        width = round(8 * c.n_embd / 3)
        return 2 * width, width
    return 4 * c.n_embd, 4 * c.n_embd


def default_N(groups: dict) -> int:
    """N by the count that is used where no other is asked for: what works on every token, tied or not."""
    return groups["non_embedding"] + groups["head"]


def count_flops(c: Config) -> dict:
    """FLOPs per trained token by part: each matmul, forward (2 per multiply-add) and backward (twice that).

    Attention is counted as the full T x T square, as torch.utils.flop_counter counts it; a causal kernel
    executes about half of `scores`. Norms, softmax, GELU, RoPE and embedding look-ups are not matmuls, nor
    does the optimizer's own work count.
    """
    L, D = c.n_layer, c.n_embd
    parts = dict(
        attention=6 * L * 4 * D * D,
        scores=12 * L * c.block_size * D,
        mlp=6 * L * D * sum(mlp_widths(c)),
        head=6 * D * c.vocab_size)
    return parts | dict(total=sum(parts.values()))


def activation_bytes(c: Config, size: int) -> int:
    """Bytes that a token needs in training, with numbers of `size` bytes, beside the weights.

    Per layer about 34 D bytes at 2 bytes each (Korthikanti et al. 2022, eq. 2, without the T x T scores,
    which SDPA does not keep), and three copies of the V logits in float32.
    """
    return c.n_layer * 17 * c.n_embd * size + 3 * c.vocab_size * 4


# ---- what -1 becomes ----


class Resolved(NamedTuple):
    """A run as it will be: its settings without -1, its data, and what it counts."""
    config: Config                  # device and dtype may still be "auto": they are the machine's to say
    meta: dict                      # of the dataset
    params: dict                    # parameters by group
    flops: dict                     # FLOPs per token by part
    N: int                          # parameters, by the default count
    D: int                          # training tokens
    C: float                        # FLOPs of the whole run, counted exactly


def resolve(c: Config, world: int = 1, meta: dict | None = None) -> Resolved:
    """The run that `c` describes, for `world` processes, with every -1 derived; `meta` is its dataset's.

    Raises UserError.
    """
    meta = meta or load_meta(c.dataset)
    check(c, meta, world)
    c = dataclasses.replace(c, vocab_size=max(c.vocab_size, meta["vocab_size"]))
    params, flops = count_params(c), count_flops(c)
    N = default_N(params)
    wanted = horizon_tokens(c, meta, N, flops["total"])
    follow_rule(c, 6 * N * wanted, wanted, world)
    if c.max_iters == -1:
        c.max_iters = max(1, round(wanted / (c.batch_size * c.block_size)))
    derive_steps(c, meta)
    tokens = c.max_iters * c.batch_size * c.block_size
    return Resolved(c, meta, params, flops, N, tokens, tokens * flops["total"])


def horizon_tokens(c: Config, meta: dict, N: int, flops: int) -> float:
    """Training tokens of whichever horizon is set, for N parameters and so many FLOPs per token."""
    if c.max_iters != -1:
        return c.max_iters * c.batch_size * c.block_size
    if c.target_tokens != -1:
        return c.target_tokens
    if c.target_flops != -1:
        return c.target_flops / flops
    if c.tokens_per_param != -1:
        return c.tokens_per_param * N
    return c.epochs * ((meta["train_tokens"] - 1) // c.block_size * c.block_size)


def follow_rule(c: Config, C_6nd: float, tokens: float, world: int) -> None:
    """Set batch_size and learning_rate, where they are -1, for 6 N D FLOPs and so many tokens."""
    if c.batch_size == -1:
        least = world * max(1, c.gradient_accumulation_steps)
        c.batch_size = max(batch_rows(C_6nd, tokens, c.block_size), least)
    if c.learning_rate == -1:
        c.learning_rate = rate_by_rule(C_6nd)


def batch_rows(C_6nd: float, tokens: float, block_size: int) -> int:
    """Sequences a step for 6 N D FLOPs: 0.2920 C^0.3271 tokens (Bi et al. 2024, eq. 1), to a power of 2.

    At most a hundredth of the run, so that the schedule has steps to act on. At 1e10 to 1e12 FLOPs it comes
    out 2 to 4 times too large (scaling/LOG.md).
    """
    rows = 2 ** round(math.log2(max(1, 0.2920 * C_6nd ** 0.3271 / block_size)))
    return max(1, min(rows, int(tokens / block_size / 100)))


def rate_by_rule(C_6nd: float) -> float:
    """Peak learning rate for 6 N D FLOPs: 0.3118 C^-0.125 (Bi et al. 2024, eq. 1), to two digits.

    Of the published rules it fits best at 1e10 to 1e12 FLOPs too, with muP (scaling/LOG.md).
    """
    return float(f"{0.3118 * C_6nd ** -0.125:.2g}")


def derive_steps(c: Config, meta: dict) -> None:
    """Set what is counted in steps, now that max_iters is known, and the validation rows."""
    values = dict(
        warmup_iters=round(c.warmup_frac * c.max_iters),
        lr_decay_iters=c.max_iters,
        eval_interval=max(1, c.max_iters // 10),
        log_interval=max(1, c.max_iters // 200))
    for name, value in values.items():
        if getattr(c, name) == -1:
            setattr(c, name, value)
    for name in ("warmup_iters", "lr_decay_iters"):
        if not 0 <= getattr(c, name) <= c.max_iters:
            raise UserError(f"{name} {getattr(c, name)} is outside the run's {c.max_iters} steps; lower it, "
                            "or set it to -1")
    check_steps(c)
    rows = (meta["val_tokens"] - 1) // c.block_size
    c.eval_iters = rows if c.eval_iters == -1 else min(c.eval_iters, rows)


def check_steps(c: Config) -> None:
    """Raise UserError for a resolved run's steps and rates that contradict each other."""
    if c.min_lr > c.learning_rate:
        raise UserError(f"min_lr {c.min_lr:g} is above learning_rate {c.learning_rate:g}, and the rate would "
                        "rise where it is to decay; lower min_lr")
    for step in sorted(kept_steps(c)):
        if not 1 <= step <= c.max_iters:
            raise UserError(f"keep_steps {step} is outside the run's steps, 1 to {c.max_iters}; leave it out")
    if c.schedule == "constant":                       # it has no decay
        return
    if c.lr_decay_iters <= c.warmup_iters:
        raise UserError(f"warmup_iters {c.warmup_iters} leaves nothing of the {c.schedule} decay, which ends "
                        f"at lr_decay_iters {c.lr_decay_iters}; lower warmup_iters (or warmup_frac)")
    if c.schedule == "wsd" and cooldown_start(c) < c.warmup_iters:
        raise UserError(f"warmup_iters {c.warmup_iters} ends after the cooldown has begun, at step "
                        f"{cooldown_start(c)} of {c.max_iters}: the full rate is never reached; lower "
                        "warmup_iters (or warmup_frac) or cooldown_frac")


def kept_steps(c: Config) -> set[int]:
    return {int(step) for step in c.keep_steps.split(",") if step}


def doubts(c: Config) -> list[str]:
    """What is allowed in a resolved run, but is hardly meant: a sentence each."""
    found = []
    if 2 * c.warmup_iters > c.max_iters:
        found.append(f"the warmup takes {c.warmup_iters} of the run's {c.max_iters} steps; lower "
                     "warmup_iters (or warmup_frac)")
    elif c.schedule == "wsd" and 2 * (full := cooldown_start(c) + 1 - c.warmup_iters) < c.max_iters:
        found.append(f"only {full} of the run's {c.max_iters} steps are at the full learning rate: the "
                     f"warmup takes {c.warmup_iters}, and the cooldown begins at step {cooldown_start(c)}")
    if c.schedule != "constant" and c.min_lr == 0 and c.lr_decay_iters < c.max_iters:
        found.append(f"the learning rate is 0 from step {c.lr_decay_iters} of {c.max_iters} on; set min_lr, "
                     "or lr_decay_iters to -1")
    a_step = c.batch_size * c.block_size
    if c.target_tokens != -1 and abs(c.max_iters * a_step / c.target_tokens - 1) > 0.05:
        found.append(f"it trains on {c.max_iters * a_step:,} tokens, not {c.target_tokens:,.0f}: a step "
                     f"takes {a_step:,}; lower batch_size")
    return found


# ---- the learning rate ----

# A schedule says how far the rate is from min_lr (0) to its peak (1), where `done` of the way from the end of
# the warmup to lr_decay_iters is behind, and `cool` of the cooldown, both from 0 to 1. WSD's cooldown is
# 1 - sqrt: Haegele et al. 2024, eq. 1.
SCHEDULES = {
    "cosine": lambda done, cool: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done, cool: 1 - done,
    "constant": lambda done, cool: 1.0,
    "wsd": lambda done, cool: 1 - math.sqrt(cool),
}


def cooldown_start(c: Config) -> int:
    """The step at which a resolved WSD run begins to cool down: until then a longer one is the same."""
    return c.lr_decay_iters - max(1, round(c.cooldown_frac * c.lr_decay_iters))


def learning_rate(step: int, c: Config) -> float:
    """The rate for step `step` (0 is the first) of a resolved run: linear warmup, then the schedule."""
    if step < c.warmup_iters:
        return c.learning_rate * (step + 1) / (c.warmup_iters + 1)
    done = min(1.0, (step - c.warmup_iters) / max(1, c.lr_decay_iters - c.warmup_iters))
    begin = cooldown_start(c)
    cool = min(1.0, max(0.0, (step - begin) / (c.lr_decay_iters - begin)))
    return c.min_lr + SCHEDULES[c.schedule](done, cool) * (c.learning_rate - c.min_lr)
