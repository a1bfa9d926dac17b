"""Train one GPT: config -> data -> loop -> log, checkpoint, result.

    python train.py config/scale_d64.py --seed=2
    torchrun --nproc_per_node=4 train.py config/scale_d64.py

A run directory (out_dir) receives config.json, log.jsonl (one object per logged step), ckpt.pt and, last and
atomically, result.json, which means done. Exit codes: 0 done, 2 something to mend, 3 interrupted (resumable).
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # spinning threads starve others; set before torch
import contextlib
import ctypes
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from config.configurator import configure
from model import GPT, GPTConfig
from runtime.basics import UserError, caught_signals, exit_cleanly, plain_name

ROOT = Path(__file__).resolve().parent
META = dict(tokenizer=str, vocab_size=int, train_tokens=int, val_tokens=int, val_bytes=int, train_sha256=str)
CKPTS = ("ckpt.pt", "ckpt_prev.pt")                    # the last checkpoint, and the one before it
HORIZONS = ("max_iters", "target_tokens", "target_flops", "tokens_per_param", "epochs")


@dataclass
class Config:
    # run
    out_dir: str = "out/run"               # run directory; a study uses out/STUDY/RUN
    resume: str = "auto"                   # auto: go on from ckpt.pt if there is one; never: start over
    seed: int = 1337                       # initial weights, order of the data, dropout
    # data
    dataset: str = "shakespeare"           # directory under data/ with train.bin, val.bin, meta.json
    batch_size: int = 32                   # sequences a step, over devices and micro-batches; -1: a rule of C
    gradient_accumulation_steps: int = 1   # micro-batches per step; -1: as few as memory allows
    block_size: int = 128                  # tokens of context
    # model
    n_layer: int = 4                       # transformer blocks
    n_head: int = 4                        # attention heads; divides n_embd
    n_embd: int = 64                       # width
    dropout: float = 0.0                   # raise it when a run repeats its data
    bias: bool = False                     # biases in linear layers and LayerNorms, as GPT-2 has
    tie_weights: bool = True               # head and token embedding share weights
    vocab_size: int = -1                   # -1: the dataset's; larger pads it (50304 is faster on GPUs)
    parametrization: str = "gpt2"          # gpt2, or mup: learning rates carry over from base_width
    base_width: int = 64                   # mup: n_embd at which learning_rate was tuned
    # horizon: set exactly one
    max_iters: int = -1                    # optimizer steps
    target_tokens: float = -1              # training tokens
    target_flops: float = -1               # FLOPs, counted exactly (GPT.flops_per_token)
    tokens_per_param: float = -1           # tokens per non-embedding-plus-head parameter; Chinchilla: 20
    epochs: float = -1                     # passes over train.bin
    # optimizer
    learning_rate: float = 1e-3            # peak; AdamW; -1: by a rule of C (rule_of_compute)
    schedule: str = "cosine"               # cosine, linear, constant, or wsd (warmup, stable, decay)
    warmup_iters: int = -1                 # steps of linear warmup; -1: warmup_frac of the run
    warmup_frac: float = 0.02              # used when warmup_iters is -1
    lr_decay_iters: int = -1               # step where the decay ends; -1: where the run ends
    cooldown_frac: float = 0.2             # wsd: share of the run that decays, as 1 - sqrt
    min_lr: float = 0.0                    # learning rate at the end of the decay
    weight_decay: float = 0.1              # on matrices and embeddings
    beta1: float = 0.9                     # AdamW
    beta2: float = 0.95                    # AdamW; nearer to 1 for small batches
    grad_clip: float = 1.0                 # global norm; 0: off
    # evaluation, log, checkpoints
    eval_interval: int = -1                # steps; -1: a tenth of the run; 0: only at the end
    eval_iters: int = -1                   # validation sequences of block_size, from the start; -1: all
    log_interval: int = -1                 # steps; -1: 1/200 of the run
    ckpt_minutes: float = 5.0              # checkpoint this often, and when interrupted
    keep_steps: str = ""                   # "1000,2000": keep the checkpoints of these steps as ckpt_STEP.pt
    branch: str = ""                       # begin from such a checkpoint of a run that is equal up to there
    # machine
    device: str = "auto"                   # auto: cuda, else mps, else cpu
    dtype: str = "auto"                    # auto: bfloat16 or float16 on cuda, else float32
    compile: bool = True                   # torch.compile on cuda; elsewhere it does not pay and is left out


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the checkpoint is written and the process exits with code 3."""


# ---------------------------------------------------------------- configuration


def load_meta(dataset: str) -> dict:
    """The dataset's meta.json, with the sizes of its .bin files checked against it."""
    if not plain_name(dataset):
        raise UserError(f"dataset {dataset!r} must be the name of a directory under data/")
    folder = ROOT / "data" / dataset
    name, _, tokenizer = dataset.partition("_")
    fix = f"run: python data/{name}/prepare.py" + (f" --tokenizer={tokenizer}" if tokenizer else "")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = {s: (folder / f"{s}.bin").stat().st_size for s in ("train", "val")}
    except FileNotFoundError as e:
        raise UserError(f"dataset {dataset!r} is not prepared ({e.filename} is missing); {fix}") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / 'meta.json'} is not valid JSON ({e}); {fix}") from None
    bad = [k for k, kind in META.items() if not isinstance(meta, dict) or not isinstance(meta.get(k), kind)
           or kind is int and meta[k] < 1]
    if bad:
        raise UserError(f"{folder / 'meta.json'} lacks a valid {', '.join(bad)}; {fix}")
    for split, size in sizes.items():
        if size != 2 * meta[f"{split}_tokens"]:
            raise UserError(f"{folder / split}.bin has {size:,} bytes, its meta.json says "
                            f"{2 * meta[f'{split}_tokens']:,}: it is truncated or stale; {fix}")
    return meta


def check(c: Config, meta: dict, world: int) -> None:
    """Raise UserError for settings that contradict each other or the data."""
    for key in ("batch_size", "block_size", "n_layer", "n_head", "n_embd", "learning_rate", "base_width"):
        by_rule = key in ("batch_size", "learning_rate") and getattr(c, key) == -1
        if not (by_rule or 0 < getattr(c, key) < math.inf):
            raise UserError(f"{key} must be positive, not {getattr(c, key)}")
    for key in ("seed", "weight_decay", "grad_clip", "min_lr", "ckpt_minutes"):
        if not 0 <= getattr(c, key) < 2 ** 63:
            raise UserError(f"{key} must be 0 or positive (and below 2^63), not {getattr(c, key)}")
    for key in ("gradient_accumulation_steps", "eval_iters", "log_interval", "eval_interval"):
        if getattr(c, key) < -1 or getattr(c, key) == 0 and key != "eval_interval":
            raise UserError(f"{key} must be positive, or -1 to derive it, not {getattr(c, key)}")
    choices = dict(schedule=("cosine", "linear", "constant", "wsd"), resume=("auto", "never"),
                   parametrization=("gpt2", "mup"), dtype=("auto", "float32", "bfloat16", "float16"))
    for key, allowed in choices.items():
        if getattr(c, key) not in allowed:
            raise UserError(f"{key} must be one of {', '.join(allowed)}, not {getattr(c, key)!r}")
    if c.n_embd % c.n_head:
        near = next(h for h in range(min(c.n_head, c.n_embd), 0, -1) if c.n_embd % h == 0)
        raise UserError(f"n_embd {c.n_embd} is not divisible by n_head {c.n_head}; try n_head={near}")
    given = [k for k in HORIZONS if getattr(c, k) != -1]
    if len(given) != 1:
        raise UserError(f"set exactly one horizon of {', '.join(HORIZONS)} "
                        + (f"(got {' and '.join(given)}; -1 takes one away)" if given else
                           "(none is set; try --tokens_per_param=20)"))
    if not 0 < getattr(c, given[0]) < math.inf:
        raise UserError(f"{given[0]} must be positive, not {getattr(c, given[0])}")
    if c.vocab_size != -1 and c.vocab_size < meta["vocab_size"]:
        raise UserError(f"vocab_size {c.vocab_size} is smaller than the dataset's {meta['vocab_size']}; "
                        "set it to -1")
    for split in ("train", "val"):
        if meta[f"{split}_tokens"] <= c.block_size:
            raise UserError(f"block_size {c.block_size} needs more than the {meta[f'{split}_tokens']:,} "
                            f"tokens of {split}.bin in {c.dataset!r}; lower block_size or prepare more text")
    if not all(step.strip().isdecimal() for step in c.keep_steps.split(",") if c.keep_steps):
        raise UserError(f"keep_steps must list steps such as '1000,2000', not {c.keep_steps!r}")
    for key in ("dropout", "warmup_frac", "cooldown_frac", "beta1", "beta2"):
        if not 0 <= getattr(c, key) <= 1 - (key in ("dropout", "beta1", "beta2")) * 1e-9:
            raise UserError(f"{key} must be between 0 and 1, not {getattr(c, key)}")
    if c.batch_size == -1 and c.max_iters != -1:
        raise UserError("batch_size=-1 follows from the run's compute, which max_iters does not give; set "
                        "target_tokens, target_flops, tokens_per_param or epochs instead, or batch_size")
    if c.batch_size != -1 and c.batch_size < world * max(1, c.gradient_accumulation_steps):
        raise UserError(f"batch_size {c.batch_size} is smaller than {world} processes x "
                        f"{c.gradient_accumulation_steps} gradient_accumulation_steps; raise batch_size")


def derive(c: Config, meta: dict, device: str, world: int) -> Config:
    """Every -1 and 'auto' replaced by its value."""
    c = dataclasses.replace(c, device=device, vocab_size=max(c.vocab_size, meta["vocab_size"]))
    if c.dtype == "auto":
        c.dtype = ("float32" if not device.startswith("cuda") else
                   "bfloat16" if torch.cuda.is_bf16_supported() else "float16")
    if -1 in (c.batch_size, c.learning_rate):
        rule_of_compute(c, meta, world)
    c.max_iters = horizon_steps(c, meta)
    values = dict(warmup_iters=round(c.warmup_frac * c.max_iters), lr_decay_iters=c.max_iters,
                  eval_interval=max(1, c.max_iters // 10), log_interval=max(1, c.max_iters // 200))
    for key in [key for key in values if getattr(c, key) == -1]:
        setattr(c, key, values[key])
    for key in ("warmup_iters", "lr_decay_iters"):
        if not 0 <= getattr(c, key) <= c.max_iters:
            raise UserError(f"{key} {getattr(c, key)} is outside the run's {c.max_iters} steps; set it to -1")
    val_rows = (meta["val_tokens"] - 1) // c.block_size
    c.eval_iters = min(c.eval_iters, val_rows) if c.eval_iters > 0 else val_rows
    if c.gradient_accumulation_steps < 1:
        c.gradient_accumulation_steps = accumulation(c, world)
    return c


def model_config(c: Config) -> GPTConfig:
    return GPTConfig(**{f.name: getattr(c, f.name) for f in dataclasses.fields(GPTConfig)})


def shape_counts(c: Config) -> tuple[dict, dict]:
    """(parameters by group, FLOPs per token by part) as GPT counts them, without building it."""
    L, D, head, bias = c.n_layer, c.n_embd, c.vocab_size * c.n_embd, int(c.bias)
    params = dict(token_embedding=head, position_embedding=c.block_size * D, attention=L * 4 * D * (D + bias),
                  mlp=L * D * (8 * D + 5 * bias), norms=(2 * L + 1) * D * (1 + bias))
    params["non_embedding"] = params["attention"] + params["mlp"] + params["norms"]
    params |= dict(head=head, total=params["non_embedding"] + params["position_embedding"]
                   + head * (1 if c.tie_weights else 2))
    return params, GPT.flops_per_token(SimpleNamespace(config=c))


def horizon_tokens(c: Config, meta: dict) -> float:
    """Training tokens of whichever horizon is set."""
    params, flops = shape_counts(c)
    return (c.max_iters * c.batch_size * c.block_size if c.max_iters != -1 else
            c.target_tokens if c.target_tokens != -1 else
            c.target_flops / flops["total"] if c.target_flops != -1 else
            c.tokens_per_param * (params["non_embedding"] + params["head"]) if c.tokens_per_param != -1 else
            c.epochs * ((meta["train_tokens"] - 1) // c.block_size * c.block_size))


def horizon_steps(c: Config, meta: dict) -> int:
    """Optimizer steps for whichever horizon is set, rounded to the nearest, at least 1."""
    return max(1, round(horizon_tokens(c, meta) / (c.batch_size * c.block_size)))


def rule_of_compute(c: Config, meta: dict, world: int) -> None:
    """Set what is -1: batch 0.2920 C^0.3271 tokens, rate 0.3118 C^-0.125, C = 6 N D (Bi et al. 2024, eq. 1).

    The batch is a power of 2 of sequences and at most a hundredth of the run, so that the schedule has steps.
    Of the published rules these fit best at 1e10 to 1e12 FLOPs too, with muP (scaling/LOG.md).
    """
    params, tokens = shape_counts(c)[0], horizon_tokens(c, meta)
    C = 6 * (params["non_embedding"] + params["head"]) * tokens
    if c.batch_size == -1:
        rows = 2 ** round(math.log2(0.2920 * C ** 0.3271 / c.block_size))
        rows = min(rows, int(tokens / c.block_size / 100))
        c.batch_size = max(rows, world * max(1, c.gradient_accumulation_steps))
    if c.learning_rate == -1:
        c.learning_rate = float(f"{0.3118 * C ** -0.125:.2g}")


def accumulation(c: Config, world: int) -> int:
    """Micro-batches per step, so that activations and logits take at most 60 % of the free memory.

    Per token and layer about 34 D bytes at 2 bytes each (Korthikanti et al. 2022, eq. 2, without the T x T
    scores, which SDPA does not keep), and three copies of the V logits.
    """
    size = 4 if c.dtype == "float32" else 2
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"    # macOS: all
    per_token = c.n_layer * 17 * c.n_embd * size + 3 * c.vocab_size * 4
    free = (torch.cuda.mem_get_info()[0] if c.device.startswith("cuda") else
            os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))
    steps = math.ceil(c.batch_size / world * c.block_size * per_token / (0.6 * free))
    return min(steps, c.batch_size // world)


# ---------------------------------------------------------------- data and schedule


class Batches:
    """Rows of block_size tokens of a .bin file. Row r is tokens [rT, rT + T), its targets one further on."""

    def __init__(self, path: Path, block_size: int, seed: int, device: str):
        self.tokens = np.asarray(np.memmap(path, dtype=np.uint16, mode="r"))    # a plain view indexes faster
        self.T, self.seed, self.device = block_size, seed, device
        self.rows = (len(self.tokens) - 1) // block_size
        self.epoch, self.order = -1, None

    def row_ids(self, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of the endless sequence of epochs, permuted by (seed, epoch)."""
        parts = []
        while count:                                   # an epoch may end inside the batch: go on in the next
            epoch, at = divmod(start, self.rows)
            if epoch != self.epoch:
                self.epoch = epoch
                self.order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            parts.append(self.order[at:at + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def get(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, targets), each (len(ids), T) int64 on the device."""
        window = self.tokens[ids[:, None] * self.T + np.arange(self.T + 1)]
        window = torch.from_numpy(window.astype(np.int64))
        if self.device.startswith("cuda"):
            window = window.pin_memory()               # lets the copy run beside the previous step
        window = window.to(self.device, non_blocking=True)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def learning_rate(step: int, c: Config) -> float:
    """The rate for step `step` (0 is the first). WSD with a 1 - sqrt cooldown: Haegele et al. 2024, eq. 1."""
    if step < c.warmup_iters:
        return c.learning_rate * (step + 1) / (c.warmup_iters + 1)
    done = min(1.0, (step - c.warmup_iters) / max(1, c.lr_decay_iters - c.warmup_iters))
    if c.schedule == "wsd":
        cooldown = max(1, round(c.cooldown_frac * c.lr_decay_iters))
        into = (step - (c.lr_decay_iters - cooldown)) / cooldown
        share = 1 - math.sqrt(min(1.0, max(0.0, into)))
    else:
        share = dict(constant=1.0, linear=1 - done, cosine=0.5 * (1 + math.cos(math.pi * done)))[c.schedule]
    return c.min_lr + share * (c.learning_rate - c.min_lr)


# ---------------------------------------------------------------- files of a run


def write_atomic(path: Path, write, previous: Path | None = None) -> None:
    """`write(file)` beside `path`, then rename: a full disk or a kill leaves what was there before.

    What was there becomes `previous`, if that is given.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(part, path)
    except (OSError, RuntimeError) as e:               # torch.save turns a failed write into RuntimeError
        part.unlink(missing_ok=True)
        kept = "the one written before is kept" if path.exists() else "nothing was written"
        raise UserError(f"cannot write {path} ({str(e).splitlines()[0]}); {kept}; "
                        "free some space or allow writing, then run the same command") from None


def write_json(path: Path, obj: dict) -> None:
    write_atomic(path, lambda f: f.write((json.dumps(obj, indent=1) + "\n").encode()))


@contextlib.contextmanager
def named_errors(path: Path, fix: str):
    """The system's refusal to make, change or read `path`, and what is not valid in it, as a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', None) or type(e).__name__}; {fix}") from None


def read_json(path: Path, needs: str) -> dict:
    """What write_json wrote to `path`; it must have the key `needs`."""
    with named_errors(path, "mend it, or pass --resume=never to start over"):
        obj = json.loads(path.read_text(encoding="utf-8"))
        obj[needs]
    return obj


def require_same_run(old: dict, c: Config, path: Path) -> None:
    """What `path` recorded must be the run that `c` describes, in all that bears on its result."""
    free = ("out_dir", "resume", "device", "compile", "gradient_accumulation_steps", "ckpt_minutes")
    for key, value in dataclasses.asdict(c).items():
        if key not in free and old.get(key) != value:
            raise UserError(f"{path} was written with {key}={old.get(key)!r}, not {value!r}: choose another "
                            "out_dir, restore the setting, or pass --resume=never to start over")


def require_same_start(old: dict, c: Config, path: Path, steps: int) -> None:
    """A branch must equal the run that it leaves, learning rates included, over the `steps` they share."""
    later = (*HORIZONS, "lr_decay_iters", "schedule", "min_lr", "cooldown_frac", "warmup_frac", "keep_steps",
             "branch")
    require_same_run(old | {key: getattr(c, key) for key in later}, c, path)
    trunk = Config(**old)
    for step in range(steps):
        if learning_rate(step, c) != learning_rate(step, trunk):
            raise UserError(f"{path} cannot be branched from: the learning rates differ at step {step}; a "
                            "branch needs the same warmup_iters and a cooldown that begins later")


def require_same_text(sha256: str, c: Config, meta: dict, path: Path) -> None:
    if sha256 != meta["train_sha256"]:
        raise UserError(f"{path} was trained on other text than {c.dataset!r} holds now; prepare that text "
                        "again, or pass --resume=never to start over")


def out_of_memory(e: Exception) -> bool:
    """Of numpy, of torch on a GPU (a RuntimeError) or of torch on CPU ("DefaultCPUAllocator: can't ...")."""
    return isinstance(e, MemoryError) or "out of memory" in str(e) or "allocate memory" in str(e)


class Corrupt(UserError):
    """A checkpoint that cannot be read."""

    def __init__(self, path: Path, error: Exception):
        self.why = type(error).__name__
        super().__init__(f"{path} is corrupt ({type(error).__name__}); delete it, or pass --resume=never, "
                         "to start over")


def load_checkpoint(path: Path, c: Config, meta: dict) -> dict:
    """The checkpoint at `path`, checked against `c` and the data."""
    try:
        with zipfile.ZipFile(path) as z:
            if z.testzip():                            # torch.load ignores the checksums of torch.save
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
        old, data, step = dict(state["config"]), state["data_sha256"], int(state["step"])
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}; train the run that keeps it (keep_steps) first") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; make it readable, then run the same command") from None
    except Exception as e:                             # unpickling garbage can raise almost anything
        raise e if out_of_memory(e) else Corrupt(path, e) from None
    if path.name in CKPTS:
        require_same_run(old, c, path)
    else:
        require_same_start(old, c, path, step)
    require_same_text(data, c, meta, path)
    return state


def trim_log(path: Path, step: int) -> None:
    """Drop what was logged after `step`, and a torn last line: the resumed run logs them again."""
    lines, kept = path.read_bytes().splitlines(keepends=True) if path.exists() else [], []
    for number, line in enumerate(lines, 1):
        try:
            kept += [line] if json.loads(line)["step"] <= step else []
        except (ValueError, KeyError, TypeError):      # a torn last line is later than the checkpoint
            if number < len(lines):
                raise UserError(f"{path}: line {number} is damaged; delete it, or pass --resume=never to "
                                "start over") from None
    write_atomic(path, lambda f: f.write(b"".join(kept)))


def git_commit() -> str:
    """This checkout's commit, with -dirty where files differ; empty outside a checkout or without git."""
    if not shutil.which("git"):
        return ""
    out = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
                         capture_output=True, text=True)
    return out.stdout.strip()


# ---------------------------------------------------------------- one run


def find_device(device: str) -> str:
    """'auto' resolved: cuda, else mps, else cpu. Raises UserError for a device that is not here."""
    here = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    known = {"auto", "cpu", here, *(f"cuda:{i}" for i in range(torch.cuda.device_count()))}
    if device not in known:
        raise UserError(f"device {device!r} is not available here ({', '.join(sorted(known))} are); leave it "
                        f"at auto (it finds {here!r})")
    return here if device == "auto" else device


def setup(device: str) -> tuple[int, int, str]:
    """(rank, world size, device). Under torchrun: nccl on GPUs, gloo elsewhere."""
    alone = dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0)
    rank, world, local = (int(os.environ.get(key, value)) for key, value in alone.items())
    device = find_device(device)
    if world > 1:
        if device == "cuda":
            device = f"cuda:{local}"
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return rank, world, device


def keep_heap() -> None:
    """Have glibc keep freed memory: else each step faults it in anew (up to a fifth of its time on CPU)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):                       # absent in musl and elsewhere
        libc.mallopt(-4, 0)                            # M_MMAP_MAX: large blocks come from the heap, too
        libc.mallopt(-1, 2 ** 31 - 1)                  # M_TRIM_THRESHOLD: and the heap never shrinks


class FusedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW(fused=True) less the Python around its kernel, 6 % of a small step on CPU."""
    known = None                                       # the state that `lists` are of

    @torch.no_grad()
    def step(self) -> None:
        if self.known is not self.state:               # at the start, and after load_state_dict
            super().step()
            states = [[self.state[p] for p in group["params"]] for group in self.param_groups]
            keys = ("exp_avg", "exp_avg_sq", "step")
            self.lists = [[[s[key] for s in part] for key in keys] for part in states]
            self.known = self.state
            return
        for group, (m, v, steps) in zip(self.param_groups, self.lists):
            gradients, (beta1, beta2) = [p.grad for p in group["params"]], group["betas"]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(group["params"], gradients, m, v, [], steps, lr=group["lr"], beta1=beta1,
                                beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                                amsgrad=False, maximize=False)

    step.hooked = True                                 # torch would wrap it for its profiler: half the gain


def clip(weights: list, max_norm: float) -> torch.Tensor:
    """torch.nn.utils.clip_grad_norm_, bit for bit, at half the calls. Returns the norm before."""
    gradients = [p.grad for p in weights]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1))
    return norm


class Run:
    """A run in progress: model, optimizer, data, and where it stands. `c` is fully derived."""

    def __init__(self, c: Config, meta: dict, rank: int, world: int):
        self.c, self.meta, self.rank, self.world = c, meta, rank, world
        self.out, self.started = Path(c.out_dir), time.perf_counter()
        self.step, self.elapsed = 0, 0.0               # steps done; seconds spent in earlier sessions
        self.losses, self.grad_norm = [], None         # since the last log line; tensors, read when logging
        self.noise, self.square = None, 0.0            # see add_noise; this rank's |gradient|^2 under DDP
        self.record = None                             # the last log line
        keep_heap()
        torch.manual_seed(c.seed)
        torch.set_float32_matmul_precision("high")     # TF32 on GPUs that have it; no effect on CPU
        self.raw = GPT(model_config(c)).to(c.device)
        self.weights = list(self.raw.parameters())     # once: the walk costs as much as the clipping
        self.params, self.flops = self.raw.count_params(), self.raw.flops_per_token()
        kind = c.device.partition(":")[0]
        adamw = FusedAdamW if kind == "cpu" else torch.optim.AdamW
        self.optimizer = adamw(self.raw.optimizer_groups(c.weight_decay), lr=c.learning_rate,
                               betas=(c.beta1, c.beta2), fused=c.device != "mps")
        self.scaler = torch.amp.GradScaler(kind, enabled=c.dtype == "float16")
        self.autocast = torch.autocast(kind, dtype=getattr(torch, c.dtype), enabled=c.dtype != "float32")
        self.model = torch.compile(self.raw) if c.compile and kind == "cuda" else self.raw
        if world > 1:
            self.model = torch.nn.parallel.DistributedDataParallel(self.model)
            self.model.register_comm_hook(self, average)
        folder = ROOT / "data" / c.dataset
        self.data = Batches(folder / "train.bin", c.block_size, c.seed, c.device)
        self.val = Batches(folder / "val.bin", c.block_size, c.seed, c.device)

    def sum_over_ranks(self, x: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def train_step(self) -> None:
        """One optimizer step on batch number `step`, shared by ranks and micro-batches."""
        c, loss_sum = self.c, 0.0
        if c.dropout:                                  # masks depend on (seed, step, rank) alone
            state = np.random.SeedSequence((c.seed, self.step, self.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0]))
        rows = self.data.row_ids(self.step * c.batch_size, c.batch_size)
        rows = np.array_split(rows, self.world)[self.rank]
        parts, before = [], 0.0                        # (|gradient|^2, rows) of each, for add_noise
        for i, ids in enumerate(np.array_split(rows, c.gradient_accumulation_steps)):
            last = i == c.gradient_accumulation_steps - 1
            with contextlib.nullcontext() if last or self.world == 1 else self.model.no_sync():
                with self.autocast:
                    loss = self.model(*self.data.get(ids))[1] * (len(ids) / c.batch_size)
                self.scaler.scale(loss * self.world).backward()    # DDP averages over ranks; we want the sum
            loss_sum = loss_sum + loss.detach()
            if c.gradient_accumulation_steps > 1 and self.world == 1:
                gradient = torch.cat([p.grad.flatten() for p in self.weights])
                parts.append(((gradient - before).square().sum(), len(ids)))
                before = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, c) * group["lr_scale"]
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = clip(self.weights, c.grad_clip or math.inf)
        if self.world > 1:
            parts, self.square = [(self.square, len(rows))], 0.0
        if parts and c.dtype != "float16":             # there gradients are scaled
            self.add_noise(parts)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for p in self.weights:                         # optimizer.zero_grad() does more than this
            p.grad = None
        self.losses.append(loss_sum)                   # this rank's share of the batch mean
        self.step += 1

    def add_noise(self, parts: list) -> None:
        """Average tr(Sigma), of a sequence's gradient, and |G|^2 (~50 steps): their ratio is the noise scale.

        Both are unbiased, from gradients of parts and of all of the batch (McCandlish et al. 2018, app. A.1).
        `parts` holds (|gradient|^2, rows) of this rank or, with one process, of each micro-batch.
        """
        B, whole = self.c.batch_size, self.grad_norm ** 2
        trace = sum((square * (B / self.world / rows) ** 2 - whole) / (1 / rows - 1 / B)
                    for square, rows in parts) / len(parts)
        new = torch.stack([trace, whole - trace / B])
        self.noise = new if self.noise is None else torch.lerp(self.noise, new, 1 / min(50, self.step + 1))

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss in nats of the first eval_iters rows of val.bin, at any batch size; ranks share them."""
        rows = np.arange(self.c.eval_iters)[self.rank::self.world]
        per_batch = max(1, min(16384, 2 ** 27 // self.c.vocab_size) // self.c.block_size)    # .5 GB of logits
        total = 0.0
        self.raw.eval()
        for i in range(0, len(rows), per_batch):
            x, y = self.val.get(rows[i:i + per_batch])
            with self.autocast:
                total += self.raw(x, y)[1].item() * len(x)
        self.raw.train()
        kind = torch.float32 if self.c.device == "mps" else torch.float64
        total = torch.tensor(total, dtype=kind, device=self.c.device)
        loss = self.sum_over_ranks(total).item() / self.c.eval_iters
        self.require_finite([loss], self.step, "validation loss")
        return loss

    def require_finite(self, values: list, first_step: int, name: str) -> None:
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise UserError(f"{self.out}: the {name} is {value} at step {first_step + i}; lower "
                                f"learning_rate (now {self.c.learning_rate:g}) or set grad_clip "
                                f"(now {self.c.grad_clip:g})")

    def mean_loss(self) -> float:
        """Mean training loss since the last log line, over micro-batches and ranks. Waits for the device."""
        values = self.sum_over_ranks(torch.stack(self.losses)).tolist()
        self.require_finite(values, self.step - len(values) + 1, "training loss")
        return sum(values) / len(values)

    def noise_scale(self) -> dict:
        """{noise_scale: tr(Sigma)/|G|^2 in tokens: larger batches pay little}; {} where unknown."""
        if self.noise is None:
            return {}
        trace, square = self.sum_over_ranks(self.noise.clone()).tolist()
        return {"noise_scale": round(self.c.block_size * trace / square, 1)} if min(trace, square) > 0 else {}

    def seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.started

    def tokens(self) -> int:
        return self.step * self.c.batch_size * self.c.block_size

    def save(self, name: str = "ckpt.pt") -> None:
        """Write a checkpoint to go on from bit for bit. Raises UserError if a loss is not finite."""
        losses = self.sum_over_ranks(torch.stack(self.losses)) if self.losses else torch.zeros(0)
        self.require_finite(losses.tolist(), self.step - len(losses) + 1, "training loss")
        if self.noise is not None:
            self.noise = self.sum_over_ranks(self.noise) / self.world
        weights = torch.nn.utils.get_total_norm(self.weights)   # spoilt a step before the loss
        self.require_finite([weights.item()], self.step, "norm of the weights")
        if self.rank == 0:
            state = dict(model=self.raw.state_dict(), optimizer=self.optimizer.state_dict(),
                         scaler=self.scaler.state_dict(), step=self.step, record=self.record,
                         elapsed=self.seconds(), losses=losses.cpu(), noise=self.noise,
                         config=dataclasses.asdict(self.c), data_sha256=self.meta["train_sha256"])
            previous = self.out / CKPTS[1] if name == CKPTS[0] else None
            write_atomic(self.out / name, lambda f: torch.save(state, f), previous)
        self.losses = [x / self.world for x in losses.unbind()]

    def resume(self) -> Path | None:
        """Go on from the last checkpoint that can be read. Returns its path, None where there is none."""
        paths = [self.out / name for name in CKPTS if (self.out / name).exists()]
        for path in paths:
            try:
                self.load(path)
                return path
            except Corrupt as e:
                if path == paths[-1]:
                    raise
                print(f"{path} is corrupt ({e.why}); goes on from {paths[-1].name}", flush=True)

    def load(self, path: Path) -> None:
        """Raises Corrupt, or UserError for a checkpoint of another run."""
        state = load_checkpoint(path, self.c, self.meta)
        try:
            self.raw.load_state_dict(state["model"])
            groups = self.optimizer.state_dict()               # the configuration's own
            self.optimizer.load_state_dict(groups | {"state": state["optimizer"]["state"]})
            moments = [self.optimizer.state[p] for p in self.weights]          # torch does not look at these
            if not 0 <= state["step"] <= self.c.max_iters or not all(
                    m["exp_avg"].shape == m["exp_avg_sq"].shape == p.shape and m["step"].dim() == 0
                    for m, p in zip(moments, self.weights)):
                raise ValueError
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.elapsed, self.record = state["step"], state["elapsed"], state["record"]
            self.losses = [x.view(()) / self.world for x in state["losses"].to(self.c.device).unbind()]
            if state.get("noise") is not None:
                self.noise = state["noise"].to(self.c.device)
        except Exception as e:                         # or of another version
            raise e if out_of_memory(e) else Corrupt(path, e) from None

    def require_same_step(self) -> None:
        """Raise UserError on ranks that do not see the checkpoint that others go on from."""
        steps = self.sum_over_ranks(torch.tensor(float(self.step), device=self.c.device)).item()
        if steps != self.world * self.step:
            raise UserError(f"{self.out}: rank {self.rank} goes on from step {self.step}, others do not; put "
                            "out_dir on a file system that all nodes share")

    def start_files(self, resumed: Path | None) -> None:
        """config.json, and a log that ends where this run goes on; of a run started over nothing is left."""
        stale = (() if resumed == self.out / CKPTS[0] else CKPTS[:1] if resumed else
                 (*CKPTS[::-1], "log.jsonl"))
        with named_errors(self.out, "allow writing, or choose another out_dir"):
            for name in ("result.json", *stale):       # a corrupt ckpt.pt must not become the previous one
                (self.out / name).unlink(missing_ok=True)
        log = self.out / "log.jsonl"
        if self.c.branch and not log.exists():         # a branch's log begins with that of its trunk
            write_atomic(log, lambda f: f.write((Path(self.c.branch).parent / "log.jsonl").read_bytes()))
        trim_log(log, self.step)
        known = resumed and (self.out / "config.json").exists()
        old = read_json(self.out / "config.json", "seed") if known else {}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        seal = self.out.parent / "forecasts" / f"{self.out.name}.json"         # known only if sealed before
        sealed = read_json(seal, "sha256")["sha256"] if not known and seal.exists() else old.get("forecast")
        write_json(self.out / "config.json", dataclasses.asdict(self.c) | dict(
            started_at=old.get("started_at", now), forecast=sealed, commit=git_commit(),
            torch=torch.__version__, numpy=np.__version__, world_size=self.world,
            device_name=device_name(self.c.device),
            data_sha256=self.meta["train_sha256"], tokenizer=self.meta["tokenizer"], params=self.params,
            flops_per_token=self.flops))
        total = self.c.max_iters * self.c.batch_size * self.c.block_size
        print(f"{self.out}: {self.params['total']:,} parameters, {total:,} tokens in {self.c.max_iters:,} "
              f"steps, {total * self.flops['total']:.3g} FLOPs on {self.c.device}"
              + (f"; goes on from step {self.step:,}" if self.step else ""), flush=True)

    def log(self, record: dict) -> None:
        path, line = self.out / "log.jsonl", (json.dumps(record) + "\n").encode()
        with named_errors(path, "free some space, then run the same command"), open(path, "ab") as f:
            f.write(line)
        left = (self.c.max_iters - self.step) * record["elapsed_s"] / self.step
        val = f" | val {record['val_loss']:.4f}" if "val_loss" in record else ""
        print(f"step {self.step:,}/{self.c.max_iters:,} | train {record['train_loss']:.4f}{val} | "
              f"lr {record['lr']:.2e} | norm {record['grad_norm']:.2f} | {record['tok_per_s']:,.0f} tok/s | "
              f"ETA {left // 60:.0f}:{left % 60:02.0f}", flush=True)

    def result(self, record: dict) -> dict:
        """The row of runs.csv (DESIGN: one name per column), from the last log record."""
        c, p, epoch = self.c, self.params, self.data.rows * self.c.block_size
        bits = record["val_loss"] / math.log(2) * self.meta["val_tokens"] / self.meta["val_bytes"]
        return dict(
            seed=c.seed, dataset=c.dataset, tokenizer=self.meta["tokenizer"], n_layer=c.n_layer,
            n_head=c.n_head, n_embd=c.n_embd, block_size=c.block_size,
            batch_tokens=c.batch_size * c.block_size, learning_rate=c.learning_rate, schedule=c.schedule,
            params_total=p["total"], params_embedding=p["token_embedding"] + p["position_embedding"],
            params_non_embedding=p["non_embedding"], params_head=p["head"], tokens=self.tokens(),
            unique_tokens=min(self.tokens(), epoch), epochs=self.tokens() / epoch,
            flops_6nd=6 * (p["non_embedding"] + p["head"]) * self.tokens(), flops_exact=record["flops"],
            train_loss=record["train_loss"], val_loss=record["val_loss"], val_bits_per_byte=bits,
            val_tokens=c.eval_iters * c.block_size, wall_s=record["elapsed_s"],
            tok_per_s=round(self.tokens() / record["elapsed_s"], 1), device=device_name(c.device),
            dtype=c.dtype, commit=git_commit())


def average(run: Run, bucket):
    """DDP's averaging of gradients over ranks; before it, this rank's own |gradient|^2 is noted."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    run.square = run.square + bucket.buffer().square().sum()
    return allreduce_hook(None, bucket)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


@contextlib.contextmanager
def explained(c: Config):
    """Errors that are not this process's own doing, too little memory and ranks that died, as UserErrors."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        why = str(e).strip().partition("\n")[0]
        if out_of_memory(e):
            raise UserError(
                f"{c.out_dir}: out of memory on {c.device}; raise gradient_accumulation_steps (now "
                f"{c.gradient_accumulation_steps}; the same command goes on, with the same result), or lower "
                f"batch_size (now {c.batch_size}) or the size of the model") from None
        if isinstance(e, dist.DistError) or "gloo" in why or "NCCL" in why:
            raise UserError(f"{c.out_dir}: lost another rank ({why:.150}); what that one printed says why; "
                            "the same command goes on from the last checkpoint") from None
        raise


def loop(run: Run, caught: list) -> dict:
    """Train `run` to its end. Returns the last log record; raises Interrupted after a signal."""
    c, saved_at, logged_at, logged_step = run.c, time.perf_counter(), time.perf_counter(), run.step
    keep = {int(step) for step in c.keep_steps.split(",") if step}
    while run.step < c.max_iters:
        run.train_step()
        last = run.step == c.max_iters
        evaluating = last or (c.eval_interval and run.step % c.eval_interval == 0)
        if evaluating or run.step % c.log_interval == 0:
            record = dict(step=run.step, tokens=run.tokens(), flops=run.tokens() * run.flops["total"],
                          train_loss=run.mean_loss())
            rate = (run.step - logged_step) * c.batch_size * c.block_size / (time.perf_counter() - logged_at)
            if evaluating:
                record["val_loss"] = run.evaluate()
            record.update(lr=learning_rate(run.step - 1, c), grad_norm=run.grad_norm.item(),
                          tok_per_s=round(rate, 1), elapsed_s=round(run.seconds(), 3), **run.noise_scale())
            if c.dtype != "float16":                   # there the scaler skips such a step
                run.require_finite([record["grad_norm"]], run.step, "gradient norm")
            if run.rank == 0:
                run.log(record)
            run.losses, run.record, logged_at, logged_step = [], record, time.perf_counter(), run.step
        if run.step in keep:
            run.save(f"ckpt_{run.step}.pt")
        if run.world > 1 and run.step % 10 and not last:
            continue                                   # ranks stop and save together, every tenth step
        wants = torch.tensor([len(caught), time.perf_counter() - saved_at > 60 * c.ckpt_minutes]).float()
        stop, due = run.sum_over_ranks(wants.to(c.device) if run.world > 1 else wants).tolist()
        if last or stop or due:
            run.save()
            saved_at = time.perf_counter()
        if stop and not last:
            raise Interrupted(f"{run.out}: interrupted at step {run.step}; the same command "
                              f"{'less --resume=never ' if c.resume == 'never' else ''}goes on from there")
    return run.record


def train(c: Config) -> dict:
    """Train the run that `c` describes, from its checkpoint if there is one. Returns what result.json holds.

    Raises UserError (settings, data, space, a loss that is not finite) or Interrupted (SIGINT, SIGTERM).
    """
    with explained(c):
        rank, world, device = setup(c.device)
    meta = load_meta(c.dataset)
    check(c, meta, world)
    c = derive(c, meta, device, world)
    out = Path(c.out_dir)
    with named_errors(out, "choose another out_dir"):
        out.mkdir(parents=True, exist_ok=True)
    if c.resume == "auto" and (out / "result.json").exists():
        old = read_json(out / "config.json", "data_sha256")
        require_same_run(old, c, out / "result.json")
        require_same_text(old["data_sha256"], c, meta, out / "result.json")
        return read_json(out / "result.json", "val_loss")
    with caught_signals() as caught, explained(c):
        run = Run(c, meta, rank, world)
        resumed = run.resume() if c.resume == "auto" else None
        if c.branch and not resumed:
            run.load(Path(c.branch))
        run.require_same_step()
        if rank == 0:
            run.start_files(resumed)
        result = run.result(loop(run, caught))
        if rank == 0:
            (out / CKPTS[1]).unlink(missing_ok=True)
            write_json(out / "result.json", result)
    return result


def main() -> int:
    c, _ = configure(Config, sys.argv[1:])
    try:
        result = train(c)
    except Interrupted as e:
        print(e, flush=True)
        return 3
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{c.out_dir}: val_loss {result['val_loss']:.4f} nats per token, "
              f"{result['val_bits_per_byte']:.4f} bits per byte, {result['tokens']:,} tokens in "
              f"{result['wall_s']:.0f} s; next: python sample.py --out_dir={c.out_dir}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
