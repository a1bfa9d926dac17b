"""One function per figure, each for one column of print, and one command that draws them.

    python -m scaling.plots                                   the figures that README shows, into assets/
    python -m scaling.plots STUDY_DIR ... [--out=FOLDER]      every figure of a study, into its figures/
    python -m scaling.plots RUN_DIR                           a run, done or not: loss, rate, gradient, speed
    python -m scaling.plots ... --format=svg                  pictures that can be enlarged

What is ordered (sizes, budgets) is coloured along viridis, what is not takes a colour of Okabe and Ito
(2008): both survive colour blindness, viridis also a grey printer. A shaded band is a 95 % interval; a law is
solid inside the range that it was fitted on, and dashed outside.

To draw a new law, write a function from a `Study` and the law to a figure, and give it a row in `FIGURES`.
"""
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)
from PIL import Image
from scipy.optimize import minimize
from scipy.stats import gmean

from runtime import basics
from runtime.basics import Parser, UserError, exit_cleanly, load_json
from scaling.laws import counts, forms
from scaling.laws.collapse import WINDOW, loss_at
from scaling.laws.frontiers import group_budgets, named_budgets
from scaling.laws.solver import DELTA, Array, huber, interval
from scaling.logs import is_run, read_log
from scaling.report import amount
from scaling.tables.csv import read_table
from scaling.tables.runs import along, select

BLACK = "#000000"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
RED = "#D55E00"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
YELLOW = "#C8B400"                                      # darker than theirs, so that a line can be seen
COLORS = [BLACK, SKY, GREEN, BLUE, RED, PURPLE, ORANGE, YELLOW]
VIRIDIS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256)))   # no pale yellow
ANY_SIZE = VIRIDIS(0.5)                                 # in a legend, for lines of all shades
LOW_IS_DARK = {"cmap": VIRIDIS.reversed(), "norm": "log"}       # lines of equal loss
WIDTH = 3.5                                             # inches: a column of a two-column paper

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
UNITS = {"char": "character", "byte": "byte"}           # of the loss, by tokenizer; else a token
A_LABEL = "a, exponent of $N_{opt}$"

NO_FORECASTS = dict.fromkeys("run params tokens predicted lo95 hi95 measured error".split(), np.array([]))

matplotlib.rcParams.update({
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.edgecolor": "none",
    "legend.borderpad": 0.2,
    "legend.handlelength": 1.6,
    "figure.dpi": 160,
    "svg.hashsalt": "nanoScale",                        # else the names in it are random
})


# ---- What a study directory holds. ----

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


# ---- The parts that figures share. ----

class Page(Figure):
    """A figure that shows itself in a notebook. Without pyplot nothing opens and nothing has to be closed."""

    def _repr_png_(self) -> bytes:
        """A PNG of 128 colours: it looks the same, and takes a third of the bytes in the notebook's file."""
        full = BytesIO()
        self.savefig(full)
        small = BytesIO()
        colors = Image.open(full).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE)
        colors.save(small, "png", optimize=True)
        return small.getvalue()


def page(height: float, width: float = WIDTH) -> Page:
    return Page(figsize=(width, height), layout="constrained")


def axes(xlabel: str, ylabel: str, title: str = "", height: float = 2.6):
    """Axes of one column's width."""
    return page(height).add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)


def loss_label(unit: str) -> str:
    return f"validation loss ({unit})"


def named(figure: Figure | None, name: str, warned: bool = False) -> Figure | None:
    """The figure, if there is one, with the study's name above it, and whether its fit has warnings."""
    if figure:
        text = f"{name}: a fit with warnings" if warned else name
        figure.suptitle(text, x=0.99, ha="right", fontsize=6, color=RED if warned else "gray")
    return figure


def log_ticks(axis) -> None:
    """Labels at powers of ten or, where the axis spans less than about two, at 1, 2 and 5 times them."""
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high / low < 50 else (1,)
    axis.set(major_locator=LogLocator(subs=subs),
             major_formatter=LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)),
             minor_formatter=NullFormatter())


def log_axes(ax) -> None:
    """Logarithmic axes, x for N, D or C and y for a loss; to be called when the limits are final."""
    ax.set(xscale="log", yscale="log")
    log_ticks(ax.xaxis)
    loss_ticks(ax.yaxis)


def loss_ticks(axis) -> None:
    """A loss spans less than a decade: plain numbers, evenly spread, instead of powers of ten."""
    axis.set(major_locator=MaxNLocator(9, steps=[1, 2, 5, 10]),
             major_formatter=ScalarFormatter(),
             minor_locator=NullLocator())


def frame(ax, x: Array, L: Array) -> None:
    """Logarithmic axes that hold the points (x, L), but not every interval; before a law is drawn."""
    span = L.max() / L.min()
    ax.set(xlim=(x.min() / 1.3, x.max() * 1.3), ylim=(L.min() / span ** 0.1, L.max() * span ** 0.1))
    log_axes(ax)


def legend_below(ax) -> Figure:
    """The figure, as much taller as its legend takes: inside the panel it would cover something."""
    handles, labels = ax.get_legend_handles_labels()
    figure = ax.figure
    figure.set_figheight(figure.get_figheight() + 0.14 * len(labels))
    figure.legend(handles, labels, loc="outside lower center")
    return figure


def shades(values: Array) -> ScalarMappable:
    """The colours of an ordered quantity, e.g. all sizes of a study."""
    low, high = np.min(values), np.max(values)
    if low == high:
        high = 2 * low
    return ScalarMappable(LogNorm(low, high), VIRIDIS)


def color_bar(ax, values: Array, label: str) -> ScalarMappable:
    """`shades`, with a bar beside the axes that explains them."""
    colors = shades(values)
    bar = ax.figure.colorbar(colors, ax=ax, pad=0.02, aspect=30)
    bar.set_label(label, size=7)
    bar.outline.set_visible(False)
    log_ticks(bar.ax.yaxis)
    return colors


def end_with_grid(ax, x: Array, y: Array) -> None:
    """Logarithmic axes that are as long as the grid."""
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))


def label_only(ax, values: Array) -> None:
    """A label at each of `values` and nowhere else."""
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.xaxis.set_minor_locator(NullLocator())


def reach(values: Array, factor: float = 1.3) -> Array:
    """A logarithmic grid that covers all `values` and a little more."""
    return np.geomspace(np.min(values) / factor, np.max(values) * factor, 200)


def draw_law(ax, x: Array, law: dict, predict: Callable[[dict], Array], valid: tuple, label: str,
             color: str = BLACK) -> None:
    """A law's line over `x` (n,): solid inside `valid` = (low, high), dashed outside; and its 95 % band.

    `predict` maps parameters, the law's own (scalars) or those of its draws (draws, 1), to values at `x`. The
    limits of `ax` are final: a band that would fill a third of the panel is told of instead.
    """
    y = predict(law)
    inside = np.isclose(x, np.clip(x, *valid), rtol=1e-9)
    label += " (dashed: beyond the data)"
    if law["ci"]:                                       # else it was fitted without a bootstrap
        low, high = interval(predict(law | forms.draws_of(law)))
        if (height(ax, x, high) - height(ax, x, low)).mean() < 1 / 3:
            ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            label += ", band: 95 %"
        else:
            label += ";\nits 95 % band would fill the panel: left out"
    ax.plot(x, y, color=color, linestyle=(0, (3, 2)), linewidth=0.8, zorder=3)
    ax.plot(x, np.where(inside, y, np.nan), color=color, label=label, zorder=3)


def height(ax, x: Array, y: Array) -> Array:
    """How high the points (x, y) stand in the panel, from 0 to 1."""
    points = ax.transData.transform(np.column_stack([x, y]))
    return ax.transAxes.inverted().transform(points)[:, 1].clip(0, 1)


def with_interval(law: dict, key: str, digits: int = 3) -> str:
    """'0.512 [0.490, 0.533]'."""
    text = f"{law[key]:.{digits}f}"
    if key in law["ci"]:
        low, high = law["ci"][key]
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def title_of(law: dict) -> str:
    """The law of the efficient frontier, with its exponent."""
    return rf"$N_{{opt}} \propto C^a$,  a = {with_interval(law, 'a')}"


# ---- Learning curves. ----

def draw_curves(ax, curves: dict, x: Array, colors: ScalarMappable, **look) -> None:
    """A line of the loss L per run of `curves` {run, N, L}, each (rows,), over `x` (rows,), coloured by N."""
    order = np.argsort(x)
    for run in np.unique(curves["run"]):
        own = order[curves["run"][order] == run]
        ax.plot(x[own], curves["L"][own], color=colors.to_rgba(curves["N"][own[0]]), **look)


def loss_curves(study: Study) -> Figure | None:
    """Loss against tokens while training, a line per run, coloured by size."""
    curves = study.curves
    if not curves:
        return None
    ax = axes(D_LABEL, f"{curves['label']} ({study.unit})", "a line per run")
    colors = color_bar(ax, curves["N"], study.n_label)
    draw_curves(ax, curves, curves["D"], colors, linewidth=0.7)
    log_axes(ax)
    return ax.figure


def collapse(study: Study, found: dict) -> Figure | None:
    """Each run's loss while it trains, over its final one: curves of a tuned family lie on each other."""
    if not study.curves:
        return None
    last = study.data["last"]
    ends = dict(zip(study.data["run"][last], zip(study.D, study.L)))
    own = np.isin(study.curves["run"], list(ends))
    rows = {key: study.curves[key][own] for key in ("run", "N", "D", "L")}
    share, over = np.empty((2, own.sum()))
    for run, (D, L) in ends.items():
        mine = rows["run"] == run
        share[mine] = rows["D"][mine] / D
        over[mine] = np.exp([loss_at(x, share[mine], rows["L"][mine]) for x in share[mine]]) / L
    ax = axes("share x of the run", f"loss, mean of {WINDOW:g} x to x,\nover the final loss",
              f"they differ half way by {found['sd']:.1%} (sd)")
    colors = color_bar(ax, rows["N"], study.n_label)
    draw_curves(ax, rows | {"L": over}, share, colors, linewidth=0.6)
    ax.plot([], [], color=ANY_SIZE, linewidth=0.6, label=f"a run: its {study.curves['label']}")
    for stray in found["strays"]:
        own = rows["run"] == stray["run"]
        ax.plot(share[own], over[own], color=RED, label=f"{stray['run']}, off by {stray['off']:+.1%}")
    ax.set(xlim=(0, 1), ylim=(0.98, np.nanquantile(over[share > 0.1], 0.99)))
    ax.axvline(found["x"], color="gray", linewidth=0.6, linestyle="--", label="where they are compared")
    return legend_below(ax)


def run_curves(run: Path) -> Figure:
    """What the log of a run directory holds, over tokens. Raises UserError where there is nothing yet."""
    told = load_json(run / "config.json")
    records = read_log(run / "log.jsonl")
    if not records:
        raise UserError(f"{run}: its log holds no step yet; wait for the first line")
    keys = "tokens train_loss val_loss lr grad_norm tok_per_s".split()
    D, train, val, *others = np.array([[record[key] for key in keys] for record in records]).T
    figure = page(4.8)
    top, *panels = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1, 1, 1))
    top.plot(D, train, color=SKY, linewidth=0.8, label="train loss, a mean since the last log line")
    top.plot(D, val, "o", color=BLUE, label="validation loss")
    top.set(ylabel=f"loss ({unit_of(told.get('tokenizer'))})", yscale="log")
    loss_ticks(top.yaxis)
    top.legend()
    titles = "learning rate", "norm of the gradient, before it is clipped", "speed (tokens / s)"
    for ax, values, title in zip(panels, others, titles):
        ax.plot(D, values, color=BLACK, linewidth=0.8)
        ax.set(title=title, ylim=(0, None))
    ax.set_xlabel(D_LABEL)
    ax.xaxis.set(major_locator=MaxNLocator(5), major_formatter=EngFormatter())      # 200 k, not 200000
    ax.yaxis.set(major_locator=MaxNLocator(3), major_formatter=EngFormatter())
    return named(figure, f"{run.parent.name}/{run.name}, {told.get('dataset', '')}")


# ---- The best size for each budget. ----

def isoflop(study: Study, law: dict) -> Figure:
    """Loss against N at each budget, its parabola and its optimum; of a refused one, hollow points alone."""
    asked = study.data["budget"]
    level = group_budgets(study.C) if asked is None else named_budgets(asked[study.data["last"]], study.C)
    ax = axes(study.n_label, loss_label(study.unit), title_of(law))
    colors = color_bar(ax, [p["C"] for p in law["points"]], "budget C (FLOPs)")
    for p in law["points"]:
        own = np.isclose(level, p["C"], rtol=1e-6)
        draw_budget(ax, study.N[own], study.L[own], p, colors.to_rgba(p["C"]))
    ax.plot([], [], "-o", color=ANY_SIZE, mew=0, linewidth=0.8, label="runs of a budget, their parabola")
    ax.plot([], [], "-D", color=RED, markersize=3, label="its optimum, 95 % interval")
    if any(p["refused"] for p in law["points"]):
        ax.plot([], [], "o", color=BLACK, mfc="none", label="refused: no minimum inside")
    frame(ax, study.N, study.L[np.isfinite(level)])
    return legend_below(ax)


def draw_budget(ax, N: Array, L: Array, point: dict, color: tuple) -> None:
    """The runs of one IsoFLOP budget and, unless it was refused, its parabola and the interval of N_opt."""
    if point["refused"]:
        ax.plot(N, L, "o", color=color, mfc="none", mew=0.8)
        return
    N_opt, loss = point["N_opt"], point["loss"]
    x = np.geomspace(N.min() / 1.2, N.max() * 1.2, 100)
    parabola = loss * np.exp(point["curvature"] * np.log(x / N_opt) ** 2)
    ax.plot(N, L, "o", color=color, mew=0.8)
    ax.plot(x, parabola, color=color, linewidth=0.8)
    ax.plot(N_opt, loss, "D", color=RED, markersize=3, zorder=4)
    if "ci" in point:
        ax.plot(point["ci"]["N_opt"], [loss, loss], color=RED, zorder=4)


def envelope(study: Study, law: dict) -> Figure:
    """Approach 1: learning curves over compute, and on each the point where no other size is better."""
    rows = study.data if study.data["curves"] else study.data["along"]
    C, L = rows["C"], rows["L"]
    ax = axes(study.c_label, loss_label(study.unit), title_of(law))
    colors = color_bar(ax, rows["N"], study.n_label)
    draw_curves(ax, rows, C, colors, linewidth=0.6)
    at = [p["C"] for p in law["points"]]
    best = [p["loss"] for p in law["points"]]
    ax.plot([], [], color=ANY_SIZE, linewidth=0.6, label="a run while it trains")
    ax.plot(at, best, "D", color=RED, label="where no other size is better")
    near = L < L.min() + 3 * (max(best) - L.min())                      # the start of training tells nothing
    frame(ax, C[near], L[near])
    return legend_below(ax)


# ---- Loss against one thing at a time. ----

def loss_vs_compute(study: Study, law: dict) -> Figure:
    """Kaplan's L(C): runs or checkpoints, their lower-left hull, the law through its later part, the kink."""
    C, L = (np.append(study.data[k], study.data["along"].get(k, [])) for k in "CL")
    hull = law["hull"]
    late = -hull["fitted"]                                              # the law was fitted from here on
    title = rf"$L = (C_c/C)^{{\alpha}}$,  $\alpha$ = {with_interval(law, 'alpha', 4)}"
    ax = axes(study.c_label, loss_label(study.unit), title)
    size = 1.5 if len(C) > 200 else 2.5
    frame(ax, C, L[L <= 1.05 * max(hull["loss"])])
    dots = "runs, and losses along them" if len(C) > len(study.data["C"]) else "runs"
    ax.plot(C, L, "o", color=SKY, markersize=size, mew=0, label=dots)
    ax.plot(hull["C"], hull["loss"], "-o", color=BLUE, mfc="white", markersize=3, linewidth=0.8,
            label="lower-left hull; filled: fitted")
    ax.plot(hull["C"][late:], hull["loss"][late:], "o", color=BLUE, markersize=3)
    x = reach(C)
    draw_law(ax, x, law, lambda p: np.exp(p["alpha"] * (p["log_C_c"] - np.log(x))),
             (hull["C"][late], hull["C"][-1]), "law", RED)
    if law["kink"]:
        ax.axvspan(*law["kink"]["between"], color=BLACK, alpha=0.12, linewidth=0, zorder=0,
                   label="kink: the slope changes here")
    top = ax.secondary_xaxis("top", functions=(lambda c: c / counts.PF_DAY, lambda d: d * counts.PF_DAY))
    top.set_xlabel("PF-days")
    return legend_below(ax)


def power_law(study: Study, law: dict) -> Figure:
    """Kaplan's L(N) or L(D): the runs, the points that the fit used filled, the law and its range."""
    name, x, label = "N", study.N, study.n_label
    if "D" in law["range"]:
        name, x, label = "D", study.D, D_LABEL
    floor = f" + {law['L_inf']:.2f}" if law["L_inf"] > 0.005 else ""
    title = rf"$L = ({name}_c/{name})^{{\alpha}}${floor},  $\alpha$ = {with_interval(law, 'alpha')}"
    ax = axes(label, loss_label(study.unit), title)
    frame(ax, x, study.L)
    ax.plot(x, study.L, "o", color=BLUE, mfc="none", mew=0.5, label="all runs")
    ax.plot(law["points"][name], law["points"]["loss"], "o", color=BLUE, label=f"best at each {name}")
    grid = reach(x)
    draw_law(ax, grid, law, lambda p: forms.loss_of(p, {name: grid}), law["range"][name], "law")
    return legend_below(ax)


# ---- The surface. ----

def frontier(study: Study, law: dict) -> Figure:
    """Loss against C = 6 N D: runs, curves, the surface's compute-optimal loss, forecasts, what came."""
    curves, new = study.curves, study.forecasts
    C = 6 * study.N * study.D
    law = of_6nd(law, C)
    C_new = 6 * new["params"] * new["tokens"]
    everywhere = np.append(C, C_new)
    ax = axes(C_LABEL["6nd"], f"loss ({study.unit})")
    colors = color_bar(ax, np.append(study.N, new["params"]), study.n_label)
    losses = np.concatenate([study.L, *(new[k] for k in ("predicted", "lo95", "hi95", "measured"))])
    frame(ax, everywhere, losses[np.isfinite(losses)])                  # not every forecast has come
    if curves:
        draw_curves(ax, curves, 6 * curves["N"] * curves["D"], colors, linewidth=0.5, alpha=0.4, zorder=0)
        ax.plot([], [], color=ANY_SIZE, linewidth=0.5, label=f"{curves['label']} while training")
    ax.scatter(C, study.L, s=9, c=colors.to_rgba(study.N), linewidth=0, zorder=2)
    ax.plot([], [], "o", color=ANY_SIZE, markersize=3, mew=0, label="validation loss of a run at its end")
    x = reach(everywhere)
    draw_law(ax, x, law, lambda p: forms.surface_optimum(p, x)[2], law["range"]["C"],
             "loss at the best size")
    if len(C_new):
        forecast_marks(ax, C_new, new)
    return legend_below(ax)


def of_6nd(law: dict, C: Array) -> dict:
    """The surface `law` as of budgets C = 6 N D, whatever its table counted."""
    if law.get("cost"):
        law = law | {"cost": None, "range": law["range"] | {"C": [C.min(), C.max()]}}
    return law


def forecast_marks(ax, x: Array, forecasts: dict) -> None:
    """The sealed forecasts at `x`, with intervals, and what was measured; in numbers where there is one."""
    y, low, high, came = (forecasts[k] for k in ("predicted", "lo95", "hi95", "measured"))
    sealed, measured = "forecasts, sealed before training, 95 % intervals", "measured"
    if len(y) == 1:
        sealed = f"sealed forecast {y[0]:.3f} [{low[0]:.3f}, {high[0]:.3f}]"
        measured = f"measured {came[0]:.3f} (forecast {y[0] / came[0] - 1:+.2%})"
    ax.vlines(x, low, high, color=RED, zorder=3)
    ax.plot(x, y, "s", color=RED, mfc="none", markersize=5, label=sealed, zorder=3)
    if np.isfinite(came).any():
        ax.plot(x, came, "*", color=BLUE, markersize=4.5, mew=0, label=measured, zorder=3)


def surface_contours(study: Study, law: dict) -> Figure:
    """Lines of equal loss over C and N, faint beyond the D of the runs; the efficient frontier N_opt(C)."""
    C = 6 * study.N * study.D
    law = of_6nd(law, C)
    x = reach(C, 2)
    y = reach(study.N, 2)
    N = y[:, None]
    D = x / (6 * N)
    loss = forms.surface_loss(law, N, D)
    inside = (D > study.D.min() / 1.5) & (D < study.D.max() * 1.5)
    levels = np.geomspace(loss[inside].min(), loss[inside].max(), 12)
    ax = axes(C_LABEL["6nd"], study.n_label, title_of(law))
    ax.contour(x, y, loss, levels, linewidths=0.6, alpha=0.2, **LOW_IS_DARK)
    ax.contour(x, y, np.where(inside, loss, np.nan), levels, linewidths=0.9, **LOW_IS_DARK)
    end_with_grid(ax, x, y)
    draw_law(ax, x, law, lambda p: forms.surface_optimum(p, x)[0], law["range"]["C"],
             "best size", RED)
    ax.plot(C, study.N, "o", color=BLACK, markersize=2, zorder=3, label="runs")
    ax.plot([], [], color=ANY_SIZE, linewidth=0.9,
            label=f"lines of equal loss ({study.unit});\nfaint: fewer or more tokens than in any run")
    label_contours(ax, study, law, levels[1:-1:2])
    return legend_below(ax)


def label_contours(ax, study: Study, law: dict, levels: Array) -> None:
    """Write the loss on its line, at the point farthest from the runs, the best sizes and other labels."""
    x = np.geomspace(*ax.get_xlim(), 200)
    y = np.geomspace(*ax.get_ylim(), 80)[4:-4]
    best = forms.surface_optimum(law, x)[0]
    taken = [*np.log([6 * study.N * study.D, study.N]).T, *np.log([x, best]).T]
    scale = np.log([x[-1] / x[0], y[-1] / y[0]])
    for level in levels:
        at = np.array([np.interp(-level, -forms.surface_loss(law, N, x / (6 * N)), x) for N in y])
        D = at / (6 * y)
        shown = (at > x[12]) & (at < x[-12]) & (D > study.D.min()) & (D < study.D.max())
        if not shown.any():
            continue
        spots = np.log([at[shown], y[shown]]).T
        room = np.linalg.norm((spots[:, None] - taken) / scale, axis=2).min(1)
        spot = spots[room.argmax()]
        taken.append(spot)
        ax.text(*np.exp(spot), f"{level:.2f}", fontsize=6, ha="center", va="center",
                bbox={"color": "white", "pad": 0.5})


def residuals(study: Study, law: dict) -> Figure:
    """Measured over fitted loss against compute, coloured by size: a pattern means a wrong form."""
    off = 100 * (study.L / forms.surface_loss(law, study.N, study.D) - 1)
    noise = 196 * law["noise"]
    highest = 1.1 * max(noise, np.abs(off).max())
    ax = axes(C_LABEL["6nd"], "measured / fitted loss - 1 (%)")
    colors = color_bar(ax, study.N, study.n_label)
    ax.axhline(0, color=BLACK, linewidth=0.6)
    ax.axhspan(-noise, noise, color=BLACK, alpha=0.12, linewidth=0, label="1.96 residual standard deviations")
    ax.scatter(6 * study.N * study.D, off, s=12, c=colors.to_rgba(study.N), linewidth=0)
    ax.plot([], [], "o", color=ANY_SIZE, mew=0, label="a run")
    ax.set(xscale="log", ylim=(-highest, highest))
    log_ticks(ax.xaxis)
    return legend_below(ax)


def bootstrap_cloud(study: Study, law: dict) -> Figure | None:
    """Exponent a and irreducible loss E of each bootstrap resample: what one fit hides."""
    if not law["ci"]:
        return None
    draws = forms.draws_of(law)
    a, E = law["a"], law["E"]
    ax = axes(A_LABEL, f"E, irreducible loss ({study.unit})", f"{len(draws['a'])} resamples of the runs")
    ax.plot(draws["a"], draws["E"], "o", color=SKY, markersize=1.5, alpha=0.5, mew=0,
            label="the law of a resample")
    ax.plot(law["ci"]["a"], [E, E], color=BLACK, linewidth=1)
    ax.plot([a, a], law["ci"]["E"], color=BLACK, linewidth=1)
    ax.plot(a, E, "o", color=RED, markersize=4, label="the law of all runs; lines: 95 % intervals")
    return legend_below(ax)


def profile_of_E(study: Study, law: dict) -> Figure | None:
    """How much worse the surface fits with E held elsewhere and all else refitted, and which E 95 % allow."""
    if "profile_E" not in law:
        return None
    profile = law["profile_E"]
    grid, cutoff = profile["grid"], profile["cutoff"]
    low = profile["lo"] or grid[0]                      # None: the profile does not rise on this side
    high = profile["hi"] or grid[-1]
    unbounded = [side for side, end in (("below", "lo"), ("above", "hi")) if not profile[end]]
    allowed = f"{low:.3f} to {high:.3f}"
    if unbounded:
        allowed = "not bounded " + " or ".join(unbounded)
    ax = axes(f"E held at ({study.unit})", "deviance from the best fit")
    ax.plot(grid, profile["deviance"], color=BLUE)
    ax.axhline(cutoff, color=BLACK, linestyle=":", linewidth=0.8, label="95 % cutoff (bootstrap)")
    ax.axvspan(low, high, color=BLUE, alpha=0.15, linewidth=0, label=f"allowed: {allowed}")
    ax.plot(law["E"], 0, "o", color=RED, markersize=4, label=f"best fit: {law['E']:.3f}")
    ax.set_ylim(-0.3 * cutoff, 8 * cutoff)
    return legend_below(ax)


def early_stop(N: Array, D: Array, L: Array, start: dict) -> Figure:
    """How far above its minimum the surface's objective is, at each iteration of L-BFGS-B from `start`.

    The objective is the mean Huber loss, minimised at scipy's default tolerances, which is how it goes wrong,
    and at tight ones; `start` is {E, A, B, alpha, beta}.
    """
    X = np.log([N, D])
    y = np.log(L)
    least = forms.fit_surface(N, D, L, bootstrap=0)["objective"] / len(y)
    first = np.array(forms.surface_theta(**start))

    def objective(theta):
        value, slope = forms.additive(theta[None], X)
        r = y - value[0]
        return huber(r).mean(), -slope[0] @ np.clip(r, -DELTA, DELTA) / len(y)
    ax = axes("iteration of L-BFGS-B", "objective / its minimum - 1")
    for name, color, options in (("default", RED, {}), ("tight", BLUE, {"ftol": 1e-15, "gtol": 1e-12})):
        path = [first]
        end = minimize(objective, first, jac=True, method="L-BFGS-B", options=options, callback=path.append)
        excess = np.array([objective(theta)[0] for theta in path]) / least - 1
        says = "success" if end.success else "failure"
        found = rf"$\alpha$ = {end.x[2]:.3f}, $\beta$ = {end.x[4]:.3f}"
        label = f"{name} tolerances: \u201c{says}\u201d, {found}"
        ax.semilogy(np.maximum(excess, 1e-9), "-X", color=color, markersize=5, markevery=[-1], label=label)
    ax.lines[0].set_zorder(3)                           # the two paths are one until the first stops
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return ax.figure


def accounting(study: Study, law: dict) -> Figure:
    """The exponent a of the same runs by each way to count N (rows) and C (columns), where it was found."""
    cells = [list(row.values()) for row in law.values()]
    a = np.array([[cell.get("a", np.nan) for cell in row] for row in cells])
    # Colours span the intervals: what differs by less than these looks alike.
    ends = [end for row in cells for cell in row for end in cell.get("ci") or [cell.get("a", np.nan)]]
    low, high = np.nanmin(ends), np.nanmax(ends)
    ax = axes("how C is counted", "how N is counted", f"{A_LABEL}, with 95 % intervals", height=2.2)
    ax.imshow(a, cmap=VIRIDIS, aspect="auto", vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(a):
        color = "white" if value < (low + high) / 2 else BLACK
        ax.text(j, i, cell_text(cells[i][j]), ha="center", va="center", fontsize=7, color=color)
    flops = next(iter(law.values()))
    ax.set_xticks(range(len(flops)), [c.replace("_", " +\n").replace("6nd", "6ND") for c in flops])
    ax.set_yticks(range(len(law)), [r.replace("_plus_", "\n+ ").replace("_", "-") for r in law])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax.figure


def cell_text(cell: dict) -> str:
    """{a, ci} or {refused} as the accounting matrix shows it."""
    if "refused" in cell:
        return "refused"
    text = f"{cell['a']:.3f}"
    if cell["ci"]:
        low, high = cell["ci"]
        text += f"\n[{low:.2f}, {high:.2f}]"
    return text


def what_arms_are_worth(study: Study, law: dict) -> Figure:
    """The runs and frontiers of all arms, and the multiplier of each over the reference, against compute."""
    left, right = page(3, 2 * WIDTH).subplots(1, 2)
    curves = {law["reference"]: law["curve"]} | {name: row["curve"] for name, row in law["arms"].items()}
    for (name, curve), color in zip(curves.items(), COLORS * len(curves)):
        left.plot(curve["runs"]["C"], curve["runs"]["loss"], ".", color=color, alpha=0.5, markersize=3)
        left.plot(curve["C"], curve["loss"], color=color, label=name)
        if name != law["reference"]:
            low, high = np.array([m["ci"] for m in curve["multiplier"]]).T
            right.fill_between(curve["C"], low, high, color=color, alpha=0.12, linewidth=0)
            right.plot(curve["C"], [m["factor"] for m in curve["multiplier"]], color=color)
    right.axhline(1, color=BLACK, linewidth=0.8)
    left.set(title="dots: runs; lines: the loss at the best size", xlabel=study.c_label,
             ylabel=loss_label(study.unit))
    right.set(title=f"compute that {law['reference']} takes for the same loss", xlabel=study.c_label,
              ylabel="multiplier, band: 95 %", xscale="log")
    log_axes(left)
    log_ticks(right.xaxis)
    left.figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    return left.figure


# The figures of a study's laws: the name, the law in fit.json that it shows, and its function, which gives
# None where the law was fitted without what it shows.
FIGURES = (
    ("isoflop", "isoflop", isoflop),
    ("envelope", "envelope", envelope),
    ("loss_vs_compute", "loss_vs_compute", loss_vs_compute),
    ("loss_vs_params", "loss_vs_params", power_law),
    ("loss_vs_tokens", "loss_vs_tokens", power_law),
    ("frontier", "surface", frontier),
    ("surface", "surface", surface_contours),
    ("residuals", "surface", residuals),
    ("bootstrap", "surface", bootstrap_cloud),
    ("profile_E", "surface", profile_of_E),
    ("accounting", "accounting", accounting),
    ("arms", "arms", what_arms_are_worth),
    ("collapse", "collapse", collapse),
)


def study_figures(study: Study) -> dict[str, Figure]:
    """{name: figure} of every figure that the study's files support."""
    figures = {"curves": named(loss_curves(study), study.name)}
    for name, law, draw in FIGURES:
        if law in study.fit:
            figures[name] = law_figure(study, law, draw)
    return {name: figure for name, figure in figures.items() if figure is not None}


def law_figure(study: Study, law: str, draw: Callable) -> Figure | None:
    """The figure that `draw` makes of a law of the study's fit, marked where that fit has warnings."""
    fit = study.fit[law]
    return named(draw(study, fit), study.name, warned(fit))


def warned(law: dict) -> bool:
    """Whether its fit has any."""
    return not law.get("health", {"ok": True})["ok"]


# ---- Figures across studies, and of a plan. ----

def walk(steps: list[dict], marks: dict[str, float]) -> Figure:
    """From one exponent to another, a change at a time: steps {label, a, lo, hi}; `marks`, papers' values."""
    a, low, high = np.array([[step[k] for step in steps] for k in ("a", "lo", "hi")])
    y = -np.arange(len(steps))
    ax = axes(r"a, exponent of $N_{opt} \propto C^a$", "", height=0.38 * len(steps) + 0.8)
    ax.plot(a, y, color=SKY, linewidth=0.8)
    ax.errorbar(a, y, xerr=[a - low, high - a], fmt="o", color=BLUE, capsize=2, elinewidth=1)
    for (name, value), color in zip(marks.items(), (RED, GREEN, PURPLE)):
        ax.axvline(value, color=color, linestyle=":", linewidth=1)
        ax.text(value, 0.6, name, color=color, fontsize=7, ha="center", va="bottom")
    ax.set_yticks(y, [step["label"] for step in steps])
    ax.set_ylim(y[-1] - 0.6, 0.6)
    return ax.figure


def forecast_board(forecasts: dict) -> Figure:
    """Every sealed forecast that has been measured, by study: its error and its interval, in per cent."""
    came = np.isfinite(forecasts["measured"])
    row = {name: column[came] for name, column in forecasts.items()}
    low, middle, high = (100 * (row[c] / row["measured"] - 1) for c in ("lo95", "predicted", "hi95"))
    studies = list(dict.fromkeys(row["study"]))
    names = []
    ax = axes("sealed forecast / measured loss - 1 (%)", "", height=0.17 * (len(middle) + len(studies)) + 0.6)
    for study in studies:
        names.append(study)
        own = np.flatnonzero(row["study"] == study)
        for k in own[np.argsort(row["flops"][own], kind="stable")]:
            color, marker = (BLUE, "o") if low[k] <= 0 <= high[k] else (RED, "X")
            ax.plot([low[k], high[k]], [-len(names)] * 2, color=color, linewidth=1)
            ax.plot(middle[k], -len(names), marker, color=color, markersize=4)
            names.append(row["run"][k])
    ax.axvline(0, color=BLACK, linewidth=0.6)
    ax.plot([], [], "-o", color=BLUE, linewidth=1, markersize=4, label="forecast and its 95 % interval")
    if ((low > 0) | (high < 0)).any():
        ax.plot([], [], "-X", color=RED, linewidth=1, markersize=4, label="what came was outside")
    ax.set_yticks(-np.arange(len(names)), names)
    for label in ax.get_yticklabels():
        if label.get_text() in studies:
            label.set_fontweight("bold")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(0.4 - len(names), 0.6)
    return named(legend_below(ax), f"{len(middle)} forecasts of {len(studies)} studies")


def plan_figure(law: dict, N: float, D: float, ci: list | None = None) -> Figure:
    """A plan on a law's loss surface: N parameters, D tokens, its budget 6 N D, the interval `ci` of N."""
    ends = np.array([N, *(ci or [])])
    x = reach(ends, 20)
    y = reach(N * D / ends, 20)
    loss = forms.surface_loss(law, x, y[:, None])
    levels = np.geomspace(loss.min(), loss.max(), 14)[1:-1]
    ax = axes(N_LABEL[law["params"]], D_LABEL)
    lines = ax.contour(x, y, loss, levels, linewidths=0.8, **LOW_IS_DARK)
    ax.clabel(lines, levels[::2], fmt="%.3g", fontsize=6)
    ax.plot([], [], color=ANY_SIZE, linewidth=0.8,
            label=f"lines of equal loss ({unit_of(only(law.get('runs', {}), 'tokenizer'))})")
    ax.plot(x, N * D / x, color=BLACK, linewidth=0.8, label=f"6ND = {6 * N * D:.3g} FLOPs")
    if ci:
        ax.plot(ends[1:], N * D / ends[1:], color=RED, linewidth=3, alpha=0.5, solid_capstyle="butt",
                label="95 % interval")
    ax.plot(N, D, "D", color=RED, label=f"plan: {D / N:.3g} tokens per parameter")
    end_with_grid(ax, x, y)
    return named(legend_below(ax), law["source"][-70:], warned(law))


# ---- Figures of the recipe. ----

# Parametrizations in the order of their panels, and what the coordinate check should show in width.
PANELS = {"mup": ("muP", "muP: flat"),
          "gpt2": ("GPT-2", "GPT-2: grows"),
          "completep": ("CompleteP", "CompleteP: flat")}
SIZE_OF = {"n_embd": ("width d", "d"), "n_layer": ("layers", "layers")}


def axis_of(table: dict) -> str:
    """The column of sizes in a table of scaling.recipe.transfer: of widths, or of depths."""
    return "n_layer" if "n_layer" in table else "n_embd"


def by_parametrization(table: dict, xlabel: str, ylabel: str, titled: int) -> list[tuple]:
    """(axes, rows) of each parametrization of the table, side by side; `titled`: by which name of PANELS."""
    kinds = [kind for kind in PANELS if kind in table["parametrization"]]
    figure = page(2.4, max(WIDTH, 1.75 * len(kinds)))
    panels = figure.subplots(1, len(kinds), sharey=True)
    panels[0].set_ylabel(ylabel)
    parts = []
    for ax, kind in zip(panels, kinds):
        ax.set(title=PANELS[kind][titled], xlabel=xlabel)
        own = table["parametrization"] == kind
        parts.append((ax, {name: column[own] for name, column in table.items()}))
    return parts


def transfer(table: dict, unit: str) -> Figure:
    """Loss against learning rate, a line per size, its best marked; `table` is transfer.csv."""
    axis = axis_of(table)
    sizes = np.unique(table[axis])
    colors = shades(sizes)
    for ax, rows in by_parametrization(table, "learning rate", loss_label(unit), 0):
        curves = {"run": rows[axis], "N": rows[axis], "L": rows["val_loss"]}
        draw_curves(ax, curves, rows["learning_rate"], colors, marker="o", markersize=2)
        for line in [*ax.lines]:
            rate, loss = line.get_data()
            best = int(loss.argmin())
            outward = (best == len(loss) - 1) - (best == 0)         # -1, 1: at an edge; what is beyond it?
            if outward:
                ax.annotate("", (rate[best], loss[best]), (18 * outward, 0), textcoords="offset points",
                            arrowprops={"arrowstyle": "<-", "color": RED})
            ax.plot(rate[best], loss[best], "*", color=RED, mfc="white" if outward else RED, markersize=7)
        ax.set_xscale("log")
        label_only(ax, np.unique(rows["learning_rate"])[::2])
    word = SIZE_OF[axis][1]
    lines = [Line2D([], [], color=colors.to_rgba(size), label=f"{word} {size:.0f}") for size in sizes]
    for label, fill in (("best", RED), ("at an edge", "white")):
        lines.append(Line2D([], [], color=RED, marker="*", markersize=7, mfc=fill, linestyle="", label=label))
    ax.figure.legend(handles=lines, loc="outside lower center", ncols=3, columnspacing=1)
    return ax.figure


def coordinates(table: dict) -> Figure:
    """The coordinate check: how far a few Adam steps move activations; `table` is coordinates.csv."""
    looks = {"attention": (BLUE, "o"), "mlp": (RED, "s"), "residual stream": (BLACK, "^"),
             "logits": (GREEN, "D")}
    axis = axis_of(table)
    sizes = np.unique(table[axis])
    for ax, rows in by_parametrization(table, SIZE_OF[axis][0], "change after 4 Adam steps (rms)",
                                       int(axis == "n_embd")):
        last = rows["step"] == table["step"].max()
        for name, (color, marker) in looks.items():
            own = last & (rows["activation"] == name)
            moved = [gmean(rows["moved"][own & (rows[axis] == size)]) for size in sizes]      # over seeds
            ax.loglog(sizes, moved, color=color, marker=marker, label=name)
        label_only(ax, sizes)
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return ax.figure


def critical_batch(table: dict, found: dict, unit: str) -> Figure:
    """Steps and tokens to a loss by batch size, B_crit(L) and noise scale; from points.csv and batch.json."""
    left, right = page(2.4).subplots(1, 2)
    norm = Normalize(table["loss"].min(), table["loss"].max())
    B = reach(table["batch_tokens"])
    for level in found["levels"]:
        color = VIRIDIS(1 - norm(level["loss"]))
        own = table["loss"] == level["loss"]
        steps = table["steps"][own]
        law = level["S_min"] * (1 + level["B_crit"] / B)
        left.plot(B * law, law, color=color, linewidth=0.8, label=f"{level['loss']:.2f}")
        left.plot(table["batch_tokens"][own] * steps, steps, "o", color=color, markersize=2.5)
    left.set(title="cost of a loss", xlabel="tokens", ylabel="steps", xscale="log", yscale="log")
    left.figure.legend(title=f"loss ({unit})", title_fontsize=7, ncols=5, loc="outside lower center",
                       columnspacing=1)
    L = np.array([level["loss"] for level in found["levels"]])
    right.plot(L, found["B_star"] * L ** -found["p"], color=BLACK, label="batch sweep, 95 %")
    right.plot([gmean(L)] * 2, found["ci"]["B_crit"], "-_", color=BLACK, linewidth=0.8)
    right.plot(L, [level["noise_scale"] for level in found["levels"]], "o", color=RED, label="noise scale")
    right.set(title="critical batch", xlabel="loss", ylabel="tokens", ylim=(0, None))
    right.legend(loc="lower left")
    return left.figure


def recipe_figures(folder: Path) -> dict[str, Figure]:
    """{name: figure} of what scaling.recipe.transfer and scaling.recipe.batch left in a study directory."""
    runs = if_there(read_table, folder / "runs.csv")
    sweep, moves, points = (if_there(read_table, folder / f"{table}.csv")
                            for table in ("transfer", "coordinates", "points"))
    found = if_there(load_json, folder / "batch.json")
    unit = unit_of(only(runs, "tokenizer"))
    figures = {}
    if sweep:
        figures["transfer"] = transfer(sweep, unit)
    if moves:
        figures["coordinates"] = coordinates(moves)
    if points and found:
        figures["critical"] = critical_batch(points, found, unit)
    return {name: named(figure, name_of(folder, runs)) for name, figure in figures.items()}


# ---- The command. ----

def save(figure: Figure, path: Path) -> Path:
    """Write a PNG or an SVG, as its name ends, whose bytes depend on the figure alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"compress_level": 9})
    return path


def save_all(figures: dict[str, Figure], folder: Path, out: str | Path | None, form: str) -> list[Path]:
    """Write {name: figure} to FOLDER/figures/NAME.FORM or, with `out`, OUT/FOLDER_NAME.FORM: the paths."""
    start = f"{folder}/figures/" if out is None else f"{out}/{folder.resolve().name}_"
    return [save(figure, Path(f"{start}{name}.{form}")) for name, figure in figures.items()]


def draw_study(folder: str | Path, out: str | Path | None = None, form: str = "png") -> list[Path]:
    """Draw every figure that a study's files support: the paths written, see `save_all`. Raises UserError."""
    folder = Path(folder)
    return save_all(study_figures(read_study(folder)) | recipe_figures(folder), folder, out, form)


def draw_assets(out: Path, form: str) -> list[Path]:
    """Draw the figures that README shows, from scaling/results, into `out`: the paths written.

    Raises UserError.
    """
    results = basics.ROOT / "scaling" / "results"
    laptop, far, modern = (read_study(results / name) for name in ("laptop", "far", "modern"))
    tables = [read_table(path) for path in sorted(results.glob("*/forecasts.csv"))]
    forecasts = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    figures = {"laptop_frontier": law_figure(laptop, "surface", frontier),
               "far_frontier": law_figure(far, "surface", frontier),
               "forecasts": forecast_board(forecasts),
               "modern_arms": law_figure(modern, "arms", what_arms_are_worth),
               "transfer_transfer": recipe_figures(results / "transfer")["transfer"]}
    return [save(figure, out / f"{name}.{form}") for name, figure in figures.items()]


def next_command(folder: Path, study: Study) -> str:
    """What may follow the figures of a study: the fit that it lacks, or a plan by its law; empty for none."""
    there = quote(str(folder))
    if not study.fit:
        curves = f" --curves={there}/curves.csv" if (folder / "curves.csv").is_file() else ""
        return f"python -m scaling.fit {there}/runs.csv{curves} --json={there}/fit.json"
    if "surface" in study.fit:
        return f"python -m scaling.plan {there}/fit.json --flops={10 * study.C.max():.0e}"
    return ""


def main(args: list[str] | None = None) -> None:
    parser = Parser("python -m scaling.plots", __doc__)
    parser.add_argument("folders", nargs="*", metavar="STUDY_OR_RUN_DIR", help="default: what README shows")
    parser.add_argument("--out", help="where the pictures go; default: assets, or figures/ in the directory")
    parser.add_argument("--format", choices=("png", "svg"), default="png")
    a = parser.parse_args(args)
    if a.out and not Path(a.out).absolute().parent.is_dir():
        raise UserError(f"--out={a.out}: there is no {Path(a.out).parent}; make it first, or name another")
    if not a.folders:
        for path in draw_assets(Path(a.out or basics.ROOT / "assets"), a.format):
            print(path)
    for folder in map(Path, a.folders):
        if is_run(folder):
            print(*save_all({"run": run_curves(folder)}, folder, a.out, a.format))
            continue
        study = read_study(folder)
        print(f"{folder}: {amount(study.data['rows_read'], 'row')} of {study.name}", flush=True)
        for path in draw_study(folder, a.out, a.format):
            print(path)
        if not study.fit:
            print(f"{folder}: no law was drawn, for there is no fit.json")
        if command := next_command(folder, study):
            print(f"next: {command}")


if __name__ == "__main__":
    exit_cleanly(main)
