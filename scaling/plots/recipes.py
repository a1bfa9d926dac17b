"""What scaling.recipe.transfer and scaling.recipe.batch measured."""
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import gmean

from runtime.basics import load_json
from scaling.plots.colors import BLACK, BLUE, GREEN, RED, VIRIDIS, shades
from scaling.plots.frame import WIDTH, draw_curves, label_only, loss_label, named, page, reach
from scaling.plots.study import if_there, name_of, only, unit_of
from scaling.tables.csv import read_table

# Parametrizations in the order of their panels, and what the coordinate check should show in width.
PANELS = {"mup": ("muP", "muP: flat"),
          "gpt2": ("GPT-2", "GPT-2: grows"),
          "completep": ("CompleteP", "CompleteP: flat")}
SIZE_OF = {"n_embd": ("width d", "d"), "n_layer": ("layers", "layers")}


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
