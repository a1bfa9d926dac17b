"""What a plan stands on: a law, the study that it was fitted on, and the shape of a model of N parameters."""
import dataclasses
import math
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import corpus, schema, settings
from config.settings import Config
from runtime.basics import UserError, nearest, plain_name, whole_file
from scaling import forecast
from scaling.laws import health
from scaling.laws.goals import PUBLISHED
from scaling.tables.csv import cell, read_table
from scaling.tables.runs import final_runs

WIDE = 1000                                # an interval whose ends differ by more determines nothing
# What a row of runs.csv says of how to train such a model. Shape and horizon are the plan's to say, and the
# vocabulary is the dataset's.
RECIPE = "dataset schedule block_size batch_size learning_rate eval_iters".split()
RECIPE += [name for name in schema.RECIPE if name not in ("vocab_size", "lr_decay_iters")]


# ---- The law. ----

def load_law(name: str) -> dict:
    """The law of a published name or of a fit.json, with the table of its `runs`, or {}. Raises UserError."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(name)
    if path.suffix == ".csv" and path.exists():
        raise UserError(f"{path} is a table, and no law yet; run: python -m scaling.fit "
                        f"{shlex.quote(str(path))} --json={shlex.quote(str(path.with_name('fit.json')))}")
    if path.suffix != ".json":
        raise UserError(f"unknown law {name!r}{nearest(name, PUBLISHED)}: give a fit.json or one of "
                        f"{', '.join(PUBLISHED)}")
    fit = forecast.load_fit(path)
    usable = [form for form in ("surface", "isoflop") if fit.get(form) and not health.of_flat(fit[form])]
    if not usable:
        holds = "neither a surface nor an isoflop fit"
        if fit.get("surface"):
            holds = "a surface without a best size"
        raise UserError(f"{name} holds {holds}; fit again with more runs (its warnings say which)")
    law = fit[usable[0]]
    runs = path.with_name("runs.csv")
    return law | {
        "form": "surface" if usable[0] == "surface" else "frontier",
        "source": f"{name}, {law['n']} runs",
        "params": fit["data"]["params"],
        "fit": fit,
        "runs": read_table(runs) if runs.exists() else {}}


def warnings(law: dict, where: str = "") -> list[str]:
    """What the law's fit doubts in its table, and its health, as lines; nothing of a published law."""
    told = law.get("fit", {}).get("data", {}).get("warnings", [])
    return [f"warning: {where}{line}" for line in [*told, *law.get("health", {}).get("lines", [])]]


# ---- The study: its recipe and its text. ----

class Study(NamedTuple):
    """What a study's runs say about how such a model is trained."""
    settings: dict                         # for train.py, of the run nearest to the plan
    vocab: int
    n_layer: int                           # the trend of its depths and heads, at the size of the plan
    n_head: int


NO_STUDY = Study({"dataset": "", "block_size": 1024}, vocab=50257, n_layer=0, n_head=0)    # GPT-2's words


def study_of(table: dict, N: float, D: float) -> Study:
    """What the runs of `table` say for N parameters and D tokens; NO_STUDY if they are not this project's."""
    if not set("run dataset n_layer n_head batch_tokens block_size learning_rate".split()) <= set(table):
        return NO_STUDY
    runs = final_runs(table)
    rows = [table["run"].tolist().index(run) for run in runs["run"]]
    last = {name: values[rows] for name, values in table.items()}
    far = np.log(runs["N"] / N) ** 2 + np.log(runs["D"] / D) ** 2
    # First of those that say how they were trained; without such a column all are alike.
    untold = [not cell(value) for value in last.get("parametrization", last["run"])]
    near = np.lexsort((far, untold))[0]
    row = {name: values[near] for name, values in last.items()}
    row["batch_size"] = row["batch_tokens"] / row["block_size"]
    x = np.log(runs["N"])
    slope = int(np.ptp(x) > 0.1)                       # runs of one size have no trend

    def trend(name):
        line = np.polyfit(x, np.log(last[name]), slope)
        return max(1, round(math.exp(np.polyval(line, math.log(N)))))
    vocab = int(row["params_head"] / row["n_embd"])
    return Study(recipe(row, RECIPE), vocab, trend("n_layer"), trend("n_head"))


def recipe(row: dict, names: list[str]) -> dict:
    """Those of the settings `names` that a row of runs.csv records; where a cell is empty it says nothing."""
    if cell(row.get("val_tokens")):                    # losses compare on the same part of val.bin only
        row = row | {"eval_iters": row["val_tokens"] / row["block_size"]}
    return {name: type(getattr(Config, name))(row[name]) for name in names if cell(row.get(name))}


def text_of(dataset: str) -> float:
    """How many tokens data/DATASET has to train on; inf when it is not there. Raises UserError."""
    absent = plain_name(dataset) and not corpus.prepared(dataset)
    return math.inf if absent or not dataset else corpus.load_meta(dataset)["train_tokens"]


# ---- The shape of a model. ----

def size(c: Config, convention: str) -> float:
    """Parameters of a model as the law counts them: scaling.laws.counts has the names and what they mean."""
    groups = settings.count_params(c)
    return float(groups.get(convention, settings.default_N(groups)))


def head_width(width: int, head_size: int, heads: int) -> int:
    """How wide a head is: as asked, as so many heads make it, or what is common at this width."""
    if head_size:
        return head_size
    if heads:
        return width // heads
    if width >= 256:
        return 64
    return 32 if width >= 128 else 16


def shape(N: float, base: Config, convention: str, head_size: int = 0, study: Study = NO_STUDY) -> Config:
    """`base` with the n_layer, n_head and n_embd that come nearest to N parameters. Raises UserError.

    With a study, depth and heads are near what it would take; without, the width is 64 times the depth, and a
    head 64, 32 or 16 wide. Depth against width hardly bears on the loss (Kaplan et al. 2020, figure 5), so a
    miss in N weighs more.
    """
    heads = 0 if head_size else study.n_head
    unit = head_size or math.lcm(8, heads or 16)
    near = []                                          # (cost, width, n_layer, n_head)
    smallest = math.inf
    for width in range(unit, max(32768, 2 * unit), unit):
        head = head_width(width, head_size, heads)
        if width % head:
            continue
        none, one = (size(dataclasses.replace(base, n_layer=k, n_embd=width), convention) for k in (0, 1))
        smallest = min(smallest, one)
        shallow = max(1, math.floor((N - none) / (one - none)))
        for n_layer in (shallow, shallow + 1):
            miss = math.log((none + n_layer * (one - none)) / N)
            odd = 0.001 * math.log(width / n_layer / 64) ** 2
            if study.n_layer:
                odd = 0.5 * math.log(n_layer / study.n_layer) ** 2
            if abs(miss) <= 0.35:
                near.append((miss ** 2 + odd, width, n_layer, width // head))
        if one > 4 * N:
            break                                      # wider ones are larger still
    if not near:
        raise UserError(f"no GPT has {N:.3g} parameters ({convention}): with a vocabulary of "
                        f"{base.vocab_size} and widths from {unit} the smallest has {smallest:,.0f}; change "
                        "goal or --head_size")
    _, width, n_layer, n_head = min(near)
    return dataclasses.replace(base, n_layer=n_layer, n_head=n_head, n_embd=width)


def shape_of(c: Config) -> dict:
    return {name: getattr(c, name) for name in ("n_layer", "n_head", "n_embd")}


# ---- In words, and in a file. ----

def amount(x: float) -> str:
    """1.23B, 45.6M, 789."""
    digits = f"{x:.3g}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if unit <= float(digits) < 1000 * unit:
            return f"{float(digits) / unit:.3g}{name}"
    return digits


def says_something(low: float, high: float) -> bool:
    return high < WIDE * low                           # not so of nan


def span(low: float, high: float, text=amount, level: str = "") -> str:
    """' (LOW to HIGH)' of an interval, as `text` writes its ends, if it says anything."""
    if not says_something(low, high):
        return " (not determined)"
    return f" ({level}{text(low)} to {text(high)})"


def write_new(path: str, text: str, folder: str) -> None:
    """Write a .py file that does not exist yet. Raises UserError."""
    if Path(path).suffix != ".py" or not Path(path).stem.isidentifier():
        raise UserError(f"--write={path}: give a new Python file, such as {folder}/my_plan.py")
    if Path(path).exists():
        raise UserError(f"{path} exists; choose another name or delete it")
    with whole_file(path) as f:
        f.write(text)
