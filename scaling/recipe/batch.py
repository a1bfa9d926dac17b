"""Critical batch size: beyond it a larger batch saves few steps, and much of the compute is wasted.

    python -m scaling.recipe.batch out/batch [--correct=scaling/results/laptop]

The study holds one model at several batch sizes, each at a few constant rates (scaling/sweeps/batch.py).
For each loss, the steps S that batch size B needs at its best rate follow S = S_min (1 + B_crit/B)
(McCandlish et al. 2018, eq. 2.11), and B_crit(L) = B_star / L^(1/alpha_B) (Kaplan et al. 2020, eq. 1.4).
Beside it stands the gradient noise scale that the runs logged: the same, in theory (McCandlish, eq. 2.8).
With --correct the runs of another study get S_min and C_min, their cost far above and far below B_crit.
Batches are in tokens. Writes points.csv and batch.json into the study, batch.csv into the corrected one.
"""
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student

from runtime.basics import Parser, UserError, exit_cleanly, write_json
from scaling import logs
from scaling.laws import frontiers
from scaling.laws.solver import span
from scaling.report import amount
from scaling.tables.csv import number, read_table, write_table

COLUMNS = ["run", "batch_tokens", "learning_rate", "loss", "steps", "noise_scale"]
SPAN = 1.10                        # losses compared: from the lowest that all sizes reach to 10 % above,
LEVELS = 5                         # so many of them


class Curve(NamedTuple):
    """A run's evaluations, (n,) each; the noise scale is nan where none was logged."""
    run: str
    batch_tokens: float
    learning_rate: float
    step: np.ndarray
    loss: np.ndarray
    noise_scale: np.ndarray


def read_curve(folder: Path, row: dict) -> Curve:
    """The curve of the run that `row` of runs.csv describes. Raises UserError.

    The loss is smoothed: small batches at a constant rate jitter, and a first crossing would flatter them.
    """
    records = logs.read_log(folder / row["run"] / "log.jsonl")
    evaluated = [(r["step"], r["val_loss"], number(r.get("noise_scale"))) for r in records
                 if np.isfinite(r["val_loss"])]
    step, loss, noise = np.transpose(evaluated)
    near = np.abs(np.log(step / step[:, None])) < 0.2
    loss = np.exp((near * np.log(loss)).sum(1) / near.sum(1))
    return Curve(row["run"], row["batch_tokens"], row["learning_rate"], step, loss, noise)


def steps_to(curve: Curve, level: float) -> float:
    """Steps until the loss first falls to `level`, by log-log interpolation; inf if it does not."""
    i = int((curve.loss <= level).argmax())
    if curve.loss.min() > level or i == 0:             # 0: below it before the first evaluation
        return np.inf
    x = np.log(curve.step[i - 1:i + 1])
    y = np.log(curve.loss[i - 1:i + 1])
    return float(np.exp(np.interp(-np.log(level), -y, x)))


def noise_near(curve: Curve, step: float) -> float:
    """The median noise scale logged within a third of `step`; nan where none was."""
    near = np.abs(np.log(curve.step / step)) < 1 / 3
    found = curve.noise_scale[near & np.isfinite(curve.noise_scale)]
    return float(np.median(found)) if len(found) else np.nan


def points(curves: list[Curve]) -> Iterator[dict]:
    """Rows of points.csv: at each loss and batch size, the rate that needed the fewest steps."""
    sizes = sorted({c.batch_tokens for c in curves})
    groups = [[c for c in curves if c.batch_tokens == B] for B in sizes]
    lowest = max(min(c.loss.min() for c in group) for group in groups)
    levels = np.ceil(1000 * lowest * np.geomspace(1, SPAN, LEVELS)) / 1000
    for level in levels.tolist():
        for group in groups:
            steps = [steps_to(c, level) for c in group]
            fewest = min(steps)
            if fewest < np.inf:
                best = group[steps.index(fewest)]
                yield dict(zip(COLUMNS, (*best[:3], level, fewest, noise_near(best, fewest))))


def solve(B: np.ndarray, L: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Least squares in log S of S = S_min(L) (1 + B_star L^-p / B), with S_min free at each loss.

    Returns [log B_star, p, log S_min ...].
    """
    level, at = np.unique(L, return_inverse=True)

    def off(theta):
        return theta[2:][at] + np.log1p(np.exp(theta[0] - theta[1] * np.log(L)) / B) - np.log(S)
    first = [np.log(np.median(B)), 0.0, *(np.log(S[at == i].min()) for i in range(len(level)))]
    return least_squares(off, first, x_scale="jac").x


def jackknife(whole: float, left_out: np.ndarray) -> list[float]:
    """95 % interval of an estimate: `whole` with all data, `left_out` (n,) without each of n groups."""
    n = len(left_out)
    half = student.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return [float(whole - half), float(whole + half)]


def critical(table: dict) -> dict:
    """Fit B_crit(L) to the columns of points.csv -> {B_star, p = 1/alpha_B, levels, ci, range}.

    Intervals: jackknife over batch sizes, since the points of one size share their runs. Raises UserError.
    """
    B = table["batch_tokens"]
    L = table["loss"]
    S = table["steps"]
    sizes = np.unique(B)
    level = np.unique(L)
    if len(sizes) < 4 or len(level) < 3:
        raise UserError(f"{len(sizes)} batch sizes at {len(level)} losses cannot determine B_crit(L): "
                        "4 and 3 are needed; add batch sizes to the sweep file")
    log_B, p, *log_S = solve(B, L, S)
    left_out = [solve(B[B != b], L[B != b], S[B != b])[:2] for b in sizes]
    log_B_out, p_out = np.transpose(left_out)
    middle = np.log(level).mean()
    log_critical = jackknife(log_B - p * middle, log_B_out - p_out * middle)
    fit = {"form": "B_crit = B_star / L^p, in tokens; p = 1/alpha_B",
           "B_star": float(np.exp(log_B)),
           "p": float(p),
           "n": len(S),
           "ci": {"p": jackknife(p, p_out), "B_crit": np.exp(log_critical).tolist()},
           "range": span(L=L, B=B)}
    fit["levels"] = [{"loss": float(loss),
                      "S_min": float(np.exp(steps)),
                      "B_crit": float(b_crit(fit, loss)),
                      "noise_scale": float(np.nanmedian(table["noise_scale"][L == loss]))}
                     for loss, steps in zip(level, log_S)]
    return fit


def b_crit(fit: dict, L: np.ndarray) -> np.ndarray:
    """Critical batch in tokens at loss `L`: Kaplan et al. 2020, eq. 1.4."""
    return fit["B_star"] * L ** -fit["p"]


def corrected(fit: dict, runs: dict) -> dict:
    """{run, loss, flops, B_crit, S_min, C_min} of a runs.csv; C = 6 N D (Kaplan et al. 2020, eqs. 5.4-5)."""
    B = runs["batch_tokens"]
    loss = runs["val_loss"]
    flops = runs["flops_6nd"]
    critical_batch = b_crit(fit, loss)
    return {"run": runs["run"], "loss": loss, "flops": flops, "B_crit": critical_batch,
            "S_min": runs["tokens"] / (B + critical_batch), "C_min": flops / (1 + B / critical_batch)}


def correct_study(fit: dict, folder: Path, runs: dict) -> str:
    """Write FOLDER/batch.csv. Returns the line that sets L(C_min) beside L(C) and how far it extrapolates."""
    table = corrected(fit, runs)
    rows = [dict(zip(table, row)) for row in zip(*table.values())]
    write_table(folder / "batch.csv", rows, list(table))
    low, high = fit["range"]["L"]
    outside = np.mean((table["loss"] < low) | (table["loss"] > high))
    share = table["C_min"] / table["flops"]
    alphas = []
    for key in ("flops", "C_min"):
        law = frontiers.fit_loss_vs_compute(table[key], table["loss"])
        alphas.append("{:.3f} [{:.3f}, {:.3f}]".format(law["alpha"], *law["ci"]["alpha"]))
    return (f"{folder}: C_min/C is {share.min():.2f} to {share.max():.2f}; "
            f"alpha of L(C) {alphas[0]}, of L(C_min) {alphas[1]}; "
            f"{100 * outside:.0f} % of the runs lie outside the losses that B_crit was fitted on")


def report(fit: dict) -> str:
    """The fit as text: a line per loss, and the law."""
    lines = [f"{'loss':>8}{'S_min':>9}{'E_min':>11}{'B_crit':>9}{'noise scale':>13}   (steps; tokens)"]
    for x in fit["levels"]:
        E_min = x["S_min"] * x["B_crit"]
        lines.append("{loss:>8.3f}{S_min:>9.0f}{E_min:>11.3g}{B_crit:>9.0f}{noise_scale:>13.0f}".format(
            **x, E_min=E_min))
    lines.append(f"B_crit(L) = {fit['B_star']:.3g} / L^{fit['p']:.2f}, "
                 + "exponent {:.2f} to {:.2f}; ".format(*fit["ci"]["p"])
                 + "at the middle loss {:.0f} to {:.0f} tokens (95 %)".format(*fit["ci"]["B_crit"]))
    return "\n".join(lines)


def measured(folder: Path) -> list[dict]:
    """The rows of points.csv, from a study's runs; none where it has points.csv alone. Raises UserError."""
    rows, problems = logs.parse_study(folder) if folder.is_dir() else ([], [])
    for problem in problems:
        print(problem)
    if not rows:
        if not (folder / "points.csv").exists():
            raise UserError(f"{folder} holds neither finished runs nor points.csv; "
                            "run: python -m scaling.sweep scaling/sweeps/batch.py")
        print(f"{folder}: points.csv, without its runs")
        return []
    sizes = {row["batch_tokens"] for row in rows}
    print(f"{folder}: {amount(len(rows), 'run')} of {amount(len(sizes), 'batch size')}", flush=True)
    found = list(points([read_curve(folder, row) for row in rows]))
    if not found:
        raise UserError(f"{folder}: no run was evaluated both before and after it came to a loss that all "
                        "batch sizes reach; lower eval_interval, and train the study under another name")
    return found


def main(args: list[str] | None = None) -> int:
    parser = Parser("python -m scaling.recipe.batch", __doc__)
    parser.add_argument("study", help="out/batch, or a results directory with points.csv")
    parser.add_argument("--correct", help="a study directory with runs.csv")
    a = parser.parse_args(args)
    folder = Path(a.study)
    runs = read_table(Path(a.correct) / "runs.csv") if a.correct else None
    found = measured(folder)
    table = {name: np.array([row[name] for row in found]) for name in COLUMNS}
    fit = critical(table if found else read_table(folder / "points.csv"))
    if found:
        write_table(folder / "points.csv", found, COLUMNS)
    write_json(folder / "batch.json", fit)
    print(report(fit))
    if a.correct:
        print(correct_study(fit, Path(a.correct), runs))
    print(f"next: python -m scaling.plots {quote(str(folder))}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
