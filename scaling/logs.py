"""Logs to tables: run directories, and the logs of other projects, become the rows that fit.py reads.

    python -m scaling.logs out/STUDY --out=out/STUDY/runs.csv
    python -m scaling.logs train.log --params=124e6 --batch_tokens=491520 --out=points.csv
    python -m scaling.logs wandb.csv --map tokens=Tokens loss=val/loss params=N --out=points.csv

A number that is missing stays missing. Whatever is skipped is reported, with its line and the reason.
"""
import argparse
import csv
import itertools
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from configurator import UserError, exit_cleanly, nearest

# One row per finished run. The first two are its directories; result.json holds the others.
RUN_COLUMNS = (
    "study run seed dataset tokenizer n_layer n_head n_embd block_size batch_tokens learning_rate schedule "
    "params_total params_embedding params_non_embedding params_head tokens unique_tokens epochs flops_6nd "
    "flops_exact train_loss val_loss val_bits_per_byte val_tokens wall_s tok_per_s device dtype "
    "commit").split()
LOG_COLUMNS = "step tokens flops train_loss val_loss lr grad_norm tok_per_s elapsed_s".split()
CURVE_COLUMNS = ["run", *LOG_COLUMNS[:6]]
POINT_COLUMNS = "run params tokens loss step flops budget unique_tokens".split()
# Names, even if they look like numbers: runs 1 and 01 differ, and the commit 5e10843 is not infinity.
TEXT_COLUMNS = set("study run dataset tokenizer schedule device dtype commit sha256".split())
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
FORMATS = ("a study or run directory, nanoGPT's console log, Hugging Face's trainer_state.json, "
           '.json with "train_loss": [[step, loss], ...], or .csv with --map')


def warn(text: str) -> None:
    """The default `report`: one line on stderr."""
    print(text, file=sys.stderr)


def number(value) -> float:
    """A CSV cell or a JSON value as a float; nan, never 0, where it is missing. Raises ValueError."""
    if isinstance(value, str) and "_" not in value:
        return float(value) if value.strip() else math.nan
    if value is None or type(value) in (int, float):
        return math.nan if value is None else float(value)
    raise ValueError(f"{value!r:.40} is not a number")


# -------------------------------------------------------------------------------- tables
def csv_rows(path: str | Path, report: Callable | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each line that is not blank, the header first.

    A ragged row is an error, or is skipped and reported where `report` is given. Raises UserError.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, strict=True)
            header = [name.strip() for name in next(reader, [])]
            twice = [name for name, times in Counter(header).items() if times > 1]
            if not header or twice:
                raise UserError(f"{path}: column {twice[0]!r} appears twice; rename one" if twice else
                                f"{path}: line 1 is empty; it must name the columns")
            yield 1, header
            for cells in filter(None, reader):
                if len(cells) == len(header):
                    yield reader.line_num, cells
                    continue
                wrong = f"{path}:{reader.line_num}: {len(cells)} cells where the header has {len(header)}"
                if report is None:
                    raise UserError(wrong)
                report(f"{wrong}; skipped")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', e)}; a CSV file in UTF-8 is needed") from None
    except csv.Error as e:
        raise UserError(f"{path}:{reader.line_num}: {e}") from None


def to_column(cells: Iterable[str], text: bool) -> np.ndarray:
    """The cells as float64, nan where empty; as str objects if `text` says so or one of them is no number."""
    try:
        if text or "_" in "".join(cells):             # float() would take 1_000
            return np.array([sys.intern(c) for c in cells], object)
        return np.array([float(c.strip() or "nan") for c in cells])
    except ValueError:
        return to_column(cells, text=True)


def read_table(path: str | Path, text: Iterable[str] = TEXT_COLUMNS) -> dict[str, np.ndarray]:
    """{column: values} of a CSV file: float64, nan where empty; str objects for `text` and if a cell is text.

    Raises UserError for a file that is missing, empty, ragged (with the line) or undecodable.
    """
    rows, text, chunks, late = csv_rows(path), set(text), [], False
    header = next(rows)[1]
    while chunk := [cells for _, cells in itertools.islice(rows, 10_000)]:      # bounds what is held as text
        chunks.append({name: to_column(cells, name in text) for name, cells in zip(header, zip(*chunk))})
        new = {name for name, values in chunks[-1].items() if values.dtype == object} - text
        late |= bool(new) and len(chunks) > 1
        text |= new
    if late:                                          # numbers came first, their spelling is gone: once more
        return read_table(path, text)
    empty = {name: np.array([], object if name in text else float) for name in header}
    return {name: np.concatenate([c[name] for c in chunks or [empty]]) for name in header}


def cell(value) -> str:
    """A value as CSV text: repr for floats (the shortest that reads back), empty for None and nan."""
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, (float, np.floating)) else str(value)


@contextmanager
def whole_file(path: str | Path) -> Iterator[TextIO]:
    """A text file to write that becomes `path` when the block ends: a reader sees the old file or the new.

    Raises UserError when the disk refuses.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():       # /dev/stdout must not be replaced
            part = path
        with open(part, "w", encoding="utf-8", newline="") as f:
            yield f
        os.replace(part, path)                         # of a file onto itself: nothing
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from None
    finally:
        if part != path and part.exists():
            part.unlink()


def write_table(path: str | Path, rows: Iterable[dict], columns: list[str]) -> None:
    """Write `rows` as CSV, atomically. Missing values are empty.

    A key that is not in `columns` is a ValueError. Raises UserError when the disk refuses.
    """
    with whole_file(path) as f:
        table = csv.DictWriter(f, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({key: cell(value) for key, value in row.items()} for row in rows)


# -------------------------------------------------------------------------------- our own runs
def load_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError."""
    try:
        data = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', None) or f'not JSON: {e}'}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


def parse_run(run_dir: str | Path) -> dict:
    """The row of runs.csv of one finished run, from its result.json. Raises UserError with the reason."""
    run = Path(os.path.abspath(run_dir))
    result = load_json(run / "result.json")
    wrong = [f"unknown key {key!r}; a new one goes into RUN_COLUMNS too" for key in result
             if key not in RUN_COLUMNS[2:]]
    wrong += [f"{key} is not in it" for key in ("tokens", "val_loss") if key not in result]
    wrong += [f"{key} cannot be {value!r:.40}" for key, value in result.items()
              if value is not None and type(value) not in ((str,) if key in TEXT_COLUMNS else (int, float))]
    if wrong:
        raise UserError(f"{run / 'result.json'}: {wrong[0]}")
    return {"study": run.parent.name, "run": run.name, **result}


def is_run(path: Path) -> bool:
    """A run directory holds at least one of the files that train.py writes."""
    return any((path / name).exists() for name in ("result.json", "config.json", "log.jsonl"))


def parse_study(study_dir: str | Path) -> tuple[list[dict], list[str]]:
    """(rows of runs.csv sorted by run, one line for each run that was skipped and why). Raises UserError."""
    rows, problems = [], []
    try:
        runs = [path for path in sorted(Path(study_dir).iterdir()) if is_run(path)]
    except OSError as e:
        raise UserError(f"{study_dir}: {e.strerror}; a study directory is needed") from None
    for run in runs:
        try:
            rows.append(parse_run(run))
        except UserError as e:
            done = (run / "result.json").exists()
            problems.append(f"{e if done else f'{run}: no result.json, so it is not finished'}; skipped")
    return rows, problems


def log_records(path: str | Path, report: Callable, columns: list[str] = LOG_COLUMNS) -> Iterator[dict]:
    """Yield the records of log.jsonl as they stand, with `columns` as floats; a bad line is reported."""
    try:
        with open(path, "rb") as f:
            for line, text in enumerate(f, 1):
                try:
                    record = json.loads(text)
                    for key in columns:                # most are floats already: this is what parsing costs
                        if type(value := record.get(key)) is not float:
                            record[key] = number(value)
                    if not 0 <= record["step"] < math.inf:
                        raise ValueError("no step in it")
                except MALFORMED as e:
                    report(f"{path}:{line}: malformed ({type(e).__name__}: {e}); skipped")
                else:
                    yield record
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


def current(step: np.ndarray) -> np.ndarray:
    """Which records (n,) still hold: a resumed run goes back to its checkpoint and overtakes older ones."""
    later = np.minimum.accumulate(step[::-1])[::-1]
    return step < np.append(later[1:], np.inf)


def read_log(path: str | Path, report: Callable = warn) -> Iterator[dict]:
    """Yield the records of log.jsonl by rising step, the last one of each; nan where a number is missing.

    Malformed lines go to `report`. Memory: 24 bytes a line. Raises UserError.
    """
    keep = current(np.fromiter((record["step"] for record in log_records(path, report)), float))
    for kept, record in zip(keep, log_records(path, lambda text: None)):        # reported the first time
        if kept:
            yield record


def thin(curve: np.ndarray, points: int = 100) -> np.ndarray:
    """The rows of `curve` (n, 6: CURVE_COLUMNS less run) at `points` log-spaced steps, and the evaluated."""
    step = curve[:, 0]
    grid = np.geomspace(max(step[0], 1), max(step[-1], 1), points)
    keep = ~np.isnan(curve[:, 4])
    keep[np.searchsorted(step, grid).clip(max=len(step) - 1)] = True
    return curve[keep]


def write_curves(study_dir: str | Path, path: str | Path, report: Callable = warn) -> None:
    """Write curves.csv (CURVE_COLUMNS): the thinned curves of the runs that runs.csv has, one at a time."""
    def rows():
        for row in tqdm(parse_study(study_dir)[0], "curves", unit="run", disable=None):
            try:
                records = log_records(Path(study_dir, row["run"], "log.jsonl"), report, CURVE_COLUMNS[1:])
                points = map(itemgetter(*CURVE_COLUMNS[1:]), records)
                curve = np.fromiter(points, (float, len(CURVE_COLUMNS) - 1))
            except UserError as e:
                report(f"{e}; skipped")
                continue
            for step, *rest in thin(curve[current(curve[:, 0])]) if len(curve) else ():
                yield dict(zip(CURVE_COLUMNS, [row["run"], int(step), *rest]))
    write_table(path, rows(), CURVE_COLUMNS)


# -------------------------------------------------------------------------------- other projects
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


# -------------------------------------------------------------------------------- command line
def parse_path(path: Path, args: argparse.Namespace, report: Callable) -> list[dict]:
    """The rows of a study directory, a run directory or a foreign log. Raises UserError."""
    if path.is_dir():
        rows, problems = ([parse_run(path)], []) if is_run(path) else parse_study(path)
        for problem in problems if rows or problems else [f"{path}: no runs in it"]:
            report(problem)
        return rows
    if path.suffix.lower() == ".csv":
        return usable(path, csv_points(path, args.map, args.params, args.batch_tokens, report), report)
    return usable(path, curve_points(path, args.params, args.batch_tokens, report), report)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; `map` becomes {ours: theirs}. Raises UserError."""
    parser = argparse.ArgumentParser("python -m scaling.logs", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help=FORMATS)
    parser.add_argument("--out", required=True, help="the CSV file to write")
    parser.add_argument("--map", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of a CSV")
    parser.add_argument("--params", type=float, help="parameters of the model; wins over the log")
    parser.add_argument("--batch_tokens", type=float, help="tokens per step; wins over the log")
    args = parser.parse_args(argv)
    for name in ("params", "batch_tokens"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise UserError(f"--{name} must be above 0, not {getattr(args, name)}")
    for wrong in (pair for pair in args.map if "=" not in pair):
        raise UserError(f"--map takes OURS=THEIRS, not {wrong!r}; name the PATHs before it")
    if os.path.abspath(args.out) in map(os.path.abspath, args.paths):
        raise UserError(f"--out={args.out} would overwrite an input; name another file")
    args.map = dict(pair.split("=", 1) for pair in args.map)
    return args


def main(argv: list[str] | None = None) -> None:
    """Parse every PATH into one CSV file: runs.csv from run directories, points from foreign logs."""
    args, rows, remarks = parse_args(argv), [], []
    folders = [path for path in args.paths if os.path.isdir(path)]
    if 0 < len(folders) < len(args.paths):
        raise UserError("run directories and foreign logs differ in their columns; write them to two files")
    for path in map(Path, dict.fromkeys(map(os.path.normpath, args.paths))):
        try:
            rows += parse_path(path, args, remarks.append)
        except (UserError, OSError) as e:
            remarks.append(f"{e}; skipped")
    for remark in remarks:
        warn(remark)
    if not rows:
        raise UserError(f"nothing usable in {' '.join(args.paths)}; accepted: {FORMATS}")
    times = Counter((row["study"], row["run"]) for row in rows) if folders else Counter()
    if max(times.values(), default=1) > 1:
        raise UserError(f"{'/'.join(max(times, key=times.get))} comes from two of the PATHs; name it once")
    found = set().union(*rows)
    write_table(args.out, rows, RUN_COLUMNS if folders else
                [name for name in dict.fromkeys([*POINT_COLUMNS, *args.map]) if name in found])
    skipped = sum(remark.endswith("skipped") for remark in remarks)
    print(f"{args.out}: {len(rows)} rows; stderr has {skipped} lines on what was skipped, "
          f"{len(remarks) - skipped} other remarks")


if __name__ == "__main__":
    exit_cleanly(main)
