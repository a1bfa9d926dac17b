"""Loss along a run, and against one thing at a time: tokens, parameters or compute."""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from runtime.basics import UserError, load_json
from scaling.laws import counts, forms
from scaling.laws.collapse import WINDOW, loss_at
from scaling.logs import read_log
from scaling.plots.colors import ANY_SIZE, BLACK, BLUE, RED, SKY
from scaling.plots.frame import (
    axes,
    color_bar,
    draw_curves,
    draw_law,
    hold_points,
    legend_below,
    log_axes,
    loss_label,
    loss_ticks,
    named,
    page,
    reach,
    with_interval,
)
from scaling.plots.study import D_LABEL, Study, unit_of


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


def loss_vs_compute(study: Study, law: dict) -> Figure:
    """Kaplan's L(C): runs or checkpoints, their lower-left hull, the law through its later part, the kink."""
    C, L = (np.append(study.data[k], study.data["along"].get(k, [])) for k in "CL")
    hull = law["hull"]
    late = -hull["fitted"]                                              # the law was fitted from here on
    title = rf"$L = (C_c/C)^{{\alpha}}$,  $\alpha$ = {with_interval(law, 'alpha', 4)}"
    ax = axes(study.c_label, loss_label(study.unit), title)
    size = 1.5 if len(C) > 200 else 2.5
    hold_points(ax, C, L[L <= 1.05 * max(hull["loss"])])
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
    hold_points(ax, x, study.L)
    ax.plot(x, study.L, "o", color=BLUE, mfc="none", mew=0.5, label="all runs")
    ax.plot(law["points"][name], law["points"]["loss"], "o", color=BLUE, label=f"best at each {name}")
    grid = reach(x)
    draw_law(ax, grid, law, lambda p: forms.loss_of(p, {name: grid}), law["range"][name], "law")
    return legend_below(ax)
