"""Critical batch size: beyond it a larger batch saves few steps, and much of the compute is wasted.

    python -m scaling.recipe.batch out/batch [--correct=scaling/results/laptop]

The study holds one model at several batch sizes, each at a few constant rates (scaling/sweeps/batch.py).
For each loss, the steps S that batch size B needs at its best rate follow S = S_min (1 + B_crit/B)
(McCandlish et al. 2018, eq. 2.11), and B_crit(L) = B_star / L^(1/alpha_B) (Kaplan et al. 2020, eq. 1.4).
Beside it stands the gradient noise scale that the runs logged: the same, in theory (McCandlish, eq. 2.8).
With --correct the runs of another study get S_min and C_min, their cost far above and far below B_crit.
Batches are in tokens. Writes points.csv and batch.json into the study, batch.csv into the corrected one.
"""
import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student

from runtime.basics import UserError, exit_cleanly, load_json
from scaling import logs
from scaling.laws import frontiers
from scaling.tables.csv import number, read_table, write_table

COLUMNS = ["run", "batch_tokens", "learning_rate", "loss", "steps", "noise_scale"]
SPAN, LEVELS = 1.10, 5                     # losses compared: the lowest all sizes reach, to 10 % above


def read_curve(run: Path) -> dict:
    """{run, batch_tokens, learning_rate, step (n,), loss (n,), noise_scale (n,)} of a run's evaluations.

    The loss is smoothed: small batches at a constant rate jitter, and a first crossing would flatter them.
    """
    c = load_json(run / "config.json")
    rows = [(r["step"], r["val_loss"], number(r.get("noise_scale")))
            for r in logs.read_log(run / "log.jsonl") if np.isfinite(r["val_loss"])]
    step, loss, noise = np.array(rows).reshape(-1, 3).T
    near = np.abs(np.log(step / step[:, None])) < 0.2
    loss = np.exp((near * np.log(loss)).sum(1) / near.sum(1))
    return {"run": run.name, "batch_tokens": c["batch_size"] * c["block_size"],
            "learning_rate": c["learning_rate"], "step": step, "loss": loss, "noise_scale": noise}


def steps_to(curve: dict, level: float) -> float:
    """Steps until the loss first falls to `level`, by log-log interpolation; inf if it does not."""
    i = int((curve["loss"] <= level).argmax())
    if curve["loss"].min() > level or i == 0:             # 0: below it before the first evaluation
        return np.inf
    x, y = np.log(curve["step"][i - 1:i + 1]), np.log(curve["loss"][i - 1:i + 1])
    return float(np.exp(np.interp(-np.log(level), -y, x)))


def noise_near(curve: dict, step: float) -> float:
    """The median noise scale logged within a third of `step`; nan where none was."""
    near = np.abs(np.log(curve["step"] / step)) < 1 / 3
    found = curve["noise_scale"][near & np.isfinite(curve["noise_scale"])]
    return float(np.median(found)) if len(found) else np.nan


def points(curves: list[dict]) -> Iterator[dict]:
    """Rows of points.csv: at each loss and batch size, the rate that needed the fewest steps."""
    sizes = sorted({c["batch_tokens"] for c in curves})
    groups = {B: [c for c in curves if c["batch_tokens"] == B] for B in sizes}
    lowest = max(min(c["loss"].min() for c in group) for group in groups.values())
    levels = np.ceil(1000 * lowest * np.geomspace(1, SPAN, LEVELS)) / 1000
    for level, group in itertools.product(levels.tolist(), groups.values()):
        best = min(group, key=lambda c: steps_to(c, level))
        steps = steps_to(best, level)
        if np.isfinite(steps):
            yield {k: best[k] for k in COLUMNS[:3]} | {"loss": level, "steps": steps,
                                                       "noise_scale": noise_near(best, steps)}


def solve(B: np.ndarray, L: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Least squares in log S of S = S_min(L) (1 + B_star L^-p / B), with S_min free at each loss.

    Returns [log B_star, p, log S_min ...].
    """
    level, at = np.unique(L, return_inverse=True)

    def off(theta):
        return theta[2:][at] + np.log1p(np.exp(theta[0] - theta[1] * np.log(L)) / B) - np.log(S)
    first = [np.log(np.median(B)), 0.0, *(np.log(S[at == i].min()) for i in range(len(level)))]
    return least_squares(off, first, x_scale="jac").x


def critical(table: dict) -> dict:
    """Fit B_crit(L) to the columns of points.csv -> {B_star, p = 1/alpha_B, levels, ci, range}.

    Intervals: jackknife over batch sizes, since the points of one size share their runs. Raises UserError.
    """
    B, L, S = (table[k] for k in ("batch_tokens", "loss", "steps"))
    sizes, level = np.unique(B), np.unique(L)
    if len(sizes) < 4 or len(level) < 3:
        raise UserError(f"{len(sizes)} batch sizes at {len(level)} losses cannot determine B_crit(L): "
                        "4 and 3 are needed")
    theta, middle = solve(B, L, S), np.log(level).mean()
    left_out = np.array([solve(B[B != b], L[B != b], S[B != b])[:2] for b in sizes])
    n = len(sizes)

    def interval(of):
        draws, value = of(left_out), of(theta[None])[0]
        half = student.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((draws - draws.mean()) ** 2).sum())
        return [float(value - half), float(value + half)]
    fit = {"form": "B_crit = B_star / L^p, in tokens; p = 1/alpha_B",
           "B_star": float(np.exp(theta[0])), "p": float(theta[1]), "n": len(S),
           "ci": {"p": interval(lambda t: t[:, 1]),
                  "B_crit": np.exp(interval(lambda t: t[:, 0] - t[:, 1] * middle)).tolist()},
           "range": {"L": [float(level[0]), float(level[-1])], "B": [float(sizes[0]), float(sizes[-1])]}}
    fit["levels"] = [{"loss": float(x), "S_min": float(np.exp(s)), "B_crit": float(b_crit(fit, x)),
                      "noise_scale": float(np.nanmedian(table["noise_scale"][L == x]))}
                     for x, s in zip(level, theta[2:])]
    return fit


def b_crit(fit: dict, L: np.ndarray) -> np.ndarray:
    """Critical batch in tokens at loss `L`: Kaplan et al. 2020, eq. 1.4."""
    return fit["B_star"] * np.asarray(L) ** -fit["p"]


def corrected(fit: dict, runs: dict) -> dict:
    """{run, loss, flops, B_crit, S_min, C_min} of a runs.csv; C = 6 N D (Kaplan et al. 2020, eqs. 5.4-5)."""
    B, L, C = (runs[k] for k in ("batch_tokens", "val_loss", "flops_6nd"))
    critical_batch = b_crit(fit, L)
    return {"run": runs["run"], "loss": L, "flops": C, "B_crit": critical_batch,
            "S_min": runs["tokens"] / B / (1 + critical_batch / B), "C_min": C / (1 + B / critical_batch)}


def correct_study(fit: dict, folder: Path) -> str:
    """Write FOLDER/batch.csv. Returns the line that sets L(C_min) beside L(C) and how far it extrapolates."""
    table = corrected(fit, read_table(folder / "runs.csv"))
    rows = [dict(zip(table, row)) for row in zip(*table.values())]
    write_table(folder / "batch.csv", rows, list(table))
    low, high = fit["range"]["L"]
    outside = np.mean((table["loss"] < low) | (table["loss"] > high))
    alphas = []
    for key in ("flops", "C_min"):
        law = frontiers.fit_loss_vs_compute(table[key], table["loss"])
        alphas.append("{:.3f} [{:.3f}, {:.3f}]".format(law["alpha"], *law["ci"]["alpha"]))
    return (f"{folder}: C_min/C is {(table['C_min'] / table['flops']).min():.2f} to "
            f"{(table['C_min'] / table['flops']).max():.2f}; "
            f"alpha of L(C) {alphas[0]}, of L(C_min) {alphas[1]}; "
            f"{100 * outside:.0f} % of the runs lie outside the losses that B_crit was fitted on")


def report(fit: dict) -> str:
    rows = [f"{x['loss']:>8.3f}{x['S_min']:>9.0f}{x['S_min'] * x['B_crit']:>11.3g}{x['B_crit']:>9.0f}"
            f"{x['noise_scale']:>13.0f}" for x in fit["levels"]]
    head = f"{'loss':>8}{'S_min':>9}{'E_min':>11}{'B_crit':>9}{'noise scale':>13}   (steps; tokens)"
    law = (f"B_crit(L) = {fit['B_star']:.3g} / L^{fit['p']:.2f}, "
           + "exponent {:.2f} to {:.2f}; ".format(*fit["ci"]["p"])
           + "at the middle loss {:.0f} to {:.0f} tokens (95 %)".format(*fit["ci"]["B_crit"]))
    return "\n".join([head, *rows, law])


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaling.recipe.batch", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="out/batch, or a results directory with points.csv")
    parser.add_argument("--correct", help="a study directory with runs.csv")
    a = parser.parse_args(args)
    folder = Path(a.study)
    runs = [p.parent for p in sorted(folder.glob("*/result.json"))]
    if runs:
        write_table(folder / "points.csv", list(points([read_curve(run) for run in runs])), COLUMNS)
    elif not (folder / "points.csv").exists():
        raise UserError(f"{folder} holds neither finished runs nor points.csv; "
                        "run: python -m scaling.sweep scaling/sweeps/batch.py")
    fit = critical(read_table(folder / "points.csv"))
    (folder / "batch.json").write_text(json.dumps(fit, indent=1) + "\n", encoding="utf-8")
    print(report(fit))
    if a.correct:
        print(correct_study(fit, Path(a.correct)))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
