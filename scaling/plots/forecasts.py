"""What was forecast, what came, and what is planned."""
import numpy as np
from matplotlib.figure import Figure

from scaling.laws import forms
from scaling.laws.solver import Array
from scaling.plots.colors import ANY_SIZE, BLACK, BLUE, LOW_IS_DARK, RED
from scaling.plots.frame import axes, end_with_grid, legend_below, named, reach, warned
from scaling.plots.study import D_LABEL, N_LABEL, only, unit_of


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


def forecast_board(forecasts: dict) -> Figure:
    """Every sealed forecast that has been measured, by study: its error and its interval, in per cent."""
    came = np.isfinite(forecasts["measured"])
    row = {name: column[came] for name, column in forecasts.items()}
    low, middle, high = (100 * (row[c] / row["measured"] - 1) for c in ("lo95", "predicted", "hi95"))
    studies = list(dict.fromkeys(row["study"]))
    names = []
    ax = axes("forecast / measured - 1 (%)", "", height=0.17 * (len(middle) + len(studies)) + 0.6)
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
