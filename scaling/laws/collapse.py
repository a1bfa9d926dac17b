"""Where a run will end, from its own first part: runs of one schedule share one curve. No torch, no files.

How far a loss at the fraction x of a run lies above the loss at its end, log L(x) - log L, is much the same
for all runs of a well-tuned family (Qiu et al. 2025; Bergsma et al. 2025: normalised curves collapse). What
differs goes with size and length: so the gap is a line in log N and log D, fitted at the x that is asked for
to a study's finished runs.

Left out in turn, the 70 runs of scaling/results/isoflop end within 1.2, .8, .6 % (rms) of what the line says
at a quarter, half and three quarters of the run. Beyond a study the line does not hold: of the 14 forecasts
in scaling/results it is too low half way along by up to 2.1 % at 3 times the compute (once 3.2), 1 to 6 % at
10 and 5 to 8 % at 25 to 300 times. DRIFT makes the interval as wide as that.
"""
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from scaling.laws.solver import LEVEL

WINDOW = 0.6                               # the loss at x is the mean over 0.6 x to x of the run
FEWEST = 6                                 # finished runs that make a family
DRIFT = 0.015                              # of the gap, per ln of compute beyond the study
Array = np.ndarray


class Gap(NamedTuple):
    """The line of log L(x) - log L in log N and log D: its coefficients (3,), their covariance over the
    variance, the standard deviation of a run's gap, degrees of freedom, log of the largest N D fitted."""

    line: Array
    cov: Array
    sd: float
    df: int
    most: float

    def value(self, N: float, D: float) -> float:
        return float(features(N, D) @ self.line)

    def error(self, N: float, D: float) -> float:
        """The standard deviation of such a run's gap: the line's, the run's own, and the drift beyond."""
        f = features(N, D)
        drift = DRIFT * max(np.log(N * D) - self.most, 0)
        return float(np.hypot(self.sd * np.sqrt(1 + f @ self.cov @ f), drift))


class Guess(NamedTuple):
    """A log-loss, its standard deviation, and the degrees of freedom of the latter."""

    mean: float
    sd: float
    df: float = np.inf

    def interval(self) -> tuple[float, float]:
        """The loss's 95 % interval."""
        wide = student.ppf((1 + LEVEL) / 2, self.df) * self.sd
        return float(np.exp(self.mean - wide)), float(np.exp(self.mean + wide))


def features(N: Array, D: Array) -> Array:
    """What the gap is a line in: 1, log N and log D, (..., 3)."""
    n, d = np.log(np.array([N, D], float))
    return np.stack([np.ones_like(n), n, d], -1)


def loss_at(x: float, done: Array, loss: Array) -> float:
    """Log of the loss at fraction x of a run, from losses (n,) at fractions `done`; nan before the first."""
    near = (done <= x) & (done > WINDOW * x)
    return float(np.log(loss[near]).mean()) if near.any() else np.nan


def fit_gap(N: Array, D: Array, gap: Array) -> Gap | None:
    """The line through the gaps (n,) of runs of N parameters, D tokens; None where too few are known."""
    seen = np.isfinite(gap)
    if seen.sum() < FEWEST:
        return None
    X, y = features(N[seen], D[seen]), gap[seen]
    cov = np.linalg.pinv(X.T @ X)
    line = cov @ X.T @ y
    df = len(y) - 3
    sd = float(np.sqrt(((y - X @ line) ** 2).sum() / df))
    return Gap(line, cov, sd, df, float(np.log(N[seen] * D[seen]).max()))


def strays(N: Array, D: Array, gap: Array) -> list[tuple[float, float]]:
    """(off, p) of each run (n,): how far its gap lies from the line of the others, and how likely any of them
    lies so far; (nan, 1) of a run without a gap."""
    found = []
    for i, seen in enumerate(np.isfinite(gap)):
        others = fit_gap(*(np.delete(v, i) for v in (N, D, gap)))
        off, p = np.nan, 1.0
        if seen and others:
            off = float(gap[i] - others.value(N[i], D[i]))
            z = abs(off) / others.error(N[i], D[i])
            p = float(min(1, 2 * student.sf(z, others.df) * np.isfinite(gap).sum()))
        found.append((off, p))
    return found


def ending(now: float, N: float, D: float, gap: Gap) -> Guess:
    """The log-loss at the end of a run of N parameters and D tokens that stands at log-loss `now`."""
    return Guess(now - gap.value(N, D), gap.error(N, D), gap.df)


def joined(own: Guess, sealed: Guess) -> Guess:
    """Both guesses as one, each by its precision."""
    weights = np.array([own.sd, sealed.sd]) ** -2.0
    mean = weights @ [own.mean, sealed.mean] / weights.sum()
    return Guess(float(mean), float(weights.sum() ** -0.5), own.df)
