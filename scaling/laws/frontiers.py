"""Compute-optimal frontiers: IsoFLOP profiles, envelopes of learning curves, and loss against compute.

Where `laws` fits a formula to all runs, these find the best run at each compute C and then a straight line in
log-log: N_opt = k C^a (Hoffmann et al. 2022, approaches 1 and 2) or L = (C_c/C)^alpha (Kaplan et al. 2020).
"""
import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.stats import f as f_test

from runtime.basics import UserError, nearest
from scaling.laws.forms import additive, additive_bounds, checked
from scaling.laws.solver import DRAW, LEVEL, Array, clusters, interval, minimise, rounded, t_ratio

METHODS = ("parabola5", "parabola", "akima")
GRID = 1000                                # points from the smallest to the largest N to search a spline on


# ---- Approach 2: IsoFLOP profiles. ----

def group_budgets(C: Array, tolerance: float = 0.1) -> Array:
    """The IsoFLOP level (geometric mean of C) of each run, nan for runs that share none.

    Sorted by C, runs closer than `tolerance` (relative) to their neighbour share a budget; a chain of them
    that spans more than twice that is a continuum, not a budget, and neither is a group of fewer than three.
    """
    order, level = np.argsort(C, kind="stable"), np.full(len(C), np.nan)
    log_C = np.log(C)[order]
    for part in np.split(np.arange(len(C)), np.flatnonzero(np.diff(log_C) > np.log1p(tolerance)) + 1):
        if len(part) >= 3 and np.ptp(log_C[part]) <= 2 * np.log1p(tolerance):
            level[order[part]] = np.exp(log_C[part].mean())
    return level


def merge_sizes(N: Array, L: Array) -> tuple[Array, Array, Array]:
    """Sorted distinct log N, the mean log-loss of each, and how many runs (seeds) it is the mean of."""
    x, where, count = np.unique(np.log(N), return_inverse=True, return_counts=True)
    return x, np.bincount(where, np.log(L)) / count, count


def window(y: Array, method: str) -> slice:
    """The points that take part: all, or for parabola5 the five around the smallest loss."""
    if method != "parabola5":
        return slice(0, len(y))
    start = max(0, min(int(y.argmin()) - 2, len(y) - 5))
    return slice(start, start + 5)


def parabola(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Least-squares parabola through x (n,) and each row of y (..., n): (curvature, vertex, value there),
    each (...)."""
    c, b, a = np.moveaxis(y @ np.linalg.pinv(np.vander(x - x.mean(), 3, increasing=True)).T, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return a, x.mean() - b / (2 * a), c - b * b / (4 * a)


def vertices(x: Array, y: Array, method: str) -> tuple[Array, Array]:
    """(log N*, log-loss there) for each row of y (B, n) at x (n,), nan where there is no minimum inside the
    points."""
    if method == "akima":
        grid = np.linspace(x[0], x[-1], GRID)
        curve = Akima1DInterpolator(x, y.T)(grid)                                       # (GRID, B)
        at = curve.argmin(0)
        inside, vertex, value = (at > 0) & (at < GRID - 1), grid[at], curve.min(0)
    else:
        curvature, vertex, value = parabola(x, y)
        inside = (curvature > 0) & (x[0] < vertex) & (vertex < x[-1])
    return np.where(inside, vertex, np.nan), np.where(inside, value, np.nan)


def refusal(x: Array, y: Array, method: str) -> str:
    """Why the points (x, y) of one budget give no optimum; empty when they do."""
    if len(x) < 3:
        return f"only {len(x)} sizes; three or more are needed"
    if method == "akima":
        return "" if 0 < y.argmin() < len(y) - 1 else "the smallest loss is at the edge of the sizes"
    curvature, vertex, _ = parabola(x, y)
    if curvature <= 0:
        return "the parabola opens downward: these sizes do not bracket a minimum"
    if not x[0] < vertex < x[-1]:
        side = "below the smallest" if vertex <= x[0] else "above the largest"
        return f"the vertex, N = {np.exp(min(vertex, 600)):.3g}, is {side} size; train runs on that side"
    return ""


def profile_noise(profiles: list, method: str) -> tuple[float, int]:
    """Standard deviation of log-loss about the parabolas of all budgets, pooled, and its degrees of
    freedom."""
    total, df = 0.0, 0
    for x, y, count in profiles:
        s = window(y, "parabola5" if method == "akima" else method)
        design = np.vander(x[s] - x[s].mean(), 3)
        rest = y[s] - design @ (np.linalg.pinv(design) @ y[s])
        total, df = total + (count[s] * rest ** 2).sum(), df + max(len(rest) - 3, 0)
    return (float(np.sqrt(total / df)), df) if df else (float("nan"), 0)


def line(u: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """Weighted least-squares line v = p + q u for each row of v (B, K), skipping nan: (p, q), each (B,)."""
    w = np.where(np.isfinite(v), w, 0)
    v, W = np.where(w > 0, v, 0), w.sum(1)
    mu, mv = (w * u).sum(1) / W, (w * v).sum(1) / W
    q = (w * (u - mu[:, None]) * v).sum(1) / (w * (u - mu[:, None]) ** 2).sum(1)
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
    profiles = [merge_sizes(N[level == c], L[level == c]) for c in levels]
    sd, df = (noise, 1000) if noise else profile_noise(profiles, method)
    t, rng = t_ratio(df) if df else 1.0, np.random.default_rng(seed)
    found = [one_budget(c, profile, method, sd * t if df else 0.0, bootstrap, rng)
             for c, profile in zip(levels, profiles)]
    kept = [(point, draw) for point, draw in found if not point["refused"]]
    if len(kept) < 2:
        why = "; ".join(f"C = {p['C']:.3g}: {p['refused']}" for p, _ in found if p["refused"])
        raise UserError("IsoFLOP needs two or more budgets with a minimum inside; "
                        f"{len(kept)} of {len(found)} have one ({why})")
    fit = frontier([point for point, _ in kept], [draw for _, draw in kept], bootstrap, t)
    how = f"scatter about the parabolas, Student's t({df})" if df else "no noise"
    how = "noise between seeds" if noise else how
    fit |= {"form": "isoflop", "points_method": method, "points": [point for point, _ in found], "noise": sd,
            "n": len(N), "level": LEVEL,
            "method": f"Gaussian bootstrap of the losses, {bootstrap} resamples, {how}; "
                      f"widened {fit['health']['widened']:.2f} for scatter about the line"}
    isoflop_lines(fit, df)
    return fit


def one_budget(C: float, profile: tuple, method: str, sd: float, bootstrap: int, rng) -> tuple[dict, tuple]:
    """The optimum of one IsoFLOP profile as a point, and `bootstrap` draws of (log N*, log-loss there)."""
    x, y, count = profile
    part = window(y, method)
    why = refusal(x[part], y[part], method)
    point = {"C": float(C), "sizes": len(x), "runs": int(count.sum()), "refused": why}
    if why:
        return point, ()
    x, y, count = x[part], y[part], count[part]
    vertex, value = (float(v[0]) for v in vertices(x, y[None], method))
    a, mid, base = parabola(x, y)
    center = y if method == "akima" else base + a * (x - mid) ** 2
    worlds = center + sd / np.sqrt(count) * rng.standard_normal((bootstrap, len(x)))
    draw = vertices(x, worlds, method)
    point |= {"N_opt": float(np.exp(vertex)), "D_opt": float(C / 6 / np.exp(vertex)),
              "loss": float(np.exp(value)), "curvature": float(a),
              "left": int((x < vertex).sum()), "right": int((x > vertex).sum())}
    if np.isfinite(draw[0]).sum() > bootstrap / 2:
        point["ci"] = {"N_opt": interval(np.exp(draw[0])), "loss": interval(np.exp(draw[1]))}
        point["edge"] = float(np.isnan(draw[0]).mean())
    return point, draw


def frontier(points: list[dict], draws: list[tuple], bootstrap: int, t: float) -> dict:
    """N_opt = k C^a and L_inf + (C_c/C)^gamma through the budgets' optima, with their draws carried along.

    `t` is how much the draws were widened already, for the noise's degrees of freedom.
    """
    C, N, L = (np.array([p[k] for p in points]) for k in ("C", "N_opt", "loss"))
    u, x, K = np.log(C), np.log(N), len(C)
    X, Y = (np.stack([d[k] for d in draws], 1) for k in (0, 1))                    # (bootstrap, K)
    weight, spread = weights_of(X)
    (p,), (a,) = line(u, x[None], weight)
    # Scatter beyond the optima's own: the noise was underestimated, or no power law holds exactly.
    expected = (weight * spread ** 2).sum() * (K - 2) / K
    scatter = np.sqrt((weight * (x - p - a * u) ** 2).sum() / expected) if expected > 0 else 0.0
    widen = max(1.0, float(scatter))
    X = X[np.isfinite(X).sum(1) >= 2]
    p_draw, a_draw = line(u, X, weight)
    middle = (weight * u).sum() / weight.sum()         # widen about the middle: p and a are independent there
    height = p + a * middle + widen * (p_draw + a_draw * middle - p - a * middle)
    a_draw = a + widen * (a_draw - a)
    loss, loss_draws = frontier_loss(u, np.log(L), Y[np.isfinite(Y).sum(1) >= 2])
    boot = {"log_k": height - a_draw * middle, "a": a_draw, "b": 1 - a_draw, **loss_draws}
    return {"a": float(a), "b": float(1 - a), "log_k": float(p), **loss, "budgets": K,
            "range": {"C": [float(C.min()), float(C.max())], "N": [float(N.min()), float(N.max())]},
            "ci": {k: interval(v) for k, v in boot.items() if len(v)},
            "boot": {k: rounded(v) for k, v in boot.items()},
            "health": {"widened": widen, "edge": float(1 - len(X) / bootstrap) if bootstrap else 0.0,
                       "influence": leave_one_out(u, x, weight, a_draw)}}


def weights_of(X: Array) -> tuple[Array, Array]:
    """(weight, spread) of each budget, (K,), from the draws of its log N* (B, K).

    Optima count equally, as in the literature, but for those more than twice as uncertain as the median one.
    """
    if len(X) < 10:
        return np.ones(X.shape[1]), np.zeros(X.shape[1])
    low, high = np.nanpercentile(X, [16, 84], axis=0)
    spread = (high - low) / 2
    return np.minimum(1, (2 * np.median(spread) / np.maximum(spread, 1e-12)) ** 2), spread


def leave_one_out(u: Array, x: Array, weight: Array, a_draw: Array) -> dict:
    """The budget (its log C) without which the exponent moves most: {log_C, without, shift in standard
    errors}."""
    if len(u) < 3:
        return {}
    _, full = line(u, x[None], weight)
    _, without = line(u, np.repeat(x[None], len(u), 0), weight * (1 - np.eye(len(u))))
    i = int(np.abs(without - full).argmax())
    error = max(np.std(a_draw), 1e-12) if len(a_draw) else np.inf
    shift = abs(without[i] - full[0]) / error
    return {"log_C": float(u[i]), "without": float(without[i]), "shift": float(shift)}


def frontier_loss(u: Array, y: Array, Y: Array) -> tuple[dict, dict]:
    """L_inf + (C_c/C)^gamma through the optima's log-losses `y` (K,) at u = log C, and for each row of Y (B,
    K).

    With fewer than four budgets L_inf is 0: three parameters would pass through three points. The draws'
    noise is widened by sqrt(K/(K-3)), as few points extrapolate worse than their own noise says (simulated in
    tests).
    """
    K, center = len(u), u.mean()
    X = u[None] - center
    starts, lo, hi = additive_bounds(np.exp(y), 1, None if K > 3 else 0.0)
    theta, F = minimise(additive, starts, X, y, np.ones((1, K)), lo, hi)
    best, seen = theta[[F.argmin()]], np.isfinite(Y)
    many = np.repeat(best, len(Y), 0)
    widen = np.sqrt(K / (K - 3)) if K > 3 else 1.0
    worlds = np.where(seen, additive(best, X)[0] + widen * (Y - y), 0)
    draws, _ = minimise(additive, many, X, worlds, seen * 1.0, lo, hi, *DRAW)

    def read(t):
        floor = np.exp(t[:, 0]) * (K > 3)
        return {"gamma": t[:, 2], "log_C_c": t[:, 1] / t[:, 2] + center, "L_inf": floor}
    return {k: float(v[0]) for k, v in read(best).items()}, read(draws)


def isoflop_lines(fit: dict, df: int) -> None:
    """Write the health of an IsoFLOP fit: what was refused and why, and what the line rests on."""
    h, points = fit["health"], fit["points"]
    lines = [f"budget {p['C']:.3g} refused: {p['refused']}" for p in points if p["refused"]]
    lines += [f"budget {p['C']:.3g}: in {p['edge']:.0%} of the resamples its vertex left the sizes; add sizes"
              for p in points if p.get("edge", 0) > 0.05]
    if fit["budgets"] < 4:
        lines.append(f"a line through {fit['budgets']} budgets: {fit['budgets'] - 2} degrees of freedom left")
    if df == 0:
        lines.append("three sizes per budget leave no scatter to measure, so the intervals mean nothing; "
                     "train five sizes per budget, or repeat seeds")
    if h["widened"] > 2:
        lines.append(f"the optima scatter {h['widened']:.1f} times more about the line than noise explains")
    i = h["influence"]
    if i.get("shift", 0) > 2:
        lines.append(f"budget {np.exp(i['log_C']):.3g} moves a by {i['shift']:.1f} standard errors, to "
                     f"{i['without']:.3f} without it")
    h["points_per_side"] = [min(p["left"], p["right"]) for p in points if not p["refused"]]
    h["lines"], h["ok"] = lines, not lines


# ---- Approach 1: the envelope of learning curves. ----

def best_of_curves(run: Array, C: Array, L: Array, cells: int = 600) -> tuple[Array, Array, Array, Array]:
    """On a grid of log C: (log C, index of the best run, its log-loss), and the names of the runs.

    Each run's curve is interpolated linearly in log-log between its first and its last row, and is absent
    outside.
    """
    names, group = np.unique(run.astype(str), return_inverse=True)
    grid = np.linspace(np.log(C.min()), np.log(C.max()), cells)
    curves = np.full((len(names), cells), np.inf)
    for i in range(len(names)):
        rows = np.flatnonzero(group == i)
        rows = rows[np.argsort(C[rows])]
        curves[i] = np.interp(grid, np.log(C[rows]), np.log(L[rows]), left=np.inf, right=np.inf)
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
    if len(winners) < 3:
        raise UserError("the envelope needs five or more sizes that are best somewhere; these curves have "
                        f"{len(np.unique(won))}")
    middle = np.array([u[won == w].mean() for w in winners])
    height = np.interp(middle, u, value)
    unit = np.ones((1, len(winners)))
    (p,), (q,) = line(winners, middle[None], unit)
    df = len(winners) - 2
    sd = np.sqrt(((middle - p - q * winners) ** 2).sum() / df)
    noise = sd * t_ratio(df) * np.random.default_rng(seed).standard_normal((bootstrap, len(winners)))
    p_draw, q_draw = line(winners, middle + noise, unit)
    slope = np.gradient(height, middle)
    loss, loss_draws = frontier_loss(middle, height, height - slope * noise)
    boot = {"log_k": -p_draw / q_draw, "a": 1 / q_draw, "b": 1 - 1 / q_draw, **loss_draws}
    fit = {"form": "envelope", "a": float(1 / q), "b": float(1 - 1 / q), "log_k": float(-p / q), **loss,
           "n": len(C), "scatter": float(sd), "level": LEVEL,
           "method": f"Gaussian bootstrap of {len(winners)} optima about their line, {bootstrap} resamples, "
                     f"Student's t({df})",
           "points": [{"C": float(np.exp(c)), "N_opt": float(np.exp(w)), "loss": float(np.exp(y))}
                      for c, w, y in zip(middle, winners, height)],
           "range": {"C": np.exp(middle[[0, -1]]).tolist(), "N": np.exp(winners[[0, -1]]).tolist()},
           "ci": {k: interval(v) for k, v in boot.items()} if bootstrap else {},
           "boot": {k: rounded(v) for k, v in boot.items()}}
    lines = []
    if (np.diff(middle) <= 0).any():
        lines.append("the optima are out of order, a larger model at a smaller compute: too noisy curves")
    if q <= 0:
        lines.append("larger models are best at smaller compute: this is no envelope")
    fit["health"] = {"winners": len(winners) + 2, "lines": lines, "ok": not lines}
    return fit


# ---- Loss against compute. ----

def lower_hull(u: Array, v: Array) -> Array:
    """Indices of the lower convex hull of the points (u, v), from the leftmost to the rightmost (Andrew
    1979)."""
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


def efficient_hull(u: Array, v: Array, group: Array) -> Array:
    """`lower_hull` without the runs to the right of its lowest point: they spend more and do worse."""
    hull = lower_hull(u, v)
    low = v[hull].argmin()
    return hull[(np.arange(len(hull)) <= low) | (group[hull] == group[hull[low]])]


def slope_of(u: Array, v: Array) -> float:
    """Least-squares slope of v on u; nan for fewer than two points."""
    return float(np.polyfit(u - u.mean(), v, 1)[0]) if len(u) > 1 else float("nan")


def find_kink(u: Array, v: Array, last: int) -> dict | None:
    """Two straight regimes against one in the points (u, v), sorted by u: {between, slopes, p}, or None.

    Each regime has three or more points, and the later one starts before point `last`; `between` brackets the
    break in C = e^u. Two lines and a break must beat one line in an F-test at `p` < 0.01. A smooth bend
    passes too, as it should: one exponent does not describe it.
    """
    n = len(u)
    if n < 6 or last < 4:
        return None

    def rest(s):
        return float(((v[s] - np.polyval(np.polyfit(u[s], v[s], 1), u[s])) ** 2).sum())
    two, cut = min((rest(slice(0, c)) + rest(slice(c, n)), c) for c in range(3, min(n - 2, last)))
    p = float(f_test.sf((rest(slice(0, n)) - two) / 3 / (max(two, 1e-300) / (n - 5)), 3, n - 5))
    if not p < 0.01:
        return None
    return {"between": [float(np.exp(u[cut - 1])), float(np.exp(u[cut]))], "p": p,
            "slopes": [slope_of(u[:cut], v[:cut]), slope_of(u[cut:], v[cut:])]}


def between_runs(hull: Array, group: Array) -> Array:
    """The part of a hull that is supported on both sides: from the first run's last vertex to the last run's
    first.

    Before it the smallest model is alone, after it the largest, each past its own optimum: there the hull is
    one run's learning curve, not a frontier.
    """
    of = group[hull]
    first, last = np.flatnonzero(of == of[0]).max(), np.flatnonzero(of == of[-1]).min()
    return hull[first:last + 1] if last > first else hull


def fit_loss_vs_compute(C: Array, L: Array, run: Array | None = None, bootstrap: int = 1000,
                        seed: int = 0) -> dict:
    """L = (C_c/C)^alpha along the lower-left convex hull in log-log of finished runs or of whole learning
    curves.

    C FLOPs, L losses, `run` the curve of each row, each (n,). After a kink (`find_kink`) only the later
    regime is fitted. `alpha` is the slope of all hull vertices there, as published frontiers take it;
    `between` that of the vertices between the first and the last run's own stretches, which is unbiased.
    Raises UserError.
    """
    C, L = checked(flops=C, loss=L)
    group = clusters(run, len(C))
    u, v, G = np.log(C), np.log(L), group.max() + 1
    if G < 3:
        raise UserError(f"a frontier of loss against compute needs three or more runs; there are {G}")
    if G < len(C):                                     # the hull of all is the hull of the runs' own hulls
        own = [rows[lower_hull(u[rows], v[rows])] for rows in (np.flatnonzero(group == g) for g in range(G))]
        u, v, group = (w[np.concatenate(own)] for w in (u, v, group))
    hull = efficient_hull(u, v, group)
    tail = int(np.flatnonzero(group[hull] == group[hull[-1]]).min())        # from here the last run is alone
    kink = find_kink(u[hull], v[hull], tail)
    start = np.log(kink["between"][1]) - 1e-9 if kink else -np.inf
    late = hull[u[hull] >= start]
    if len(late) < 3:
        raise UserError(f"the hull of loss against compute has {len(late)} points; three or more are needed")
    inner = between_runs(late, group)
    names = ("alpha", "between")
    point = {k: slope_of(u[part], v[part]) for k, part in zip(names, (late, inner))}
    draws = hull_draws(u, v, group, start, bootstrap, np.random.default_rng(seed))
    draws = draws[:, np.isfinite(draws).all(0)]
    widen = np.sqrt((G - G // 3) / max(G // 3, 1)) * t_ratio(max(G - 2, 1))
    # A hull without some runs lies higher, on average: so the draws are centred on the estimate.
    boot = {k: -(point[k] + widen * (d - d.mean())) for k, d in zip(names, draws)} if bootstrap else {}
    log_C_c = u[late].mean() - v[late].mean() / point["alpha"]
    if bootstrap:
        boot["log_C_c"] = u[late].mean() + v[late].mean() / boot["alpha"]
        boot["C_c"] = np.exp(np.clip(boot["log_C_c"], -600, 600))
    fit = {"form": "loss_vs_compute", "alpha": -point["alpha"], "between": -point["between"],
           "log_C_c": float(log_C_c), "C_c": float(np.exp(min(log_C_c, 600))), "L_inf": 0.0, "n": len(C),
           "runs": int(G), "level": LEVEL,
           "noise": float(np.std(v[late] - np.polyval(np.polyfit(u[late], v[late], 1), u[late]))),
           "method": f"jackknife: {bootstrap} times without a random third of {G} runs, widened {widen:.2f} "
                     "(Student's t)",
           "hull": {"C": np.exp(u[hull]).tolist(), "loss": np.exp(v[hull]).tolist(), "fitted": len(late),
                    "between": len(inner)},
           "kink": kink, "range": {k: [float(x.min()), float(x.max())] for k, x in (("C", C), ("loss", L))},
           "ci": {k: interval(d) for k, d in boot.items()}, "boot": {k: rounded(d) for k, d in boot.items()}}
    compute_lines(fit)
    return fit


def hull_draws(u: Array, v: Array, group: Array, start: float, bootstrap: int, rng) -> Array:
    """Slopes after `start` of the hull without a random third of the runs, `bootstrap` times: (all vertices,
    between runs).

    A hull does not notice that a run is drawn twice, so an ordinary bootstrap would be too narrow: this is
    the delete-d jackknife (Shao & Wu 1989), whose spread times sqrt((G - d)/d) is the standard error.
    """
    slopes, G = np.full((2, bootstrap), np.nan), group.max() + 1
    for i in range(bootstrap):
        rows = np.flatnonzero(np.isin(group, rng.permutation(G)[G // 3:]))
        hull = rows[efficient_hull(u[rows], v[rows], group[rows])]
        late = hull[u[hull] >= start]
        if len(late) > 1:
            inner = between_runs(late, group)
            slopes[:, i] = slope_of(u[late], v[late]), slope_of(u[inner], v[inner])
    return slopes


def compute_lines(fit: dict) -> None:
    """Write the health of a frontier L(C): where it bends, how much of it is one run's curve, whether it is a
    decay."""
    lines, kink = [], fit["kink"]
    if fit["alpha"] <= 0:
        lines.append("loss does not fall with compute")
    if kink:
        before, after = kink["slopes"]
        fit["note"] = (f"a kink between C = {kink['between'][0]:.3g} and {kink['between'][1]:.3g}: slope "
                       f"{before:.4f} before, {after:.4f} after; only what follows it is fitted")
    if fit["hull"]["fitted"] < 5:
        lines.append(f"only {fit['hull']['fitted']} hull points carry the slope")
    if abs(fit["between"] / fit["alpha"] - 1) > 0.05 and fit["hull"]["between"] > 1:
        fitted, inner = fit["hull"]["fitted"], fit["hull"]["between"]
        lines.append(f"{fitted - inner} of {fitted} hull points are the first or the last run's own curve, "
                     f"past its optimum; between the runs the slope is -{fit['between']:.4f}")
    fit["health"] = {"hull_points": fit["hull"]["fitted"], "lines": lines, "ok": not lines}
