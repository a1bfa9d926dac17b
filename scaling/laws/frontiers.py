"""Compute-optimal frontiers: IsoFLOP profiles, envelopes of learning curves, and loss against compute.

Where `forms` fits a formula to all runs, these find the best run at each compute C and then, in log-log, a
line: N_opt = k C^a (Hoffmann et al. 2022, approaches 1 and 2) or L = (C_c/C)^alpha (Kaplan et al. 2020).

Tokens are data: D_opt = m C^b is a line of its own, through the runs' tokens at each optimum. Only where
there are none, or where C is 6 N D, they are C/(6 N).
"""
import numpy as np
from numpy.polynomial import Polynomial
from scipy.stats import f as f_test

from runtime.basics import UserError, nearest
from scaling.laws import hull, profiles
from scaling.laws.forms import additive_bounds, beyond_6nd, checked, cost_of, problem_of
from scaling.laws.health import judge
from scaling.laws.models import scale
from scaling.laws.profiles import group_budgets, named_budgets
from scaling.laws.solver import DRAW, Array, chance, clusters, interval, intervals, minimise, span, t_ratio

METHODS = ("parabola5", "parabola", "akima")
CELLS = 600                                # points from the smallest to the largest C to compare curves at


# ---- Approach 2: IsoFLOP profiles. ----

def fit_isoflop(N: Array, C: Array, L: Array, budget: Array | None = None, method: str = "parabola5",
                noise: float = 0.0, bootstrap: int = 1000, D: Array | None = None,
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
    elif not profiles.crossed(N, C / N if D is None else D):
        level = group_budgets(C)
    cost = None if D is None else cost_of(N, D, C)
    if not cost:
        D = level / (6 * N)
    levels = np.unique(level[np.isfinite(level)])
    if len(levels) < 2:
        raise UserError("IsoFLOP needs two or more budgets of three or more sizes each; these runs have "
                        f"{len(levels)}")
    whole = [profiles.profile_of(N[level == c], L[level == c], D[level == c]) for c in levels]
    near = [profiles.lowest_five(profile) for profile in whole]
    # A spline passes through all of its points, so its scatter is that about the five-point parabolas.
    sd, df = profiles.profile_noise(whole if method == "parabola" else near)
    how = f"scatter about the parabolas, Student's t({df})"
    if noise:
        sd = noise
        df = 1000                                      # known well enough
        how = "noise between seeds"
    how = f"Gaussian bootstrap of the losses, {bootstrap} resamples, {how}"
    if df == 0:
        bootstrap = 0
        how = "none: three sizes per budget leave no scatter to draw from"
    rng = np.random.default_rng(0)
    points = []
    draws = []
    for c, (x, *_, count), profile in zip(levels, whole, near if method == "parabola5" else whole):
        point, draw = one_budget(c, profile, method, sd * t_ratio(df), bootstrap, rng)
        points.append(point | {"sizes": len(x), "runs": int(count.sum())})
        if point["refused"]:
            continue
        if worlds is not None:
            means = [worlds[:, (level == c) & (np.log(N) == size)].mean(1) for size in x]
            vertex, value = profiles.lowest_vertices(x, np.transpose(means))
            draw = vertex, value, profiles.tokens_at(vertex, profile)
        draws.append(draw)
    used = [p for p in points if not p["refused"]]
    if len(used) < 2:
        why = "; ".join(f"C = {p['C']:.3g}: {p['refused']}" for p in points if p["refused"])
        raise UserError("IsoFLOP needs two or more budgets with a minimum inside; "
                        f"{len(used)} of {len(points)} have one ({why})")
    fit = frontier(used, draws, widened=worlds is None)
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


def one_budget(C, profile, method, sd, bootstrap, rng):
    """The optimum of one IsoFLOP profile as a point, and `bootstrap` draws of log N*, log-loss and log D."""
    x, y, _, count = profile
    point = {"C": float(C), "refused": profiles.refusal(x, y, method)}
    if point["refused"]:
        return point, ()
    (vertex,), (value,) = profiles.vertices(x, y[None], method)
    curvature, middle, least = profiles.parabola(x, y)
    truth = y if method == "akima" else least + curvature * (x - middle) ** 2
    worlds = truth + sd / np.sqrt(count) * rng.standard_normal((bootstrap, len(x)))
    draw = profiles.vertices(x, worlds, method)
    point |= {"N_opt": float(np.exp(vertex)),
              "D_opt": float(np.exp(profiles.tokens_at(vertex, profile))),
              "loss": float(np.exp(value)),
              "curvature": float(curvature),
              "left": int((x < vertex).sum()),
              "right": int((x > vertex).sum())}
    if np.isfinite(draw[0]).sum() > bootstrap / 2:
        point["ci"] = {"N_opt": interval(np.exp(draw[0])), "loss": interval(np.exp(draw[1]))}
        point["edge"] = float(np.isnan(draw[0]).mean())
    return point, (*draw, profiles.tokens_at(draw[0], profile))


# ---- Power laws through optima. ----

def frontier(points, draws, widened):
    """N_opt = k C^a, D_opt = m C^b and L_inf + (C_c/C)^gamma through the budgets' optima and their draws.

    For intervals the draws are `widened`, by what the optima scatter beyond their own noise.
    """
    u, x, d, y = np.log([[p[k] for p in points] for k in ("C", "N_opt", "D_opt", "loss")])
    X, Y, Z = np.stack(draws, -1)                       # log N*, log-loss and log D there: (bootstrap, K)
    usable = (np.isfinite(X).sum(1) >= 2) | (not widened)               # a world keeps its place
    size, size_draws, health = power_line(u, x, X[usable], widened)
    tokens, token_draws, _ = power_line(u, d, Z[usable], widened)
    loss, loss_draws = frontier_loss(u, y, Y[usable], widened)
    fit = {**optimal(size, tokens, loss),
           **intervals(optimal(size_draws, token_draws, loss_draws))}
    if len(u) < 4:                                      # its 0 is an assumption, which has no interval
        fit["ci"].pop("L_inf", None)
    return {**fit,
            "budgets": len(u),
            "range": span(C=np.exp(u), N=np.exp(x)),
            "health": health | {"edge": float(1 - usable.mean()) if len(usable) else 0.0,
                                "bridge": hull.bridge(u)}}


def optimal(size, tokens, loss):
    """The parameters of N_opt = k C^a, D_opt = m C^b and the `loss` there, or their draws."""
    log_k, a = size
    log_m, b = tokens
    return {"log_k": log_k, "a": a, "log_m": log_m, "b": b, **loss}


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


def power_line(u, x, X, widened):
    """The line x = p + q u through the optima at u (K,) and their draws X (B, K): (p, q), (p (B,), q (B,))
    and what it says of its health."""
    weight, spread = weights_of(X)
    lines = line(u, np.vstack([x, X]), weight)
    p, q = (float(v[0]) for v in lines)
    p_draw, q_draw = (v[1:] for v in lines)
    K = len(u)
    # Scatter beyond the optima's own: the noise was underestimated, or no power law holds exactly.
    expected = (weight * spread ** 2).sum() * (K - 2) / K
    scatter = (weight * (x - p - q * u) ** 2).sum()
    widen = 1.0
    if widened and expected > 0:
        widen = max(1.0, float(np.sqrt(scatter / expected)))
    # Widened about the middle, where the line's height and its slope are independent.
    middle = (weight * u).sum() / weight.sum()
    height = p + q * middle + widen * (p_draw + q_draw * middle - p - q * middle)
    slope = q + widen * (q_draw - q)
    health = {"widened": widen, "influence": leave_one_out(u, x, X, weight, widen, q, q_draw)}
    return (p, q), (height - slope * middle, slope), health


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
def leave_one_out(u, x, X, weight, widen, q, q_draw):
    """The budget without which the exponent moves most, as `influence` in scaling/laws/solver.py has it."""
    K = len(u)
    if K < 3 or len(X) < 10:
        return {}
    some = weight * (1 - np.eye(K))
    _, without = line(u, x, some)
    drawn = np.array([line(u, X, w)[1] for w in some]) - q_draw
    shift = np.abs(without - q)
    error = max(widen * np.std(q_draw), 1e-12)
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

def fit_envelope(N: Array, C: Array, L: Array, run: Array, bootstrap: int = 1000,
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
    point = np.transpose(line(x, np.array([middle, tokens]), 1))        # of log C and of log D on log N
    df = K - 2
    p, q = point[0]
    scatter = np.sqrt(((middle - p - q * x) ** 2).sum() / df)
    noise = scatter * t_ratio(df) * np.random.default_rng(0).standard_normal((bootstrap, K))
    draws = [line(x, v + noise, 1) for v in (middle, tokens)]
    loss, loss_draws = frontier_loss(middle, height, height - np.gradient(height, middle) * noise)
    optima = np.exp([middle, x, tokens, height])
    fit = {"form": "envelope",
           **{k: float(v) for k, v in optimal(*by_compute(*point), loss).items()},
           **intervals(optimal(*by_compute(*draws), loss_draws)),
           "n": len(C),
           "method": f"Gaussian bootstrap of {K} optima about their line, {bootstrap} resamples, "
                     f"Student's t({df})",
           "points": [dict(zip(("C", "N_opt", "D_opt", "loss"), row)) for row in optima.T.tolist()],
           "range": span(C=optima[0], N=optima[1]),
           "scatter": float(scatter),
           "health": {"winners": len(sizes), "cost_slopes": cost_slopes(cost, np.exp(x)),
                      "bridge": hull.bridge(middle)}}
    return judge(fit)


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


def by_compute(compute, tokens):
    """((log_k, a), (log_m, b)) where log C and log D are lines (height, slope) of log N."""
    p, q = compute
    height, slope = tokens
    b = slope / q
    return (-p / q, 1 / q), (height - p * b, b)


# ---- Loss against compute. ----

def fit_loss_vs_compute(C: Array, L: Array, run: Array | None = None, bootstrap: int = 1000) -> dict:
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
        curves = hull.own_hulls(curves)
    curves = np.column_stack([curves, hull.cells(curves)])
    corners = hull.efficient_hull(curves)
    u, v, of, _ = corners.T
    alone = int((of == of[-1]).argmax())                # from here on the hull is the last run's own curve
    kink = hull.find_kink(u, v, alone)
    start = np.log(kink["between"][1]) - 1e-9 if kink else -np.inf
    late = corners[u >= start]
    if len(late) < 3:
        raise UserError(f"the hull of loss against compute has {len(late)} points; three or more are needed")
    late_u, late_v = late.T[:2]
    slopes = hull.slopes_of(late)
    widen = np.sqrt((G - G // 3) / (G // 3)) * t_ratio(G - 2)

    def law(slopes):
        alpha, between = -slopes.T
        log_C_c = late_u.mean() + late_v.mean() / alpha
        return {"alpha": alpha, "between": between, "log_C_c": log_C_c, "C_c": scale(log_C_c)}

    boot = {}
    if bootstrap:
        draws = hull.hull_draws(curves, start, bootstrap)
        # A hull without some runs lies higher, on average: so the draws are centred on the estimate.
        boot = law(slopes + widen * (draws - draws.mean(0)))
    fit = {"form": "loss_vs_compute",
           **{name: float(value) for name, value in law(slopes).items()},
           "L_inf": 0.0,
           "n": n,
           "noise": float(np.std(hull.off_line(late_u, late_v))),
           "method": f"jackknife: {bootstrap} times without a random third of {G} runs, widened {widen:.2f} "
                     "(Student's t)",
           "hull": {"C": np.exp(u).tolist(),
                    "loss": np.exp(v).tolist(),
                    "fitted": len(late),
                    "between": len(hull.between_runs(late))},
           "runs": int(G),
           "kink": kink,
           "range": span(C=C, loss=L),
           **intervals(boot),
           "health": {"hull_points": len(late), "drift": drift(late), "bridge": hull.bridge(late_u)}}
    if kink:
        low, high = kink["between"]
        before, after = kink["slopes"]
        fit["note"] = (f"a kink between C = {low:.3g} and {high:.3g}: slope {before:.4f} before, {after:.4f} "
                       "after; only what follows it is fitted")
    return judge(fit)


def drift(late):
    """Does the slope change between the runs of a hull: {slopes, p, L_inf, alpha}; None where they are too
    few (three vertices) to say.

    `slopes` are those of a parabola at both ends, and `p` is by an F-test of it against a line; L_inf and
    alpha are of the law with a floor.
    """
    u, v = hull.between_runs(late).T[:2]
    df = len(u) - 3
    if df < 0:
        return None
    bend = Polynomial.fit(u, v, 2)
    p = 1.0                                             # a parabola runs through any three points
    law = {"L_inf": 0.0, "gamma": 0.0}
    if df:
        rest = ((v - bend(u)) ** 2).sum()
        p = float(f_test.sf(((hull.off_line(u, v) ** 2).sum() - rest) * df / max(rest, 1e-300), 1, df))
        law, _ = frontier_loss(u, v, np.empty((0, len(u))))
    return {"slopes": bend.deriv()(u[[0, -1]]).tolist(), "p": p, "L_inf": law["L_inf"], "alpha": law["gamma"]}
