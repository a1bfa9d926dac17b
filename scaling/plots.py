"""One function per figure, each for one column of print, and one command that draws them all.

    python -m scaling.plots [STUDY_DIR ...] [--out=FOLDER]

Without a directory it regenerates every figure of assets/ from scaling/results/*; with directories it draws
into each one's figures/, or into --out. What is ordered (sizes, budgets) is coloured along viridis, what is
not takes a colour of Okabe and Ito (2008): both survive colour blindness, viridis also a grey printer. A
shaded band is a 95 % interval; a law is solid inside the range that it was fitted on, and dashed outside.
"""
import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)
from scipy.optimize import minimize

from runtime.basics import UserError, exit_cleanly, load_json
from scaling.laws import counts
from scaling.laws import forms as laws
from scaling.laws.frontiers import group_budgets
from scaling.laws.solver import DELTA, huber
from scaling.tables.csv import read_table
from scaling.tables.runs import along, select

ROOT = Path(__file__).resolve().parents[1]
BLACK, SKY, GREEN, BLUE, RED, PURPLE = "#000000", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
VIRIDIS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256)))   # no pale yellow
WIDTH = 3.5                                             # inches: a column of a two-column paper
N_LABEL = {"non_embedding": "parameters N, non-embedding", "total": "parameters N, total",
           "non_embedding_plus_head": "parameters N, non-embedding + head", "as given": "parameters N"}
C_LABEL = {"6nd": "training compute C = 6ND (FLOPs)", "exact": "training compute C, exact (FLOPs)",
           "6nd_attention": "training compute C = 6ND + attention (FLOPs)",
           "chinchilla": "training compute C, Chinchilla's count (FLOPs)",
           "as given": "training compute C (FLOPs)"}
N_DEFAULT, C_DEFAULT = N_LABEL[counts.DEFAULT_PARAMS], C_LABEL[counts.DEFAULT_FLOPS]
D_LABEL, LOSS_LABEL = "training tokens D", "validation loss (nats per token)"
matplotlib.rcParams.update({
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "lines.linewidth": 1.2,
    "lines.markersize": 3.5, "legend.edgecolor": "none", "legend.framealpha": 0.8, "legend.borderpad": 0.2,
    "legend.handlelength": 1.6, "figure.dpi": 160})

Array = np.ndarray


# ---------------------------------------------------------------- the parts that figures share


def axes(xlabel: str, ylabel: str, title: str = "", height: float = 2.6):
    """(figure, axes) of one column's width. Made without pyplot: nothing opens, nothing has to be closed."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    ax = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, loc="left")
    return figure, ax


def log_loss_axis(axis) -> None:
    """A logarithmic axis for a loss: it spans less than a decade, so plain numbers, evenly spread."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())


def log_ticks(axis, low: float, high: float) -> None:
    """Labels at powers of ten or, where the axis spans less than about two, at 1, 2 and 5 times them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    axis.set_minor_formatter(NullFormatter())


def log_x(ax) -> None:
    """A logarithmic x axis for N, D or C; to be called when its limits are final."""
    ax.set_xscale("log")
    log_ticks(ax.xaxis, *ax.get_xlim())


def frame(ax, x: Array, L: Array) -> None:
    """Limits that hold the points (x, L) and a legend: an interval may leave the picture, a point never."""
    span = L.max() / L.min()
    ax.set(xlim=(x.min() / 1.3, x.max() * 1.3), ylim=(L.min() / span ** 0.1, L.max() * span ** 0.2))
    log_x(ax)
    log_loss_axis(ax.yaxis)


def shades(values: Array) -> LogNorm:
    """The colour scale of an ordered quantity, e.g. all sizes of a study."""
    low, high = np.min(values), np.max(values)
    return LogNorm(low, high if high > low else 2 * low)


def color_bar(figure, ax, norm: Normalize, label: str) -> None:
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, VIRIDIS), ax=ax, pad=0.02, aspect=30)
    bar.set_label(label, size=7)
    bar.outline.set_visible(False)
    log_ticks(bar.ax.yaxis, norm.vmin, norm.vmax)


def draw_law(ax, x: Array, y: Array, valid: tuple, color: str = BLACK, label: str = "") -> None:
    """A law's line: solid inside `valid` = (low, high), the x that it was fitted on, and dashed outside."""
    inside = (x >= valid[0] * (1 - 1e-9)) & (x <= valid[1] * (1 + 1e-9))
    ax.plot(x, np.where(inside, y, np.nan), color=color, label=label, zorder=3)
    ax.plot(x, y, color=color, linestyle=(0, (3, 2)), linewidth=0.8, zorder=2.9)


def band(ax, x: Array, draws: Array, color: str = BLACK) -> None:
    """Shade the 95 % interval of `draws` (bootstrap, len(x))."""
    low, high = laws.interval(draws)
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0, zorder=1)


def reach(*values, factor: float = 1.3) -> Array:
    """A logarithmic grid that covers all `values` and a little more."""
    v = np.concatenate([np.ravel(x) for x in values])
    return np.geomspace(v.min() / factor, v.max() * factor, 200)


def with_interval(fit: dict, key: str, digits: int = 3) -> str:
    """'0.512 [0.490, 0.533]'."""
    low, high = fit["ci"].get(key, (np.nan, np.nan))
    return f"{fit[key]:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low == low else "")


def title_of(fit: dict) -> str:
    """The law of the efficient frontier, with its exponent."""
    return rf"$N_{{opt}} \propto C^a$,  a = {with_interval(fit, 'a')}"


# ---------------------------------------------------------------- figures of a study


def curve_loss(curves: dict) -> tuple[str, str]:
    """(column, its name): validation loss where it was evaluated along the runs, else train loss."""
    evaluated = np.isfinite(curves["val_loss"]).sum() >= 4 * len(np.unique(curves["run"]))
    return ("val_loss", "validation loss") if evaluated else ("train_loss", "train loss")


def draw_curves(ax, curves: dict, x: Array, norm: Normalize, **look) -> None:
    """A line per run of `curves` (curves.csv with a column `params`) over `x` (rows,), coloured by size."""
    key, _ = curve_loss(curves)
    for run in np.unique(curves["run"]):
        own = (curves["run"] == run) & np.isfinite(curves[key]) & (curves["tokens"] > 0)
        if own.any():
            ax.plot(x[own], curves[key][own], color=VIRIDIS(norm(curves["params"][own][0])), **look)


def loss_curves(curves: dict, n_label: str = N_DEFAULT) -> Figure:
    """Loss against tokens while training, a line per run, coloured by size. `curves` as for `draw_curves`."""
    figure, ax = axes(D_LABEL, f"{curve_loss(curves)[1]} (nats per token)")
    norm = shades(curves["params"])
    draw_curves(ax, curves, curves["tokens"], norm, linewidth=0.7)
    log_x(ax)
    log_loss_axis(ax.yaxis)
    color_bar(figure, ax, norm, n_label)
    return figure


def isoflop(N: Array, L: Array, level: Array, isoflop_fit: dict, n_label: str = N_DEFAULT) -> Figure:
    """Loss against N at each budget, its parabola and its optimum; a refused budget has hollow points only.

    `level` (n,) is the budget of each run, nan for none, as `frontiers.group_budgets` gives it.
    """
    figure, ax = axes(n_label, LOSS_LABEL, title_of(isoflop_fit))
    points = isoflop_fit["points"]
    norm = shades([p["C"] for p in points])
    for p in points:
        color, own = VIRIDIS(norm(p["C"])), np.isclose(level, p["C"], rtol=1e-6)
        ax.plot(N[own], L[own], "o", color=color, mfc="none" if p["refused"] else color, mew=0.8)
        if not p["refused"]:
            x = np.geomspace(N[own].min() / 1.2, N[own].max() * 1.2, 100)
            parabola = p["loss"] * np.exp(p["curvature"] * np.log(x / p["N_opt"]) ** 2)
            ax.plot(x, parabola, color=color, linewidth=0.8)
            ax.plot(p["N_opt"], p["loss"], "D", color=RED, markersize=3, zorder=4)
            span = p.get("ci", {}).get("N_opt", [p["N_opt"]] * 2)
            ax.plot(span, [p["loss"]] * 2, color=RED, linewidth=1.2, zorder=4)
    frame(ax, N, L[np.isfinite(level)])
    color_bar(figure, ax, norm, "budget C (FLOPs)")
    ax.plot([], [], "-D", color=RED, markersize=3, label="optimum, 95 % interval")
    if any(p["refused"] for p in points):
        ax.plot([], [], "o", color=BLACK, mfc="none", label="refused: no minimum inside")
    ax.legend(loc="best")
    return figure


def envelope(rows: dict, envelope_fit: dict, n_label: str = N_DEFAULT, c_label: str = C_DEFAULT) -> Figure:
    """Approach 1: learning curves over compute, and on each the point where no other size is better.

    `rows` are those that the fit used: N, C, L, run (n,).
    """
    figure, ax = axes(c_label, LOSS_LABEL, title_of(envelope_fit))
    norm, (N, C, L) = shades(rows["N"]), (rows[k] for k in "NCL")
    for run in np.unique(rows["run"].astype(str)):
        own = np.flatnonzero(rows["run"].astype(str) == run)
        own = own[np.argsort(C[own])]
        ax.plot(C[own], L[own], color=VIRIDIS(norm(N[own[0]])), linewidth=0.6)
    at, best = np.array([(p["C"], p["loss"]) for p in envelope_fit["points"]]).T
    ax.plot(at, best, "D", color=RED, markersize=3.5, zorder=4, label="best size at this compute")
    near = L < L.min() + 3 * (best.max() - L.min())                     # the start of training tells nothing
    frame(ax, C[near], L[near])
    color_bar(figure, ax, norm, n_label)
    ax.legend(loc="best")
    return figure


def loss_vs_compute(C: Array, L: Array, law: dict, c_label: str = C_DEFAULT) -> Figure:
    """Kaplan's L(C): runs or checkpoints, their lower-left hull, the law through its later part, the kink."""
    title = rf"$L = (C_c/C)^{{\alpha}}$,  $\alpha$ = {with_interval(law, 'alpha', 4)}"
    figure, ax = axes(c_label, LOSS_LABEL, title)
    u, v, x = np.array(law["hull"]["C"]), np.array(law["hull"]["loss"]), reach(C)
    late = slice(len(u) - law["hull"]["fitted"], None)                  # the part that the law was fitted to
    ax.plot(C, L, "o", color=SKY, markersize=1.5 if len(C) > 200 else 2.5, mew=0, label="runs")
    ax.plot(u, v, "-o", color=BLUE, mfc="white", markersize=3, linewidth=0.8, label="lower-left hull")
    ax.plot(u[late], v[late], "o", color=BLUE, markersize=3)

    def loss(p):
        return np.exp(p["alpha"] * (p["log_C_c"] - np.log(x)))
    draw_law(ax, x, loss(law), (u[late][0], u[-1]), RED, "law, 95 %")
    if law["boot"]:
        band(ax, x, loss(laws.draws_of(law)), RED)
    if law["kink"]:
        ax.axvspan(*law["kink"]["between"], color=BLACK, alpha=0.12, linewidth=0, zorder=0,
                   label="kink: the slope changes here")
    frame(ax, C, L[L <= 1.05 * v.max()])
    top = ax.secondary_xaxis("top", functions=(lambda c: c / counts.PF_DAY, lambda d: d * counts.PF_DAY))
    top.set_xlabel("PF-days")
    ax.legend(loc="best")
    return figure


def forecast_marks(ax, x: Array, forecasts: dict) -> None:
    """The sealed forecasts at `x`, with intervals, and what was measured; in numbers where there is one."""
    y, low, high, came = (forecasts[k] for k in ("predicted", "lo95", "hi95", "measured"))
    texts = ["forecasts, sealed before training", "measured"]
    if len(y) == 1:
        texts = [f"sealed forecast {y[0]:.3f} [{low[0]:.3f}, {high[0]:.3f}]",
                 f"measured {came[0]:.3f} (forecast {y[0] / came[0] - 1:+.2%})"]
    ax.vlines(x, low, high, color=RED, linewidth=1.2, zorder=5)
    ax.plot(x, y, "s", color=RED, mfc="white", markersize=5, label=texts[0], zorder=5)
    if np.isfinite(came).any():
        ax.plot(x, came, "*", color=BLUE, markersize=4.5, mew=0, label=texts[1], zorder=6)


def frontier(N: Array, D: Array, L: Array, surface: dict, curves: dict | None = None,
             forecasts: dict | None = None, n_label: str = N_DEFAULT) -> Figure:
    """Loss against C = 6 N D: runs, curves, the surface's compute-optimal loss, forecasts, what came."""
    figure, ax = axes(C_LABEL["6nd"], LOSS_LABEL)
    keys = ("params", "tokens", "measured", "predicted")
    new = {k: forecasts[k] if forecasts else np.array([]) for k in keys}
    C, C_new, norm = 6 * N * D, 6 * new["params"] * new["tokens"], shades(np.append(N, new["params"]))
    if curves:
        at = 6 * curves["params"] * curves["tokens"]
        draw_curves(ax, curves, at, norm, linewidth=0.5, alpha=0.4, zorder=0)
        ax.plot([], [], color=VIRIDIS(0.5), linewidth=0.5, label=f"{curve_loss(curves)[1]} while training")
    ax.scatter(C, L, s=9, c=N, cmap=VIRIDIS, norm=norm, linewidth=0, zorder=2)
    x = reach(C, C_new)
    loss = laws.surface_optimum(surface, x)[2]
    draw_law(ax, x, loss, surface["range"]["C"], label="compute-optimal loss, 95 %")
    if surface["boot"]:
        band(ax, x, laws.surface_optimum(laws.draws_of(surface), x)[2])
    if len(C_new):
        forecast_marks(ax, C_new, forecasts)
    known = np.concatenate([L, new["predicted"], new["measured"][np.isfinite(new["measured"])]])
    frame(ax, np.append(C, C_new), known)
    color_bar(figure, ax, norm, n_label)
    ax.legend(loc="best", fontsize=6.5)
    return figure


def power_law(x: Array, L: Array, law: dict, name: str, label: str) -> Figure:
    """L(N) or L(D), `name`: the runs, the points that the fit used filled, the law and its range."""
    floor = f" + {law['L_inf']:.2f}" if law["L_inf"] > 0.005 else ""
    title = rf"$L = ({name}_c/{name})^{{\alpha}}${floor},  $\alpha$ = {with_interval(law, 'alpha')}"
    figure, ax = axes(label, LOSS_LABEL, title)
    ax.plot(x, L, "o", color=BLUE, mfc="none", mew=0.5, label="all runs")
    used = law["points"]
    ax.plot(used[name], used["loss"], "o", color=BLUE, label=f"best at each {name}")
    grid = reach(x)

    def loss(p):
        return p["L_inf"] + (p[f"{name}_c"] / grid) ** p["alpha"]
    draw_law(ax, grid, loss(law), law["range"][name], label="law, 95 %")
    if law["boot"]:
        band(ax, grid, loss(laws.draws_of(law)))
    frame(ax, x, L)
    ax.legend(loc="best")
    return figure


def surface_contours(N: Array, D: Array, surface: dict, n_label: str = N_DEFAULT) -> Figure:
    """Lines of equal loss over C and N, faint beyond the D of the runs; the efficient frontier N_opt(C)."""
    figure, ax = axes(C_LABEL["6nd"], n_label, title_of(surface))
    x, y = reach(6 * N * D, factor=2), reach(N, factor=2)
    tokens = x / (6 * y[:, None])
    loss = laws.predict_surface(surface, y[:, None], tokens)
    inside = (tokens > D.min() / 1.5) & (tokens < D.max() * 1.5)
    levels = np.geomspace(loss[inside].min(), loss[inside].max(), 12)
    look = {"cmap": VIRIDIS.reversed(), "norm": LogNorm(levels[0], levels[-1])}
    ax.contour(x, y, loss, levels, linewidths=0.6, alpha=0.2, **look)
    ax.contour(x, y, np.where(inside, loss, np.nan), levels, linewidths=0.9, **look)
    N_opt = laws.surface_optimum(surface, x)[0]
    beside = laws.predict_surface(surface, 2.5 * N_opt, x / (15 * N_opt))      # labels stand above it
    for level in levels[1:-1:2]:
        place = (np.interp(-level, -beside, x), np.interp(-level, -beside, 2.5 * N_opt))
        if x[0] * 1.2 < place[0] < x[-1] / 1.2 and place[1] < y[-1] / 1.2:
            ax.text(*place, f"{level:.2f}", fontsize=6, ha="center", va="center",
                    bbox={"color": "white", "pad": 0.5})
    ax.plot(6 * N * D, N, "o", color=BLACK, markersize=2, zorder=5)
    draw_law(ax, x, N_opt, surface["range"]["C"], RED, "efficient frontier, 95 %")
    if surface["boot"]:
        band(ax, x, laws.surface_optimum(laws.draws_of(surface), x)[0], RED)
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.legend(loc="upper left")
    return figure


def residuals(N: Array, D: Array, L: Array, surface: dict, n_label: str = N_DEFAULT) -> Figure:
    """Measured over fitted loss against compute, coloured by size: a pattern means a wrong form."""
    figure, ax = axes(C_LABEL["6nd"], "measured / fitted loss - 1 (%)")
    norm, noise = shades(N), 196 * surface["noise"]
    ax.axhline(0, color=BLACK, linewidth=0.6)
    ax.axhspan(-noise, noise, color=BLACK, alpha=0.12, linewidth=0, label="1.96 residual standard deviations")
    off = 100 * (L / laws.predict_surface(surface, N, D) - 1)
    ax.scatter(6 * N * D, off, s=12, c=N, cmap=VIRIDIS, norm=norm, linewidth=0)
    log_x(ax)
    ax.set_ylim(-1.4 * max(noise, np.abs(off).max()), 1.4 * max(noise, np.abs(off).max()))
    color_bar(figure, ax, norm, n_label)
    ax.legend(loc="best")
    return figure


def bootstrap_cloud(surface: dict) -> Figure:
    """Exponent a and irreducible loss E of each bootstrap resample: what one fit hides."""
    figure, ax = axes("a, exponent of $N_{opt}$", "E, irreducible loss (nats per token)")
    draws = laws.draws_of(surface)
    ax.plot(draws["a"], draws["E"], "o", color=SKY, markersize=1.5, alpha=0.5, mew=0, rasterized=True)
    ax.plot(surface["ci"]["a"], [surface["E"]] * 2, color=BLACK, linewidth=1)
    ax.plot([surface["a"]] * 2, surface["ci"]["E"], color=BLACK, linewidth=1)
    ax.plot(surface["a"], surface["E"], "o", color=RED, markersize=4, zorder=4, label="fit, 95 % intervals")
    ax.set_title(f"{len(draws['a'])} resamples", loc="left")
    ax.legend(loc="best")
    return figure


def profile_of_E(surface: dict) -> Figure:
    """How much worse the surface fits with E held elsewhere and all else refitted, and which E 95 % allow."""
    figure, ax = axes("E held at (nats per token)", "deviance from the best fit")
    profile = surface["profile_E"]
    grid, deviance = np.array(profile["grid"]), np.array(profile["deviance"])
    ax.plot(grid, deviance, color=BLUE)
    ax.axhline(profile["cutoff"], color=BLACK, linestyle=":", linewidth=0.8, label="95 % cutoff (bootstrap)")
    low = grid[0] if profile["lo"] is None else profile["lo"]
    high = grid[-1] if profile["hi"] is None else profile["hi"]
    sides = " or ".join(name for name, end in (("below", "lo"), ("above", "hi")) if profile[end] is None)
    text = f"not bounded {sides}" if sides else f"{low:.3f} to {high:.3f}"
    ax.axvspan(low, high, color=BLUE, alpha=0.15, linewidth=0, label=f"allowed: {text}")
    ax.plot(surface["E"], 0, "o", color=RED, markersize=4, label=f"best fit: {surface['E']:.3f}", zorder=4)
    ax.set_ylim(-0.3 * profile["cutoff"], 8 * profile["cutoff"])
    ax.legend(loc="upper left")
    return figure


def early_stop(N: Array, D: Array, L: Array, start: dict) -> Figure:
    """How far above its minimum the surface's objective is, at each iteration of L-BFGS-B from `start`.

    The objective is the mean Huber loss, minimised at scipy's default tolerances, which is how it goes wrong,
    and at tight ones; `start` is {E, A, B, alpha, beta}.
    """
    X, y = np.log([N, D]), np.log(L)
    least = laws.fit_surface(N, D, L, bootstrap=0)["objective"] / len(y)
    E, A, B = np.log([start[k] for k in "EAB"])
    first = np.array([E, A, start["alpha"], B, start["beta"]])

    def objective(theta):
        value, slope = laws.additive(theta[None], X)
        r = y - value[0]
        return huber(r).mean(), -slope[0] @ np.clip(r, -DELTA, DELTA) / len(y)
    figure, ax = axes("iteration of L-BFGS-B", "objective / its minimum - 1")
    for color, name, options in ((RED, "default", {}), (BLUE, "tight", {"ftol": 1e-15, "gtol": 1e-12})):
        path = [objective(first)[0]]
        end = minimize(objective, first, jac=True, method="L-BFGS-B", options=options | {"maxiter": 2000},
                       callback=lambda theta: path.append(objective(theta)[0]))
        says = "\u201csuccess\u201d" if end.success else "\u201cfailure\u201d"
        text = rf"{name} tolerances: {says}, $\alpha$ = {end.x[2]:.3f}, $\beta$ = {end.x[4]:.3f}"
        excess = np.maximum(np.array(path) / least - 1, 1e-9)
        ax.semilogy(excess, "-X", color=color, markersize=5, markevery=[-1], label=text)
    ax.lines[0].set_zorder(3)                           # the two paths are one until the first stops
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def accounting(matrix: dict) -> Figure:
    """The exponent a of the same runs by each way to count N (rows) and C: {N: {C: {a, ci} or refused}}."""
    title = "a, exponent of $N_{opt}$, with 95 % intervals"
    figure, ax = axes("how C is counted", "how N is counted", title, height=2.2)
    rows, columns = list(matrix), list(next(iter(matrix.values())))
    a = np.array([[matrix[r][c].get("a", np.nan) for c in columns] for r in rows])
    ax.imshow(a, cmap=VIRIDIS, aspect="auto")
    for (i, j), value in np.ndenumerate(a):
        cell, dark = matrix[rows[i]][columns[j]], value < (np.nanmin(a) + np.nanmax(a)) / 2
        text = "refused" if "refused" in cell else f"{value:.3f}"
        text += "\n[{:.2f}, {:.2f}]".format(*cell["ci"]) if cell.get("ci") else ""
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else BLACK)
    ax.set_xticks(range(len(columns)), [c.replace("_", " +\n").replace("6nd", "6ND") for c in columns])
    ax.set_yticks(range(len(rows)), [r.replace("_plus_", "\n+ ").replace("_", "-") for r in rows])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


# ---------------------------------------------------------------- figures across studies


def walk(steps: list[dict], marks: dict[str, float]) -> Figure:
    """From one exponent to another, a change at a time: steps {label, a, lo, hi}; `marks`, papers' values."""
    figure, ax = axes("a, exponent of $N_{opt} \\propto C^a$", "", height=0.38 * len(steps) + 0.8)
    y = -np.arange(len(steps))
    a, low, high = (np.array([s[k] for s in steps]) for k in ("a", "lo", "hi"))
    ax.plot(a, y, color=SKY, linewidth=0.8, zorder=1)
    ax.errorbar(a, y, xerr=[a - low, high - a], fmt="o", color=BLUE, capsize=2, elinewidth=1)
    for (name, value), color in zip(marks.items(), (RED, GREEN, PURPLE)):
        ax.axvline(value, color=color, linestyle=":", linewidth=1)
        ax.text(value, 0.6, name, color=color, fontsize=7, ha="center", va="bottom")
    ax.set_yticks(y, [s["label"] for s in steps])
    ax.set_ylim(y[-1] - 0.6, 0.6)
    return figure


def forecast_board(forecasts: dict) -> Figure:
    """Every sealed forecast that has been measured: its error and its interval, in per cent."""
    came = np.flatnonzero(np.isfinite(forecasts["measured"]))
    figure, ax = axes("forecast error (%)", "", height=0.3 * len(came) + 0.9)
    names = []
    for y, k in enumerate(came):
        off = [100 * (forecasts[c][k] / forecasts["measured"][k] - 1) for c in ("lo95", "predicted", "hi95")]
        hit = off[0] <= 0 <= off[2]
        ax.plot([off[0], off[2]], [-y, -y], color=BLUE if hit else RED, linewidth=1)
        ax.plot(off[1], -y, "o" if hit else "X", color=BLUE if hit else RED, markersize=4)
        names.append(f"{forecasts['study'][k]}: {forecasts['run'][k]}")
    ax.axvline(0, color=BLACK, linewidth=0.6)
    ax.set_yticks(-np.arange(len(came)), names)
    ax.set_ylim(0.6 - len(came), 0.6)
    return figure


def plan_figure(law: dict, N: float, D: float, ci: list | None = None) -> Figure:
    """A plan on a law's loss surface: N parameters, D tokens, its budget 6 N D, the interval `ci` of N."""
    figure, ax = axes(N_LABEL[law["params"]], D_LABEL)
    x, y = reach(N, *(ci or []), factor=20), reach(D, *(N * D / np.array(ci or [N])), factor=20)
    loss = laws.surface_loss(law, x, y[:, None])
    levels = np.geomspace(loss.min(), loss.max(), 14)[1:-1]
    lines = ax.contour(x, y, loss, levels, cmap=VIRIDIS.reversed(), linewidths=0.8,
                       norm=LogNorm(levels[0], levels[-1]))
    ax.clabel(lines, lines.levels[::2], fmt="%.3g", fontsize=6)
    ax.plot(x, N * D / x, color=BLACK, linewidth=0.8, label=f"6ND = {6 * N * D:.3g} FLOPs")
    if ci:
        ax.plot(ci, N * D / np.array(ci), color=RED, linewidth=3, alpha=0.5, solid_capstyle="butt",
                label="95 % interval")
    ax.plot(N, D, "D", color=RED, label=f"plan: {D / N:.3g} tokens per parameter")
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.legend(loc="upper right")
    return figure


# ---------------------------------------------------------------- figures of the recipe


def panels(xlabel: str, ylabel: str, titles: list[str], sharey: bool = True):
    """(figure, axes (n,)): panels side by side."""
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    both = figure.subplots(1, len(titles), sharey=sharey)
    for ax, title in zip(both, titles):
        ax.set_title(title, loc="left")
        ax.set_xlabel(xlabel)
    both[0].set_ylabel(ylabel)
    return figure, both


def transfer(table: dict) -> Figure:
    """Loss against learning rate, a line per width, its best marked; `table` is transfer.csv."""
    figure, both = panels("learning rate", LOSS_LABEL, ["muP", "GPT-2"])
    norm = shades(table["n_embd"])
    for ax, kind in zip(both, ("mup", "gpt2")):
        for width in np.unique(table["n_embd"]):
            own = np.flatnonzero((table["parametrization"] == kind) & (table["n_embd"] == width))
            own = own[np.argsort(table["learning_rate"][own])]
            x, y = table["learning_rate"][own], table["val_loss"][own]
            ax.plot(x, y, "-o", color=VIRIDIS(norm(width)), markersize=2)
            ax.plot(x[y.argmin()], y.min(), "*", color=RED, markersize=7, zorder=4)
        ax.set_xscale("log")
        rates = np.unique(table["learning_rate"][table["parametrization"] == kind])
        ax.set_xticks(rates[::2], [f"{rate:g}" for rate in rates[::2]])
        ax.xaxis.set_minor_locator(NullLocator())
    lines = [Line2D([], [], color=VIRIDIS(norm(w)), label=f"d {w:.0f}") for w in np.unique(table["n_embd"])]
    lines.append(Line2D([], [], color=RED, marker="*", linestyle="", label="best"))
    figure.legend(handles=lines, loc="outside lower center", ncols=5, columnspacing=1)
    return figure


def coordinates(table: dict) -> Figure:
    """The coordinate check: how far a few Adam steps move activations; `table` is coordinates.csv."""
    figure, both = panels("width d", "change after 4 Adam steps (rms)", ["muP: flat", "GPT-2: grows"])
    last = table["step"] == table["step"].max()
    names = ("attention", "mlp", "residual stream", "logits")
    for ax, kind in zip(both, ("mup", "gpt2")):
        for name, color, marker in zip(names, (BLUE, RED, BLACK, GREEN), "os^D"):
            own = last & (table["parametrization"] == kind) & (table["activation"] == name)
            widths = np.unique(table["n_embd"])
            moved = [np.exp(np.log(table["moved"][own & (table["n_embd"] == w)]).mean()) for w in widths]
            ax.loglog(widths, moved, "-", color=color, marker=marker, label=name)
        ax.set_xticks(widths, [f"{w:.0f}" for w in widths])
        ax.xaxis.set_minor_locator(NullLocator())
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def critical_batch(table: dict, found: dict) -> Figure:
    """Steps and tokens to a loss by batch size, B_crit(L) and noise scale; from points.csv and batch.json."""
    figure, (left, right) = panels("", "steps", ["cost of a loss", "critical batch"], sharey=False)
    norm = Normalize(table["loss"].min(), table["loss"].max())
    for level in found["levels"]:
        own, color = table["loss"] == level["loss"], VIRIDIS(1 - norm(level["loss"]))
        B = reach(table["batch_tokens"])
        S = level["S_min"] * (1 + level["B_crit"] / B)
        left.plot(B * S, S, color=color, linewidth=0.8, label=f"{level['loss']:.2f}")
        left.plot(table["batch_tokens"][own] * table["steps"][own], table["steps"][own], "o", color=color,
                  markersize=2.5)
    left.set(xscale="log", yscale="log", xlabel="tokens")
    figure.legend(*left.get_legend_handles_labels(), title="loss", title_fontsize=7, ncols=5,
                  loc="outside lower center", columnspacing=1)
    L = np.array([level["loss"] for level in found["levels"]])
    right.plot(L, found["B_star"] * L ** -found["p"], color=BLACK, label="batch sweep")
    right.plot(L, [level["noise_scale"] for level in found["levels"]], "o", color=RED, label="noise scale")
    right.set(xlabel="loss (nats per token)", ylabel="tokens", ylim=(0, None))
    right.invert_xaxis()
    right.legend(loc="lower right")
    return figure


def recipe_figures(folder: Path) -> dict[str, Figure]:
    """{name: figure} of a transfer study (scaling.recipe.transfer) or a batch study (scaling.recipe.batch); {} of any other."""
    figures = {}
    for name, draw in (("transfer", transfer), ("coordinates", coordinates)):
        if (folder / f"{name}.csv").is_file():
            figures[name] = draw(read_table(folder / f"{name}.csv"))
    if (folder / "points.csv").is_file() and (folder / "batch.json").is_file():
        found = load_json(folder / "batch.json")
        figures["critical"] = critical_batch(read_table(folder / "points.csv"), found)
    return figures


# ---------------------------------------------------------------- a study's figures, and the command


def read_study(folder: str | Path) -> dict:
    """What a study directory holds: {name, data, fit, curves, forecasts}, {} where there is no such file.

    `data` is the arrays that the fit used, from `select`; the rows of `curves` get their run's `params`.
    Raises UserError.
    """
    folder = Path(folder)
    if not (folder / "runs.csv").is_file():
        raise UserError(f"{folder}: no runs.csv in it; give a study directory, e.g. out/laptop")
    path, study = folder / "fit.json", {"name": folder.resolve().name}
    study["fit"] = load_json(path) if path.is_file() else {}
    for law in (v for v in study["fit"].values() if isinstance(v, dict) and "boot" in v):
        law["boot"] = {k: np.array(draws, float) for k, draws in law["boot"].items()}    # JSON's null is nan
    for name in ("curves", "forecasts"):
        study[name] = read_table(folder / f"{name}.csv") if (folder / f"{name}.csv").is_file() else {}
    used = study["fit"].get("data", {"params": "as given", "flops": "as given"})
    asked = {k: None if used[k] == "as given" else used[k] for k in ("params", "flops")}
    runs = read_table(folder / "runs.csv")
    study["data"] = data = select(runs, **asked)
    if study["curves"] and data["run"] is not None:
        data["along"] = along(data, runs.get("schedule"), study["curves"])
    if study["curves"] and data["run"] is not None:
        held, curves = study["forecasts"], study["curves"]
        sizes = dict(zip(data["run"], data["N"])) | (dict(zip(held["run"], held["params"])) if held else {})
        known = np.isin(curves["run"].astype(str), list(sizes))
        study["curves"] = {k: v[known] for k, v in curves.items()}
        study["curves"]["params"] = np.array([sizes[run] for run in study["curves"]["run"]])
    return study


def study_figures(study: dict) -> dict[str, Figure]:
    """{name: figure} of every figure that the study's files support."""
    found, data, n_label = study["fit"], study["data"], N_LABEL[study["data"]["params"]]
    N, D, C, L = (data[k][data["last"]] for k in "NDCL")
    figures = {}
    if study["curves"]:
        figures["curves"] = loss_curves(study["curves"], n_label)
    if "isoflop" in found:
        level = group_budgets(C) if data["budget"] is None else data["budget"][data["last"]]
        figures["isoflop"] = isoflop(N, L, level, found["isoflop"], n_label)
    if "envelope" in found:
        part = data if data["curves"] else data["along"]
        figures["envelope"] = envelope(part, found["envelope"], n_label, C_LABEL[data["flops"]])
    if "loss_vs_compute" in found:
        more = data.get("along") or {"C": [], "L": []}
        points = (np.append(data[k], more[k]) for k in "CL")
        label = C_LABEL[data["flops"]]
        figures["loss_vs_compute"] = loss_vs_compute(*points, found["loss_vs_compute"], label)
    for name, x, letter, label in (("loss_vs_params", N, "N", n_label), ("loss_vs_tokens", D, "D", D_LABEL)):
        if name in found:
            figures[name] = power_law(x, L, found[name], letter, label)
    if "surface" in found:
        figures |= surface_figures(N, D, L, found["surface"], study, n_label)
    if any("a" in cell for row in found.get("accounting", {}).values() for cell in row.values()):
        figures["accounting"] = accounting(found["accounting"])
    return figures


def surface_figures(N: Array, D: Array, L: Array, surface: dict, study: dict, n_label: str) -> dict:
    """{name: figure} of those that need the surface; the last two need its bootstrap too."""
    figures = {"frontier": frontier(N, D, L, surface, study["curves"], study["forecasts"], n_label),
               "surface": surface_contours(N, D, surface, n_label),
               "residuals": residuals(N, D, L, surface, n_label)}
    if surface["boot"]:
        figures["bootstrap"] = bootstrap_cloud(surface)
    if "profile_E" in surface:
        figures["profile_E"] = profile_of_E(surface)
    return figures


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG whose bytes depend on the figure alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"compress_level": 9})
    return path


def draw_study(folder: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw every figure that a study's files support into FOLDER/figures/NAME.png, or OUT/STUDY_NAME.png.

    Returns the paths written. Raises UserError.
    """
    study = read_study(folder)
    place = Path(folder) / "figures" if out is None else Path(out)
    prefix = "" if out is None else f"{study['name']}_"
    figures = study_figures(study) | recipe_figures(Path(folder))
    return [save(figure, place / f"{prefix}{name}.png") for name, figure in figures.items()]


def all_forecasts(studies: list[Path]) -> dict:
    """The forecasts.csv of several studies as one table."""
    paths = (Path(study) / "forecasts.csv" for study in studies)
    tables = [read_table(path) for path in paths if path.is_file()]
    tables = [table for table in tables if len(table["run"])]
    return {k: np.concatenate([table[k] for table in tables]) for k in tables[0]} if tables else {}


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaling.plots", description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY_DIR", help="default: each of scaling/results")
    parser.add_argument("--out", help="where the PNG files go; default: assets, or STUDY_DIR/figures")
    a = parser.parse_args(args)
    studies = a.studies or sorted(p.parent for p in (ROOT / "scaling" / "results").glob("*/runs.csv"))
    if not studies:
        raise UserError("scaling/results holds no study; give a directory, e.g. out/laptop")
    for folder in studies:
        for path in draw_study(folder, a.out or (None if a.studies else ROOT / "assets")):
            print(path)
    board = {} if a.studies else all_forecasts(studies)
    if np.isfinite(board.get("measured", [])).any():
        print(save(forecast_board(board), Path(a.out or ROOT / "assets") / "forecasts.png"))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
