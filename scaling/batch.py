"""Critical batch size: beyond it a larger batch buys few steps, and compute spent there says little about size.

    python -m scaling.batch out/batch [--correct=scaling/results/laptop]

The study holds runs of one model at several batch sizes, each at a few constant learning rates (scaling/sweeps/batch.py).
For each loss the steps S that each batch size B needs, at its best rate, follow S = S_min (1 + B_crit/B) (McCandlish et al.
2018, eq. 2.11; Kaplan et al. 2020, eq. 5.1), and B_crit(L) = B_star / L^(1/alpha_B) (Kaplan, eq. 1.4). Beside it stands the
gradient noise scale that the runs logged, which should be about as large (McCandlish, eq. 2.8). With --correct the
runs of another study get S_min and C_min, what they would have cost far above and far below their critical batch.
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

from configurator import UserError, exit_cleanly
from scaling import frontiers, logs

COLUMNS = ["run", "batch_tokens", "learning_rate", "loss", "steps", "noise_scale"]
SPAN, LEVELS = 1.10, 5                     # the losses compared: from the worst batch's best up to 10 % above it


def read_curve(run: Path) -> dict:
    """{run, batch_tokens, learning_rate, step (n,), loss (n,), noise_scale (n,)} of a run's evaluations."""
    config, records = logs.load_json(run / "config.json"), list(logs.read_log(run / "log.jsonl"))
    rows = [(r["step"], r["val_loss"], logs.number(r.get("noise_scale"))) for r in records if r["val_loss"] == r["val_loss"]]
    step, loss, noise = np.array(rows).reshape(-1, 3).T
    return {"run": run.name, "batch_tokens": config["batch_size"] * config["block_size"],
            "learning_rate": config["learning_rate"], "step": step, "loss": loss, "noise_scale": noise}


def steps_to(curve: dict, level: float) -> float:
    """Steps until the loss first falls to `level`, interpolated in log-log; nan if it never does or begins below."""
    below = curve["loss"] <= level
    i = int(below.argmax())
    if not below.any() or i == 0:
        return np.nan
    x, y = np.log(curve["step"][i - 1:i + 1]), np.log(curve["loss"][i - 1:i + 1])
    return float(np.exp(np.interp(-np.log(level), -y, x)))


def noise_near(curve: dict, step: float) -> float:
    """The median noise scale logged within a third of `step`; nan where none was."""
    near = np.abs(np.log(curve["step"] / step)) < 1 / 3
    found = curve["noise_scale"][near & np.isfinite(curve["noise_scale"])]
    return float(np.median(found)) if len(found) else np.nan


def points(curves: list[dict]) -> Iterator[dict]:
    """Rows of points.csv: for each loss level, and each batch size, the steps at the rate that needed the fewest."""
    sizes = sorted({c["batch_tokens"] for c in curves})
    lowest = max(min(c["loss"].min() for c in curves if c["batch_tokens"] == B) for B in sizes)
    for level, B in itertools.product(np.ceil(1000 * lowest * np.geomspace(1, SPAN, LEVELS)) / 1000, sizes):
        steps, _, best = min((steps_to(c, level), i, c) for i, c in enumerate(curves)
                             if c["batch_tokens"] == B and steps_to(c, level) > 0)
        yield {k: best[k] for k in COLUMNS[:3]} | {"loss": float(level), "steps": steps, "noise_scale": noise_near(best, steps)}


def solve(B: np.ndarray, L: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Least squares in log S of S = S_min(L) (1 + B_star L^-p / B), S_min free at each loss -> [log B_star, p, log S_min ...]."""
    level, at = np.unique(L, return_inverse=True)

    def off(theta):
        return theta[2:][at] + np.log1p(np.exp(theta[0] - theta[1] * np.log(L)) / B) - np.log(S)
    first = [np.log(np.median(B)), 0.0, *(np.log(S[at == i].min()) for i in range(len(level)))]
    return least_squares(off, first, x_scale="jac").x


def critical(table: dict) -> dict:
    """Fit B_crit(L) to the columns of points.csv. Returns {B_star, alpha_B, levels, ci, noise}.

    Intervals: jackknife over batch sizes, since the points of one batch size share their runs. Raises UserError.
    """
    B, L, S = (table[k] for k in ("batch_tokens", "loss", "steps"))
    sizes = np.unique(B)
    if len(sizes) < 4 or len(np.unique(L)) < 3:
        raise UserError(f"{len(sizes)} batch sizes at {len(np.unique(L))} losses cannot determine B_crit(L): 4 and 3 are needed")
    theta, level = solve(B, L, S), np.unique(L)
    left_out = np.array([solve(B[B != b], L[B != b], S[B != b])[:2] for b in sizes])
    n, middle = len(sizes), np.log(level).mean()

    def interval(f):
        draws = f(left_out)
        half = student.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((draws - draws.mean(0)) ** 2).sum(0))
        return [float(f(theta[None])[0] - half), float(f(theta[None])[0] + half)]
    S_min, B_crit = np.exp(theta[2:]), np.exp(theta[0] - theta[1] * np.log(level))
    noise = [float(np.nanmedian(table["noise_scale"][L == x])) for x in level]
    return {"form": "B_crit = B_star / L^(1/alpha_B), tokens", "B_star": float(np.exp(theta[0])), "alpha_B": float(1 / theta[1]),
            "levels": [dict(loss=float(x), B_crit=float(b), S_min=float(s), E_min=float(b * s), noise_scale=v)
                       for x, b, s, v in zip(level, B_crit, S_min, noise)],
            "ci": {"1/alpha_B": interval(lambda t: t[:, 1]),
                   "B_crit at the middle loss": np.exp(interval(lambda t: t[:, 0] - t[:, 1] * middle)).tolist()},
            "range": {"L": [float(level[0]), float(level[-1])], "B": [float(sizes[0]), float(sizes[-1])]}}


def b_crit(fit: dict, L: np.ndarray) -> np.ndarray:
    """Critical batch in tokens at loss `L`: Kaplan et al. 2020, eq. 1.4."""
    return fit["B_star"] * np.asarray(L) ** (-1 / fit["alpha_B"])


def corrected(fit: dict, runs: dict) -> dict:
    """{run, loss, B_crit, S_min, C_min} of the rows of a runs.csv: Kaplan et al. 2020, eqs. 5.4 and 5.5, on 6 N D."""
    B, L = runs["batch_tokens"], runs["val_loss"]
    ratio = B / b_crit(fit, L)
    return {"run": runs["run"], "loss": L, "flops": runs["flops_6nd"], "B_crit": B / ratio,
            "S_min": runs["tokens"] / B / (1 + 1 / ratio), "C_min": runs["flops_6nd"] / (1 + ratio)}


def correct_study(fit: dict, folder: Path) -> str:
    """Write `folder`/batch.csv. Returns the line that sets L(C_min) beside L(C), or says how far this extrapolates."""
    table = corrected(fit, logs.read_table(folder / "runs.csv"))
    logs.write_table(folder / "batch.csv", [dict(zip(table, row)) for row in zip(*table.values())], list(table))
    low, high = fit["range"]["L"]
    outside = np.mean((table["loss"] < low) | (table["loss"] > high))
    laws = [frontiers.fit_loss_vs_compute(table[k], table["loss"]) for k in ("flops", "C_min")]
    return (f"{folder}: C_min is {np.median(table['C_min'] / table['flops']):.2f} of C in the median run; alpha of L(C) "
            + ", of L(C_min) ".join(f"{law['alpha']:.4f} [{law['ci']['alpha'][0]:.4f}, {law['ci']['alpha'][1]:.4f}]" for law in laws)
            + f"; {100 * outside:.0f} % of the runs are outside the losses that B_crit was fitted on")


def report(fit: dict) -> str:
    low, high = fit["ci"]["1/alpha_B"]
    rows = [f"{x['loss']:>8.3f}{x['S_min']:>9.0f}{x['E_min']:>11.3g}{x['B_crit']:>9.0f}{x['noise_scale']:>13.0f}" for x in fit["levels"]]
    middle = "{:.0f} to {:.0f}".format(*fit["ci"]["B_crit at the middle loss"])
    return "\n".join([f"{'loss':>8}{'S_min':>9}{'E_min':>11}{'B_crit':>9}{'noise scale':>13}   (tokens; steps)", *rows,
                      f"B_crit(L) = {fit['B_star']:.3g} / L^{1 / fit['alpha_B']:.2f} [{low:.2f}, {high:.2f}]; at the middle loss {middle}"])


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaling.batch", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="out/batch, or a results directory with points.csv")
    parser.add_argument("--correct", help="a study directory with runs.csv")
    a = parser.parse_args(args)
    folder = Path(a.study)
    runs = [p.parent for p in sorted(folder.glob("*/result.json"))]
    if runs:
        logs.write_table(folder / "points.csv", list(points([read_curve(run) for run in runs])), COLUMNS)
    elif not (folder / "points.csv").exists():
        raise UserError(f"{folder} holds neither finished runs nor points.csv; run scaling/sweeps/batch.py first")
    fit = critical(logs.read_table(folder / "points.csv"))
    (folder / "batch.json").write_text(json.dumps(fit, indent=1) + "\n", encoding="utf-8")
    print(report(fit))
    if a.correct:
        print(correct_study(fit, Path(a.correct)))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
