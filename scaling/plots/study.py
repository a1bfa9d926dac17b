"""What figures need of a study's directory: its runs, curves, fit and forecasts, and what to call them."""
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np

from runtime.basics import UserError, load_json
from scaling.laws.solver import Array
from scaling.tables.csv import read_table
from scaling.tables.runs import along, select

N_LABEL = {
    "non_embedding": "parameters N, non-embedding",
    "total": "parameters N, total",
    "non_embedding_plus_head": "parameters N, non-embedding + head",
    "as given": "parameters N",
}
C_LABEL = {
    "6nd": "training compute C = 6ND (FLOPs)",
    "6nd_attention": "training compute C = 6ND + attention (FLOPs)",
    "exact": "training compute C, exact (FLOPs)",
    "chinchilla": "training compute C, Chinchilla's count (FLOPs)",
    "as given": "training compute C (FLOPs)",
}
D_LABEL = "training tokens D"
A_LABEL = "a, exponent of $N_{opt}$"
UNITS = {"char": "character", "byte": "byte"}           # of the loss, by tokenizer; else a token
NO_FORECASTS = dict.fromkeys("run params tokens predicted lo95 hi95 measured error".split(), np.array([]))


class Study(NamedTuple):
    """What figures need. Without their files, `fit` and `curves` are {} and `forecasts` has no rows."""
    N: Array                  # (runs,) parameters, as the fit counted them
    D: Array                  # (runs,) tokens
    C: Array                  # (runs,) FLOPs, as the fit counted them
    L: Array                  # (runs,) loss at the end
    data: dict                # what the fits used, by `select`, with the losses `along` the runs
    fit: dict                 # fit.json
    curves: dict              # `learning_curves`
    forecasts: dict           # forecasts.csv
    n_label: str              # what N and C are called, with their convention
    c_label: str
    unit: str                 # "nats per character", say
    name: str                 # of the study and its text


def read_study(folder: str | Path) -> Study:
    """The study in a directory with runs.csv and what else there is of it. Raises UserError."""
    folder = Path(folder)
    if not (folder / "runs.csv").is_file():
        fix = "python -m scaling.sweep scaling/sweeps/NAME.py makes one of a study"
        if any(folder.glob("*/result.json")):
            fix = f"run: python -m scaling.logs {quote(str(folder))} --out={quote(str(folder / 'runs.csv'))}"
        raise UserError(f"{folder}: no runs.csv in it; {fix}")
    runs = read_table(folder / "runs.csv")
    fit = if_there(load_json, folder / "fit.json")
    curves = if_there(read_table, folder / "curves.csv")
    forecasts = if_there(read_table, folder / "forecasts.csv") or NO_FORECASTS
    if arms := fit.get("arms"):                         # the other laws are the reference's
        own = runs[arms["column"]].astype(str) == arms["reference"]
        runs = {name: values[own] for name, values in runs.items()}
    used = fit.get("data", {})
    asked = {k: used[k] for k in ("params", "flops") if used.get(k, "as given") != "as given"}
    data = select(runs, **asked)
    data["along"] = {}
    if data["run"] is None:
        curves = {}                                     # nothing says which run a curve belongs to
    if curves:
        data["along"] = along(data, runs.get("schedule"), curves)
        curves = learning_curves(curves, data, forecasts)
    last = (data[k][data["last"]] for k in "NDCL")
    return Study(*last, data, fit, curves, forecasts, N_LABEL[data["params"]], C_LABEL[data["flops"]],
                 unit_of(only(runs, "tokenizer")), name_of(folder, runs))


def unit_of(tokenizer: str | None) -> str:
    """What a loss counts."""
    return f"nats per {UNITS.get(tokenizer, 'token')}"


def name_of(folder: Path, runs: dict) -> str:
    """The study's name, and that of its text where runs.csv has it."""
    text = only(runs, "dataset")
    return folder.resolve().name + (f", {text}" if text else "")


def only(runs: dict, column: str) -> str:
    """What all rows have in the column; empty where they differ, or there is none."""
    found = set(runs.get(column, ()))
    return str(found.pop()) if len(found) == 1 else ""


def if_there(read: Callable[[Path], dict], path: Path) -> dict:
    return read(path) if path.is_file() else {}


def learning_curves(curves: dict, data: dict, forecasts: dict) -> dict:
    """{run, N, D, L, each (rows,), and `label`} of curves.csv, of the runs whose size is known; {} for none.

    L is the validation loss where it was evaluated along the runs, else the train loss; `label` says which.
    """
    sizes = dict(zip(data["run"], data["N"])) | dict(zip(forecasts["run"], forecasts["params"]))
    N = np.array([sizes.get(run, np.nan) for run in curves["run"]])
    known = np.isfinite(N)
    label, L = "validation loss", curves["val_loss"]
    if np.isfinite(L[known]).sum() < 4 * len(np.unique(curves["run"][known])):
        label, L = "train loss", curves["train_loss"]
    shown = known & np.isfinite(L) & (curves["tokens"] > 0)
    if not shown.any():
        return {}
    columns = {"run": curves["run"], "N": N, "D": curves["tokens"], "L": L}
    return {"label": label} | {name: values[shown] for name, values in columns.items()}
