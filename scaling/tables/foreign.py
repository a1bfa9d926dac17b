"""Logs of other projects as points (run, params, tokens, loss) that a fit can use."""
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtime.basics import UserError, load_json, nearest
from scaling.tables.csv import MALFORMED, csv_rows, number

POINT_COLUMNS = "run params tokens loss step flops budget unique_tokens".split()
FORMATS = ("a study or run directory, nanoGPT's console log, Hugging Face's trainer_state.json, "
           '.json with "train_loss": [[step, loss], ...], or .csv with --map')


@dataclass
class Curve:
    """What a log says of one run, by step; a step that was logged twice counts as it was logged last."""
    train: dict = field(default_factory=dict)          # losses, in nats per token
    val: dict = field(default_factory=dict)
    tokens: dict = field(default_factory=dict)         # seen so far
    params: float | None = None                        # of the model
    counted: str = ""                                  # which of its parameters
    batch_tokens: float | None = None                  # a step


@contextmanager
def skipping(where: str, report: Callable):
    """Report what is malformed in the block, at `where`, and go on."""
    try:
        yield
    except MALFORMED as e:
        report(f"{where}: malformed ({type(e).__name__}: {e}); skipped")


# ---- Readers of curves. ----

def read_console(path: Path, report: Callable) -> Curve:
    """nanoGPT's standard output: 'iter 9: loss 3.1, time ...' and 'step 9: train loss 2.1, val loss 2.3'."""
    loss = r"(nan|inf|\d+\.?\d*)"
    point = re.compile(rf"(?:iter|step) (\d{{1,15}}): (?:train )?loss {loss}, (?:time .*|val loss {loss})\s*")
    fact = re.compile(r"(?:tokens per iteration will be|number of parameters): ([\d,]+(?:\.\d+)?)(M?)\s*")
    curve = Curve()
    with open(path, encoding="utf-8", errors="replace") as f:
        for line, text in enumerate(f, 1):
            if match := fact.fullmatch(text):
                value = number(match[1].replace(",", ""))
                if match[2]:
                    curve.params = value * 1e6
                    curve.counted = "rounded, all but the position embeddings"
                else:
                    curve.batch_tokens = value
            elif text.startswith(("iter ", "step ")):
                match = point.fullmatch(text)
                # A last line may end inside a number; whole, both losses have as many decimals.
                torn = match and match[3] and not text.endswith("\n") and len(match[3]) < len(match[2])
                if torn or not match:
                    report(f"{path}:{line}: malformed: {text.strip()!r:.60}; skipped")
                    continue
                curve.train[int(match[1])] = number(match[2])
                if match[3]:
                    curve.val[int(match[1])] = number(match[3])
    return curve


def read_trainer_state(path: Path, history: list, report: Callable) -> Curve:
    """The log_history of Hugging Face's trainer_state.json."""
    curve = Curve()
    ours = {"loss": curve.train, "eval_loss": curve.val, "num_input_tokens_seen": curve.tokens}
    for i, entry in enumerate(history):
        with skipping(f"{path}: log_history[{i}]", report):
            for key in ours.keys() & entry.keys():
                ours[key][int(number(entry["step"]))] = number(entry[key])
    return curve


def read_json(path: Path, report: Callable) -> Curve:
    """trainer_state.json, or {"config": {...}, "train_loss": [[step, loss], ...], "eval_loss": [...]}."""
    data = load_json(path)

    def part(name, kind):
        return data[name] if isinstance(data.get(name), kind) else kind()
    curve = read_trainer_state(path, part("log_history", list), report)
    for name, losses in (("train_loss", curve.train), ("eval_loss", curve.val)):
        for i, pair in enumerate(part(name, list)):
            with skipping(f"{path}: {name}[{i}]", report):
                step, loss = pair
                losses[int(number(step))] = number(loss)
    shape = {key: value for key, value in part("config", dict).items()
             if type(value) is int and 0 < value < 10**9}
    if "n_layers" in shape and "d_model" in shape:
        width = shape["d_model"]                       # blocks and last norm, with biases
        curve.params = shape["n_layers"] * (12 * width**2 + 13 * width) + 2 * width
        curve.counted = "of a GPT-2 of its config, non-embedding"
    if "batch_size" in shape and "n_positions" in shape:
        curve.batch_tokens = shape["batch_size"] * shape["n_positions"]
    return curve


# ---- Points: (where it stands, {run, params, tokens, loss, ...}). ----

def curve_points(path: Path, params: float | None, batch_tokens: float | None, report: Callable) -> Iterator:
    """Yield (where, point) along the curve in a log: validation loss or, where there is none, train loss.

    `params` and `batch_tokens`, where given, win over the log. Raises UserError for what neither tells.
    """
    read = read_json if path.suffix.lower() == ".json" else read_console
    curve = read(path, report)
    losses = curve.val or curve.train
    if not losses:
        raise UserError(f"{path}: no loss recognised in it; accepted: {FORMATS}")
    if not params and not curve.params:
        raise UserError(f"{path}: it does not say how many parameters the model has; give --params=")
    step_tokens = batch_tokens or curve.batch_tokens
    if not step_tokens and not curve.tokens:
        raise UserError(f"{path}: it does not say how many tokens a step takes; give --batch_tokens=")
    if params in (None, curve.params):
        params = curve.params
        report(f"{path}: params is {params:.6g} ({curve.counted}); --params= overrides it")
    if not curve.val:
        report(f"{path}: no validation loss in it, so loss is the train loss")
    for step, loss in sorted(losses.items()):
        tokens = step * (step_tokens or math.nan)
        if not batch_tokens:
            tokens = curve.tokens.get(step, tokens)
        yield f"step {step}", {"run": path.with_suffix("").as_posix(), "params": params, "step": step,
                               "tokens": tokens, "loss": loss}


def csv_points(path: Path, names: dict, params: float | None, batch_tokens: float | None,
               report: Callable) -> Iterator:
    """Yield (where, point) of each row of a CSV file; `names` {ours: theirs} says which column is which.

    `params` and `batch_tokens`, where given, win over the file. Raises UserError for a column that it lacks.
    """
    rows = csv_rows(path, report)
    header = next(rows)[1]
    needed = {"loss", "step" if batch_tokens else "tokens"}
    if not params:
        needed.add("params")
    source = {name: name for name in POINT_COLUMNS if name in needed or name in header} | names
    for name, column in source.items():
        if column not in header:
            flag = {"params": "--params=N or ", "tokens": "--batch_tokens=N or "}.get(name, "")
            raise UserError(f"{path}: no column {column!r}{nearest(column, header)}; give {flag}--map "
                            f"{name}=COLUMN with one of {', '.join(header)}")
    for line, cells in rows:
        with skipping(f"{path}:{line}", report):
            theirs = dict(zip(header, cells))
            point = {"run": f"{path.with_suffix('').as_posix()}:{line}"}
            for name, column in source.items():
                point[name] = theirs[column]
                if name in POINT_COLUMNS[1:]:
                    point[name] = number(theirs[column])
            if params:
                point["params"] = params
            if batch_tokens:
                point["tokens"] = point["step"] * batch_tokens
            yield f"line {line}", point


def usable(path: Path, points: Iterable[tuple[str, dict]], report: Callable) -> list[dict]:
    """The points that a fit can use; how many lack params, tokens or a loss is reported, with the first."""
    lowest = {"loss": -math.inf, "tokens": 0, "params": 0}
    kept = []
    lacking = {}
    for where, point in points:
        bad = [key for key, low in lowest.items() if not low < point[key] < math.inf]
        if bad:
            lacking.setdefault(bad[0], []).append(where)
        else:
            kept.append(point)
    for key, places in lacking.items():
        report(f"{path}: {len(places)} points without {key}, the first at {places[0]}; skipped")
    return kept
