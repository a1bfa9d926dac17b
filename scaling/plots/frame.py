"""What all figures share: sizes, axes, ticks, legends, bars, and a law with its band.

A shaded band is a 95 % interval; a law is solid inside the range that it was fitted on, and dashed outside.
"""
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)
from PIL import Image

from scaling.laws import forms
from scaling.laws.solver import Array, interval
from scaling.plots.colors import BLACK, RED, shades

WIDTH = 3.5                                             # inches: a column of a two-column paper

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


def title_of(law: dict) -> str:
    """The law of the efficient frontier, with its exponent."""
    return rf"$N_{{opt}} \propto C^a$,  a = {with_interval(law, 'a')}"


def with_interval(law: dict, key: str, digits: int = 3) -> str:
    """'0.512 [0.490, 0.533]'."""
    text = f"{law[key]:.{digits}f}"
    if key in law["ci"]:
        low, high = law["ci"][key]
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def warned(law: dict) -> bool:
    """Whether its fit has any."""
    return not law.get("health", {"ok": True})["ok"]


def named(figure: Figure | None, name: str, warned: bool = False) -> Figure | None:
    """The figure, if there is one, with the study's name above it, and whether its fit has warnings."""
    if figure:
        text = f"{name}: a fit with warnings" if warned else name
        figure.suptitle(text, x=0.99, ha="right", fontsize=6, color=RED if warned else "gray")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG or an SVG, as its name ends, whose bytes depend on the figure alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"compress_level": 9})
    return path


def log_ticks(axis) -> None:
    """Labels at powers of ten or, where the axis spans less than about two, at 1, 2 and 5 times them."""
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high / low < 50 else (1,)
    axis.set(major_locator=LogLocator(subs=subs),
             major_formatter=LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)),
             minor_formatter=NullFormatter())


def loss_ticks(axis) -> None:
    """A loss spans less than a decade: plain numbers, evenly spread, instead of powers of ten."""
    axis.set(major_locator=MaxNLocator(9, steps=[1, 2, 5, 10]),
             major_formatter=ScalarFormatter(),
             minor_locator=NullLocator())


def log_axes(ax) -> None:
    """Logarithmic axes, x for N, D or C and y for a loss; to be called when the limits are final."""
    ax.set(xscale="log", yscale="log")
    log_ticks(ax.xaxis)
    loss_ticks(ax.yaxis)


def hold_points(ax, x: Array, L: Array) -> None:
    """Logarithmic axes that hold the points (x, L), but not every interval; before a law is drawn."""
    span = L.max() / L.min()
    ax.set(xlim=(x.min() / 1.3, x.max() * 1.3), ylim=(L.min() / span ** 0.1, L.max() * span ** 0.1))
    log_axes(ax)


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


def legend_below(ax) -> Figure:
    """The figure, as much taller as its legend takes: inside the panel it would cover something."""
    handles, labels = ax.get_legend_handles_labels()
    figure = ax.figure
    figure.set_figheight(figure.get_figheight() + 0.14 * len(labels))
    figure.legend(handles, labels, loc="outside lower center")
    return figure


def color_bar(ax, values: Array, label: str) -> ScalarMappable:
    """`shades`, with a bar beside the axes that explains them."""
    colors = shades(values)
    bar = ax.figure.colorbar(colors, ax=ax, pad=0.02, aspect=30)
    bar.set_label(label, size=7)
    bar.outline.set_visible(False)
    log_ticks(bar.ax.yaxis)
    return colors


def draw_curves(ax, curves: dict, x: Array, colors: ScalarMappable, **look) -> None:
    """A line of the loss L per run of `curves` {run, N, L}, each (rows,), over `x` (rows,), coloured by N."""
    order = np.argsort(x)
    for run in np.unique(curves["run"]):
        own = order[curves["run"][order] == run]
        ax.plot(x[own], curves["L"][own], color=colors.to_rgba(curves["N"][own[0]]), **look)


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
