"""The files of a run directory: config.json, log.jsonl, checkpoints, result.json; and whose they are.

Every file is written whole or not at all, except the log, which grows by a line. result.json comes last: that
it is there means that the run is done. What cannot be read, or belongs to another run, is a UserError. `run`
is train.Run, on each rank.
"""
import contextlib
import dataclasses
import json
import math
import shlex
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from config import corpus, schema, settings
from config.settings import Config, learning_rate
from runtime.basics import UserError, git_commit, load_json, whole_file, write_json

CHECKPOINT = "ckpt.pt"
PREVIOUS = "ckpt_prev.pt"               # the one before, should the last turn out to be corrupt
START_OVER = "pass --resume=never to start over"
# What a branch or a longer run may change: what bears only on steps after the checkpoint.
LATER = {*settings.HORIZONS, "lr_decay_iters", "schedule", "min_lr", "cooldown_frac", "warmup_frac"}


@contextlib.contextmanager
def named_errors(path: Path, fix: str):
    """The system's refusal to make, change or read `path`, as a UserError."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; {fix}") from None


def read_json(path: Path, needs: str) -> dict:
    """What was written to `path`; it must have the key `needs`."""
    try:
        found = load_json(path)
        if needs not in found:
            raise UserError(f"{path}: no {needs} in it")
    except UserError as e:
        raise UserError(f"{e}; mend it, or {START_OVER}") from None
    return found


# ---- is it the same run? ----


def require_same_run(old: dict, c: Config, path: Path, but: set = frozenset()) -> None:
    """What `path` recorded, `old`, must be the run `c` in all that bears on the result, `but` for some."""
    for name in schema.differences(old, dataclasses.asdict(c)):
        if name not in but:
            restore = "restore the setting"
            # It may follow from the horizon; but a run whose rate was to fall until its end has no other.
            if name == "warmup_iters" and c.schedule in ("constant", "wsd"):
                restore = f"give --{name}={old.get(name)} to keep the warmup"
            raise UserError(f"{path} was written with {name}={old.get(name)!r}, not {getattr(c, name)!r}: "
                            f"choose another out_dir, {restore}, or {START_OVER}")


def require_same_start(old: dict, c: Config, path: Path, steps: int) -> None:
    """`c`, which goes on after `steps`, must equal the run before it up to there, learning rates included."""
    require_same_run(old, c, path, but=LATER)
    trunk = schema.from_dict(old)
    for step in range(steps):
        if learning_rate(step, c) != learning_rate(step, trunk):
            raise UserError(f"{path} is at step {steps}, and the learning rates differ at step {step}; "
                            f"{earlier(path.parent, step)}; or train it whole, in another out_dir")
    if steps >= c.max_iters:
        raise UserError(f"{path} is at step {steps}, and this run ends at {c.max_iters}; give it a later end")


def earlier(folder: Path, step: int) -> str:
    """How to begin at `step` or before it, with a checkpoint that the run in `folder` kept."""
    numbers = [path.stem.removeprefix("ckpt_") for path in folder.glob("ckpt_*.pt")]
    before = [int(number) for number in numbers if number.isdecimal() and int(number) <= step]
    if not before:
        return "a run that is to go on must keep a checkpoint before that (keep_steps)"
    branch = shlex.quote(str(folder / f"ckpt_{max(before)}.pt"))
    return f"branch from an earlier one, in another out_dir: --branch={branch}"


def goes_further(c: Config, old: dict) -> bool:
    """Whether `c` ends later than the run that `old` records."""
    return c.max_iters > old.get("max_iters", c.max_iters)


def require_same_text(old: dict, c: Config, meta: dict, path: Path) -> None:
    """What `path` recorded, `old`, must be of the text that the dataset holds now."""
    if old["data_sha256"] != meta["train_sha256"]:
        raise UserError(f"{path} was trained on other text than {c.dataset!r} holds now; prepare that text "
                        f"again, or {START_OVER}")
    if "val_sha256" in corpus.other_texts(old, corpus.texts(meta)):
        raise UserError(f"{path} was evaluated on other text than {c.dataset!r} has for it now (val.bin); "
                        f"prepare that text again, or {START_OVER}")


def finished(c: Config, meta: dict) -> dict | None:
    """What result.json holds where the run is done; None where it is not, or `c` goes on from its end."""
    path = Path(c.out_dir) / "result.json"
    if not path.exists():
        return None
    old = read_json(path.with_name("config.json"), "data_sha256")
    longer = goes_further(c, old) and path.with_name(CHECKPOINT).exists()
    if longer:
        require_same_start(old, c, path, old["max_iters"])
    else:
        require_same_run(old, c, path)
    require_same_text(old, c, meta, path)
    return None if longer else read_json(path, "val_loss")


# ---- checkpoints ----


class Corrupt(UserError):
    """A checkpoint that cannot be read."""

    def __init__(self, path: Path, error: Exception):
        self.why = type(error).__name__
        super().__init__(f"{path} is corrupt ({self.why}); delete it, or {START_OVER}")


def require_ours(path: Path, fix: str = "gone on from; choose another out_dir") -> None:
    """Raise UserError for a checkpoint that another program wrote: it is neither loaded nor removed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        ours = not isinstance(state, dict) or "data_sha256" in state
    except Exception:                                  # unreadable: ours, where a run of ours was begun
        ours = not path.exists() or path.with_name("config.json").exists()
    if not ours:
        raise UserError(f"{path} is not a checkpoint of this project (nanoGPT writes such files) and cannot "
                        f"be {fix}")


def save(run, name: str = CHECKPOINT) -> None:
    """Write a checkpoint to go on from bit for bit. Raises UserError if a loss is not finite."""
    losses = run.sum_over_ranks(torch.stack(run.losses)) if run.losses else torch.zeros(0)
    require_finite(run.c, losses.tolist(), run.step - len(losses) + 1, "training loss")
    norm = torch.nn.utils.get_total_norm(run.weights)  # not finite a step before the loss is
    require_finite(run.c, [norm.item()], run.step, "norm of the weights")
    # Each rank's part is now in the sum. All go on with an equal share of it, as they do after `load`: so the
    # next sum over ranks is what it would have been, whatever their number.
    run.losses = [x / run.world for x in losses.unbind()]
    noise = run.noise
    if noise.average is not None:
        noise.average = run.sum_over_ranks(noise.average) / run.world
    if run.rank > 0:
        return
    state = dict(
        model=run.raw.state_dict(), optimizers=[x.state_dict() for x in run.optimizers],
        scaler=run.scaler.state_dict(),
        step=run.step, record=run.record, elapsed=run.seconds(), losses=losses.cpu(), noise=noise.average,
        config=dataclasses.asdict(run.c), data_sha256=run.meta["train_sha256"],
        val_sha256=run.meta.get("val_sha256"))
    previous = run.out / PREVIOUS if name == CHECKPOINT else None
    with whole_file(run.out / name, "wb", previous) as f:
        torch.save(state, f)


def load(run, path: Path) -> None:
    """Have `run` go on from the checkpoint `path`: its own, or to branch, that of a run which begins alike.

    Raises Corrupt for what is no whole checkpoint, UserError for one of another program, run or text.
    """
    own = path.parent == run.out
    if path.is_dir():
        raise UserError(f"{path} is a directory, and --branch takes a checkpoint that a run kept "
                        f"(keep_steps); {earlier(path, run.c.max_iters)}")
    require_ours(path, *([] if own else ["branched from; name another"]))
    try:
        with zipfile.ZipFile(path) as z:
            if z.testzip():                            # torch.load ignores the checksums of torch.save
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
        if own and not goes_further(run.c, state["config"]):
            require_same_run(state["config"], run.c, path)
        else:
            require_same_start(state["config"], run.c, path, state["step"])
        require_same_text(state, run.c, run.meta, path)
        restore(run, state)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}; train the run that keeps it (keep_steps) first") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; make it readable, then run the same command") from None
    except Exception as e:                             # unpickling garbage can raise almost anything
        if out_of_memory(e):
            raise
        raise Corrupt(path, e) from None


def restore(run, state: dict) -> None:
    """Set `run` to where `save` left off. Raises something where `state` is not such a run's."""
    if not 0 <= state["step"] <= run.c.max_iters:
        raise ValueError
    run.raw.load_state_dict(state["model"])
    saved = state.get("optimizers") or [state["optimizer"]]    # until Muon came there was one
    for optimizer, old in zip(run.optimizers, saved, strict=True):
        groups = optimizer.state_dict()                # their settings are this run's: a branch has its own
        optimizer.load_state_dict(groups | {"state": old["state"]})
    require_moments(run)
    run.scaler.load_state_dict(state["scaler"])
    run.step = state["step"]
    run.elapsed = state["elapsed"]
    run.record = state["record"]
    run.losses = [x.view(()) / run.world for x in state["losses"].to(run.c.device).unbind()]
    if state.get("noise") is not None:                 # it is young: older checkpoints lack it
        run.noise.average = state["noise"].to(run.c.device)


def require_moments(run) -> None:
    """Raise ValueError unless there are moments of each weight (AdamW: and a count): torch does not look."""
    states = [(p, state) for optimizer in run.optimizers for p, state in optimizer.state.items()]
    if len(states) < len(run.weights):
        raise ValueError
    for p, state in states:
        moments = ["momentum_buffer"]
        if "momentum_buffer" not in state:
            moments = ["exp_avg", "exp_avg_sq"]
            if state["step"].dim():
                raise ValueError
        if any(state[name].shape != p.shape for name in moments):
            raise ValueError


def require_same_step(run) -> None:
    """Raise UserError on ranks that do not see the checkpoint that others go on from."""
    steps = run.sum_over_ranks(torch.tensor(float(run.step), device=run.c.device)).item()
    if steps != run.world * run.step:
        raise UserError(f"{run.out}: rank {run.rank} goes on from step {run.step}, others do not; put "
                        "out_dir on a file system that all nodes share")


def resume(run) -> Path | None:
    """Have `run` go on from the last checkpoint that can be read. Its path; None where there is none."""
    paths = [run.out / name for name in (CHECKPOINT, PREVIOUS) if (run.out / name).exists()]
    for path in paths:
        try:
            load(run, path)
            return path
        except Corrupt as e:
            if path == paths[-1]:
                raise
            print(f"{path} is corrupt ({e.why}); goes on from {paths[-1].name}", flush=True)
    return None


# ---- the start of a session ----


def start_files(run, resumed: Path | None) -> None:
    """config.json, and a log that ends where this run goes on; of a run that starts over nothing is left."""
    c = run.c
    remove_stale(run.out, resumed)
    log = run.out / "log.jsonl"
    if c.branch and not resumed:                       # a branch's log begins with that of its trunk
        trunk = Path(c.branch).with_name(log.name)
        with named_errors(trunk, "put it back, or free some space"):
            shutil.copyfile(trunk, log)
    # A line that this run will write again: that of a step whose evaluation is still to come.
    trim_log(log, run.step - 1 if run.awaits_evaluation() else run.step)
    path = run.out / "config.json"
    facts = dataclasses.asdict(c) | dict(
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), forecast=c.forecast or None,
        commit=git_commit(), torch=torch.__version__, numpy=np.__version__, world_size=run.world,
        device_name=device_name(c.device), data_sha256=run.meta["train_sha256"],
        val_sha256=run.meta.get("val_sha256"), tokenizer=run.meta["tokenizer"], params=run.params,
        flops_per_token=run.flops)
    if resumed and path.exists():
        # What was begun, or sealed, stays so: a forecast that a resumed run is told of came too late.
        old = read_json(path, "seed")
        facts |= {name: old.get(name) for name in ("started_at", "forecast")}
    write_json(path, facts)


def remove_stale(out: Path, resumed: Path | None) -> None:
    """Remove what does not belong to the run that goes on from `resumed`, or starts over."""
    stale = [out / "result.json", *out.glob(".*.tmp")]      # .tmp: files that a kill left half
    if resumed is None:
        require_ours(out / CHECKPOINT)
        stale += [out / PREVIOUS, out / CHECKPOINT, out / "log.jsonl"]
    elif resumed.name == PREVIOUS:                     # a corrupt ckpt.pt must not become the previous one
        stale.append(out / CHECKPOINT)
    with named_errors(out, "allow writing, or choose another out_dir"):
        for path in stale:
            path.unlink(missing_ok=True)


def trim_log(path: Path, step: int) -> None:
    """Drop what was logged after `step`, and a torn last line: the resumed run logs them again."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):      # a torn last line is later than the checkpoint
            if number < len(lines):
                raise UserError(f"{path}: line {number} is damaged; delete it, or {START_OVER}") from None
    with whole_file(path, "wb") as f:
        f.write(b"".join(kept))


# ---- what a run leaves ----


def append_log(out: Path, record: dict) -> None:
    """Add a line to log.jsonl."""
    path = out / "log.jsonl"
    fix = "free some space, then" if out.exists() else "the directory was removed;"
    with named_errors(path, f"{fix} run the same command"), open(path, "ab") as f:
        f.write((json.dumps(record) + "\n").encode())


def finish(out: Path, result: dict) -> None:
    """Write result.json, last: now the run is done."""
    (out / PREVIOUS).unlink(missing_ok=True)
    write_json(out / "result.json", result)


def result_row(asked: Config, run, record: dict) -> dict:
    """The run's row of runs.csv (schema.RUN_COLUMNS, less study and run) from its last log record."""
    c, p, meta = run.c, run.params, run.meta
    tokens = record["tokens"]
    epoch = (meta["train_tokens"] - 1) // c.block_size * c.block_size
    bits = record["val_loss"] / math.log(2) * meta["val_tokens"] / meta["val_bytes"]
    found = dataclasses.asdict(c) | schema.recipe(asked, c) | dict(
        tokenizer=meta["tokenizer"], batch_tokens=c.batch_size * c.block_size, params_total=p["total"],
        params_embedding=p["token_embedding"] + p["position_embedding"],
        params_non_embedding=p["non_embedding"], params_head=p["head"], tokens=tokens,
        unique_tokens=min(tokens, epoch), epochs=tokens / epoch,
        flops_6nd=6 * settings.default_N(p) * tokens, flops_exact=record["flops"],
        train_loss=record["train_loss"], val_loss=record["val_loss"], val_bits_per_byte=bits,
        val_tokens=c.eval_iters * c.block_size,
        val_sha256=meta["val_sha256"][:12] if meta.get("val_sha256") else None, wall_s=record["elapsed_s"],
        tok_per_s=round(tokens / record["elapsed_s"], 1), device=device_name(c.device), commit=git_commit())
    row = {name: found[name] for name in schema.RUN_COLUMNS if name not in ("study", "run")}
    return row | dict(arm=c.arm) if c.arm else row


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


# ---- what can go wrong ----


def out_of_memory(e: Exception) -> bool:
    """Of numpy, of torch on a GPU (a RuntimeError) or of torch on CPU ("DefaultCPUAllocator: can't ...")."""
    return isinstance(e, MemoryError) or "out of memory" in str(e) or "allocate memory" in str(e)


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
                f"{c.gradient_accumulation_steps}; the same command goes on), or lower "
                f"batch_size (now {c.batch_size}) or the size of the model") from None
        if isinstance(e, dist.DistError) or "gloo" in why or "NCCL" in why:
            raise UserError(f"{c.out_dir}: lost another rank ({why:.150}); what that one printed says why; "
                            "the same command goes on from the last checkpoint") from None
        raise


def require_finite(c: Config, values: list[float], first_step: int, name: str) -> None:
    """Raise UserError for a value that is nan or infinite; they belong to the steps from `first_step` on."""
    for step, value in enumerate(values, first_step):
        if not math.isfinite(value):
            raise UserError(f"{c.out_dir}: the {name} is {value} at step {step}; lower learning_rate (now "
                            f"{c.learning_rate:g}) or set grad_clip (now {c.grad_clip:g})")
