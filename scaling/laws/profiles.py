"""IsoFLOP profiles: loss against size among the runs of one budget, and where its minimum lies. No torch.

A profile is an array (4, sizes): log N (distinct, sorted), the means of log-loss and of log D, and how many
runs each size has.
"""
import numpy as np
from numpy.polynomial import Polynomial
from scipy.interpolate import Akima1DInterpolator

from scaling.laws.forms import SAME
from scaling.laws.models import scale
from scaling.laws.solver import Array

GRID = 1000                                # points from the smallest to the largest N to search a spline on
TOLERANCE = 0.1                            # by which the computes of one budget may differ


# ---- Which runs share a budget? ----

def group_budgets(C: Array) -> Array:
    """The IsoFLOP level (geometric mean of C) of each run, nan for runs that share none.

    Sorted by C, runs closer than TOLERANCE (relative) to their neighbour share a budget; a chain of them
    that spans more than twice that is a continuum, not a budget, and neither is a group of fewer than three,
    nor one that spans a third of its distance to the next run. Budgets are a design: where they hold less
    than half of all runs, these only happen to lie near each other, and there are none.
    """
    level = np.full(len(C), np.nan)
    u = np.log(C)
    apart = np.log1p(TOLERANCE)
    order = np.argsort(u, kind="stable")
    steps = np.diff(u[order])
    cuts = np.flatnonzero(steps > apart)
    gaps = [np.inf, *steps[cuts], np.inf]
    for rows, *around in zip(np.split(order, cuts + 1), gaps, gaps[1:]):
        if len(rows) >= 3 and np.ptp(u[rows]) <= min(2 * apart, min(around) / 3):
            level[rows] = np.exp(u[rows].mean())
    if np.isfinite(level).mean() < 0.5:
        level[:] = np.nan
    return level


def crossed(N: Array, D: Array) -> bool:
    """Is this a grid, each size at each length of training? Then its diagonals are no budgets."""
    sizes, lengths = (np.unique(np.round(np.log(v), 4)) for v in (N, D))
    return len(sizes) * len(lengths) == len(N)


def named_budgets(budget: Array, C: Array) -> Array:
    """The level of each run: its `budget` where that is its C, to a percent, else the budget's mean C."""
    level = np.array(budget, float)
    for name in np.unique(level[np.isfinite(level)]):
        own = budget == name
        mean = np.exp(np.log(C[own]).mean())
        if abs(name - mean) > SAME * mean:
            level[own] = mean
    return level


# ---- One budget. ----

def profile_of(N, L, D):
    """The profile of the runs of one budget."""
    x, where, count = np.unique(np.log(N), return_inverse=True, return_counts=True)
    y, d = (np.bincount(where, np.log(v)) / count for v in (L, D))
    return np.array([x, y, d, count])


def lowest_five(profile):
    """The five sizes of a profile around its smallest loss."""
    y = profile[1]
    start = max(0, min(y.argmin() - 2, len(y) - 5))
    return profile[:, start:start + 5]


def parabola(x, y):
    """(curvature, vertex, value there), each (...), of the parabola through x (n,) and y (..., n)."""
    design = np.vander(x - x.mean(), 3, increasing=True)
    c, b, a = np.moveaxis(y @ np.linalg.pinv(design).T, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return a, x.mean() - b / (2 * a), c - b * b / (4 * a)


def vertices(x, y, method):
    """(log N*, log-loss there) for each row of y (B, n) at x (n,); nan where no minimum lies inside."""
    if method == "akima":
        grid = np.linspace(x[0], x[-1], GRID)
        curve = Akima1DInterpolator(x, y.T)(grid)                                       # (GRID, B)
        at = curve.argmin(0)
        inside = (at > 0) & (at < GRID - 1)
        vertex = grid[at]
        value = curve.min(0)
    else:
        curvature, vertex, value = parabola(x, y)
        inside = (curvature > 0) & (x[0] < vertex) & (vertex < x[-1])
    return np.where(inside, vertex, np.nan), np.where(inside, value, np.nan)


def lowest_vertices(x, y):
    """`vertices` of the parabola through the five sizes around the smallest loss, of each row of y (B, n)."""
    starts = np.clip(y.argmin(1) - 2, 0, max(len(x) - 5, 0))
    found = np.empty((2, len(y)))
    for start in np.unique(starts):
        own = starts == start
        five = slice(start, start + 5)
        found[:, own] = vertices(x[five], y[own, five], "parabola5")
    return found


def refusal(x, y, method):
    """Why the points (x, y) of one budget give no optimum; empty when they do."""
    if len(x) < 3:
        return f"only {len(x)} sizes; three or more are needed"
    if method == "akima":
        inside = 0 < y.argmin() < len(y) - 1
        return "" if inside else "the smallest loss is at the edge of the sizes"
    curvature, vertex, _ = parabola(x, y)
    if curvature <= 0:
        return "the parabola opens downward: these sizes do not bracket a minimum"
    if x[0] < vertex < x[-1]:
        return ""
    side = "below the smallest" if vertex <= x[0] else "above the largest"
    return f"the vertex, N = {scale(vertex):.3g}, is {side} size; train runs on that side"


def profile_noise(profiles):
    """(standard deviation of log-loss about the parabolas of all budgets, pooled, degrees of freedom)."""
    rich = [profile for profile in profiles if profile.shape[1] > 3]    # parabolas go through any three
    if not rich:
        return float("nan"), 0
    squares = [count * (y - Polynomial.fit(x, y, 2)(x)) ** 2 for x, y, _, count in rich]
    df = sum(len(v) - 3 for v in squares)
    return float(np.sqrt(np.concatenate(squares).sum() / df)), df


def tokens_at(vertex, profile):
    """log D at log N = `vertex` in a budget's profile: smooth in log N, and a line where C is 6 N D."""
    x, _, d, _ = lowest_five(profile)
    return Polynomial.fit(x, d, 2)(vertex)
