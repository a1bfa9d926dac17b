"""The lower hull of loss against compute, and whether points along log C are one straight line. No torch.

Points of curves and of their hull are rows (log C, log L, run, budget).
"""
import numpy as np
from scipy.stats import f as f_test

from scaling.laws.forms import SAME
from scaling.laws.solver import Array

GAP = 0.8                                  # of the range of log C that parts two clusters of points


def lower_hull(u: Array, v: Array) -> Array:
    """Indices of the lower convex hull of the points (u, v), from left to right (Andrew 1979)."""
    order = np.lexsort((v, u))
    low = v[order]
    # Only prefix and suffix minima can be vertices: a quick sieve for long curves.
    sieve = (low <= np.minimum.accumulate(low)) | (low <= np.minimum.accumulate(low[::-1])[::-1])
    hull = []
    for i in order[sieve]:
        while len(hull) > 1:
            a, b = hull[-2:]
            if (u[b] - u[a]) * (v[i] - v[a]) - (v[b] - v[a]) * (u[i] - u[a]) > 0:
                break
            hull.pop()
        if not hull or u[i] > u[hull[-1]]:
            hull.append(int(i))
    return np.array(hull)


def pareto(u: Array, v: Array) -> Array:
    """Indices of the points that no other beats: nothing to their left is as low. Sorted by u."""
    order = np.lexsort((v, u))
    before = np.append(np.inf, np.minimum.accumulate(v[order])[:-1])
    return order[v[order] < before]


def own_hulls(curves):
    """The vertices of each run's own hull alone: the hull of these is that of all points."""
    run = curves[:, 2]
    parts = (curves[run == r] for r in np.unique(run))
    return np.concatenate([part[lower_hull(*part.T[:2])] for part in parts])


def cells(curves):
    """The number of each point's budget: runs that end within SAME of each other share one, as steps round
    it; other points stand for themselves."""
    u, _, run = curves.T
    order = np.lexsort([u, run])
    ends = order[np.append(np.diff(run[order]) > 0, True)]
    ends = ends[np.argsort(u[ends])]
    cell = np.arange(len(u))
    first = ends[0]
    for i in ends:
        if u[i] > u[first] + SAME:
            first = i
        cell[i] = first
    return cell


def efficient_hull(curves):
    """The lower hull without the runs to the right of its lowest point: they spend more and do worse.

    Of the ends of one budget only the best counts: two would be a chord of any slope.
    """
    order = np.lexsort(curves.T[[1, 3]])
    curves = curves[order[np.unique(curves[order, 3], return_index=True)[1]]]
    hull = curves[lower_hull(*curves.T[:2])]
    _, v, run, _ = hull.T
    low = v.argmin()
    return hull[(np.arange(len(v)) <= low) | (run == run[low])]


def between_runs(hull):
    """The part of a hull with runs on both sides: from the first run's last vertex to the last run's first.

    Before it the smallest model is alone, after it the largest, each past its own optimum: there the hull is
    one run's learning curve, not a frontier.
    """
    run = hull[:, 2]
    first = np.flatnonzero(run == run[0])[-1]
    last = np.flatnonzero(run == run[-1])[0]
    if last <= first:
        return hull
    return hull[first:last + 1]


# ---- Straight lines. ----

def slope_of(u, v):
    """Least-squares slope of v on u; nan for fewer than two points."""
    if len(u) < 2:
        return float("nan")
    return float(np.polyfit(u - u.mean(), v, 1)[0])


def off_line(u, v):
    """Residuals of the least-squares line of v on u."""
    return v - np.polyval(np.polyfit(u, v, 1), u)


def slopes_of(late):
    """The slopes (2,) of the later part of a hull: of all its vertices, and of those between the runs."""
    return np.array([slope_of(*part.T[:2]) for part in (late, between_runs(late))])


def hull_draws(curves, start, bootstrap):
    """`slopes_of` (up to `bootstrap`, 2) after `start` of the hull without a random third of the runs.

    A hull does not notice that a run is drawn twice, so an ordinary bootstrap would be too narrow: this is
    the delete-d jackknife (Shao & Wu 1989), whose spread times sqrt((G - d)/d) is the standard error.
    """
    rng = np.random.default_rng(0)
    run = curves[:, 2]
    runs = np.unique(run)
    slopes = np.full((bootstrap, 2), np.nan)
    for i in range(bootstrap):
        some = rng.permutation(runs)[len(runs) // 3:]
        hull = efficient_hull(curves[np.isin(run, some)])
        slopes[i] = slopes_of(hull[hull[:, 0] >= start])
    return slopes[np.isfinite(slopes).all(1)]


def find_kink(u: Array, v: Array, last: int) -> dict | None:
    """Two straight regimes against one in the points (u, v), sorted by u: {between, slopes, p}, or None.

    Each regime has three or more points, and the later one starts before point `last`; `between` brackets the
    break in C = e^u. Two lines and a break must beat one line in an F-test at `p` < 0.01. A smooth bend
    passes too, as it should: one exponent does not describe it.
    """
    n = len(u)
    cuts = range(3, min(n - 2, last))
    if not cuts:
        return None

    def squares(u, v):
        return float((off_line(u, v) ** 2).sum())

    rest = [squares(u[:c], v[:c]) + squares(u[c:], v[c:]) for c in cuts]
    two, cut = min(zip(rest, cuts))
    # The two lines and the break have three parameters more than the one line.
    F = (squares(u, v) - two) / 3 / (max(two, 1e-300) / (n - 5))
    p = float(f_test.sf(F, 3, n - 5))
    if p >= 0.01:
        return None
    return {"between": np.exp(u[cut - 1:cut + 1]).tolist(),
            "p": p,
            "slopes": [slope_of(u[:cut], v[:cut]), slope_of(u[cut:], v[cut:])]}


def bridge(u: Array) -> dict | None:
    """Do the points of a line at u = log C form two clusters: {clusters: [[low, high, points], ...], chance}.

    The clusters are what the widest gap parts. `chance` is how likely as wide a gap is, of all gaps, where
    points are strewn evenly; None where the gap takes no more than GAP of the range.
    """
    u = np.unique(u)
    gaps = np.diff(u)
    if len(u) < 3 or gaps.max() <= GAP * np.ptp(u):
        return None
    at = gaps.argmax() + 1
    chance = len(gaps) * (1 - gaps.max() / np.ptp(u)) ** (len(gaps) - 1)
    clusters = [[*np.exp(part[[0, -1]]).tolist(), len(part)] for part in (u[:at], u[at:])]
    return {"clusters": clusters, "chance": float(chance)}
