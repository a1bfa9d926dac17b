"""Compute-optimal frontiers: IsoFLOP profiles, envelopes of learning curves, and loss against compute.

Where `forms` fits a formula to all runs, these find the best run at each compute C and then, in log-log, a
line: N_opt = k C^a (Hoffmann et al. 2022, approaches 1 and 2) or L = (C_c/C)^alpha (Kaplan et al. 2020).

Tokens are data: D_opt = m C^b is a line of its own, through the runs' tokens at each optimum. Only where
there are none, or where C is 6 N D, they are C/(6 N).
"""
import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.stats import f as f_test

from runtime.basics import UserError, nearest
from scaling.laws.forms import SAME, additive_bounds, beyond_6nd, checked, cost_of, problem_of
from scaling.laws.health import judge
from scaling.laws.models import scale
from scaling.laws.solver import DRAW, Array, chance, clusters, interval, intervals, minimise, span, t_ratio

METHODS = ("parabola5", "parabola", "akima")
GRID = 1000                                # points from the smallest to the largest N to search a spline on
CELLS = 600                                # points from the smallest to the largest C to compare curves at
TOLERANCE = 0.1                            # by which the computes of one budget may differ
GAP = 0.8                                  # of the range of log C that parts two clusters of points


# ---- Approach 2: IsoFLOP profiles. ----

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
    cuts = np.flatnonzero(np.diff(u[order]) > apart) + 1
    gaps = np.concatenate([[np.inf], np.diff(u[order])[cuts - 1], [np.inf]])
    for rows, gap in zip(np.split(order, cuts), np.minimum(gaps[1:], gaps[:-1])):
        if len(rows) >= 3 and np.ptp(u[rows]) <= min(2 * apart, gap / 3):
            level[rows] = np.exp(u[rows].mean())
    if np.isfinite(level).mean() < 0.5:
        level[:] = np.nan
    return level


def crossed(N: Array, D: Array) -> bool:
    """Is this a grid, each size at each length of training? Then its diagonals are no budgets."""
    sizes, lengths = (len(np.unique(np.round(np.log(v), 4))) for v in (N, D))
    return sizes * lengths == len(N)


def named_budgets(budget: Array, C: Array) -> Array:
    """The level of each run: its `budget` where that is its C, to a percent, else the budget's mean C."""
    level = np.array(budget, float)
    for name in np.unique(level[np.isfinite(level)]):
        own = budget == name
        mean = np.exp(np.log(C[own]).mean())
        if abs(name - mean) > SAME * mean:
            level[own] = mean
    return level


def profile_of(N, L, D):
    """The profile (4, sizes) of the runs of one budget: log N (distinct, sorted), the means of log-loss and
    of log D, and how many runs."""
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
    total = 0.0
    df = 0
    for x, y, _, count in profiles:
        design = np.vander(x - x.mean(), 3)
        rest = y - design @ (np.linalg.pinv(design) @ y)
        total += (count * rest ** 2).sum()
        df += max(len(x) - 3, 0)
    if df == 0:
        return float("nan"), 0
    return float(np.sqrt(total / df)), df


def line(u, v, w):
    """Least-squares line v = p + q u for each row of v, weights w (B, K), skipping nan: (p, q), each (B,)."""
    w = np.where(np.isfinite(v), w, 0)
    v = np.where(w > 0, v, 0)
    total = w.sum(1)
    mu = (w * u).sum(1) / total
    mv = (w * v).sum(1) / total
    off = u - mu[:, None]
    q = (w * off * v).sum(1) / (w * off ** 2).sum(1)
    return mv - q * mu, q


def fit_isoflop(N: Array, C: Array, L: Array, budget: Array | None = None, method: str = "parabola5",
                noise: float = 0.0, bootstrap: int = 1000, seed: int = 0, D: Array | None = None,
                worlds: Array | None = None) -> dict:
    """N_opt = k C^a, D_opt = m C^b: the minimum over N at each budget (Hoffmann et al. 2022, approach 2).

    N parameters, C FLOPs, L losses, D tokens, each (n,), one row per finished run; `budget` (n,) names the
    level of each row and is found by `group_budgets` where None. `method`: parabola5, a parabola in log N
    through the five sizes around the smallest loss; parabola, through all; akima, the minimum of an Akima
    spline (Porian et al. 2024). `noise`, the standard deviation of log-loss between seeds, is taken from the
    scatter about the parabolas where it is 0. With `worlds` (B, n), log-losses of the same rows, the draws
    are what parabola5 would find in each of these, and no intervals of the fit. Raises UserError.
    """
    if method not in METHODS:
        raise UserError(f"unknown IsoFLOP method {method!r}{nearest(method, METHODS)}; there are "
                        + ", ".join(METHODS))
    N, C, L = checked(params=N, flops=C, loss=L)
    level = np.full(len(C), np.nan)
    if budget is not None:
        level = named_budgets(budget, C)
    elif not crossed(N, C / N if D is None else D):
        level = group_budgets(C)
    cost = None if D is None else cost_of(N, D, C)
    if not cost:
        D = level / (6 * N)
    levels = np.unique(level[np.isfinite(level)])
    if len(levels) < 2:
        raise UserError("IsoFLOP needs two or more budgets of three or more sizes each; these runs have "
                        f"{len(levels)}")
    profiles = [profile_of(N[level == c], L[level == c], D[level == c]) for c in levels]
    near = [lowest_five(profile) for profile in profiles]
    # A spline passes through all of its points, so its scatter is that about the five-point parabolas.
    sd, df = profile_noise(profiles if method == "parabola" else near)
    how = f"scatter about the parabolas, Student's t({df})"
    if noise:
        sd = noise
        df = 1000                                      # known well enough
        how = "noise between seeds"
    how = f"Gaussian bootstrap of the losses, {bootstrap} resamples, {how}"
    if df == 0:
        bootstrap = 0
        how = "none: three sizes per budget leave no scatter to draw from"
    rng = np.random.default_rng(seed)
    points = []
    used = []
    draws = []
    for c, whole, profile in zip(levels, profiles, near if method == "parabola5" else profiles):
        point, draw = one_budget(c, profile, method, sd * t_ratio(df), bootstrap, rng)
        if worlds is not None and not point["refused"]:
            means = [worlds[:, (level == c) & (np.log(N) == x)].mean(1) for x in whole[0]]
            vertex, value = lowest_vertices(whole[0], np.transpose(means))
            draw = vertex, value, tokens_at(vertex, profile)
        points.append(point | {"sizes": whole.shape[1], "runs": int(whole[3].sum())})
        if not point["refused"]:
            used.append(point)
            draws.append(draw)
    if len(used) < 2:
        why = "; ".join(f"C = {p['C']:.3g}: {p['refused']}" for p in points if p["refused"])
        raise UserError("IsoFLOP needs two or more budgets with a minimum inside; "
                        f"{len(used)} of {len(points)} have one ({why})")
    fit = frontier(used, draws, worlds is None)
    fit["health"] |= {"points_per_side": [min(p["left"], p["right"]) for p in used],
                      "noise_df": df,
                      "cost_slopes": cost_slopes(cost, [p["N_opt"] for p in used])}
    fit |= {"form": "isoflop",
            "points_method": method,
            "points": points,
            "noise": sd,
            "n": len(N),
            "method": f"{how}; widened {fit['health']['widened']:.2f} for scatter about the line"}
    return judge(fit)


def tokens_at(vertex, profile):
    """log D at log N = `vertex` in a budget's profile: smooth in log N, and a line where C is 6 N D."""
    x, _, d, _ = lowest_five(profile)
    return np.polynomial.Polynomial.fit(x, d, 2)(vertex)


def one_budget(C, profile, method, sd, bootstrap, rng):
    """The optimum of one IsoFLOP profile as a point, and `bootstrap` draws of log N*, log-loss and log D."""
    x, y, _, count = profile
    point = {"C": float(C), "refused": refusal(x, y, method)}
    if point["refused"]:
        return point, ()
    (vertex,), (value,) = vertices(x, y[None], method)
    curvature, middle, least = parabola(x, y)
    truth = y if method == "akima" else least + curvature * (x - middle) ** 2
    worlds = truth + sd / np.sqrt(count) * rng.standard_normal((bootstrap, len(x)))
    draw = vertices(x, worlds, method)
    point |= {"N_opt": float(np.exp(vertex)),
              "D_opt": float(np.exp(tokens_at(vertex, profile))),
              "loss": float(np.exp(value)),
              "curvature": float(curvature),
              "left": int((x < vertex).sum()),
              "right": int((x > vertex).sum())}
    if np.isfinite(draw[0]).sum() > bootstrap / 2:
        point["ci"] = {"N_opt": interval(np.exp(draw[0])), "loss": interval(np.exp(draw[1]))}
        point["edge"] = float(np.isnan(draw[0]).mean())
    return point, (*draw, tokens_at(draw[0], profile))


def frontier(points, draws, widened):
    """N_opt = k C^a, D_opt = m C^b and L_inf + (C_c/C)^gamma through the budgets' optima and their draws.

    For intervals the draws are `widened`, by what the optima scatter beyond their own noise.
    """
    u, x, d, y = np.log([[p[k] for p in points] for k in ("C", "N_opt", "D_opt", "loss")])
    X, Y, Z = np.stack(draws, -1)                       # log N*, log-loss and log D there: (bootstrap, K)
    usable = (np.isfinite(X).sum(1) >= 2) | (not widened)               # a world keeps its place
    (log_k, a), size_draws, health = power_line(u, x, X[usable], widened)
    (log_m, b), token_draws, _ = power_line(u, d, Z[usable], widened)
    loss, loss_draws = frontier_loss(u, y, Y[usable], widened)
    found = intervals(optimal(*size_draws, *token_draws, loss_draws))
    if len(u) < 4:                                      # its 0 is an assumption, which has no interval
        found["ci"].pop("L_inf", None)
    return {**optimal(log_k, a, log_m, b, loss),
            **found,
            "budgets": len(u),
            "range": span(C=np.exp(u), N=np.exp(x)),
            "health": health | {"edge": float(1 - usable.mean()) if len(usable) else 0.0,
                                "bridge": bridge(u)}}


def power_line(u, x, X, widened):
    """The line x = p + q u through the optima at u (K,) and their draws X (B, K): (p, q), (p (B,), q (B,))
    and what it says of its health."""
    weight, spread = weights_of(X)
    (p,), (q,) = line(u, x[None], weight)
    K = len(u)
    # Scatter beyond the optima's own: the noise was underestimated, or no power law holds exactly.
    expected = (weight * spread ** 2).sum() * (K - 2) / K
    scatter = (weight * (x - p - q * u) ** 2).sum()
    widen = 1.0
    if widened and expected > 0:
        widen = max(1.0, float(np.sqrt(scatter / expected)))
    p_draw, q_draw = line(u, X, weight)
    # Widened about the middle, where the line's height and its slope are independent.
    middle = (weight * u).sum() / weight.sum()
    height = p + q * middle + widen * (p_draw + q_draw * middle - p - q * middle)
    q_draw = q + widen * (q_draw - q)
    health = {"widened": widen, "influence": leave_one_out(u, x, X, weight, widen)}
    return (float(p), float(q)), (height - q_draw * middle, q_draw), health


def optimal(log_k, a, log_m, b, loss):
    """The parameters of N_opt = k C^a, D_opt = m C^b and the `loss` there, or their draws."""
    return {"log_k": log_k, "a": a, "log_m": log_m, "b": b, **loss}


def weights_of(X):
    """(weight, spread) of each budget, (K,), from the draws of its log N* (B, K).

    Optima count equally, as in the literature, but for those more than twice as uncertain as the median one.
    """
    if len(X) < 10:
        return np.ones(X.shape[1]), np.zeros(X.shape[1])
    low, high = np.nanpercentile(X, [16, 84], axis=0)
    spread = (high - low) / 2
    limit = max(2 * np.median(spread), 1e-300)          # without any noise they still count equally
    return (limit / np.maximum(spread, limit)) ** 2, spread


@np.errstate(invalid="ignore", divide="ignore")         # a draw with one optimum left has no line
def leave_one_out(u, x, X, weight, widen):
    """The budget without which the exponent moves most, as `influence` in scaling/laws/solver.py has it."""
    K = len(u)
    if K < 3 or len(X) < 10:
        return {}
    some = weight * (1 - np.eye(K))
    _, q = line(u, np.vstack([x, X]), weight)
    _, without = line(u, x, some)
    drawn = np.array([line(u, X, w)[1] for w in some]) - q[1:]
    shift = np.abs(without - q[0])
    error = max(widen * np.std(q[1:]), 1e-12)
    luck = np.maximum(widen * np.nanstd(drawn, axis=1), 1e-12)          # how far it would move by chance
    i = shift.argmax()
    return {"log_C": float(u[i]), "without": float(without[i]), "shift": float(shift[i] / error),
            "carries": float(luck[i] / error), "chance": chance(shift[i] / luck[i], K, np.inf)}


def frontier_loss(u, y, Y, widened=True):
    """L_inf + (C_c/C)^gamma through optima at u = log C, of log-losses `y` (K,), and of each row of Y (B, K).

    With fewer than four budgets L_inf is 0: three parameters would pass through three points. The draws'
    noise is widened by sqrt(K/(K-3)): few points extrapolate worse than their own noise says, as the tests
    simulate.
    """
    K = len(u)
    L = np.exp(y)
    problem = problem_of("frontier", {"C": np.exp(u)}, L, additive_bounds(L, 1, None if K > 3 else 0.0))
    problem = problem._replace(y=y)
    best, _, _ = problem.best()
    seen = np.isfinite(Y)
    if widened:
        Y = problem.fitted(best) + (np.sqrt(K / (K - 3)) if K > 3 else 1) * (Y - y)
    worlds = np.where(seen, Y, 0)
    draws, _ = minimise(problem, np.repeat(best, len(Y), 0), worlds, seen * 1.0, *DRAW)
    return problem.printed(best), problem.natural(draws)


def cost_slopes(cost: dict | None, N_opt) -> list[float]:
    """How C grows with N, d log C/d log N, at the smallest and the largest optimum; none where C is 6 N D."""
    return (1 + beyond_6nd(cost, np.log([min(N_opt), max(N_opt)]))[1]).tolist() if cost else []


# ---- Approach 1: the envelope of learning curves. ----

def by_compute(p, p_tokens, q, q_tokens):
    """(log_k, a, log_m, b) where log C = p + q log N and log D = p_tokens + q_tokens log N."""
    b = q_tokens / q
    return -p / q, 1 / q, p_tokens - p * b, b


def best_of_curves(u, v, d, run):
    """On a grid of log C: (log C, the first row of the run that is best there, its log-loss, its log D).

    Each run's curves of log-losses `v` and of log-tokens `d` at u = log C are interpolated between its first
    and its last row.
    """
    _, first, group = np.unique(run, return_index=True, return_inverse=True)
    grid = np.linspace(u.min(), u.max(), CELLS)
    curves = []
    tokens = []
    for i in range(len(first)):
        rows = np.flatnonzero(group == i)
        rows = rows[np.argsort(u[rows])]
        curves.append(np.interp(grid, u[rows], v[rows], left=np.inf, right=np.inf))
        tokens.append(np.interp(grid, u[rows], d[rows]))
    value = np.min(curves, 0)
    seen = np.isfinite(value)
    best = np.argmin(curves, 0)
    tokens = np.array(tokens)[best, np.arange(CELLS)]
    return grid[seen], first[best[seen]], value[seen], tokens[seen]


def fit_envelope(N: Array, C: Array, L: Array, run: Array, bootstrap: int = 1000, seed: int = 0,
                 D: Array | None = None) -> dict:
    """N_opt = k C^a, D_opt = m C^b from the envelope of curves (Hoffmann et al. 2022, approach 1).

    N, C, L, run, D: a row per checkpoint, each (n,). A run is optimal at the geometric middle of the computes
    at which no other run is better; the first and the last such runs are left out, because the range of sizes
    cuts their stretch short. So each run gives one point, and since the error is in C, and with it in D,
    these are regressed on N. Raises UserError.
    """
    N, C, L = checked(params=N, flops=C, loss=L)
    cost = None if D is None else cost_of(N, D, C)
    if not cost:
        D = C / (6 * N)
    u, best, value, d = best_of_curves(*np.log([C, L, D]), np.asarray(run).astype(str))
    won = np.log(N[best])                               # runs of one size (seeds) count together
    sizes = np.unique(won)
    if len(sizes) < 5:
        raise UserError("the envelope needs five or more sizes that are best somewhere; these curves have "
                        f"{len(sizes)}")
    x = sizes[1:-1]
    K = len(x)
    middle, tokens = np.array([[v[won == w].mean() for w in x] for v in (u, d)])
    height = np.interp(middle, u, value)
    p, q = line(x, np.array([middle, tokens]), 1)
    df = K - 2
    scatter = np.sqrt(((middle - p[0] - q[0] * x) ** 2).sum() / df)
    noise = scatter * t_ratio(df) * np.random.default_rng(seed).standard_normal((bootstrap, K))
    (p_draw, q_draw), (p_tokens, q_tokens) = (line(x, v + noise, 1) for v in (middle, tokens))
    loss, loss_draws = frontier_loss(middle, height, height - np.gradient(height, middle) * noise)
    best = np.exp([middle, x, tokens, height])
    fit = {"form": "envelope",
           **{k: float(v) for k, v in optimal(*by_compute(*p, *q), loss).items()},
           **intervals(optimal(*by_compute(p_draw, p_tokens, q_draw, q_tokens), loss_draws)),
           "n": len(C),
           "method": f"Gaussian bootstrap of {K} optima about their line, {bootstrap} resamples, "
                     f"Student's t({df})",
           "points": [dict(zip(("C", "N_opt", "D_opt", "loss"), point)) for point in best.T.tolist()],
           "range": span(C=best[0], N=best[1]),
           "scatter": float(scatter),
           "health": {"winners": len(sizes), "cost_slopes": cost_slopes(cost, np.exp(x)),
                      "bridge": bridge(middle)}}
    return judge(fit)


# ---- Loss against compute: a row (log C, log L, run, budget) per point of curves and of their hull. ----

def own_hulls(curves):
    """The vertices of each run's own hull alone: the hull of these is that of all points."""
    run = curves[:, 2]
    parts = (curves[run == r] for r in np.unique(run))
    return np.concatenate([part[lower_hull(*part.T[:2])] for part in parts])


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


def cells(curves):
    """The number of each point's budget: runs that end within SAME of each other share one, as steps round
    it; other points stand for themselves."""
    u, _, run = curves.T
    order = np.lexsort([u, run])
    ends = order[np.append(np.diff(run[order]) > 0, True)]
    cell = np.arange(len(u))
    first = None
    for i in ends[np.argsort(u[ends])]:
        if first is None or u[i] > u[first] + SAME:
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


def slope_of(u, v):
    """Least-squares slope of v on u; nan for fewer than two points."""
    if len(u) < 2:
        return float("nan")
    return float(np.polyfit(u - u.mean(), v, 1)[0])


def off_line(u, v):
    """Residuals of the least-squares line of v on u."""
    return v - np.polyval(np.polyfit(u, v, 1), u)


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
    two = min(rest)
    cut = cuts[rest.index(two)]
    # The two lines and the break have three parameters more than the one line.
    F = (squares(u, v) - two) / 3 / (max(two, 1e-300) / (n - 5))
    p = float(f_test.sf(F, 3, n - 5))
    if p >= 0.01:
        return None
    return {"between": np.exp(u[cut - 1:cut + 1]).tolist(),
            "p": p,
            "slopes": [slope_of(u[:cut], v[:cut]), slope_of(u[cut:], v[cut:])]}


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
    curves = np.column_stack([np.log(C), np.log(L), group])
    if G < n:
        curves = own_hulls(curves)
    curves = np.column_stack([curves, cells(curves)])
    hull = efficient_hull(curves)
    u, v, of, _ = hull.T
    alone = int((of == of[-1]).argmax())                # from here on the hull is the last run's own curve
    kink = find_kink(u, v, alone)
    start = np.log(kink["between"][1]) - 1e-9 if kink else -np.inf
    late = hull[u >= start]
    if len(late) < 3:
        raise UserError(f"the hull of loss against compute has {len(late)} points; three or more are needed")
    late_u, late_v, _, _ = late.T
    slopes = slopes_of(late)
    widen = np.sqrt((G - G // 3) / (G // 3)) * t_ratio(G - 2)

    def law(slopes):
        alpha, between = -slopes.T
        log_C_c = late_u.mean() + late_v.mean() / alpha
        return {"alpha": alpha, "between": between, "log_C_c": log_C_c, "C_c": scale(log_C_c)}

    boot = {}
    if bootstrap:
        draws = hull_draws(curves, start, bootstrap, np.random.default_rng(seed))
        # A hull without some runs lies higher, on average: so the draws are centred on the estimate.
        boot = law(slopes + widen * (draws - [d.mean() for d in draws.T]))
    fit = {"form": "loss_vs_compute",
           **{name: float(value) for name, value in law(slopes).items()},
           "L_inf": 0.0,
           "n": n,
           "noise": float(np.std(off_line(late_u, late_v))),
           "method": f"jackknife: {bootstrap} times without a random third of {G} runs, widened {widen:.2f} "
                     "(Student's t)",
           "hull": {"C": np.exp(u).tolist(),
                    "loss": np.exp(v).tolist(),
                    "fitted": len(late),
                    "between": len(between_runs(late))},
           "runs": int(G),
           "kink": kink,
           "range": span(C=C, loss=L),
           **intervals(boot),
           "health": {"hull_points": len(late), "drift": drift(late), "bridge": bridge(late_u)}}
    if kink:
        low, high = kink["between"]
        before, after = kink["slopes"]
        fit["note"] = (f"a kink between C = {low:.3g} and {high:.3g}: slope {before:.4f} before, {after:.4f} "
                       "after; only what follows it is fitted")
    return judge(fit)


def slopes_of(late):
    """The slopes (2,) of the later part of a hull: of all its vertices, and of those between the runs."""
    return np.array([slope_of(*part.T[:2]) for part in (late, between_runs(late))])


def drift(late):
    """Does the slope change between the runs of a hull: {slopes, p, L_inf, alpha}; None where they are too
    few (three vertices) to say.

    `slopes` are those of a parabola at both ends, and `p` is by an F-test of it against a line; L_inf and
    alpha are of the law with a floor.
    """
    u, v = between_runs(late).T[:2]
    df = len(u) - 3
    if df < 0:
        return None
    bend = np.polynomial.Polynomial.fit(u, v, 2)
    p = 1.0                                             # a parabola runs through any three points
    law = {"L_inf": 0.0, "gamma": 0.0}
    if df:
        rest = ((v - bend(u)) ** 2).sum()
        p = float(f_test.sf(((off_line(u, v) ** 2).sum() - rest) * df / max(rest, 1e-300), 1, df))
        law, _ = frontier_loss(u, v, np.empty((0, len(u))))
    return {"slopes": bend.deriv()(u[[0, -1]]).tolist(), "p": p, "L_inf": law["L_inf"], "alpha": law["gamma"]}


def hull_draws(curves, start, bootstrap, rng):
    """`slopes_of` (up to `bootstrap`, 2) after `start` of the hull without a random third of the runs.

    A hull does not notice that a run is drawn twice, so an ordinary bootstrap would be too narrow: this is
    the delete-d jackknife (Shao & Wu 1989), whose spread times sqrt((G - d)/d) is the standard error.
    """
    run = curves[:, 2]
    runs = np.unique(run)
    slopes = np.full((bootstrap, 2), np.nan)
    for i in range(bootstrap):
        some = rng.permutation(runs)[len(runs) // 3:]
        hull = efficient_hull(curves[np.isin(run, some)])
        late = hull[hull[:, 0] >= start]
        if len(late) > 1:
            slopes[i] = slopes_of(late)
    return slopes[np.isfinite(slopes).all(1)]
