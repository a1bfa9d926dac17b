"""A forecast of the loss beyond the data: a weighted mean of two published forms. No torch, no files.

Hoffmann's form has a floor E, Kaplan's has none: beyond the data they part, and neither is right. In Porian
et al.'s runs (192 extrapolations from 24 runs each, to 4 to 8 times their compute) the truth lay between the
two in 76 % of cases; the 95 % interval of Hoffmann's surface alone held it in 46 %, the one here in 94 % (the
50 % interval in 56 %), and the median error fell from 2.6 to 1.2 %. Which form fits better inside the data
does not tell which to believe (Akaike weights: 57 %). How well each predicted the study's largest budget from
the smaller ones does, a little, and sets the weights. That rule was chosen on those runs; on others, the
points of Hoffmann et al.'s figure 4 (30 draws of 24, to 3 to 10 times their compute), 97 % and 60 % lay
inside.
"""
import numpy as np

from scaling.laws import forms, frontiers

Z50 = 0.6745                               # normal quantiles of the 50 and 95 % intervals
Z95 = 1.96
DRAWS = 200                                # bootstrap resamples of each of the many fits that are made here
Array = np.ndarray


# ---- Two forms, one prediction. ----

def fit_forms(N: Array, D: Array, L: Array, bootstrap: int = DRAWS) -> list[dict]:
    """Hoffmann's and Kaplan's form fitted to runs (n,): N parameters, D tokens, loss L. Raises UserError."""
    return [fit(N, D, L, bootstrap=bootstrap) for fit in (forms.fit_surface, forms.fit_kaplan_nd)]


def log_losses(fit: dict, N: Array, D: Array) -> tuple[Array, Array]:
    """Log-loss of new runs at N, D (m,) by the fitted point (m,) and by its bootstrap resamples (B, m)."""
    inputs = {"N": N, "D": D}
    with np.errstate(over="ignore"):                   # a resample may put N_c beyond all numbers: left out
        draws = np.log(forms.loss_of(fit | forms.draws_of(fit), inputs))
    return np.log(forms.loss_of(fit, inputs)), draws[np.isfinite(draws).all(1)]


def combine(fits: list[dict], weights: Array, N: Array, D: Array) -> tuple[Array, Array, Array, Array]:
    """(log-loss, its sd), each (m,), then (log-loss by form, that one's sd), each (2, m), at N, D (m,).

    The variance is the mixture's: of each form's parameters (bootstrap) and residual noise, plus the square
    of its distance from the mean. It is a *measurement's*, so the noise of seeds is in it.
    """
    points, draws = zip(*(log_losses(fit, N, D) for fit in fits))
    each = np.array(points)
    variance = np.array([d.var(0) + fit["noise"] ** 2 for d, fit in zip(draws, fits)])
    mean = weights @ each
    return mean, np.sqrt(weights @ (variance + (each - mean) ** 2)), each, np.sqrt(variance)


def interval(mean: float, sd: float) -> dict:
    """The predicted loss and its intervals from the mean and standard deviation of log-loss."""
    z = dict(predicted=0, lo50=-Z50, hi50=Z50, lo95=-Z95, hi95=Z95)
    return {key: float(np.exp(mean + z[key] * sd)) for key in z}


# ---- Rollout: what a study's own history says about its extrapolation. ----

def levels(C: Array) -> list[Array]:
    """Indices of the runs of each budget, smallest first; without budgets, five parts in order of C."""
    budget = frontiers.group_budgets(C)
    if np.isfinite(budget).all():
        return [np.flatnonzero(budget == b) for b in np.unique(budget)]
    return np.array_split(np.argsort(C, kind="stable"), min(5, max(1, len(C) // 4)))


def rollout(runs: dict) -> list[dict]:
    """Refit on the smaller budgets only and predict the next, for each in turn: one row per predicted budget.

    `runs` holds N, D, C and L, each (n,). The weights are those that `weigh` would have given at the time, so
    a row shows what a forecast made then was worth. Budgets with fewer than two others or eight runs below
    them are left out. Raises UserError for runs that no fit can use.
    """
    groups = levels(runs["C"])
    rows = []
    for k in range(2, len(groups)):
        below = np.concatenate(groups[:k])
        if len(below) >= 8:
            rows.append(rollout_row(runs, below, groups[k], weigh(rows)))
    return rows


def rollout_row(runs: dict, below: Array, at: Array, weights: Array) -> dict:
    """How well the runs `below` (indices) predict those `at` the next budget.

    C, fitted_runs, runs, beyond (the factor in C from the largest fitted run), the mean and rms relative
    error, the share inside the 95 % interval, and each form's rms error.
    """
    N, D, C = runs["N"], runs["D"], runs["C"]
    fits = fit_forms(N[below], D[below], runs["L"][below])
    mean, sd, each, _ = combine(fits, weights, N[at], D[at])
    truth = np.log(runs["L"][at])
    error = mean - truth
    hoffmann, kaplan = np.sqrt(((each - truth) ** 2).mean(1))
    return {"C": float(np.exp(np.log(C[at]).mean())),
            "fitted_runs": len(below),
            "runs": len(at),
            "beyond": float(C[at].max() / C[below].max()),
            "mean_error": float(error.mean()),
            "rms_error": float(np.sqrt((error ** 2).mean())),
            "inside": float((abs(error) < Z95 * sd).mean()),
            "rms_hoffmann": float(hoffmann),
            "rms_kaplan": float(kaplan)}


def weigh(rows: list[dict]) -> Array:
    """Weights of the two forms: inverse to their mean square error at the largest budget rolled out, equal
    without one.

    This combines forecasts as Bates & Granger (1969) do, with the forms' errors taken as independent.
    """
    if not rows:
        return np.array([0.5, 0.5])
    weights = np.maximum([rows[-1]["rms_hoffmann"], rows[-1]["rms_kaplan"]], 1e-6) ** -2
    return weights / weights.sum()
