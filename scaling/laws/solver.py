"""Robust fits in batches: the solver, the bootstrap, the health of a fit, profiles.

Every fit minimises the summed Huber loss (delta 1e-3) of log-residuals, as Hoffmann et al. 2022 do (section
3.3), so objectives compare with published ones. That objective is nearly an absolute value, and tiny (about
1e-3), which is why general-purpose optimisers stop early on it (Besiroglu et al. 2024). So `minimise` is a
damped Newton method of our own. It runs on a whole batch of problems at once: the many starts of one fit, its
bootstrap resamples, the runs left out one by one, or the grid of a profile. That is also what makes 1,000
resamples a matter of a second.
"""
from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from runtime.basics import UserError

DELTA = 1e-3                               # Huber's delta on log-residuals
LEVEL = 0.95                               # level of every interval unless the caller asks otherwise
SMALL = 20                                 # fewer runs than this: Gaussian bootstrap, see `resample`
CHUNK = 500_000                            # gradient entries (B p n) of one batch of problems: about 4 MB
DRAW = (60, 1e-6)                          # steps and tolerance of a resample, which need not be exact

Array = np.ndarray
# A model maps theta (B, p) and inputs X (k, n) to log-loss (B, n) and its gradient (B, p, n).
Model = Callable[[Array, Array], tuple[Array, Array]]


# ---- The solver. ----

def huber(r: Array) -> Array:
    """Huber's loss of the residuals `r`, elementwise."""
    a = np.abs(r)
    inner = np.minimum(a, DELTA)
    return inner * (a - inner / 2)


def newton_step(J: Array, r: Array, w: Array, damping: Array, frozen: Array) -> tuple[Array, Array, Callable]:
    """The step (B, p), the decrease (B,) it promises, and `solve`, which maps residuals (B, n) to a step.

    The Hessian is that of the rows within DELTA, plus `damping` times the quadratic majoriser of the others.
    With damping 1 this is iteratively reweighted least squares, which never climbs but creeps; with 0 it is
    Newton.
    """
    a = np.abs(r)
    curvature = w * np.where(a <= DELTA, 1, damping[:, None] * DELTA / np.maximum(a, DELTA))
    J = np.where(frozen[:, :, None], 0, J)
    H = (J * curvature[:, None]) @ J.transpose(0, 2, 1)
    diagonal = np.einsum("bii->bi", H)                                  # a view: what follows edits H
    diagonal += 1e-3 * damping[:, None] * diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300 + frozen

    def solve(v):
        return np.linalg.solve(H, J @ (curvature * v)[:, :, None])[:, :, 0]
    g = J @ (w * np.clip(r, -DELTA, DELTA))[:, :, None]
    step = np.linalg.solve(H, g)[:, :, 0]
    return step, (g[:, :, 0] * step).sum(1), solve


def bend(model: Model, theta: Array, X: Array, f: Array, J: Array, step: Array, solve: Callable) -> Array:
    """The second-order correction of a step (geodesic acceleration, Transtrum & Sethna 2012).

    Where E and A trade off, the minimum lies in a long curved canyon; this follows its bend, which takes ten
    times fewer steps than going straight. Never longer than half the step.
    """
    h = 0.1
    ahead, _ = model(theta + h * step, X)
    turn = -solve(((ahead - f) / h - (step[:, None] @ J)[:, 0]) / h)
    longest = np.abs(turn).max(1) / np.maximum(np.abs(step).max(1), 1e-300)
    turn *= np.minimum(1, 0.5 / np.maximum(longest, 1e-300))[:, None]
    return np.where(np.isfinite(turn), turn, 0)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")      # a step that overflows is refused
def minimise(model: Model, theta: Array, X: Array, y: Array, w: Array, lo: Array, hi: Array,
             steps: int = 300, tolerance: float = 1e-9) -> tuple[Array, Array]:
    """Minimise sum_i w_i huber(y_i - model(theta)_i) from each row of `theta` -> theta (B, p), objective
    (B,).

    `X` (k, n) are the inputs of n rows; `y` and `w` broadcast to (B, n), the bounds to (B, p); lo = hi
    freezes a parameter. A problem is finished when a Newton step promises less than `tolerance` of its
    objective, or when no damping finds a descent.
    """
    B, p, n = len(theta), theta.shape[1], X.shape[1]
    lo, hi, y, w = (np.broadcast_to(v, (B, m)) for v, m in ((lo, p), (hi, p), (y, n), (w, n)))
    if B > 1 and B * n * p > CHUNK:                                     # halve, until a part fits the cache
        parts = [minimise(model, theta[s], X, y[s], w[s], lo[s], hi[s], steps, tolerance)
                 for s in (slice(B // 2), slice(B // 2, B))]
        return np.concatenate([t for t, _ in parts]), np.concatenate([F for _, F in parts])
    theta = np.clip(theta, lo, hi)
    best, value, left = theta.copy(), np.empty(B), np.arange(B)
    f, J = model(theta, X)
    F, damping = (w * huber(y - f)).sum(1), np.ones(B)
    for _ in range(steps):
        step, promise, solve = newton_step(J, y - f, w, damping, lo == hi)
        step /= np.maximum(np.abs(step).max(1, keepdims=True), 1)       # at most a factor e at a time
        trial = np.clip(theta + step + bend(model, theta, X, f, J, step, solve), lo, hi)
        f_trial, J_trial = model(trial, X)
        F_trial = (w * huber(y - f_trial)).sum(1)
        done = ((promise <= tolerance * F) & (damping <= 1)) | (damping > 1e8) | (F == 0)
        down = F_trial < F
        theta[down], F[down], f[down], J[down] = trial[down], F_trial[down], f_trial[down], J_trial[down]
        damping = np.where(down, np.maximum(damping / 5, 1e-8), damping * 6)
        best[left], value[left] = theta, F
        if done.all():
            break
        if done.any():                                                  # go on with the others alone
            go = ~done
            left, theta, F, damping, f, J, y, w, lo, hi = (
                v[go] for v in (left, theta, F, damping, f, J, y, w, lo, hi))
    return best, value


# ---- Uncertainty. ----

def clusters(run, n: int) -> Array:
    """The cluster index (n,) of each row: rows of one `run` (a learning curve) are not independent."""
    return np.arange(n) if run is None else np.unique(np.asarray(run).astype(str), return_inverse=True)[1]


def t_ratio(df: int) -> float:
    """How much wider Student's t with `df` degrees of freedom is than the normal distribution, at LEVEL."""
    q = (1 + LEVEL) / 2
    return student.ppf(q, df) / student.ppf(q, np.inf)


def resample(n: int, p: int, group: Array, count: int, rng, fitted: Array,
             y: Array) -> tuple[Array, Array, str]:
    """(y, w, method): `count` bootstrap worlds as data (count, n) and weights (count, n), and how they arose.

    With SMALL or more independent runs: random weights of mean 1, one per run. This is the bootstrap over
    runs without its degenerate resamples (Rubin 1981). Their variance is n/(n-p), or G/(G-1) and Student's t
    where the n rows are of G runs: without that the intervals of small studies are too narrow. With fewer
    runs: Gaussian noise about the fit, as large as the residuals (n-p degrees of freedom), widened by
    Student's t.
    """
    G = group.max() + 1
    if G == n and (n < SMALL or n < 4 * p):
        scale = np.sqrt(((y - fitted) ** 2).sum() / (n - p)) * t_ratio(n - p)
        return (fitted + scale * rng.standard_normal((count, n)), np.ones((1, n)),
                f"Gaussian bootstrap of {n} runs, {count} resamples, residual noise, Student's t({n - p})")
    variance = n / (n - p) if G == n else min(G / (G - 1) * t_ratio(G - 1) ** 2, 4)
    weights = rng.gamma(1 / variance, variance, (count, G))
    return y[None], weights[:, group], (f"bootstrap over {G} runs ({n} rows), {count} resamples with random "
                                        f"weights of variance {variance:.3g}")


def interval(draws: Array, level: float = LEVEL) -> list[float]:
    """[lo, hi]: percentiles of the finite `draws` along axis 0."""
    return np.nanpercentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0).tolist()


def seed_noise(key: Array, y: Array) -> tuple[float, int]:
    """(standard deviation, degrees of freedom) of log-loss between rows of equal `key`: the noise of seeds.

    (nan, 0) where no setting was repeated.
    """
    _, group, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    group, df = group.reshape(-1), len(y) - len(count)
    if df == 0:
        return float("nan"), 0
    return float(np.sqrt(((y - (np.bincount(group, y) / count)[group]) ** 2).sum() / df)), df


def rounded(values: Array) -> list[float]:
    """A list of floats of 7 significant digits, for JSON."""
    return [float(f"{v:.7g}") for v in values]


# ---- One fit: many starts, the bootstrap, leave-one-out, health. ----

def fit_law(name: str, model: Model, X: Array, y: Array, starts: Array, lo: Array, hi: Array,
            natural: Callable[[Array], dict], labels: list[str], span: dict, run=None, bootstrap: int = 1000,
            seed: int = 0) -> dict:
    """Fit `model` to log-loss `y` (n,) at inputs `X` (k, n) from every row of `starts` (S, p) within [lo,
    hi].

    `natural` turns theta (B, p) into {parameter: (B,)} as papers print them; `labels` names theta's entries;
    `span` is {input: values}, whose extremes become the fit's range. Returns the fit as scaling/laws.py
    describes it. Raises UserError when there are too few rows.
    """
    free, n = int((lo < hi).sum()), len(y)
    if n <= free:
        raise UserError(f"{name}: {n} runs cannot determine {free} parameters; {free + 1} or more are needed")
    theta, F = minimise(model, starts, X, y, np.ones((1, n)), lo, hi)
    best, objective = theta[F.argmin()], float(F.min())
    group = clusters(run, n)
    draws, method = np.empty((0, len(best))), "none: the bootstrap was turned off"
    fitted = model(best[None], X)[0][0]
    if bootstrap:
        rng = np.random.default_rng(seed)
        Y, W, method = resample(n, free, group, bootstrap, rng, fitted, y)
        draws, _ = minimise(model, np.repeat(best[None], bootstrap, 0), X, Y, W, lo, hi, *DRAW)
    boot = natural(draws)
    fit = {"form": name, **{k: float(v[0]) for k, v in natural(best[None]).items()}, "n": n,
           "runs": int(group.max() + 1), "free": free, "objective": objective,
           "noise": float(np.sqrt(((y - fitted) ** 2).sum() / (n - free))),
           "range": {k: [float(v.min()), float(v.max())] for k, v in span.items()},
           "level": LEVEL, "method": method,
           "ci": {k: interval(v) for k, v in boot.items() if bootstrap and np.ptp(v) > 0},
           "boot": {k: rounded(v) for k, v in boot.items()}}
    fit["health"] = health(model, X, y, best, lo, hi, labels)
    fit["health"] |= {"starts": len(starts), "agree": float((F <= objective * (1 + 1e-4)).mean()),
                      "moved": float(np.abs(best - np.clip(starts[F.argmin()], lo, hi)).max())}
    if bootstrap:
        fit["health"] |= influence(model, X, y, best, lo, hi, group, natural, boot)
    add_lines(fit)
    return fit


def health(model: Model, X: Array, y: Array, theta: Array, lo: Array, hi: Array, labels: list[str]) -> dict:
    """Is `theta` (p,) a minimum, and is it determined?

    `gradient` is the norm of the objective's gradient over the objective, `improvable` the share of the
    objective that a step along Newton's direction still takes off, `bounds` the parameters at a bound,
    `condition` that of the gradients' scaled Gram matrix.
    """
    f, J = model(theta[None], X)
    r, free = y - f, lo < hi
    step, _, _ = newton_step(J, r, np.ones_like(r), np.full(1, 1e-6), ~free[None])
    step /= max(np.abs(step).max(), 1)
    along, _ = model(np.clip(theta + 0.5 ** np.arange(12)[:, None] * step, lo, hi), X)
    F = max(float(huber(r).sum()), 1e-300)
    g = J[0, free] @ np.clip(r[0], -DELTA, DELTA)
    hits = [labels[k] for k in np.flatnonzero(free) if not lo[k] + 1e-6 < theta[k] < hi[k] - 1e-6]
    H = J[0, free] @ J[0, free].T
    scale = np.sqrt(np.maximum(np.diag(H), 1e-300))
    return {"gradient": float(np.linalg.norm(g) / F),
            "improvable": float(max(1 - huber(y - along).sum(1).min() / F, 0)),
            "bounds": hits, "condition": float(np.linalg.cond(H / scale / scale[:, None]))}


def influence(model: Model, X: Array, y: Array, best: Array, lo: Array, hi: Array, group: Array,
              natural: Callable, boot: dict) -> dict:
    """Refit without each run in turn -> the run that moves an exponent most, in that exponent's standard
    errors."""
    G = group.max() + 1
    names = [k for k in boot if k.startswith(("alpha", "beta", "c0", "R_")) and np.ptp(boot[k]) > 0]
    if G > 500 or not names:                            # one of more than 500 runs cannot carry a fit
        return {}
    W = (group[None] != np.arange(G)[:, None]).astype(float)
    theta, _ = minimise(model, np.repeat(best[None], G, 0), X, y, W, lo, hi, *DRAW)
    point, moved = natural(best[None]), natural(theta)
    shift = {k: np.abs(moved[k] - point[k]) / np.std(boot[k]) for k in names}
    worst = max(names, key=lambda k: shift[k].max())
    run = int(shift[worst].argmax())
    return {"influence": {"row": int(np.flatnonzero(group == run)[0]), "parameter": worst,
                          "shift": float(shift[worst].max()), "without": float(moved[worst][run])}}


def add_lines(fit: dict) -> None:
    """Write health's verdict `ok` and its `lines`: a sentence of English for each thing that is wrong."""
    h, lines = fit["health"], []
    if h["improvable"] > 1e-4:
        lines.append(f"not at a minimum: one more step lowers the objective by {h['improvable']:.1%}")
    if h["agree"] < 0.3:
        lines.append(f"only {h['agree']:.0%} of {h['starts']} starts reach this optimum: it has rivals")
    if h["bounds"]:
        lines.append(f"stopped at the bound of {', '.join(h['bounds'])}: these data do not determine it")
    floor = next((k for k in ("E", "L_inf") if k in fit["ci"]), None)
    if floor and fit["ci"][floor][0] <= 0.05 * fit["range"]["loss"][0]:
        lines.append(f"{floor} is not identified: its interval reaches almost 0; a wider range would pin it")
    if h["condition"] > 1e6:
        lines.append(f"condition number {h['condition']:.0e}: some parameters can be traded for one another")
    if h.get("influence", {}).get("shift", 0) > 2:
        i = h["influence"]
        lines.append(f"one run (row {i['row'] + 1}) moves {i['parameter']} by {i['shift']:.1f} standard "
                     f"errors, to {i['without']:.3f} without it")
    if h.get("lack_of_fit", 0) > 3:
        lines.append(f"residuals are {h['lack_of_fit']:.1f} times the noise between seeds: the form, or the "
                     "tuning of some sizes, is off")
    h["lines"], h["ok"] = lines, not lines


# ---- Profiles: how far can one parameter move before the data object? ----

def profile(model: Model, X: Array, y: Array, starts: Array, lo: Array, hi: Array, k: int, grid: Array,
            run=None, bootstrap: int = 200, seed: int = 0) -> dict:
    """Profile likelihood of theta[k]: refit all the others at each value of `grid` (G,).

    `deviance` is 2 n log(F/F_min), minus twice the Laplace log-likelihood whose scale is fitted too. Its
    cutoff is not that of chi-squared, which would take the noise to be Laplace, but comes from the bootstrap:
    the 95 % quantile of the deviance, in each resample, of the value fitted to the data. Returns {grid,
    deviance, cutoff, lo, hi}; lo or hi is None where the profile does not rise above the cutoff on that side.
    """
    n, G = len(y), len(grid)
    theta, F = minimise(model, starts, X, y, np.ones((1, n)), lo, hi)
    best, least = theta[F.argmin()], F.min()
    near = np.vstack([best[None], theta[np.argsort(F)[:: max(1, len(F) // 12)]]])      # a dozen starts or so

    def refit(value, starts, y, w):
        low, high = np.repeat(lo[None], len(starts), 0), np.repeat(hi[None], len(starts), 0)
        low[:, k] = high[:, k] = value
        return minimise(model, starts, X, y, w, low, high, *DRAW)[1]
    F = refit(np.repeat(grid, len(near)), np.tile(near, (G, 1)), y, np.ones((1, n))).reshape(G, -1).min(1)
    deviance = 2 * n * np.log(np.maximum(F / max(least, 1e-300), 1))
    Y, W, _ = resample(n, int((lo < hi).sum()), clusters(run, n), bootstrap, np.random.default_rng(seed),
                       model(best[None], X)[0][0], y)
    many = np.repeat(best[None], bootstrap, 0)
    _, free = minimise(model, many, X, Y, W, lo, hi, *DRAW)
    ratio = np.maximum(refit(best[k], many, Y, W) / np.maximum(free, 1e-300), 1)
    cutoff = float(np.quantile(2 * n * np.log(ratio), LEVEL))
    low, high = crossings(grid, deviance, cutoff)
    return {"grid": grid.tolist(), "deviance": deviance.tolist(), "cutoff": cutoff, "lo": low, "hi": high}


def crossings(x: Array, deviance: Array, cutoff: float) -> tuple[float | None, float | None]:
    """Where `deviance` crosses `cutoff` to the left and right of its minimum, between grid points; None where
    not."""
    def cross(order):
        for i, j in zip(order, order[1:]):
            if deviance[j] > cutoff >= deviance[i]:
                return float(x[i] + (x[j] - x[i]) * (cutoff - deviance[i]) / (deviance[j] - deviance[i]))
        return None
    i = int(deviance.argmin())
    return cross(range(i, -1, -1)), cross(range(i, len(x)))
