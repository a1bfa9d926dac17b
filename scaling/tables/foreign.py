"""Logs of other projects as points (run, params, tokens, loss) that a fit can use."""
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.basics import UserError, load_json, nearest
from scaling.tables.csv import MALFORMED, csv_rows, number

POINT_COLUMNS = "run params tokens loss step flops budget unique_tokens".split()


FORMATS = ("a study or run directory, nanoGPT's console log, Hugging Face's trainer_state.json, "
           '.json with "train_loss": [[step, loss], ...], or .csv with --map')


# Readers of curves return {"train": {step: loss}, "val": {step: loss}, "tokens": {step: tokens}} and, where
# the log tells, "params" and "batch_tokens". A step that was logged twice counts as it was logged last.
@contextmanager
def skipping(where: str, report: Callable):
    """Report what is malformed in the block, at `where`, and go on."""
    try:
        yield
    except MALFORMED as e:
        report(f"{where}: malformed ({type(e).__name__}: {e}); skipped")


def read_console(path: Path, report: Callable) -> dict:
    """nanoGPT's standard output: 'iter 9: loss 3.1, time ...' and 'step 9: train loss 2.1, val loss 2.3'."""
    loss = r"(nan|inf|\d+\.?\d*)"
    point = re.compile(rf"(?:iter|step) (\d{{1,15}}): (?:train )?loss {loss}, (?:time .*|val loss {loss})\s*")
    fact = re.compile(r"(?:tokens per iteration will be|number of parameters): ([\d,]+(?:\.\d+)?)(M?)\s*")
    found = {"train": {}, "val": {}, "tokens": {}}
    with open(path, encoding="utf-8", errors="replace") as f:
        for line, text in enumerate(f, 1):
            if match := fact.fullmatch(text):
                key, unit = ("params", 1e6) if match[2] else ("batch_tokens", 1)
                found[key] = number(match[1].replace(",", "")) * unit
                found["counted"] = "rounded, all but the position embeddings"
            if not text.startswith(("iter ", "step ")):
                continue
            match = point.fullmatch(text)
            # nanoGPT prints both losses with as many decimals: a last line with fewer ends inside a number.
            if not match or (match[3] and len(match[3]) < len(match[2]) and not text.endswith("\n")):
                report(f"{path}:{line}: malformed: {text.strip()!r:.60}; skipped")
                continue
            found["train"][int(match[1])] = number(match[2])
            if match[3]:
                found["val"][int(match[1])] = number(match[3])
    return found


def read_json(path: Path, report: Callable) -> dict:
    """trainer_state.json, or {"config": {...}, "train_loss": [[step, loss], ...], "eval_loss": [...]}."""
    data, found = load_json(path), {"train": {}, "val": {}, "tokens": {}}
    ours = {"loss": "train", "eval_loss": "val", "num_input_tokens_seen": "tokens"}
    for i, entry in enumerate(data["log_history"] if isinstance(data.get("log_history"), list) else []):
        with skipping(f"{path}: log_history[{i}]", report):
            for key in ours.keys() & entry.keys():
                found[ours[key]][int(number(entry["step"]))] = number(entry[key])
    for name, losses in ("train_loss", found["train"]), ("eval_loss", found["val"]):
        for i, pair in enumerate(data[name] if isinstance(data.get(name), list) else []):
            with skipping(f"{path}: {name}[{i}]", report):
                step, loss = pair
                losses[int(number(step))] = number(loss)
    config = data["config"] if isinstance(data.get("config"), dict) else {}
    shape = {key: value for key, value in config.items() if type(value) is int and 0 < value < 10**9}
    if {"n_layers", "d_model"} <= set(shape):         # blocks and last norm, with biases
        layers, width = shape["n_layers"], shape["d_model"]
        found["params"] = layers * (12 * width**2 + 13 * width) + 2 * width
        found["counted"] = "of a GPT-2 of its config, non-embedding"
    if {"batch_size", "n_positions"} <= set(shape):
        found["batch_tokens"] = shape["batch_size"] * shape["n_positions"]
    return found


def curve_points(path: Path, params: float | None, batch_tokens: float | None, report: Callable) -> Iterator:
    """Yield (where, point) along the curve in a log: validation loss or, where there is none, train loss."""
    found = (read_json if path.suffix.lower() == ".json" else read_console)(path, report)
    if not found["train"] and not found["val"]:
        raise UserError(f"{path}: no loss recognised in it; accepted: {FORMATS}")
    params, step_tokens = params or found.get("params"), batch_tokens or found.get("batch_tokens", math.nan)
    if not params:
        raise UserError(f"{path}: it does not say how many parameters the model has; give --params=")
    if math.isnan(step_tokens) and not found["tokens"]:
        raise UserError(f"{path}: it does not say how many tokens a step takes; give --batch_tokens=")
    if params == found.get("params"):
        report(f"{path}: params is {params:.6g} ({found['counted']}); --params= overrides it")
    if not found["val"]:
        report(f"{path}: no validation loss in it, so loss is the train loss")
    seen = {} if batch_tokens else found["tokens"]
    for step, loss in sorted((found["val"] or found["train"]).items()):
        yield f"step {step}", {"run": path.with_suffix("").as_posix(), "params": params, "step": step,
                               "tokens": seen.get(step, step * step_tokens), "loss": loss}


def csv_points(path: Path, names: dict, params: float | None, batch_tokens: float | None,
               report: Callable) -> Iterator:
    """Yield (where, point) of each row of a CSV file; `names` {ours: theirs} says which column is which."""
    rows = csv_rows(path, report)
    header = next(rows)[1]
    needed = {"loss", "step" if batch_tokens else "tokens"} | (set() if params else {"params"})
    source = {name: name for name in POINT_COLUMNS if name in header or name in needed} | names
    for name, column in source.items():
        if column not in header:
            flag = {"params": "--params=N or ", "tokens": "--batch_tokens=N or "}.get(name, "")
            raise UserError(f"{path}: no column {column!r}{nearest(column, header)}; give {flag}--map "
                            f"{name}=COLUMN with one of {', '.join(header)}")
    for line, cells in rows:
        with skipping(f"{path}:{line}", report):
            theirs, point = dict(zip(header, cells)), {"run": f"{path.with_suffix('').as_posix()}:{line}"}
            for name, column in source.items():
                point[name] = number(theirs[column]) if name in POINT_COLUMNS[1:] else theirs[column]
            point["params"] = params or point["params"]
            point["tokens"] = point["step"] * batch_tokens if batch_tokens else point["tokens"]
            yield f"line {line}", point


def usable(path: Path, points: Iterable[tuple[str, dict]], report: Callable) -> list[dict]:
    """The points that a fit can use; how many lack params, tokens or a loss is reported, with the first."""
    kept, lacking = [], {}
    for where, point in points:
        bad = [key for key in ("params", "tokens") if not 0 < point[key] < math.inf]
        bad += [] if math.isfinite(point["loss"]) else ["loss"]
        if bad:
            lacking.setdefault(bad[-1], []).append(where)
        else:
            kept.append(point)
    for key, places in lacking.items():
        report(f"{path}: {len(places)} points without {key}, the first at {places[0]}; skipped")
    return kept
