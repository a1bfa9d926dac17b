"""Compute-optimal frontiers: IsoFLOP profiles, envelopes of learning curves, and loss against compute.

Where `forms` fits a formula to all runs, these find the best run at each compute C and then, in log-log, a
line: N_opt = k C^a (Hoffmann et al. 2022, approaches 1 and 2) or L = (C_c/C)^alpha (Kaplan et al. 2020).
"""
from typing import NamedTuple

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.stats import f as f_test

from runtime.basics import UserError, nearest
from scaling.laws.forms import additive_bounds, checked, problem_of, scale
from scaling.laws.health import judge
from scaling.laws.solver import DRAW, Array, clusters, interval, intervals, minimise, span, t_ratio

METHODS = ("parabola5", "parabola", "akima")
GRID = 1000                                # points from the smallest to the largest N to search a spline on


# ---- Approach 2: IsoFLOP profiles. ----

def group_budgets(C: Array, tolerance: float = 0.1) -> Array:
    """The IsoFLOP level (geometric mean of C) of each run, nan for runs that share none.

    Sorted by C, runs closer than `tolerance` (relative) to their neighbour share a budget; a chain of them
    that spans more than twice that is a continuum, not a budget, and neither is a group of fewer than three.
    """
    level = np.full(len(C), np.nan)
    order = np.argsort(C, kind="stable")
    gaps = np.diff(np.log(C)[order])
    for rows in np.split(order, np.flatnonzero(gaps > np.log1p(tolerance)) + 1):
        u = np.log(C[rows])
        if len(rows) >= 3 and np.ptp(u) <= 2 * np.log1p(tolerance):
            level[rows] = np.exp(u.mean())
    return level


class Profile(NamedTuple):
    """The runs of one budget: their log N (distinct, sorted), mean log-losses, and runs (seeds) of each."""

    x: Array
    y: Array
    count: Array

    def part(self, rows: slice):
        return Profile(self.x[rows], self.y[rows], self.count[rows])


def profile_of(N, L):
    """Runs (n,) of one budget as a profile."""
    x, where, count = np.unique(np.log(N), return_inverse=True, return_counts=True)
    return Profile(x, np.bincount(where, np.log(L)) / count, count)


def window(y, method):
    """The slice of points that take part: all, or for parabola5 the five around the smallest loss."""
    if method != "parabola5":
        return slice(0, len(y))
    start = max(0, min(int(y.argmin()) - 2, len(y) - 5))
    return slice(start, start + 5)


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
    return f"the vertex, N = {np.exp(min(vertex, 600)):.3g}, is {side} size; train runs on that side"


def profile_noise(profiles, method):
    """(standard deviation of log-loss about the parabolas of all budgets, pooled, degrees of freedom)."""
    if method == "akima":                              # a spline passes through all of its points
        method = "parabola5"
    total = 0.0
    df = 0
    for profile in profiles:
        x, y, count = profile.part(window(profile.y, method))
        design = np.vander(x - x.mean(), 3)
        rest = y - design @ (np.linalg.pinv(design) @ y)
        total += (count * rest ** 2).sum()
        df += max(len(x) - 3, 0)
    if df == 0:
        return float("nan"), 0
    return float(np.sqrt(total / df)), df


def line(u, v, w):
    """Weighted least-squares line v = p + q u for each row of v (B, K), skipping nan: (p, q), each (B,)."""
    w = np.where(np.isfinite(v), w, 0)
    v = np.where(w > 0, v, 0)
    total = w.sum(1)
    mu = (w * u).sum(1) / total
    mv = (w * v).sum(1) / total
    off = u - mu[:, None]
    q = (w * off * v).sum(1) / (w * off ** 2).sum(1)
    return mv - q * mu, q


def fit_isoflop(N: Array, C: Array, L: Array, budget: Array | None = None, method: str = "parabola5",
                noise: float | None = None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """N_opt = k C^a from the minimum over N at each budget (Hoffmann et al. 2022, approach 2).

    N parameters, C FLOPs, L losses, each (n,), one row per finished run; `budget` (n,) names the level of
    each row and is found by `group_budgets` where None. `method`: parabola5, a parabola in log N through the
    five sizes around the smallest loss; parabola, through all; akima, the minimum of an Akima spline (Porian
    et al. 2024). `noise`, the standard deviation of log-loss between seeds, is taken from the scatter about
    the parabolas where None. Raises UserError.
    """
    if method not in METHODS:
        raise UserError(f"unknown IsoFLOP method {method!r}{nearest(method, METHODS)}; there are "
                        + ", ".join(METHODS))
    N, C, L = checked(params=N, flops=C, loss=L)
    level = group_budgets(C) if budget is None else np.asarray(budget, float)
    levels = np.unique(level[np.isfinite(level)])
    if len(levels) < 2:
        raise UserError("IsoFLOP needs two or more budgets of three or more sizes each; these runs have "
                        f"{len(levels)}")
    profiles = [profile_of(N[level == c], L[level == c]) for c in levels]
    sd, df = profile_noise(profiles, method)
    how = f"scatter about the parabolas, Student's t({df})" if df else "no noise"
    if noise:
        sd = noise
        df = 1000                                      # known well enough
        how = "noise between seeds"
    wide = sd * t_ratio(df) if df else 0.0
    rng = np.random.default_rng(seed)
    found = [one_budget(c, profile, method, wide, bootstrap, rng) for c, profile in zip(levels, profiles)]
    points = [point for point, _ in found]
    kept = [(point, draw) for point, draw in found if not point["refused"]]
    if len(kept) < 2:
        why = "; ".join(f"C = {p['C']:.3g}: {p['refused']}" for p in points if p["refused"])
        raise UserError("IsoFLOP needs two or more budgets with a minimum inside; "
                        f"{len(kept)} of {len(found)} have one ({why})")
    used, draws = zip(*kept)
    fit = frontier(used, draws, bootstrap)
    fit |= {"form": "isoflop",
            "points_method": method,
            "points": points,
            "noise": sd,
            "n": len(N),
            "method": f"Gaussian bootstrap of the losses, {bootstrap} resamples, {how}; "
                      f"widened {fit['health']['widened']:.2f} for scatter about the line"}
    return judge(fit)


def one_budget(C, profile, method, sd, bootstrap, rng):
    """The optimum of one IsoFLOP profile as a point, and `bootstrap` draws of (log N*, log-loss there)."""
    x, y, count = profile.part(window(profile.y, method))
    why = refusal(x, y, method)
    point = {"C": float(C),
             "sizes": len(profile.x),
             "runs": int(profile.count.sum()),
             "refused": why}
    if why:
        return point, ()
    (vertex,), (value,) = vertices(x, y[None], method)
    curvature, middle, least = parabola(x, y)
    truth = y if method == "akima" else least + curvature * (x - middle) ** 2
    worlds = truth + sd / np.sqrt(count) * rng.standard_normal((bootstrap, len(x)))
    draw = vertices(x, worlds, method)
    N = np.exp(vertex)
    point |= {"N_opt": float(N),
              "D_opt": float(C / 6 / N),
              "loss": float(np.exp(value)),
              "curvature": float(curvature),
              "left": int((x < vertex).sum()),
              "right": int((x > vertex).sum())}
    if np.isfinite(draw[0]).sum() > bootstrap / 2:
        point["ci"] = {"N_opt": interval(np.exp(draw[0])), "loss": interval(np.exp(draw[1]))}
        point["edge"] = float(np.isnan(draw[0]).mean())
    return point, draw


def frontier(points, draws, bootstrap):
    """N_opt = k C^a and L_inf + (C_c/C)^gamma through the budgets' optima, with their draws carried along."""
    C, N, L = (np.array([p[k] for p in points]) for k in ("C", "N_opt", "loss"))
    X, Y = np.stack(draws, -1)                          # log N* and log-loss there, each (bootstrap, K)
    u = np.log(C)
    x = np.log(N)
    K = len(C)
    weight, spread = weights_of(X)
    (p,), (a,) = line(u, x[None], weight)
    # Scatter beyond the optima's own: the noise was underestimated, or no power law holds exactly.
    expected = (weight * spread ** 2).sum() * (K - 2) / K
    scatter = (weight * (x - p - a * u) ** 2).sum()
    widen = 1.0
    if expected > 0:
        widen = max(1.0, float(np.sqrt(scatter / expected)))
    X = X[np.isfinite(X).sum(1) >= 2]
    p_draw, a_draw = line(u, X, weight)
    # Widened about the middle, where the line's height and its slope are independent.
    middle = (weight * u).sum() / weight.sum()
    height = p + a * middle + widen * (p_draw + a_draw * middle - p - a * middle)
    a_draw = a + widen * (a_draw - a)
    loss, loss_draws = frontier_loss(u, np.log(L), Y[np.isfinite(Y).sum(1) >= 2])
    boot = {"log_k": height - a_draw * middle, "a": a_draw, "b": 1 - a_draw, **loss_draws}
    return {"a": float(a),
            "b": float(1 - a),
            "log_k": float(p),
            **loss,
            "budgets": K,
            "range": span(C=C, N=N),
            **intervals(boot),
            "health": {"widened": widen,
                       "edge": 1 - len(X) / bootstrap if bootstrap else 0.0,
                       "influence": leave_one_out(u, x, weight, a_draw),
                       "points_per_side": [min(p["left"], p["right"]) for p in points]}}


def weights_of(X):
    """(weight, spread) of each budget, (K,), from the draws of its log N* (B, K).

    Optima count equally, as in the literature, but for those more than twice as uncertain as the median one.
    """
    if len(X) < 10:
        return np.ones(X.shape[1]), np.zeros(X.shape[1])
    low, high = np.nanpercentile(X, [16, 84], axis=0)
    spread = (high - low) / 2
    return np.minimum(1, (2 * np.median(spread) / np.maximum(spread, 1e-12)) ** 2), spread


def leave_one_out(u, x, weight, a_draw):
    """{log_C, without, shift}: the budget without which the exponent moves most, in standard errors."""
    K = len(u)
    if K < 3:
        return {}
    _, full = line(u, x[None], weight)
    _, without = line(u, np.repeat(x[None], K, 0), weight * (1 - np.eye(K)))
    i = int(np.abs(without - full).argmax())
    error = max(np.std(a_draw), 1e-12) if len(a_draw) else np.inf
    shift = abs(without[i] - full[0]) / error
    return {"log_C": float(u[i]), "without": float(without[i]), "shift": float(shift)}


def frontier_loss(u, y, Y):
    """L_inf + (C_c/C)^gamma through optima at u = log C, of log-losses `y` (K,), and of each row of Y (B, K).

    With fewer than four budgets L_inf is 0: three parameters would pass through three points. The draws'
    noise is widened by sqrt(K/(K-3)): few points extrapolate worse than their own noise says, as the tests
    simulate.
    """
    K = len(u)
    if K > 3:
        E = None
        widen = np.sqrt(K / (K - 3))
    else:
        E = 0.0
        widen = 1.0
    L = np.exp(y)
    center = u.mean(keepdims=True)
    problem = problem_of("frontier", (u - center)[None], center, L, *additive_bounds(L, 1, E))._replace(y=y)
    best, _, _ = problem.best()
    seen = np.isfinite(Y)
    worlds = np.where(seen, problem.fitted(best) + widen * (Y - y), 0)
    draws, _ = minimise(problem, np.repeat(best, len(Y), 0), worlds, seen * 1.0, *DRAW)
    return problem.printed(best), problem.natural(draws)


# ---- Approach 1: the envelope of learning curves. ----

def best_of_curves(run, C, L, cells=600):
    """On a grid of log C: (log C, index of the best run, its log-loss), and the names of the runs.

    Each run's curve is interpolated linearly in log-log, between its first and its last row.
    """
    names, group = np.unique(run, return_inverse=True)
    u = np.log(C)
    v = np.log(L)
    grid = np.linspace(u.min(), u.max(), cells)
    curves = np.full((len(names), cells), np.inf)
    for i in range(len(names)):
        rows = np.flatnonzero(group == i)
        rows = rows[np.argsort(u[rows])]
        curves[i] = np.interp(grid, u[rows], v[rows], left=np.inf, right=np.inf)
    seen = np.isfinite(curves).any(0)
    return grid[seen], curves.argmin(0)[seen], curves.min(0)[seen], names


def fit_envelope(N: Array, C: Array, L: Array, run: Array, bootstrap: int = 1000, seed: int = 0) -> dict:
    """N_opt = k C^a from the lower envelope of learning curves (Hoffmann et al. 2022, approach 1).

    N, C, L, run: a row per checkpoint, each (n,). A run is optimal at the geometric middle of the computes at
    which no other run is better; the first and the last such runs are left out, because the range of sizes
    cuts their stretch short. So each run gives one point, and since the error is in C, log C is regressed on
    log N. Raises UserError.
    """
    N, C, L = checked(params=N, flops=C, loss=L)
    run = np.asarray(run).astype(str)
    u, best, value, names = best_of_curves(run, C, L)
    sizes = np.array([np.log(N[run == r][0]) for r in names])
    won = sizes[best]                                   # runs of one size (seeds) count together
    winners = np.unique(won)[1:-1]
    K = len(winners)
    if K < 3:
        raise UserError("the envelope needs five or more sizes that are best somewhere; these curves have "
                        f"{len(np.unique(won))}")
    middle = np.array([u[won == w].mean() for w in winners])
    height = np.interp(middle, u, value)
    unit = np.ones((1, K))
    (p,), (q,) = line(winners, middle[None], unit)
    df = K - 2
    scatter = np.sqrt(((middle - p - q * winners) ** 2).sum() / df)
    noise = scatter * t_ratio(df) * np.random.default_rng(seed).standard_normal((bootstrap, K))
    p_draw, q_draw = line(winners, middle + noise, unit)
    law, law_draws = frontier_loss(middle, height, height - np.gradient(height, middle) * noise)
    boot = {"log_k": -p_draw / q_draw, "a": 1 / q_draw, "b": 1 - 1 / q_draw, **law_draws}
    best_C = np.exp(middle)
    best_N = np.exp(winners)
    points = [{"C": float(c), "N_opt": float(n), "loss": float(loss)}
              for c, n, loss in zip(best_C, best_N, np.exp(height))]
    fit = {"form": "envelope",
           "a": float(1 / q),
           "b": float(1 - 1 / q),
           "log_k": float(-p / q),
           **law,
           "n": len(C),
           "scatter": float(scatter),
           "method": f"Gaussian bootstrap of {K} optima about their line, {bootstrap} resamples, "
                     f"Student's t({df})",
           "points": points,
           "range": {"C": best_C[[0, -1]].tolist(), "N": best_N[[0, -1]].tolist()},
           **intervals(boot),
           "health": {"winners": K + 2}}
    return judge(fit)


# ---- Loss against compute. ----

class Curves(NamedTuple):
    """Rows of runs: u = log C, v = log-loss and the run (its index) of each."""

    u: Array
    v: Array
    group: Array

    def take(self, rows: Array):
        return Curves(self.u[rows], self.v[rows], self.group[rows])


def own_hulls(curves):
    """The vertices of each run's own hull alone: the hull of these is that of all rows."""
    parts = [np.flatnonzero(curves.group == g) for g in range(curves.group.max() + 1)]
    hulls = [rows[lower_hull(curves.u[rows], curves.v[rows])] for rows in parts]
    return curves.take(np.concatenate(hulls))


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


def efficient_hull(u, v, group):
    """`lower_hull` without the runs to the right of its lowest point: they spend more and do worse."""
    hull = lower_hull(u, v)
    low = v[hull].argmin()
    return hull[(np.arange(len(hull)) <= low) | (group[hull] == group[hull[low]])]


def slope_of(u, v):
    """Least-squares slope of v on u; nan for fewer than two points."""
    if len(u) < 2:
        return float("nan")
    return float(np.polyfit(u - u.mean(), v, 1)[0])


def off_line(u, v):
    """Residuals of the least-squares line of v on u."""
    return v - np.polyval(np.polyfit(u, v, 1), u)


def find_kink(u: Array, v: Array, last: int) -> dict | None:
    """Two straight regimes against one in the points (u, v), sorted by u: {between, slopes, p}, or None.

    Each regime has three or more points, and the later one starts before point `last`; `between` brackets the
    break in C = e^u. Two lines and a break must beat one line in an F-test at `p` < 0.01. A smooth bend
    passes too, as it should: one exponent does not describe it.
    """
    n = len(u)
    if n < 6 or last < 4:
        return None

    def squares(u, v):
        return float((off_line(u, v) ** 2).sum())

    cuts = range(3, min(n - 2, last))
    rest = [squares(u[:c], v[:c]) + squares(u[c:], v[c:]) for c in cuts]
    two = min(rest)
    cut = cuts[rest.index(two)]
    # The two lines and the break have three parameters more than the one line.
    F = (squares(u, v) - two) / 3 / (max(two, 1e-300) / (n - 5))
    p = float(f_test.sf(F, 3, n - 5))
    if not p < 0.01:
        return None
    return {"between": np.exp(u[cut - 1:cut + 1]).tolist(),
            "p": p,
            "slopes": [slope_of(u[:cut], v[:cut]), slope_of(u[cut:], v[cut:])]}


def between_runs(hull, group):
    """The part of a hull with runs on both sides: from the first run's last vertex to the last run's first.

    Before it the smallest model is alone, after it the largest, each past its own optimum: there the hull is
    one run's learning curve, not a frontier.
    """
    of = group[hull]
    first = np.flatnonzero(of == of[0]).max()
    last = np.flatnonzero(of == of[-1]).min()
    if last <= first:
        return hull
    return hull[first:last + 1]


def fit_loss_vs_compute(C: Array, L: Array, run: Array | None = None, bootstrap: int = 1000,
                        seed: int = 0) -> dict:
    """L = (C_c/C)^alpha along the lower-left hull, in log-log, of finished runs or of whole learning curves.

    C FLOPs, L losses, `run` the curve of each row, each (n,). After a kink (`find_kink`) only the later
    regime is fitted. `alpha` is the slope of all hull vertices there, as published frontiers take it;
    `between`, which is unbiased, that of the vertices between the first and the last run's own stretches.
    Raises UserError for fewer than three runs or vertices.
    """
    C, L = checked(flops=C, loss=L)
    n = len(C)
    group = clusters(run, n)
    G = int(group.max() + 1)
    if G < 3:
        raise UserError(f"a frontier of loss against compute needs three or more runs; there are {G}")
    curves = Curves(np.log(C), np.log(L), group)
    if G < n:
        curves = own_hulls(curves)
    hull = efficient_hull(*curves)
    u, v, of = curves.take(hull)
    alone = int((of == of[-1]).argmax())                # from here on the hull is the last run's own curve
    kink = find_kink(u, v, alone)
    start = -np.inf
    if kink:
        start = np.log(kink["between"][1]) - 1e-9
    late = hull[u >= start]
    if len(late) < 3:
        raise UserError(f"the hull of loss against compute has {len(late)} points; three or more are needed")
    slopes = late_slopes(curves, late)
    draws = hull_draws(curves, start, bootstrap, np.random.default_rng(seed))
    widen = np.sqrt((G - G // 3) / max(G // 3, 1)) * t_ratio(max(G - 2, 1))
    late_u, late_v, _ = curves.take(late)
    log_C_c = late_u.mean() + late_v.mean() / -slopes[0]
    boot = {}
    if bootstrap:
        # A hull without some runs lies higher, on average: so the draws are centred on the estimate.
        alpha, between = (-(s + widen * (d - d.mean())) for s, d in zip(slopes, draws))
        log_draws = late_u.mean() + late_v.mean() / alpha
        boot = {"alpha": alpha, "between": between, "log_C_c": log_draws, "C_c": scale(log_draws)}
    fit = {"form": "loss_vs_compute",
           "alpha": float(-slopes[0]),
           "between": float(-slopes[1]),
           "log_C_c": float(log_C_c),
           "C_c": float(scale(log_C_c)),
           "L_inf": 0.0,
           "n": n,
           "runs": G,
           "noise": float(np.std(off_line(late_u, late_v))),
           "method": f"jackknife: {bootstrap} times without a random third of {G} runs, widened {widen:.2f} "
                     "(Student's t)",
           "hull": {"C": np.exp(u).tolist(),
                    "loss": np.exp(v).tolist(),
                    "fitted": len(late),
                    "between": len(between_runs(late, curves.group))},
           "kink": kink,
           "range": span(C=C, loss=L),
           **intervals(boot),
           "health": {"hull_points": len(late)}}
    if kink:
        low, high = kink["between"]
        before, after = kink["slopes"]
        fit["note"] = (f"a kink between C = {low:.3g} and {high:.3g}: slope {before:.4f} before, {after:.4f} "
                       "after; only what follows it is fitted")
    return judge(fit)


def late_slopes(curves, late):
    """The slopes (2,) of a hull's vertices `late`: of all of them, and of those between the runs."""
    inner = between_runs(late, curves.group)
    return np.array([slope_of(*curves.take(part)[:2]) for part in (late, inner)])


def hull_draws(curves, start, bootstrap, rng):
    """`late_slopes` (2, up to `bootstrap`) after `start` of the hull without a random third of the runs.

    A hull does not notice that a run is drawn twice, so an ordinary bootstrap would be too narrow: this is
    the delete-d jackknife (Shao & Wu 1989), whose spread times sqrt((G - d)/d) is the standard error.
    """
    G = curves.group.max() + 1
    slopes = np.full((2, bootstrap), np.nan)
    for i in range(bootstrap):
        rows = np.flatnonzero(np.isin(curves.group, rng.permutation(G)[G // 3:]))
        hull = rows[efficient_hull(*curves.take(rows))]
        late = hull[curves.u[hull] >= start]
        if len(late) > 1:
            slopes[:, i] = late_slopes(curves, late)
    return slopes[:, np.isfinite(slopes).all(0)]
