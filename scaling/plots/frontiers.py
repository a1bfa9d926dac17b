"""The best size of a budget as each approach finds it, by each way to count, and what arms are worth."""
import numpy as np
from matplotlib.figure import Figure

from scaling.laws.frontiers import group_budgets, named_budgets
from scaling.laws.solver import Array
from scaling.plots.colors import ANY_SIZE, BLACK, BLUE, COLORS, GREEN, PURPLE, RED, SKY, VIRIDIS
from scaling.plots.frame import (
    axes,
    color_bar,
    draw_curves,
    hold_points,
    legend_below,
    log_axes,
    loss_label,
    page,
    title_of,
)
from scaling.plots.study import A_LABEL, Study


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
    hold_points(ax, study.N, study.L[np.isfinite(level)])
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
    hold_points(ax, C[near], L[near])
    return legend_below(ax)


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


def what_arms_are_worth(study: Study, law: dict) -> Figure:
    """The runs and frontiers of all arms, and the multiplier of each over the reference, against compute."""
    losses, worth = page(5).subplots(2, 1, sharex=True)
    curves = {law["reference"]: law["curve"]} | {name: row["curve"] for name, row in law["arms"].items()}
    for (name, curve), color in zip(curves.items(), COLORS * len(curves)):
        losses.plot(curve["runs"]["C"], curve["runs"]["loss"], ".", color=color, alpha=0.5, markersize=3)
        losses.plot(curve["C"], curve["loss"], color=color, label=name)
        if name != law["reference"]:
            low, high = np.array([m["ci"] for m in curve["multiplier"]]).T
            worth.fill_between(curve["C"], low, high, color=color, alpha=0.12, linewidth=0)
            worth.plot(curve["C"], [m["factor"] for m in curve["multiplier"]], color=color)
    worth.axhline(1, color=BLACK, linewidth=0.8)
    losses.set(title="dots: runs; lines: the loss at the best size", ylabel=loss_label(study.unit))
    worth.set(title=f"compute that {law['reference']} takes for the same loss", xlabel=study.c_label,
              ylabel="multiplier, band: 95 %")
    log_axes(losses)
    losses.figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                         columnspacing=1)
    return losses.figure
