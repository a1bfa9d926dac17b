"""Logs to tables: run directories, and the logs of other projects, become the rows that fit.py reads.

    python -m scaling.logs out/STUDY --out=out/STUDY/runs.csv
    python -m scaling.logs train.log --params=124e6 --batch_tokens=491520 --out=points.csv
    python -m scaling.logs small.log=5e7 "large_*.csv=1e8,491520" --out=points.csv
    python -m scaling.logs wandb.csv --map tokens=Tokens loss=val/loss params=N --out=points.csv

PATH=N says that its models have N parameters, PATH=N,T that a step takes T tokens too. What a file is, its
content tells. A number that is missing stays missing. Whatever is skipped is reported, with the reason.
"""
import argparse
import glob
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config.schema import RUN_COLUMNS, TEXT_COLUMNS, from_dict, recipe
from runtime.basics import UserError, counted, exit_cleanly, load_json
from scaling.tables.csv import MALFORMED, csv_rows, number, write_table
from scaling.tables.foreign import POINT_COLUMNS, Asked, number_or_nan, read_points
from scaling.tables.readers import FORMATS, skipping

LOG_COLUMNS = "step tokens flops train_loss val_loss lr grad_norm tok_per_s elapsed_s".split()
CURVE_COLUMNS = ["run", *LOG_COLUMNS[:6]]


def warn(text: str) -> None:
    """The default `report`: one line on stderr."""
    print(text, file=sys.stderr)


# ---- Run directories. ----

def is_run(path: Path) -> bool:
    """A run directory holds at least one of the files that train.py writes."""
    return any((path / name).exists() for name in ("result.json", "config.json", "log.jsonl"))


def fits(key: str, value) -> bool:
    """Whether `value` can stand in the column `key`: text or a number, or either if it is newer."""
    if type(value) is str:
        return value.isprintable() and (key in TEXT_COLUMNS or key not in RUN_COLUMNS)
    if type(value) is bool:
        return key not in RUN_COLUMNS
    return value is None or type(value) in (int, float) and key not in TEXT_COLUMNS


def parse_run(run_dir: str | Path) -> dict:
    """The row of runs.csv of one finished run, from its result.json. Raises UserError with the reason.

    A key that is no column of ours, since a newer version wrote it, becomes one: see `write_runs`.
    """
    run = Path(os.path.abspath(run_dir))
    path = run / "result.json"
    if not run.name.isprintable():
        raise UserError(f"{run}: a name that cannot be printed; rename it")
    result = load_json(path)
    for key in ("tokens", "val_loss"):
        if key not in result:
            raise UserError(f"{path}: {key} is not in it; train the run again")
    for key, value in result.items():
        if not key.isidentifier():
            raise UserError(f"{path}: {key!r:.40} cannot be a column; rename it")
        if not fits(key, value):
            raise UserError(f"{path}: {key} cannot be {value!r:.40}; mend it")
    names = {"study": run.parent.name, "run": run.name}
    if "parametrization" not in result:                # an older version's
        result |= {k: v for k, v in recipe_told(run / "config.json").items() if fits(k, v)}
    return names | result | names                      # first of all, and nothing in the file renames a run


def recipe_told(path: Path) -> dict:
    """The columns of the recipe from config.json, for a result.json that is older than they are; or {}."""
    try:
        told = load_json(path)
        c = from_dict(told)
        asked = replace(c)
        if c.warmup_iters == round(c.warmup_frac * c.max_iters):
            asked.warmup_iters = -1                    # what it was derived from is what was asked for
        if c.lr_decay_iters == c.max_iters:
            asked.lr_decay_iters = -1
        return {name: value for name, value in recipe(asked, c).items() if name in told}
    except (UserError, *MALFORMED):
        return {}


def parse_study(study_dir: str | Path) -> tuple[list[dict], list[str]]:
    """(rows of runs.csv sorted by run, one line for each run that was skipped and why). Raises UserError."""
    try:
        runs = [path for path in sorted(Path(study_dir).iterdir()) if is_run(path)]
    except OSError as e:
        raise UserError(f"{study_dir}: {e.strerror}; a study directory is needed") from None
    rows = []
    problems = []
    for run in runs:
        if not (run / "result.json").exists():
            problems.append(f"{run}: no result.json, so it is not finished; skipped")
            continue
        try:
            rows.append(parse_run(run))
        except UserError as e:
            problems.append(f"{e}; skipped")
    return rows, problems


def rows_of(path: Path) -> list[dict]:
    """The rows of a runs.csv as they stand, as text. Raises UserError."""
    lines = csv_rows(path)
    _, header = next(lines)
    if not {"study", "run"} <= set(header):
        raise UserError(f"{path}: no columns 'study' and 'run', so not runs of ours; give the file itself")
    return [dict(zip(header, cells)) for _, cells in lines]


def write_runs(path: str | Path, rows: list[dict]) -> None:
    """Write runs.csv: RUN_COLUMNS, then what else the rows hold. Raises UserError."""
    columns = dict.fromkeys([*RUN_COLUMNS, *(key for row in rows for key in row)])
    write_table(path, rows, list(columns))


def log_record(text: bytes) -> dict:
    """A line of log.jsonl, with LOG_COLUMNS as floats, nan where missing. Raises one of MALFORMED."""
    record = json.loads(text)
    for key in LOG_COLUMNS:
        record[key] = number(record.get(key))
    if not 0 <= record["step"] < math.inf:
        raise ValueError("no step in it")
    return record


def read_log(path: str | Path, report: Callable = warn) -> list[dict]:
    """The records of log.jsonl by rising step, the last one of each; malformed lines go to `report`.

    A resumed run goes back to its checkpoint: what it logs from there overtakes what stood there. Raises
    UserError.
    """
    kept = []
    try:
        with open(path, "rb") as f:
            for line, text in enumerate(f, 1):
                with skipping(f"{path}:{line}", report):
                    record = log_record(text)
                    while kept and kept[-1]["step"] >= record["step"]:
                        kept.pop()
                    kept.append(record)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    return kept


def thin(records: list[dict]) -> list[dict]:
    """The records (by rising step) that hold a validation loss, and those at 100 log-spaced steps."""
    if not records:
        return []
    step = np.array([record["step"] for record in records])
    grid = np.geomspace(max(step[0], 1), max(step[-1], 1), 100)
    keep = ~np.isnan([record["val_loss"] for record in records])
    keep[np.searchsorted(step, grid).clip(max=len(step) - 1)] = True
    return [records[i] for i in np.flatnonzero(keep)]


def write_curves(study_dir: str | Path, path: str | Path, report: Callable = warn) -> None:
    """Write curves.csv (CURVE_COLUMNS): the thinned curves of the runs in runs.csv. Raises UserError."""
    write_table(path, curves_of(study_dir, report), CURVE_COLUMNS)


def curves_of(study_dir: str | Path, report: Callable) -> Iterator[dict]:
    """The rows of curves.csv. One run at a time, because those of a large study would fill the memory."""
    for run in tqdm(parse_study(study_dir)[0], "curves", unit="run", disable=None):
        try:
            records = read_log(Path(study_dir, run["run"], "log.jsonl"), report)
        except UserError as e:
            report(f"{e}; skipped")
            continue
        for record in thin(records):
            row = record | {"run": run["run"], "step": int(record["step"])}
            yield {key: row[key] for key in CURVE_COLUMNS}


# ---- Command line. ----

def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; `map` becomes {ours: theirs}, `paths` {Path: Asked}. Raises UserError."""
    parser = argparse.ArgumentParser("python -m scaling.logs", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help=FORMATS)
    parser.add_argument("--out", required=True, help="the CSV file to write")
    parser.add_argument("--map", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of a log")
    parser.add_argument("--loss", help="the column of the loss, where a log has several")
    parser.add_argument("--params", type=float, help="parameters of the model; wins over the log")
    parser.add_argument("--batch_tokens", type=float, help="tokens per step; wins over the log")
    args = parser.parse_args(argv)
    for name in ("params", "batch_tokens"):
        positive(f"--{name}", getattr(args, name))
    for pair in args.map:
        if "=" not in pair:
            raise UserError(f"--map takes OURS=THEIRS, not {pair!r}; name the PATHs before it")
    args.map = dict(pair.split("=", 1) for pair in args.map)
    if args.loss:
        args.map["loss"] = args.loss
    args.paths = {path: asked for text in args.paths for path, asked in asked_of(text, args)}
    args.outdated = outdated(args.paths)
    args.paths = {path: asked for path, asked in args.paths.items() if path not in args.outdated}
    if os.path.abspath(args.out) in map(os.path.abspath, args.paths):
        raise UserError(f"--out={args.out} would overwrite an input; name another file")
    return args


def positive(name: str, value: float | None) -> None:
    """Raise UserError for a number that is not above 0."""
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{name} must be above 0, not {value}")


def asked_of(text: str, args: argparse.Namespace) -> Iterator[tuple[Path, Asked]]:
    """The paths that PATH, PATH=N or PATH=N,T stands for, with what is asked of each. Raises UserError."""
    asked = Asked(args.params, args.batch_tokens, args.map)
    name, sign, sizes = text.rpartition("=")
    if sign and not os.path.exists(text):
        if not re.fullmatch(r"[\d.eE+-]+[KMB]?(,[\d.eE+-]+[KMB]?)?", sizes):
            raise UserError(f"{text}: PATH=N or PATH=N,T takes plain numbers, not {sizes!r}")
        given = [number_or_nan(size) for size in sizes.split(",")]
        for size in given:
            positive(text, size)
        asked = replace(asked, **dict(zip(("params", "batch_tokens"), given)))
        text = name
    found = sorted(glob.glob(text)) if "*" in text and not os.path.exists(text) else [text]
    for path in found:
        for file in states_in(Path(os.path.normpath(path))):
            yield file, asked


def states_in(path: Path) -> list[Path]:
    """What Hugging Face's Trainer wrote of its runs in a folder; or the path itself."""
    states = path.glob("**/trainer_state.json") if path.is_dir() else []
    return sorted(states) or [path]


def outdated(paths: Iterable[Path]) -> list[Path]:
    """The checkpoints of Hugging Face's Trainer whose run went on: a later one has their rows, too."""
    done = {}
    for path in paths:
        if match := re.fullmatch(r"checkpoint-(\d+)", path.parent.name):
            done.setdefault(path.parent.parent, {})[path] = int(match[1])
        elif path.name == "trainer_state.json":
            done.setdefault(path.parent, {})[path] = math.inf
    return [path for run in done.values() for path, step in run.items() if step < max(run.values())]


def parse_path(path: Path, asked: Asked, report: Callable) -> tuple[list[dict], str]:
    """(the rows of a study or run directory or a foreign log, what it is). Raises UserError."""
    if is_run(path):
        return [parse_run(path)], "run directory"
    if not path.is_dir():
        return read_points(path, asked, report)
    rows, problems = parse_study(path)
    if not rows and (path / "runs.csv").exists():      # a study whose run directories are elsewhere
        return rows_of(path / "runs.csv"), "runs.csv of a study"
    if not rows and not problems:
        problems = [f"{path}: no runs in it; logs of other projects are files, as '{path}/*.log'"]
    sealed = {seal.stem for seal in (path / "forecasts").glob("*.json")}
    for row in rows:                                   # a fit that sees what it forecast proves nothing
        if row["run"] in sealed:
            problems.append(f"{path / row['run']}: it was held out to be forecast; skipped")
    for problem in problems:
        report(problem)
    return [row for row in rows if row["run"] not in sealed], "study"


ALIKE = ("malformed", "cells where", "diverged", "before its horizon")


def collapsed(remarks: list[str]) -> list[str]:
    """The remarks on one log; of several of one kind the first, and how many more."""
    kinds = {}
    for remark in remarks:
        kinds.setdefault(next((word for word in ALIKE if word in remark), remark), []).append(remark)
    told = []
    for first, *more in kinds.values():
        end = "; skipped" if first.endswith("; skipped") else ""
        told.append(f"{first.removesuffix(end)} ({len(more)} more like it){end}" if more else first)
    return told


def parse_paths(args: argparse.Namespace, remarks: list[str]) -> tuple[dict[Path, list], dict[Path, str]]:
    """(the rows of each PATH that has some, what each PATH is); what was skipped goes to `remarks`."""
    rows = {}
    what = {}
    for path, asked in args.paths.items():
        said = []
        try:
            found, what[path] = parse_path(path, asked, said.append)
            if found:
                rows[path] = found
        except UserError as e:
            said.append(f"{e}; skipped")
        except OSError as e:
            said.append(f"{path}: {e.strerror}; skipped")
        remarks += collapsed(said)
    return rows, what


def recognised(what: dict[Path, str]) -> str:
    """What each log is; of more than ten, how many are what."""
    if len(what) <= 10:
        return "\n".join(f"{path}: {text}" for path, text in what.items())
    return "\n".join(f"{counted(n, 'log')}: {text}" for text, n in Counter(what.values()).most_common(10))


def points_table(tables: dict[Path, list]) -> list[dict]:
    """The points of all logs, with runs of one name in two logs kept apart. Raises UserError."""
    units = {row.get("loss_unit", "nats"): path for path, rows in tables.items() for row in rows}
    if len(units) > 1:
        found = ", ".join(f"{path} has {unit}" for unit, path in units.items())
        raise UserError(f"losses do not compare: {found}; choose with --loss=, or write them to two files")
    times = Counter(name for rows in tables.values() for name in {row["run"] for row in rows})
    for path, rows in tables.items():
        for row in rows:
            if times[row["run"]] > 1:
                row["run"] = f"{path}:{row['run']}"
    return [row for rows in tables.values() for row in rows]


def main(argv: list[str] | None = None) -> None:
    """Parse every PATH into one CSV file: runs.csv from run directories, points from foreign logs."""
    args = parse_args(argv)
    folders = [path for path in args.paths if path.is_dir()]
    if folders and len(folders) < len(args.paths):
        raise UserError("run directories and foreign logs differ in their columns; write them to two files")
    remarks = []
    if args.outdated:
        remarks.append(f"{counted(len(args.outdated), 'checkpoint')} of runs that went on; skipped")
    tables, what = parse_paths(args, remarks)
    for remark in remarks:
        warn(remark)
    if not tables:
        raise UserError(f"nothing usable in {' '.join(map(str, args.paths))}: see above")
    if folders:
        rows = [row for rows in tables.values() for row in rows]
        (run, times), = Counter(f"{row['study']}/{row['run']}" for row in rows).most_common(1)
        if times > 1:
            raise UserError(f"{run} comes from two of the PATHs; name it once")
        write_runs(args.out, rows)
    else:
        rows = points_table(tables)
        columns = dict.fromkeys([*POINT_COLUMNS, *(name for row in rows for name in row)])
        write_table(args.out, rows, [name for name in columns if any(name in row for row in rows)])
        print(recognised(what))
    skipped = sum(remark.endswith("skipped") for remark in remarks)
    source = counted(len(tables), "folder" if folders else "log")
    text = f"{args.out}: {counted(len(rows), 'row')} from {source}"
    if skipped:
        text += f"; {counted(skipped, 'remark')} on what was skipped (see above)"
    print(f"{text}\nnext: python -m scaling.fit {args.out}")


if __name__ == "__main__":
    exit_cleanly(main)
