"""One function per figure, each for one column of print, and one command that draws them.

    python -m scaling.plots                                   the figures that README shows, into assets/
    python -m scaling.plots STUDY_DIR ... [--out=FOLDER]      every figure of a study, into its figures/
    python -m scaling.plots RUN_DIR                           a run, done or not: loss, rate, gradient, speed
    python -m scaling.plots ... --format=svg                  pictures that can be enlarged

To draw a new law, write a function from a `Study` and the law to a figure, and give it a row in `FIGURES`.
"""
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import numpy as np
from matplotlib.figure import Figure

from runtime import basics
from runtime.basics import Parser, UserError
from scaling.logs import is_run
from scaling.plots.colors import BLACK, SKY
from scaling.plots.forecasts import forecast_board, plan_figure
from scaling.plots.frame import axes, named, save, warned
from scaling.plots.frontiers import accounting, envelope, isoflop, walk, what_arms_are_worth
from scaling.plots.losses import collapse, loss_curves, loss_vs_compute, power_law, run_curves
from scaling.plots.recipes import recipe_figures
from scaling.plots.study import Study, read_study
from scaling.plots.surface import (
    bootstrap_cloud,
    early_stop,
    frontier,
    profile_of_E,
    residuals,
    surface_contours,
)
from scaling.report import amount
from scaling.tables.csv import read_table

# What scaling.watch, scaling.plan and the notebooks take from here, beside what this file uses itself.
__all__ = ["BLACK", "SKY", "axes", "early_stop", "plan_figure", "walk"]

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
               "transfer_transfer": recipe_figures(results / "transfer")["transfer"],
               "depth_transfer": recipe_figures(results / "depth")["transfer"]}
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
