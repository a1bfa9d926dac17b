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
from scipy.stats import t as student

from runtime.basics import UserError
from scaling.laws.health import judge

DELTA = 1e-3                               # Huber's delta on log-residuals
LEVEL = 0.95                               # level of every interval
SMALL = 20                                 # fewer runs than this: Gaussian bootstrap, see `resample`
CHUNK = 500_000                            # gradient entries (B p n) of one batch of problems: about 4 MB
DRAW = (60, 1e-6)                          # steps and tolerance of a resample, which need not be exact

Array = np.ndarray
# A model maps theta (B, p) and inputs X (k, n), or (k, B, n) where each problem has inputs of its own, to
# log-loss (B, n) and its gradient (B, p, n).
Model = Callable[[Array, Array], tuple[Array, Array]]


class Problem(NamedTuple):
    """What a fit minimises over: `model` at inputs `X` (k, n) against log-losses `y` (n,).

    theta starts at each row of `starts` (S, p) and stays within `lo` and `hi` (p,); lo = hi freezes an entry.
    `names` are those of theta's entries; `natural` turns theta (B, p) into {parameter: (B,)} as in print.
    """

    model: Model
    X: Array
    y: Array
    starts: Array
    lo: Array
    hi: Array
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


# ---- The solver. ----

def huber(r: Array) -> Array:
    """Huber's loss of the residuals `r`, elementwise."""
    a = np.abs(r)
    inner = np.minimum(a, DELTA)
    return inner * (a - inner / 2)


def newton_step(J, r, w, damping, frozen) -> tuple[Array, Array, Callable]:
    """The step (B, p), the decrease (B,) it promises, and `solve`, which maps residuals (B, n) to a step.

    J (B, p, n) is the model's gradient, r (B, n) the residuals, w (B, n) their weights; frozen (B, p) marks
    what stays where it is.

    The Hessian is that of the rows within DELTA, plus `damping` times the quadratic majoriser of the others.
    With damping 0 this is Newton, with 1 iteratively reweighted least squares, which never climbs but creeps.
    """
    a = np.abs(r)
    majoriser = damping[:, None] * DELTA / np.maximum(a, DELTA)
    curvature = w * np.where(a <= DELTA, 1, majoriser)
    J = np.where(frozen[:, :, None], 0, J)
    H = (J * curvature[:, None]) @ J.transpose(0, 2, 1)
    diagonal = np.einsum("bii->bi", H)                                  # a view: what follows edits H
    smallest = 1e-12 * diagonal.max(1, keepdims=True) + 1e-300          # so that H can always be inverted
    diagonal += 1e-3 * damping[:, None] * diagonal + smallest + frozen

    def solve(v):
        return np.linalg.solve(H, J @ (curvature * v)[:, :, None])[:, :, 0]

    g = J @ (w * np.clip(r, -DELTA, DELTA))[:, :, None]
    step = np.linalg.solve(H, g)[:, :, 0]
    return step, (g[:, :, 0] * step).sum(1), solve


def bend(model: Model, theta, X, f, J, step, solve) -> Array:
    """The second-order correction of a step (geodesic acceleration, Transtrum & Sethna 2012).

    Where E and A trade off, the minimum lies in a long curved canyon; this follows its bend, which takes ten
    times fewer steps than going straight. Never longer than half the step.
    """
    h = 0.1
    ahead, _ = model(theta + h * step, X)
    straight = (step[:, None] @ J)[:, 0]
    turn = -solve(((ahead - f) / h - straight) / h)
    ratio = np.abs(turn).max(1) / np.maximum(np.abs(step).max(1), 1e-300)
    turn *= np.minimum(1, 0.5 / np.maximum(ratio, 1e-300))[:, None]
    return np.where(np.isfinite(turn), turn, 0)


class Batch(NamedTuple):
    """The problems that `descend` still works on: where they are (theta, F, f, J), and what they are."""

    index: Array
    theta: Array
    F: Array
    f: Array
    J: Array
    damping: Array
    y: Array
    w: Array
    lo: Array
    hi: Array


def minimise(problem: Problem, theta: Array, y: Array, w: Array, steps: int = 300,
             tolerance: float = 1e-9) -> tuple[Array, Array]:
    """Minimise sum_i w_i huber(y_i - model(theta)_i) from each row of `theta`.

    `y` and `w` broadcast to (B, n), and problem.lo and .hi to (B, p). Returns theta (B, p) and objective
    (B,). A problem is finished when a Newton step promises less than `tolerance` of its objective, or when no
    damping finds a descent.
    """
    B, p = theta.shape
    n = problem.X.shape[1]
    y, w = (np.broadcast_to(v, (B, n)) for v in (y, w))
    lo, hi = (np.broadcast_to(v, (B, p)) for v in (problem.lo, problem.hi))
    parts = int(np.clip(np.ceil(B * n * p / CHUNK), 1, max(B, 1)))
    found = []
    # A part's arrays fit the cache, which is faster than all problems at once.
    for i in np.array_split(np.arange(B), parts):
        found.append(descend(problem, theta[i], y[i], w[i], lo[i], hi[i], steps, tolerance))
    best, least = zip(*found)
    return np.concatenate(best), np.concatenate(least)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")      # a step that overflows is refused
def descend(problem: Problem, theta, y, w, lo, hi, steps, tolerance) -> tuple[Array, Array]:
    """`minimise` for one part of a batch, all arrays with a row per problem."""
    model = problem.model
    X = problem.X
    B = len(theta)
    theta = np.clip(theta, lo, hi)
    f, J = model(theta, X)
    b = Batch(index=np.arange(B),
              theta=theta,
              F=(w * huber(y - f)).sum(1),
              f=f,
              J=J,
              damping=np.ones(B),
              y=y, w=w, lo=lo, hi=hi)
    best = theta.copy()
    least = np.empty(B)
    for _ in range(steps):
        step, promise, solve = newton_step(b.J, b.y - b.f, b.w, b.damping, b.lo == b.hi)
        step /= np.maximum(np.abs(step).max(1, keepdims=True), 1)       # at most a factor e at a time
        turn = bend(model, b.theta, X, b.f, b.J, step, solve)
        trial = np.clip(b.theta + step + turn, b.lo, b.hi)
        f, J = model(trial, X)
        F = (b.w * huber(b.y - f)).sum(1)
        reached = (promise <= tolerance * b.F) & (b.damping <= 1)
        done = reached | (b.damping > 1e8) | (b.F == 0)
        down = F < b.F
        b.theta[down] = trial[down]
        b.F[down] = F[down]
        b.f[down] = f[down]
        b.J[down] = J[down]
        b.damping[:] = np.where(down, np.maximum(b.damping / 5, 1e-8), b.damping * 6)
        best[b.index] = b.theta
        least[b.index] = b.F
        if done.all():
            break
        if done.any():                                                  # go on with the others alone
            b = Batch(*(v[~done] for v in b))
    return best, least


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


def resample(p: int, group, count: int, rng, fitted, y) -> tuple[Array, Array, str]:
    """(y, w, method): `count` bootstrap worlds as data (count, n) and weights (count, n), and how they arose.

    With SMALL or more independent runs: random weights of mean 1, one per run. This is the bootstrap over
    runs without its degenerate resamples (Rubin 1981). Their variance is n/(n-p), or G/(G-1) and Student's t
    where the n rows are of G runs: without that the intervals of small studies are too narrow. With fewer
    runs: Gaussian noise about the fit, as large as the residuals (n-p degrees of freedom), widened by
    Student's t.
    """
    n = len(y)
    G = group.max() + 1
    if G == n and n < max(SMALL, 4 * p):
        df = n - p
        scale = np.sqrt(((y - fitted) ** 2).sum() / df) * t_ratio(df)
        how = f"Gaussian bootstrap of {n} runs, {count} resamples, residual noise, Student's t({df})"
        return fitted + scale * rng.standard_normal((count, n)), np.ones((1, n)), how
    if G == n:
        variance = n / (n - p)
    else:
        variance = min(G / (G - 1) * t_ratio(G - 1) ** 2, 4)
    weights = rng.gamma(1 / variance, variance, (count, G))[:, group]
    return y[None], weights, (f"bootstrap over {G} runs ({n} rows), {count} resamples with random weights of "
                              f"variance {variance:.3g}")


def interval(draws: Array, level: float = LEVEL) -> list[float]:
    """[lo, hi]: the percentiles along axis 0 that hold the share `level` of the finite `draws`."""
    return np.nanpercentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0).tolist()


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

def fit_law(form: str, problem: Problem, inputs: dict, run=None, bootstrap: int = 1000,
            seed: int = 0) -> dict:
    """Fit `problem`, which is of the law `form`, and make `bootstrap` resamples of it.

    `inputs` {name: (n,)} are those whose extremes become the fit's range; `run` (n,) names the cluster of
    each row. Returns the fit as scaling/laws/forms.py describes it. Raises UserError for too few rows.
    """
    y = problem.y
    n = len(y)
    free = problem.lo < problem.hi
    p = int(free.sum())
    if n <= p:
        raise UserError(f"{form}: {n} runs cannot determine {p} parameters; {p + 1} or more are needed")
    best, _, F = problem.best()
    first = F.argmin()
    fitted = problem.fitted(best)
    group = clusters(run, n)
    draws = best[:0]
    method = "none: the bootstrap was turned off"
    if bootstrap:
        Y, W, method = resample(p, group, bootstrap, np.random.default_rng(seed), fitted, y)
        draws, _ = minimise(problem, np.repeat(best, bootstrap, 0), Y, W, *DRAW)
    boot = problem.natural(draws)
    fit = {"form": form,
           **problem.printed(best),
           "n": n,
           "runs": int(group.max() + 1),
           "free": p,
           "objective": float(F[first]),
           "noise": float(np.sqrt(((y - fitted) ** 2).sum() / (n - p))),
           "range": span(**inputs),
           "method": method,
           **intervals(boot),
           "health": evidence(problem, best[0])}
    # A frozen parameter has draws, all alike, but no interval.
    fit["ci"] = {k: ends for k, ends in fit["ci"].items() if np.ptp(boot[k]) > 0}
    start = np.clip(problem.starts[first], problem.lo, problem.hi)
    fit["health"] |= {"starts": len(F),
                      "agree": float((F <= F[first] * (1 + 1e-4)).mean()),
                      "moved": float(np.abs(best[0, free] - start[free]).max())}
    if bootstrap:
        fit["health"] |= influence(problem, best, group, boot)
    return judge(fit)


def evidence(problem: Problem, theta) -> dict:
    """Findings at `theta` (p,): is it a minimum, and is it determined?

    `gradient` is the norm of the objective's gradient over the objective, `improvable` the share of the
    objective that a step along Newton's direction still takes off, `bounds` the parameters at a bound,
    `condition` that of the gradients' scaled Gram matrix.
    """
    model, X, y, _, lo, hi, names, _ = problem
    free = lo < hi
    f, J = model(theta[None], X)
    r = y - f
    F = max(float(huber(r).sum()), 1e-300)
    step, _, _ = newton_step(J, r, np.ones_like(r), np.full(1, 1e-6), ~free[None])
    step /= max(np.abs(step).max(), 1)
    shorter = 0.5 ** np.arange(12)[:, None]                             # the whole step, half of it ...
    along, _ = model(np.clip(theta + shorter * step, lo, hi), X)
    J = J[0, free]
    g = J @ np.clip(r[0], -DELTA, DELTA)
    H = J @ J.T
    scale = np.sqrt(np.maximum(np.diag(H), 1e-300))
    inside = (lo + 1e-6 < theta) & (theta < hi - 1e-6)
    return {"gradient": float(np.linalg.norm(g) / F),
            "improvable": float(max(1 - huber(y - along).sum(1).min() / F, 0)),
            "bounds": [names[k] for k in np.flatnonzero(free & ~inside)],
            "condition": float(np.linalg.cond(H / scale / scale[:, None]))}


def influence(problem: Problem, best, group, boot: dict) -> dict:
    """The run without which an exponent moves most, in standard errors of that exponent: {influence: ...}."""
    G = group.max() + 1
    exponents = [k for k in boot if k.startswith(("alpha", "beta", "c0", "R_"))]
    names = [k for k in exponents if np.ptp(boot[k]) > 0]
    if G > 500 or not names:                            # one of more than 500 runs cannot carry a fit
        return {}
    W = 1.0 * (group != np.arange(G)[:, None])
    theta, _ = minimise(problem, np.repeat(best, G, 0), problem.y, W, *DRAW)
    point = problem.natural(best)
    moved = problem.natural(theta)
    shift = {k: np.abs(moved[k] - point[k]) / np.std(boot[k]) for k in names}
    worst = max(names, key=lambda k: shift[k].max())
    run = int(shift[worst].argmax())
    return {"influence": {"row": int((group == run).argmax()),
                          "parameter": worst,
                          "shift": float(shift[worst][run]),
                          "without": float(moved[worst][run])}}


# ---- Profiles: how far can one parameter move before the data object? ----

def profile(problem: Problem, k: int, grid: Array, run=None, bootstrap: int = 200, seed: int = 0) -> dict:
    """Profile likelihood of theta[k]: refit all the others at each value of `grid` (G,).

    `deviance` is 2 n log(F/F_min), minus twice the Laplace log-likelihood whose scale is fitted too. Its
    cutoff is not that of chi-squared, which would take the noise to be Laplace, but comes from the bootstrap:
    the 95 % quantile of the deviance, in each resample, of the value fitted to the data. Returns {grid,
    deviance, cutoff, lo, hi}; lo or hi is None where the profile does not rise above the cutoff on that side.
    """
    y = problem.y
    n = len(y)
    best, theta, F = problem.best()
    some = theta[np.argsort(F)[:: max(1, len(F) // 12)]]                # a dozen starts or so
    near = np.vstack([best, some])

    def refit(value, starts, y, w):
        lo = np.tile(problem.lo, (len(starts), 1))
        hi = np.tile(problem.hi, (len(starts), 1))
        lo[:, k] = hi[:, k] = value
        return minimise(problem._replace(lo=lo, hi=hi), starts, y, w, *DRAW)[1]

    def excess(F, least):
        return 2 * n * np.log(np.maximum(F / np.maximum(least, 1e-300), 1))

    held = refit(np.repeat(grid, len(near)), np.tile(near, (len(grid), 1)), y, np.ones((1, n)))
    deviance = excess(held.reshape(len(grid), -1).min(1), F.min())
    free = int((problem.lo < problem.hi).sum())
    rng = np.random.default_rng(seed)
    Y, W, _ = resample(free, clusters(run, n), bootstrap, rng, problem.fitted(best), y)
    many = np.repeat(best, bootstrap, 0)
    _, least = minimise(problem, many, Y, W, *DRAW)
    cutoff = float(np.quantile(excess(refit(best[0, k], many, Y, W), least), LEVEL))
    middle = int(deviance.argmin())
    return {"grid": grid.tolist(),
            "deviance": deviance.tolist(),
            "cutoff": cutoff,
            "lo": crossing(grid[middle::-1], deviance[middle::-1], cutoff),
            "hi": crossing(grid[middle:], deviance[middle:], cutoff)}


def crossing(x, deviance, cutoff: float) -> float | None:
    """The first x at which `deviance` rises above `cutoff`, between grid points; None where it does not."""
    above = deviance > cutoff
    rises = np.flatnonzero(above[1:] & ~above[:-1])
    if len(rises) == 0:
        return None
    i = rises[0]
    rise = deviance[i + 1] - deviance[i]
    return float(x[i] + (x[i + 1] - x[i]) * (cutoff - deviance[i]) / rise)
