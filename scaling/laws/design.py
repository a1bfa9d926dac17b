"""Which small runs to add next, so that they pin the compute-optimal size N_opt(C) down best.

To first order the variance of log N_opt is g' M^-1 g: M sums the outer products of the surface's Jacobian
over the runs, in units of the noise, and g is the gradient of log N_opt. Runs are chosen one by one, each the
one that lowers this variance most, given those before it: a greedy c-optimal design (Pukelsheim 2006, ch. 2).
"""
import math
from typing import NamedTuple

import numpy as np

from runtime.basics import UserError
from scaling.laws import forms, models
from scaling.laws.solver import Array

CUTS = (1, 2, 4, 8, 16)                    # into how many equal runs a budget may be cut


class Design(NamedTuple):
    """Runs to add, and how well log N_opt is known without and with them (95 % half-widths)."""
    N: Array                               # (k,) parameters
    D: Array                               # (k,) tokens
    before: float
    after: float


# Both derivatives below are by (log E, log A, alpha, log B, beta), with log N and log D counted from their
# mean over the runs, `center`: else A and alpha would be all but collinear, and M hard to invert.

def jacobian(law: dict, N: Array, D: Array, center: Array) -> Array:
    """Derivatives (5, n) of the surface's log-loss at N, D (n,)."""
    theta = np.array([models.surface_theta(**law, center=center)])
    _, slopes = models.additive(theta, np.log([N, D]) - center[:, None])
    return slopes[0]


def gradient(law: dict, C: float, center: Array) -> Array:
    """Derivatives (5,) of log N_opt(C), from Hoffmann et al. 2022, equation 4."""
    N, D, _ = forms.surface_optimum(law, C)
    n, d = np.log([N, D]) - center
    return np.array([0, 1, 1 / law["alpha"] - n, -1, d - 1 / law["beta"]]) / (law["alpha"] + law["beta"])


def greedy(M: Array, J: Array, g: Array, k: int) -> list[int]:
    """Which k columns of J (5, m), each taken at most once, lower g' M^-1 g most when they join M (5, 5)."""
    left = list(range(J.shape[1]))
    chosen = []
    for _ in range(k):
        x = np.linalg.solve(M, J[:, left])
        gain = (g @ x) ** 2 / (1 + (J[:, left] * x).sum(0))            # Sherman & Morrison 1950
        chosen.append(left.pop(int(gain.argmax())))
        M = M + np.outer(J[:, chosen[-1]], J[:, chosen[-1]])
    return chosen


def next_runs(law: dict, N: Array, D: Array, C: float, budget: float, sizes: Array, cost: Array,
              most: float = math.inf) -> Design:
    """The runs to add to those at N, D (n,), for `budget` FLOPs, that pin N_opt(C) down. Raises UserError.

    `law` is the fitted surface, `sizes` (m,) are the N to choose from and `cost` (m,) their FLOPs per token.
    The budget is cut into 1 to 16 equal runs; the best cut wins. Such designs run to extremes, where the form
    is least certain, so no size is taken twice, tokens per parameter stay within twice the study's, and no
    run takes more than `most` tokens (all the text there is).
    """
    center = np.log([N, D]).mean(1)
    g = gradient(law, C, center)

    def half_width(M):
        return float(1.96 * law["noise"] * np.sqrt(g @ np.linalg.solve(M, g)))
    seen = jacobian(law, N, D, center)
    M = seen @ seen.T
    designs = []
    for k in CUTS:
        tokens = budget / k / cost
        ratio = tokens / sizes
        usable = np.flatnonzero((ratio > (D / N).min() / 2) & (ratio < 2 * (D / N).max()) & (tokens <= most))
        if len(usable) < k:
            continue
        J = jacobian(law, sizes[usable], tokens[usable], center)
        chosen = greedy(M, J, g, k)
        after = half_width(M + J[:, chosen] @ J[:, chosen].T)
        designs.append(Design(sizes[usable[chosen]], tokens[usable[chosen]], half_width(M), after))
    if not designs:
        raise UserError(f"--next={budget:g}: no size of this study suits that budget; its runs took "
                        f"{(6 * N * D).min():.2g} to {(6 * N * D).max():.2g} FLOPs each")
    return min(designs, key=lambda design: design.after)
