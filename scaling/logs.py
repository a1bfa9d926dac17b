"""Logs to tables: run directories, and the logs of other projects, become the rows that fit.py reads.

    python -m scaling.logs out/STUDY --out=out/STUDY/runs.csv
    python -m scaling.logs train.log --params=124e6 --batch_tokens=491520 --out=points.csv
    python -m scaling.logs wandb.csv --map tokens=Tokens loss=val/loss params=N --out=points.csv

A number that is missing stays missing. Whatever is skipped is reported, with its line and the reason.
"""
import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime.basics import UserError, exit_cleanly, load_json
from scaling.tables.csv import MALFORMED, TEXT_COLUMNS, number, write_table
from scaling.tables.foreign import FORMATS, POINT_COLUMNS, csv_points, curve_points, usable

# One row per finished run. The first two are its directories; result.json holds the others.
RUN_COLUMNS = (
    "study run seed dataset tokenizer n_layer n_head n_embd block_size batch_tokens learning_rate schedule "
    "params_total params_embedding params_non_embedding params_head tokens unique_tokens epochs flops_6nd "
    "flops_exact train_loss val_loss val_bits_per_byte val_tokens wall_s tok_per_s device dtype "
    "commit").split()


LOG_COLUMNS = "step tokens flops train_loss val_loss lr grad_norm tok_per_s elapsed_s".split()


CURVE_COLUMNS = ["run", *LOG_COLUMNS[:6]]


def warn(text: str) -> None:
    """The default `report`: one line on stderr."""
    print(text, file=sys.stderr)


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


# ---- command line ----

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
