"""Robust fits in batches: the solver, the bootstrap, the findings of a fit, profiles.

Every fit minimises the summed Huber loss (delta 1e-3) of log-residuals, as Hoffmann et al. 2022 do (section
3.3), so objectives compare with published ones. `minimise` is a damped Newton method of our own, because it
is fast in batches: the many starts of one fit, its bootstrap resamples, the runs left out one by one, or the
grid of a profile are one call. scipy's least_squares(loss="huber") reaches the same optimum from every start
(it is the oracle in tests/test_laws.py), but takes 8 to 120 ms a start, and L-BFGS-B 6 to 14 ms a resample,
where this takes 0.2 to 0.5 ms. So 1,000 resamples are a matter of a second.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import f as f_test
from scipy.stats import norm
from scipy.stats import t as student

from runtime.basics import UserError
from scaling.laws.health import judge

DELTA = 1e-3                               # Huber's delta on log-residuals
EXACT = 1e-16                              # objective per run below which a fit is exact, but for rounding
LEVEL = 0.95                               # level of every interval
SMALL = 20                                 # fewer runs than this: Gaussian bootstrap, see `resample`
CHUNK = 500_000                            # gradient entries (B p n) of one batch of problems: about 4 MB
NEAR = np.geomspace(1e-7, 0.4, 23)         # how far from the optimum a profile looks: it may be very sharp
OUTLIER = 4                                # robust standard deviations, see `score_test`
DRAW = (60, 1e-6)                          # steps and tolerance of a resample, which need not be exact

Array = np.ndarray
# A model maps theta (B, p) and inputs X (k, n), or (B, k, n) where each problem has inputs of its own, to
# log-loss (B, n) and its gradient (B, p, n).
Model = Callable[[Array, Array], tuple[Array, Array]]


class Problem(NamedTuple):
    """What a fit minimises over: `model` at inputs `X` (k, n) against log-losses `y` (n,).

    theta starts at each row of `starts` (S, p) and stays within `lo` and `hi` (p,), or where it starts if
    `frozen` (p,). `names` are those of theta's entries; `natural` turns theta (B, p) into {parameter: (B,)}
    as in print.
    """

    model: Model
    X: Array
    y: Array
    starts: Array
    lo: Array
    hi: Array
    frozen: Array
    names: list[str]
    natural: Callable[[Array], dict]

    def best(self) -> tuple[Array, Array, Array]:
        """Minimise from all starts: the best theta (1, p), and theta (S, p) and objective (S,) of each."""
        theta, F = minimise(self, self.starts, self.y, np.ones((1, len(self.y))))
        return theta[[F.argmin()]], theta, F

    def printed(self, theta: Array) -> dict:
        """theta (1, p) as {parameter: value}."""
        return {k: float(v[0]) for k, v in self.natural(theta).items()}

    def fitted(self, theta: Array) -> Array:
        """Log-loss (n,) that the model has at theta (1, p)."""
        return self.model(theta, self.X)[0][0]

    def free(self) -> int:
        """How many parameters are fitted."""
        return int((~self.frozen).sum())

    def noise(self, theta: Array) -> float:
        """The standard deviation of the log-residuals at theta (1, p), with n - p degrees of freedom."""
        rest = self.y - self.fitted(theta)
        return float(np.sqrt((rest ** 2).sum() / (len(rest) - self.free())))


# ---- The solver. ----

def huber(r: Array) -> Array:
    """Huber's loss of the residuals `r`, elementwise."""
    a = np.abs(r)
    inner = np.minimum(a, DELTA)
    return inner * (a - inner / 2)


def newton_step(J, r, w, damping, frozen) -> tuple[Array, Array, Callable]:
    """The step (B, p), the decrease (B,) it promises, and `solve`, which maps residuals (B, n) to a step.

    J (B, p, n) is the model's gradient, r (B, n) the residuals, w (B, n) their weights; frozen (p,) marks
    what stays where it is.

    The Hessian is that of the rows within DELTA, plus `damping` times the quadratic majoriser of the others.
    With damping 0 this is Newton, with 1 iteratively reweighted least squares, which never climbs but creeps.
    """
    a = np.abs(r)
    majoriser = damping[:, None] * DELTA / np.maximum(a, DELTA)
    curvature = w * np.where(a <= DELTA, 1, majoriser)
    J = np.where(frozen[:, None], 0, J)
    H = (J * curvature[:, None]) @ J.transpose(0, 2, 1)
    diagonal = np.einsum("bii->bi", H)                                  # a view: what follows edits H
    smallest = 1e-12 * diagonal.max(1, keepdims=True) + 1e-300          # so that H can always be inverted
    diagonal += 1e-3 * damping[:, None] * diagonal + smallest + frozen

    def solve(v):
        return np.linalg.solve(H, J @ (curvature * v)[:, :, None])[:, :, 0]

    g = J @ (w * np.clip(r, -DELTA, DELTA))[:, :, None]
    step = np.linalg.solve(H, g)[:, :, 0]
    return step, (g[:, :, 0] * step).sum(1), solve


def bend(problem: Problem, theta, f, J, step, solve) -> Array:
    """The second-order correction of a step (geodesic acceleration, Transtrum & Sethna 2012).

    Where E and A trade off, the minimum lies in a long curved canyon; this follows its bend, which takes ten
    times fewer steps than going straight. Never longer than half the step.
    """
    h = 0.1
    ahead, _ = problem.model(theta + h * step, problem.X)
    straight = (step[:, None] @ J)[:, 0]
    turn = -solve(((ahead - f) / h - straight) / h)
    ratio = np.abs(turn).max(1) / np.maximum(np.abs(step).max(1), 1e-300)
    turn *= np.minimum(1, 0.5 / np.maximum(ratio, 1e-300))[:, None]
    return np.where(np.isfinite(turn), turn, 0)


def minimise(problem: Problem, theta: Array, y: Array, w: Array, steps: int = 300,
             tolerance: float = 1e-9) -> tuple[Array, Array]:
    """Minimise sum_i w_i huber(y_i - model(theta)_i) from each row of `theta`.

    `y` and `w` broadcast to (B, n). Returns theta (B, p) and objective (B,). A problem is finished when a
    Newton step promises less than `tolerance` of its objective, or when no damping finds a descent.
    """
    B, p = theta.shape
    n = problem.X.shape[1]
    columns = theta, np.broadcast_to(y, (B, n)), np.broadcast_to(w, (B, n))
    # A part's arrays fit the cache, which is faster than all problems at once.
    size = max(CHUNK // (n * p), 1)
    parts = [descend(problem, *(v[i:i + size] for v in columns), steps, tolerance)
             for i in range(0, max(B, 1), size)]
    best, least = zip(*parts)
    return np.concatenate(best), np.concatenate(least)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")      # a step that overflows is refused
def descend(problem: Problem, theta, y, w, steps, tolerance) -> tuple[Array, Array]:
    """`minimise` for one part of a batch, all arrays with a row per problem."""
    theta = np.clip(theta, problem.lo, problem.hi)
    f, J = problem.model(theta, problem.X)
    F = (w * huber(y - f)).sum(1)
    damping = np.ones(len(theta))
    i = np.arange(len(theta))                                           # the problems still worked on
    for _ in range(steps):
        slope = J[i]
        step, promise, solve = newton_step(slope, y[i] - f[i], w[i], damping[i], problem.frozen)
        step /= np.maximum(np.abs(step).max(1, keepdims=True), 1)       # at most a factor e at a time
        turn = bend(problem, theta[i], f[i], slope, step, solve)
        trial = np.clip(theta[i] + step + turn, problem.lo, problem.hi)
        f_trial, J_trial = problem.model(trial, problem.X)
        F_trial = (w[i] * huber(y[i] - f_trial)).sum(1)
        done = (promise <= tolerance * F[i]) & (damping[i] <= 1) | (damping[i] > 1e8)
        down = F_trial < F[i]
        damping[i] = np.where(down, np.maximum(damping[i] / 5, 1e-8), damping[i] * 6)
        lower = i[down]
        theta[lower] = trial[down]
        F[lower] = F_trial[down]
        f[lower] = f_trial[down]
        J[lower] = J_trial[down]
        i = i[~done]
        if len(i) == 0:
            break
    return theta, F


# ---- Uncertainty. ----

def clusters(run, n: int) -> Array:
    """The cluster index (n,) of each row: rows of one `run` (a learning curve) are not independent."""
    if run is None:
        return np.arange(n)
    return np.unique(np.asarray(run).astype(str), return_inverse=True)[1]


def t_ratio(df: int) -> float:
    """How much wider Student's t with `df` degrees of freedom is than the normal distribution, at LEVEL."""
    q = (1 + LEVEL) / 2
    return student.ppf(q, df) / student.ppf(q, np.inf)


def resample(problem: Problem, best, group, count: int) -> tuple[Array, Array, str]:
    """(y, w, method): `count` bootstrap worlds as data (count, n) and weights (count, n), and how they arose.

    With SMALL or more independent runs: random weights of mean 1, one per run. This is the bootstrap over
    runs without its degenerate resamples (Rubin 1981). Their variance is n/(n-p), or G/(G-1) and Student's t
    where the n rows are of G runs: without that the intervals of small studies are too narrow. With fewer
    runs: Gaussian noise about the fit, as large as the residuals (n-p degrees of freedom), widened by
    Student's t.
    """
    rng = np.random.default_rng(0)
    n = len(problem.y)
    p = problem.free()
    G = group.max() + 1
    if G == n and n < max(SMALL, 4 * p):
        how = f"Gaussian bootstrap of {n} runs, {count} resamples, residual noise, Student's t({n - p})"
        noise = problem.noise(best) * t_ratio(n - p) * rng.standard_normal((count, n))
        return problem.fitted(best) + noise, np.ones((1, n)), how
    variance = n / (n - p)
    if G < n:
        variance = min(G / (G - 1) * t_ratio(G - 1) ** 2, 4)
    how = (f"bootstrap over {G} runs ({n} rows), {count} resamples with random weights of variance "
           f"{variance:.3g}")
    weights = rng.gamma(1 / variance, variance, (count, G))[:, group]
    return problem.y[None], weights, how


def interval(draws: Array) -> list[float]:
    """[lo, hi]: the percentiles along axis 0 that hold the share LEVEL of the finite `draws`."""
    return np.nanpercentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0).tolist()


def intervals(draws: dict) -> dict:
    """{level, ci, boot} of a fit from the draws {parameter: (B,)}; none where B is 0."""
    return {"level": LEVEL,
            "ci": {k: interval(v) for k, v in draws.items() if len(v)},
            "boot": {k: [float(f"{x:.7g}") for x in v] for k, v in draws.items()}}


def span(**inputs) -> dict:
    """{input: [smallest, largest]}: the range of a fit."""
    return {k: [float(v.min()), float(v.max())] for k, v in inputs.items()}


def seed_noise(key: Array, y: Array) -> tuple[float, int]:
    """(standard deviation, degrees of freedom) of log-loss between rows of equal `key`: the noise of seeds.

    (nan, 0) where no setting was repeated.
    """
    _, group, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    df = len(y) - len(count)
    if df == 0:
        return float("nan"), 0
    mean = np.bincount(group, y) / count
    return float(np.sqrt(((y - mean[group]) ** 2).sum() / df)), df


# ---- One fit: many starts, the bootstrap, leave-one-out, findings. ----

def fit_law(form: str, problem: Problem, inputs: dict, run, bootstrap: int) -> dict:
    """Fit `problem`, which is of the law `form`, and make `bootstrap` resamples of it.

    `inputs` {name: (n,)} are those whose extremes become the fit's range; `run` (n,) names the cluster of
    each row. Returns the fit as scaling/laws/forms.py describes it. Raises UserError for too few rows.
    """
    n = len(problem.y)
    p = problem.free()
    if n <= p:
        raise UserError(f"{form}: {n} runs cannot determine {p} parameters; {p + 1} or more are needed")
    best, _, F = problem.best()
    group = clusters(run, n)
    draws = best[:0]
    method = "none: the bootstrap was turned off"
    if bootstrap:
        y, w, method = resample(problem, best, group, bootstrap)
        draws, _ = minimise(problem, np.repeat(best, bootstrap, 0), y, w, *DRAW)
    boot = problem.natural(draws)
    start = np.clip(problem.starts[F.argmin()], problem.lo, problem.hi)
    free = ~problem.frozen                              # the others may be -inf: no floor
    health = evidence(problem, best)
    health |= {"starts": len(F),
               "agree": float((F <= F.min() * (1 + 1e-4) + EXACT * n).mean()),
               "moved": float(np.abs(best[0, free] - start[free]).max())}
    fit = {"form": form,
           **problem.printed(best),
           "n": n,
           "runs": int(group.max() + 1),
           "free": p,
           "objective": float(F.min()),
           "noise": problem.noise(best),
           "range": span(**inputs),
           "method": method,
           **intervals(boot),
           "health": health}
    # A frozen parameter has draws, all alike, but no interval.
    fit["ci"] = {k: ends for k, ends in fit["ci"].items() if ends[0] < ends[1]}
    if bootstrap:
        health["influence"] = influence(problem, best, group, boot, fit["ci"])
    return judge(fit)


def evidence(problem: Problem, theta: Array) -> dict:
    """Findings at `theta` (1, p): is it a minimum, and is it determined?

    `gradient` is the norm of the objective's gradient over the objective, `improvable` the share of the
    objective that a step along Newton's direction still takes off, `bounds` the parameters at a bound,
    `condition` that of the gradients' scaled Gram matrix.
    """
    model, X, y, _, lo, hi, frozen, names, _ = problem
    f, J = model(theta, X)
    r = y - f
    step, _, _ = newton_step(J, r, np.ones_like(r), np.full(1, 1e-6), frozen)
    step /= max(np.abs(step).max(), 1)
    shorter = 0.5 ** np.arange(12)[:, None]                             # the whole step, half of it ...
    along, _ = model(np.clip(theta + shorter * step, lo, hi), X)
    J = J[0, ~frozen]
    H = J @ J.T
    scale = np.sqrt(np.maximum(np.diag(H), 1e-300))
    inside = (lo + 1e-6 < theta[0]) & (theta[0] < hi - 1e-6)
    F = max(float(huber(r).sum()), 1e-300)
    return {"gradient": float(np.linalg.norm(J @ np.clip(r[0], -DELTA, DELTA)) / F),
            "improvable": float(max(1 - huber(y - along).sum(1).min() / F, 0)),
            "bounds": [names[k] for k in np.flatnonzero(~frozen & ~inside)],
            "condition": float(np.linalg.cond(H / scale / scale[:, None]))}


def chance(t: float, tries: int, df: float) -> float:
    """How likely the largest of so many errors is `t` standard errors, by Student's t with `df`."""
    return float(min(1, 2 * tries * student.sf(t, max(df, 1))))


def influence(problem: Problem, best, group, boot: dict, ci: dict) -> dict | None:
    """The run without which an exponent moves most: {row, parameter, shift, without, carries, chance}.

    `shift` is in standard errors of that exponent, and so is `carries`, how far it would move by chance:
    large where the run alone determines it. `chance` is the probability that, of so many runs, one is as far
    off what the others say.
    """
    G = int(group.max()) + 1
    names = [k for k in ci if k.startswith(("alpha", "beta", "c0", "R_"))]
    if G > 500 or not names:                            # one of more than 500 runs cannot carry a fit
        return None
    w = 1.0 * (group != np.arange(G)[:, None])
    theta, _ = minimise(problem, np.repeat(best, G, 0), problem.y, w, *DRAW)
    moves, t, M = deleted(problem, best, group, G)
    point = problem.natural(best)
    moved = problem.natural(theta)
    shift = {k: np.abs(moved[k] - point[k]) / np.std(boot[k]) for k in names}
    worst = max(names, key=lambda k: shift[k].max())
    run = shift[worst].argmax()
    slope = (problem.natural(best + 1e-4 * np.eye(best.shape[1]))[worst] - point[worst]) / 1e-4
    return {"row": int((group == run).argmax()),
            "parameter": worst,
            "shift": float(shift[worst][run]),
            "without": float(moved[worst][run]),
            "carries": float(abs(moves[run] @ slope) / np.sqrt(slope @ M @ slope)),
            "chance": chance(t[run], G, G - problem.free() - 1)}


def deleted(problem: Problem, best, group, G: int) -> tuple[Array, Array, Array]:
    """For each of G runs: how far theta moves without it by chance (G, p), where the noise is 1, and its own
    studentised residual (G,). And M (p, p), the inverse of the gradients' Gram matrix.

    To first order, theta moves by M J r / (1 - h) without a run of leverage h (Cook 1977). A curve counts as
    one observation, the mean of its rows.
    """
    f, J = problem.model(best, problem.X)
    J = np.where(problem.frozen[:, None], 0, J[0])
    M = np.linalg.pinv(J @ J.T, hermitian=True)
    rows = np.bincount(group)
    r = np.bincount(group, problem.y - f[0]) / rows
    own = np.array([np.bincount(group, j) for j in J])                  # (p, G)
    moves = (M @ own).T
    left = np.maximum(1 - (own.T * moves).sum(1) / rows, 1e-9)          # 1 - h
    df = max(G - problem.free(), 2)
    without = np.sqrt(np.maximum((r ** 2).sum() - r ** 2 / left, 0) / (df - 1))
    return moves / np.sqrt(left)[:, None], np.abs(r) / (np.maximum(without, 1e-12) * np.sqrt(left)), M


def robust_sd(r: Array) -> float:
    """Standard deviation of residuals (n,) about 0 by their median: few outliers do not count."""
    return float(np.median(np.abs(r)) / norm.ppf(0.75))


def score_test(problem: Problem, best, columns: Array) -> tuple[Array, Array]:
    """(shift (k,), chance (k,)): what each of `columns` (k, n) would take off the residuals at best (1, p).

    A column joins the gradients, to first order, and its coefficient is `shift`; `chance` is the p of an F
    test with 1 and n - p - 1 degrees of freedom (Rao's score test), 1 for a column that the gradients span.
    Residuals above OUTLIER times their robust deviation count as that: a few wild runs make no pattern.
    """
    f, J = problem.model(best, problem.X)
    r = problem.y - f[0]
    limit = OUTLIER * robust_sd(r)
    Q, _ = np.linalg.qr(J[0, ~problem.frozen].T)
    rest, part = (v - (v @ Q) @ Q.T for v in (np.clip(r, -limit, limit), columns))
    size = (part ** 2).sum(1)
    new = size > 1e-6 * (columns ** 2).sum(1)
    shift = np.where(new, part @ rest / np.where(new, size, 1), 0)
    df = len(r) - problem.free() - 1
    left = np.maximum((rest ** 2).sum() - shift ** 2 * size, 1e-300)
    return shift, f_test.sf(shift ** 2 * size * df / left, 1, df)


# ---- Profiles: how far can one parameter move before the data object? ----

def profile(problem: Problem, k: int, grid: Array, run=None, bootstrap: int = 200) -> dict:
    """Profile likelihood of theta[k], a logarithm: refit all the others at each value of `grid` (G,), and
    near the optimum.

    `deviance` is 2 n log(F/F_min), minus twice the Laplace log-likelihood whose scale is fitted too. Its
    cutoff is not that of chi-squared, which would take the noise to be Laplace, but comes from the bootstrap:
    the 95 % quantile of the deviance, in each resample, of the value fitted to the data. Returns {grid,
    deviance, cutoff, lo, hi, identified}, with e^theta[k] for theta[k]; lo or hi is None where the profile
    does not rise above the cutoff on that side.
    """
    n = len(problem.y)
    best, theta, F = problem.best()
    fine = best[0, k] + np.outer([-1, 1], NEAR).ravel()
    near = np.vstack([best, theta[np.argsort(F)[:: max(1, len(F) // 12)]]])     # a dozen starts or so
    held = np.arange(best.shape[1]) == k
    others = problem._replace(frozen=problem.frozen | held)

    def excess(F, least):
        return 2 * n * np.log(np.maximum(F / np.maximum(least, 1e-300), 1))

    def refitted(grid, near):
        starts = np.where(held, grid[:, None, None], near).reshape(-1, len(held))   # all of `near` at each
        _, least = minimise(others, starts, problem.y, np.ones((1, n)), *DRAW)
        return excess(least.reshape(len(grid), -1).min(1), F.min())

    deviance = np.concatenate([refitted(grid, near), refitted(fine, best), [0.0]])
    grid = np.concatenate([grid, fine, best[0, [k]]])
    order = np.argsort(grid)
    grid = grid[order]
    deviance = deviance[order]
    y, w, _ = resample(problem, best, clusters(run, n), bootstrap)
    many = np.repeat(best, bootstrap, 0)
    _, there = minimise(others, many, y, w, *DRAW)
    _, least = minimise(problem, many, y, w, *DRAW)
    cutoff = float(np.quantile(excess(there, least), LEVEL))
    middle = deviance.argmin()
    lo = crossing(grid[middle::-1], deviance[middle::-1], cutoff)
    hi = crossing(grid[middle:], deviance[middle:], cutoff)
    return {"grid": np.exp(grid).tolist(),
            "deviance": deviance.tolist(),
            "cutoff": cutoff,
            "lo": lo,
            "hi": hi,
            "identified": None not in (lo, hi)}


def crossing(x, deviance, cutoff: float) -> float | None:
    """e^x where `deviance` first rises above `cutoff`, between grid points; None where it does not.

    Its root is a line where the deviance is a parabola.
    """
    above = np.flatnonzero(deviance > cutoff)
    if len(above) == 0:
        return None
    at = slice(above[0] - 1, above[0] + 1)
    return float(np.exp(np.interp(np.sqrt(cutoff), np.sqrt(deviance[at]), x[at])))
