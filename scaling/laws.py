"""Scaling laws: the parametric forms of the field, fitted robustly, with uncertainty and a health report.

Every law here predicts log-loss, and every fit minimises the summed Huber loss (delta 1e-3) of the log-residuals, as
in Hoffmann et al. 2022, section 3.3, so objectives compare with published ones. That objective is close to an
absolute value and tiny (about 1e-3), which is why general-purpose optimisers stop early on it (Besiroglu et al.
2024). So one small solver, `minimise`, does it all: a damped Newton method on centred logarithms, run on a whole
batch of problems at once, where the batch is the many starts, the bootstrap resamples, the runs left out one by
one, or the grid of a profile. Nothing here knows of torch.

A fit is a plain dict: the parameters by name, `n`, `objective`, `ci` (95 % intervals), `boot` (the parameters of each
bootstrap resample, from which every derived interval comes), `range`, `noise` (standard deviation of the log-residuals),
`method` (how the intervals were made) and `health`, whose `lines` say in English what is wrong, if anything is.
"""
from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from configurator import UserError

DELTA = 1e-3                               # Huber's delta on log-residuals: Hoffmann et al. 2022, section 3.3
LEVEL = 0.95                               # level of every interval unless the caller asks otherwise
SMALL = 20                                 # fewer independent runs than this: Gaussian bootstrap, see `resample`
CHUNK = 500_000                            # gradient entries (B p n) of one batch of problems: about 4 MB
DRAW = (60, 1e-6)                          # steps and tolerance for resamples, which need not be as exact as the fit
# Exponents and shares of E to start from. On all data seen so far every one of them ends in the same optimum.
ALPHA_STARTS, E_STARTS = (0.1, 0.2, 0.35, 0.6, 1.0), (0.1, 0.5, 0.9)
# Muennighoff et al. 2023, fitted to C4 with up to 4 epochs: A, B, E, alpha = beta, and the two decay constants.
C4 = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596, "beta": 0.3526596,
      "R_D": 15.387756, "R_N": 5.309743}

Array = np.ndarray
Model = Callable[[Array, Array], tuple[Array, Array]]      # (theta, X) -> log-loss (B, n), its gradient (B, p, n)


# ---- The forms. theta is (B, p): a batch of parameter vectors; X is (k, n): logarithms of the k inputs of n runs. ----

def additive(theta: Array, X: Array) -> tuple[Array, Array]:
    """log(e^e + sum_k e^(a_k - alpha_k x_k)), theta = (e, a_1, alpha_1, a_2, alpha_2, ...).

    With one input this is L(N) = E + A/N^alpha, with two the surface of Hoffmann et al. 2022 (eq. 2); without E and
    with (N, S) it is Kaplan et al. 2020, eq. 1.6. Returns log-loss (B, n) and gradient (B, p, n).
    """
    grad = np.empty((*theta.shape, X.shape[1]))
    grad[:, 0] = np.exp(theta[:, :1])
    for k, x in enumerate(X):
        grad[:, 1 + 2 * k] = np.exp(theta[:, 1 + 2 * k, None] - theta[:, 2 + 2 * k, None] * x)
    L = grad[:, 0] + grad[:, 1::2].sum(1)
    grad /= L[:, None]
    grad[:, 2::2] = -grad[:, 1::2] * X
    return np.log(L), grad


def kaplan_nd(theta: Array, X: Array) -> tuple[Array, Array]:
    """Kaplan et al. 2020, eq. 1.5: L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D.

    theta = (n_c, r, d_c, alpha_D), where r = alpha_N/alpha_D and the bracket is e^(n_c - r n) + e^(d_c - d).
    """
    n_c, r, d_c, power = (theta[:, k, None] for k in range(4))
    n, d = X
    u, v = n_c - r * n, d_c - d
    bracket = np.logaddexp(u, v)
    pu, pv = np.exp(u - bracket), np.exp(v - bracket)
    return power * bracket, np.stack([power * pu, -power * pu * n, power * pv, bracket], 1)


def broken(theta: Array, X: Array) -> tuple[Array, Array]:
    """Smoothly broken power law with one break (Caballero et al. 2023, eq. 1 with n = 1):
    L = E + A x^-c0 (1 + (x/d)^(1/f))^(-c1 f); theta = (e, a, c0, c1, log d, log f)."""
    e, a, c0, c1, d, log_f = (theta[:, k, None] for k in range(6))
    x, f = X[0], np.exp(log_f)
    u = (x - d) / f
    soft, slope = np.logaddexp(0, u), 0.5 * (1 + np.tanh(u / 2))        # log(1 + e^u) and its derivative
    z = a - c0 * x - c1 * f * soft
    y = np.logaddexp(e, z)
    pz = np.exp(z - y)
    dz = (np.ones_like(z), -x + 0 * z, -f * soft, c1 * slope, c1 * f * (u * slope - soft))
    return y, np.stack([np.exp(e - y), *(pz * g for g in dz)], 1)


def worth(unique: Array, total: Array, R: Array) -> Array:
    """How many fresh units `total` units are worth when only `unique` differ: value decays with repetition, constant R
    (Muennighoff et al. 2023, eq. 5)."""
    return unique * (1 - R * np.expm1(-(total / unique - 1) / R))


def repeated_loss(p: dict, N: Array, D: Array, U: Array) -> Array:
    """Loss of N parameters trained on D tokens of which U are unique (Muennighoff et al. 2023, eqs. 5, 6 and 8).

    Repeats beyond the first epoch, and parameters beyond what is optimal for U, decay in value with constants R_D and
    R_N. `p` has E, A, B, alpha, beta, R_D, R_N; all broadcast.
    """
    U = np.minimum(D, U)
    log_G = np.log(p["alpha"] * p["A"] / (p["beta"] * p["B"])) / (p["alpha"] + p["beta"])
    N_opt = np.exp(log_G + p["beta"] / p["alpha"] * (np.log(U) + log_G))        # optimal for U tokens seen once
    return (p["E"] + p["A"] * worth(np.minimum(N, N_opt), N, p["R_N"]) ** -p["alpha"]
            + p["B"] * worth(U, D, p["R_D"]) ** -p["beta"])


def decay(x: Array, log_R: Array) -> tuple[Array, Array, Array]:
    """log(1 + R (1 - e^(-x/R))), its derivative in log R, and that of log(unique times it) in log unique."""
    R = np.exp(log_R)
    gone = np.exp(-x / R)
    w = 1 - R * np.expm1(-x / R)
    return np.log(w), -(R * np.expm1(-x / R) + x * gone) / w, 1 - gone * (1 + x) / w


def repeated(theta: Array, X: Array) -> tuple[Array, Array]:
    """`repeated_loss` with theta = (log E, log A, log B, alpha, beta, log R_D, log R_N) and X = log (N, D, U)."""
    e, a, b, al, be, log_RD, log_RN = (theta[:, k, None] for k in range(7))
    n, d, u = X[0], X[1], np.minimum(X[1], X[2])
    s = al + be
    log_G = (np.log(al / be) + a - b) / s
    n_opt = log_G + be / al * (u + log_G)
    excess = n > n_opt
    n_unique = np.where(excess, n_opt, n)
    more_d, dRD, _ = decay(np.expm1(d - u), log_RD)
    more_n, dRN, dn = decay(np.expm1(n - n_unique), log_RN)
    log_n, log_d = n_unique + more_n, u + more_d
    zs = np.stack([e + 0 * log_n, a - al * log_n, b - be * log_d])
    y = np.logaddexp(np.logaddexp(zs[0], zs[1]), zs[2])
    pE, pN, pD = np.exp(zs - y)
    # Below, only the chain N_opt -> N' is left: how the fitted law itself says which parameters are in excess.
    chain, grow = np.where(excess, -al * pN * dn, 0), 1 + be / al
    return y, np.stack([pE, pN + chain * grow / s, pD - chain * grow / s,
                        -pN * log_n + chain * (grow * (1 / al - log_G) / s - be / al ** 2 * (u + log_G)),
                        -pD * log_d + chain * (-grow * (1 / be + log_G) / s + (u + log_G) / al),
                        -be * pD * dRD, -al * pN * dRN], 1)


# ---- The solver. ----

def huber(r: Array) -> Array:
    """Huber's loss of the residuals `r`, elementwise."""
    a = np.abs(r)
    inner = np.minimum(a, DELTA)
    return inner * (a - inner / 2)


def newton_step(J: Array, r: Array, w: Array, damping: Array, frozen: Array) -> tuple[Array, Array, Array]:
    """The step, the gradient, and the decrease the step promises, for each problem of a batch.

    The Hessian of the rows within DELTA, plus `damping` times that of the others' quadratic majoriser: with damping 1
    this is iteratively reweighted least squares, which never climbs but creeps; with damping 0 it is Newton.
    """
    a = np.abs(r)
    curvature = w * np.where(a <= DELTA, 1, damping[:, None] * DELTA / np.maximum(a, DELTA))
    J = np.where(frozen[:, :, None], 0, J)
    g = (J @ (w * np.clip(r, -DELTA, DELTA))[:, :, None])[:, :, 0]
    H = (J * curvature[:, None]) @ J.transpose(0, 2, 1)
    diagonal = np.einsum("bii->bi", H)                                          # a view: what follows edits H
    diagonal += 1e-3 * damping[:, None] * diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300 + frozen
    step = np.linalg.solve(H, g[:, :, None])[:, :, 0]
    return step, g, (g * step).sum(1)


def minimise(model: Model, theta: Array, X: Array, y: Array, w: Array, lo: Array, hi: Array,
             steps: int = 200, tolerance: float = 1e-9) -> tuple[Array, Array]:
    """Minimise sum_i w_i huber(y_i - model(theta)_i) for each row of `theta` (B, p) -> theta (B, p), objective (B,).

    `y` and `w` broadcast to (B, n), the bounds to (B, p); lo = hi freezes a parameter. A problem is finished when a
    full Newton step promises less than `tolerance` of the objective, or when no damping finds a descent.
    """
    theta = np.array(np.broadcast_to(theta, np.broadcast_shapes(theta.shape, lo.shape, hi.shape)), float)
    B, p, n = *theta.shape, X.shape[1]
    lo, hi, y, w = (np.broadcast_to(v, (B, m)) for v, m in ((lo, p), (hi, p), (y, n), (w, n)))
    if B > 1 and B * n * p > CHUNK:                                             # halves, until a part fits the cache
        parts = [minimise(model, theta[s], X, y[s], w[s], lo[s], hi[s], steps, tolerance)
                 for s in (slice(B // 2), slice(B // 2, B))]
        return np.concatenate([t for t, _ in parts]), np.concatenate([F for _, F in parts])
    theta = np.clip(theta, lo, hi)
    best, value, left = theta.copy(), np.empty(len(theta)), np.arange(len(theta))
    f, J = model(theta, X)
    r = y - f
    F, damping = (w * huber(r)).sum(1), np.ones(len(theta))
    for _ in range(steps):
        step, _, promise = newton_step(J, r, w, damping, lo == hi)
        step /= np.maximum(np.abs(step).max(1, keepdims=True), 1)               # at most a factor e at a time
        trial = np.clip(theta + step, lo, hi)
        f, J_new = model(trial, X)
        r_new = y - f
        F_new = (w * huber(r_new)).sum(1)
        down = F_new < F
        done = ((promise <= tolerance * F) & (damping <= 1)) | (damping > 1e8) | (F == 0)
        theta[down], F[down], r[down], J[down] = trial[down], F_new[down], r_new[down], J_new[down]
        damping = np.where(down, np.maximum(damping / 5, 1e-8), damping * 6)
        best[left], value[left] = theta, F
        if done.all():
            break
        if done.any():
            keep = ~done
            left, theta, F, damping, r, J, y, w, lo, hi = (
                v[keep] for v in (left, theta, F, damping, r, J, y, w, lo, hi))
    return best, value


# ---- Uncertainty. ----

def clusters(run, n: int) -> Array:
    """The cluster index (n,) of each row: rows of one `run` (a learning curve) are not independent."""
    return np.arange(n) if run is None else np.unique(np.asarray(run).astype(str), return_inverse=True)[1]


def resample(n: int, p: int, group: Array, count: int, rng, fitted: Array, y: Array) -> tuple[Array, Array, str]:
    """(y, w, method): `count` bootstrap worlds as data (count, n) and weights (count, n), and how they were made.

    From SMALL independent runs on: random weights, one per run, of mean 1 (the Bayesian bootstrap, Rubin 1981), which is
    the bootstrap over runs without its degenerate resamples. Their variance is widened by n/(n-p) and Student's t,
    which a percentile interval of a small study needs to cover. Fewer runs: Gaussian noise about the fit, with the
    residuals' standard deviation (n-p degrees of freedom) and the same t.
    """
    G = group.max() + 1
    if G == n and (n < SMALL or n < 4 * p):
        scale = np.sqrt(((y - fitted) ** 2).sum() / (n - p)) * t_ratio(n - p)
        return (fitted + scale * rng.standard_normal((count, n)), np.ones((1, n)),
                f"Gaussian bootstrap of {n} runs, {count} resamples, residual noise with Student's t({n - p})")
    df = n - p if G == n else G - 1
    widen = min((n / (n - p) if G == n else G / (G - 1)) * t_ratio(df) ** 2, 4)
    weights = rng.gamma(1 / widen, widen, (count, G))
    return y[None], weights[:, group], (f"bootstrap over {G} runs ({n} rows), {count} resamples with random weights "
                                        f"of variance {widen:.3g}")


def t_ratio(df: int) -> float:
    """How much wider Student's t with `df` degrees of freedom is than the normal distribution, at LEVEL."""
    q = (1 + LEVEL) / 2
    return student.ppf(q, df) / student.ppf(q, np.inf)


def interval(draws: Array, level: float = LEVEL) -> list[float]:
    """[lo, hi] of the finite `draws` along axis 0: percentiles."""
    return np.nanpercentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0).tolist()


def seed_noise(key: Array, y: Array) -> tuple[float, int]:
    """(standard deviation, degrees of freedom) of log-loss between rows of equal `key`: the noise of seeds.

    (nan, 0) where no setting was repeated.
    """
    _, group, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    df = len(y) - len(count)
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
    """Fit `model` to log-loss `y` (n,) at inputs `X` (k, n) from every row of `starts` (S, p) within [lo, hi].

    `natural` turns theta (B, p) into {parameter: (B,)} as papers print them; `labels` names theta's entries; `span` is
    {input: values}, whose extremes become the fit's range. Returns the fit as the module's docstring describes it.
    """
    free, n = (lo < hi).sum(), len(y)
    if n <= free:
        raise UserError(f"{name}: {n} runs cannot determine {free} parameters; at least {free + 1} are needed")
    theta, F = minimise(model, starts, X, y, np.ones((1, n)), lo, hi)
    best, agree = theta[F.argmin()], float((F <= F.min() * (1 + 1e-4)).mean())
    fitted, J = model(best[None], X)
    group = clusters(run, n)
    rng = np.random.default_rng(seed)
    draws, method = np.empty((0, len(best))), "none asked"
    if bootstrap:
        Y, W, method = resample(n, free, group, bootstrap, rng, fitted[0], y)
        draws, _ = minimise(model, np.repeat(best[None], bootstrap, 0), X, Y, W, lo, hi, *DRAW)
    point, boot = natural(best[None]), natural(draws)
    residual = y - fitted[0]
    fit = {"form": name, **{k: float(v[0]) for k, v in point.items()}, "n": n, "runs": int(group.max() + 1),
           "free": int(free),
           "objective": float(F.min()), "noise": float(np.sqrt((residual ** 2).sum() / (n - free))),
           "range": {k: [float(v.min()), float(v.max())] for k, v in span.items()}, "level": LEVEL, "method": method,
           "ci": {k: interval(v) for k, v in boot.items() if bootstrap and np.ptp(v) > 0},
           "boot": {k: rounded(v) for k, v in boot.items()}}
    fit["health"] = health(model, X, y, best, lo, hi, labels)
    fit["health"] |= {"starts": len(starts), "agree": agree}
    if bootstrap:
        fit["health"] |= influence(model, X, y, best, lo, hi, group, natural, boot)
    add_lines(fit)
    return fit


def health(model: Model, X: Array, y: Array, theta: Array, lo: Array, hi: Array, labels: list[str]) -> dict:
    """Is `theta` (p,) a minimum, and is it determined? Gradient, what a Newton step still promises, bounds, condition."""
    f, J = model(theta[None], X)
    r = y - f
    free = lo < hi
    _, g, promise = newton_step(J, r, np.ones_like(r), np.full(1, 1e-6), ~free[None])
    F = float(huber(r).sum())
    hits = [labels[k] for k in np.flatnonzero(free) if not lo[k] + 1e-6 < theta[k] < hi[k] - 1e-6]
    H = J[0, free] @ J[0, free].T
    scale = np.sqrt(np.maximum(np.diag(H), 1e-300))
    return {"gradient": float(np.linalg.norm(g) / max(F, 1e-300)),
            "improvable": float(min(promise[0] / max(F, 1e-300), 1)),
            "bounds": hits, "condition": float(np.linalg.cond(H / scale / scale[:, None]))}


def influence(model: Model, X: Array, y: Array, best: Array, lo: Array, hi: Array, group: Array,
              natural: Callable, boot: dict) -> dict:
    """Refit without each run in turn -> the run that moves a parameter most, in its bootstrap standard errors."""
    G = group.max() + 1
    if G > 500:                                         # one of more than 500 runs cannot carry a fit
        return {}
    W = (group[None] != np.arange(G)[:, None]).astype(float)
    theta, _ = minimise(model, np.repeat(best[None], G, 0), X, y, W, lo, hi, *DRAW)
    point, moved = natural(best[None]), natural(theta)
    names = [k for k in boot if k.startswith(("alpha", "beta", "c0", "R_"))]
    shift = {k: np.abs(moved[k] - point[k]) / max(np.std(boot[k]), 1e-12) for k in names}
    worst = max(names, key=lambda k: shift[k].max())
    row = int(shift[worst].argmax())
    return {"influence": {"row": int(np.flatnonzero(group == row)[0]), "parameter": worst,
                          "shift": float(shift[worst].max()), "without": float(moved[worst][row])}}


def add_lines(fit: dict) -> None:
    """Write health's verdict `ok` and its `lines`, a sentence of English for each thing that is wrong."""
    h, lines = fit["health"], []
    if h["improvable"] > 1e-4:
        lines.append(f"not at a minimum: one Newton step would lower the objective by {h['improvable']:.1%}")
    if h.get("agree", 1) < 0.3:
        lines.append(f"only {h['agree']:.0%} of {h['starts']} starts reach this optimum: there are others near it")
    if h["bounds"]:
        lines.append(f"the fit stopped at the bound of {', '.join(h['bounds'])}: these data do not determine it")
    floor = fit["ci"].get("E", fit["ci"].get("L_inf"))
    if floor and floor[1] > 0 and floor[0] <= 0.05 * fit["range"]["loss"][0]:
        lines.append("E is not identified: its interval reaches (almost) zero; a wider range of N and D would pin it")
    if h["condition"] > 1e6:
        lines.append(f"condition number {h['condition']:.0e}: some parameters can be traded for one another")
    if h.get("influence", {}).get("shift", 0) > 2:
        i = h["influence"]
        lines.append(f"one run (row {i['row'] + 1}) moves {i['parameter']} by {i['shift']:.1f} standard errors, "
                     f"to {i['without']:.3f} without it")
    if h.get("lack_of_fit", 0) > 3:
        lines.append(f"residuals are {h['lack_of_fit']:.1f} times the noise between seeds: the form, or the tuning of "
                     "some sizes, is off")
    h["lines"], h["ok"] = lines, not lines


def checked(**columns) -> tuple[Array, ...]:
    """The columns as float arrays of one length, all finite and positive. Raises UserError naming the first bad row."""
    arrays = [np.atleast_1d(np.asarray(v, float)) for v in columns.values()]
    for name, v in zip(columns, arrays):
        if len(v) != len(arrays[0]):
            raise UserError(f"{name} has {len(v)} values where {next(iter(columns))} has {len(arrays[0])}")
        bad = np.flatnonzero(~(np.isfinite(v) & (v > 0)))
        if len(bad):
            raise UserError(f"{name} must be a positive number: row {bad[0] + 1} holds {v[bad[0]]:g}; mend or remove it")
    return tuple(arrays)


def distinct(name: str, x: Array, need: int, what: str) -> None:
    """Raise UserError when the input `x` takes fewer than `need` values."""
    have = len(np.unique(x))
    if have < need:
        values = "the same value" if have == 1 else f"only {have} different values"
        raise UserError(f"all runs have {values} of {name}; {what} needs at least {need}")


def additive_bounds(L: Array, K: int, E: float | None) -> tuple[Array, Array, Array]:
    """(starts, lo, hi) for `additive` with K centred inputs and losses `L`. E = None is free, otherwise fixed."""
    low, top = np.log(L.min()), np.log(L.max())
    lo = np.array([low - 14, *[low - 14, 1e-3] * K])
    hi = np.array([low + 0.1, *[top + 3, 5.0] * K])
    if E is not None:
        lo[0] = hi[0] = np.log(E) if E > 0 else low - 40
    shares = E_STARTS if E is None else (min(E / L.min(), 0.9),)
    axes = np.meshgrid(shares, *[ALPHA_STARTS] * K, indexing="ij")
    share, *alphas = (v.ravel() for v in axes)
    part = np.log((np.median(L) - share * L.min()) / K)                     # the inputs share what E leaves over
    columns = [np.log(np.maximum(share, 1e-12) * L.min())]
    for alpha in alphas:
        columns += [part, alpha]
    return np.stack(columns, 1), lo, hi


def fit_power(x: Array, L: Array, run=None, irreducible: bool = True, name: str = "N", bootstrap: int = 1000,
              seed: int = 0) -> dict:
    """L(x) = L_inf + (x_c / x)^alpha for x = N, D, C or S (Kaplan et al. 2020, eqs. 1.1 to 1.3; L_inf = 0 there).

    Returns a fit with alpha, `{name}_c` and L_inf. Raises UserError.
    """
    x, L = checked(**{name: x, "loss": L})
    distinct(name, x, 3 if irreducible else 2, "a power law" + " with a floor" * irreducible)
    center = np.log(x).mean()
    starts, lo, hi = additive_bounds(L, 1, None if irreducible else 0.0)

    def natural(t):
        scale = np.exp(np.clip(t[:, 1] / t[:, 2] + center, -600, 600))
        return {"alpha": t[:, 2], f"{name}_c": scale, "L_inf": np.exp(t[:, 0]) * irreducible}
    return fit_law("power", additive, np.log(x)[None] - center, np.log(L), starts, lo, hi, natural,
                   ["L_inf", f"{name}_c", "alpha"], {name: x, "loss": L}, run, bootstrap, seed)


def surface_setup(N: Array, D: Array, L: Array, E: float | None):
    """What `fit_law` and the profile of E share: X (2, n), starts, lo, hi, natural."""
    X = np.log([N, D])
    center = X.mean(1)

    def natural(t):
        e, a, alpha, b, beta = t.T
        return {"E": np.exp(e) * (E is None or E > 0), "A": np.exp(a + alpha * center[0]),
                "B": np.exp(b + beta * center[1]), "alpha": alpha, "beta": beta,
                "a": beta / (alpha + beta), "b": alpha / (alpha + beta)}
    return X - center[:, None], *additive_bounds(L, 2, E), natural


def fit_surface(N: Array, D: Array, L: Array, run=None, E: float | None = None, bootstrap: int = 1000, seed: int = 0,
                noise: float = float("nan")) -> dict:
    """L(N, D) = E + A/N^alpha + B/D^beta: Hoffmann et al. 2022, approach 3, with E free or fixed (0: no floor).

    N parameters, D tokens, L nats per token, each (n,); `run` names the cluster of each row; `noise` is the standard
    deviation of log-loss between seeds, where known. Raises UserError.
    """
    N, D, L = checked(params=N, tokens=D, loss=L)
    distinct("params", N, 3 if E is None else 2, "the surface")
    distinct("tokens", D, 3 if E is None else 2, "the surface")
    X, starts, lo, hi, natural = surface_setup(N, D, L, E)
    fit = fit_law("surface", additive, X, np.log(L), starts, lo, hi, natural, ["E", "A", "alpha", "B", "beta"],
                  {"N": N, "D": D, "C": 6 * N * D, "loss": L}, run, bootstrap, seed)
    if noise > 0:
        fit["health"]["lack_of_fit"] = fit["noise"] / noise
        add_lines(fit)
    return fit


def surface_health(params: dict, N: Array, D: Array, L: Array, start: dict | None = None) -> dict:
    """Judge somebody's published surface {E, A, B, alpha, beta} on the data it was fitted to.

    Returns the health of the point itself beside `excess`, its objective over the best one minus 1, `best`, the
    parameters there, and `moved`, its largest distance from `start` in log-parameters (nan without a start).
    """
    N, D, L = checked(params=N, tokens=D, loss=L)
    X, starts, lo, hi, natural = surface_setup(N, D, L, None)
    center = np.log([N, D]).mean(1)

    def theta(p):
        return np.array([np.log(p["E"]), np.log(p["A"]) - p["alpha"] * center[0], p["alpha"],
                         np.log(p["B"]) - p["beta"] * center[1], p["beta"]])
    here, y = theta(params), np.log(L)
    best, F = minimise(additive, np.vstack([starts, here]), X, y, np.ones((1, len(y))), lo, hi)
    objective = float(huber(y - additive(here[None], X)[0]).sum())
    h = health(additive, X, y, here, lo, hi, ["E", "A", "alpha", "B", "beta"])
    h |= {"objective": objective, "excess": float(objective / F.min() - 1),
          "best": {k: float(v[0]) for k, v in natural(best[[F.argmin()]]).items()},
          "moved": float(np.abs(here - theta(start)).max()) if start else float("nan")}
    lines = []
    if h["excess"] > 1e-4:
        lines.append(f"not at the minimum: the objective is {h['excess']:.1%} above the best, where "
                     + ", ".join(f"{k} = {h['best'][k]:.4g}" for k in ("E", "A", "B", "alpha", "beta")))
        if h["moved"] < 0.05:
            lines.append(f"the optimiser hardly left its start (largest change of a log-parameter {h['moved']:.1g}): "
                         "it stopped at once, whatever it reports")
    h["lines"], h["ok"] = lines, not lines
    return h


# ---- What a surface predicts. ----

def surface_loss(p: dict, N: Array, D: Array) -> Array:
    """E + A/N^alpha + B/D^beta; everything broadcasts."""
    return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]


def outside(fit: dict, **inputs) -> dict:
    """{input: factor} by which each input lies outside the fit's range; inputs inside are left out."""
    factors = {}
    for k, v in inputs.items():
        lo, hi = fit["range"][k]
        factor = max(float(np.max(v)) / hi, lo / float(np.min(v)))
        if factor > 1 + 1e-9:
            factors[k] = factor
    return factors


def draws_of(fit: dict) -> dict:
    """The bootstrap draws of `fit` as columns (B, 1), ready to broadcast. Raises UserError when there are none."""
    if not fit["boot"] or not len(next(iter(fit["boot"].values()))):
        raise UserError("this fit has no bootstrap; fit again with --bootstrap=1000 to get intervals")
    return {k: np.array(v)[:, None] for k, v in fit["boot"].items()}


def predict_surface(fit: dict, N: Array, D: Array) -> Array:
    """Loss of N parameters after D tokens at the fitted point; N and D broadcast."""
    return surface_loss(fit, np.asarray(N, float), np.asarray(D, float))


def with_noise(loss: Array, noise: float, seed: int = 0) -> Array:
    """Draws of a loss (B, m) -> (20 B, m) draws of a *measured* loss, with log-normal noise of relative size `noise`."""
    z = np.random.default_rng(seed).standard_normal((20, len(loss), 1))
    return (loss * np.exp(noise * z)).reshape(-1, loss.shape[1])


def predict_interval(fit: dict, N: Array, D: Array, level: float = LEVEL, noise: float | None = None) -> dict:
    """Loss of new runs with N parameters and D tokens: {loss, lo, hi, level, noise, outside}, each (m,) a list.

    The interval holds a fresh *measurement*: the bootstrap of the parameters plus run-to-run noise, by default the
    residuals' standard deviation. noise=0 gives the interval of the law itself.
    """
    N, D = np.broadcast_arrays(np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float)))
    noise = fit["noise"] if noise is None else noise
    lo, hi = interval(with_noise(surface_loss(draws_of(fit), N[None], D[None]), noise), level)
    return {"loss": predict_surface(fit, N, D).tolist(), "lo": lo, "hi": hi, "level": level, "noise": noise,
            "outside": [outside(fit, N=n, D=d, C=6 * n * d) for n, d in zip(N, D)]}


def surface_optimum(p: dict, C: Array) -> tuple[Array, Array, Array]:
    """(N_opt, D_opt, loss) of a surface for C = 6 N D FLOPs (Hoffmann et al. 2022, eq. 4)."""
    alpha, beta = p["alpha"], p["beta"]
    log_G = np.log(alpha * p["A"] / (beta * p["B"])) / (alpha + beta)
    N = np.exp(log_G + beta / (alpha + beta) * np.log(C / 6))
    return N, C / (6 * N), surface_loss(p, N, C / (6 * N))


def optimum(fit: dict, C: float, level: float = LEVEL) -> dict:
    """The compute-optimal run for C = 6 N D FLOPs under a surface, or under frontiers' power laws (N_opt and loss of C).

    Returns {C, N_opt, D_opt, tokens_per_param, loss, ci: {each: [lo, hi]}, outside}. The interval of the loss is that
    of the law, without a run's noise. Raises UserError.
    """
    if not C > 0:
        raise UserError(f"a budget must be a positive number of FLOPs, not {C:g}")
    of = surface_optimum if fit["form"] == "surface" else power_optimum
    names = ("N_opt", "D_opt", "loss")
    result = {"C": float(C), **{k: float(v) for k, v in zip(names, of(fit, C))}}
    result["tokens_per_param"] = result["D_opt"] / result["N_opt"]
    result["ci"], result["outside"] = {}, outside(fit, C=C)
    if fit["boot"]:
        N, D, loss = (np.ravel(v) for v in of(draws_of(fit), C))
        result["ci"] = {k: interval(v, level) for k, v in zip((*names, "tokens_per_param"), (N, D, loss, D / N))}
    return result


def power_optimum(p: dict, C: Array) -> tuple[Array, Array, Array]:
    """(N_opt, D_opt, loss) where N_opt = k C^a and loss = L_inf + (C_c/C)^gamma, nan where the latter is absent."""
    N = np.exp(p["log_k"] + p["a"] * np.log(C))
    loss = p["L_inf"] + np.exp(p["gamma"] * (p["log_C_c"] - np.log(C))) if "gamma" in p else N * np.nan
    return N, C / (6 * N), loss


# ---- The other forms. ----

def fit_kaplan_nd(N: Array, D: Array, L: Array, run=None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Kaplan et al. 2020, eq. 1.5: L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D, without a floor. Raises UserError."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    distinct("params", N, 2, "L(N, D)")
    distinct("tokens", D, 2, "L(N, D)")
    X = np.log([N, D])
    center = X.mean(1)
    power, ratio = (v.ravel() for v in np.meshgrid((0.05, 0.1, 0.2, 0.4), (0.3, 0.7, 1.0, 1.5)))
    half = np.median(np.log(L)) / power - np.log(2)                        # both terms of the bracket start equal
    lo, hi = np.array([-500, 1e-3, -500, 1e-3]), np.array([2000, 20.0, 2000, 5.0])

    def natural(t):
        n_c, r, d_c, alpha_D = t.T
        return {"alpha_N": r * alpha_D, "alpha_D": alpha_D, "N_c": np.exp(np.clip(n_c / r + center[0], -600, 600)),
                "D_c": np.exp(np.clip(d_c + center[1], -600, 600))}
    return fit_law("kaplan_nd", kaplan_nd, X - center[:, None], np.log(L), np.stack([half, ratio, half, power], 1), lo, hi,
                   natural, ["N_c", "alpha_N/alpha_D", "D_c", "alpha_D"], {"N": N, "D": D, "C": 6 * N * D, "loss": L},
                   run, bootstrap, seed)


def fit_kaplan_ns(N: Array, S: Array, L: Array, run=None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Kaplan et al. 2020, eq. 1.6: L = (N_c/N)^alpha_N + (S_c/S)^alpha_S, S in optimiser steps. Raises UserError."""
    N, S, L = checked(params=N, steps=S, loss=L)
    distinct("params", N, 2, "L(N, S)")
    distinct("steps", S, 2, "L(N, S)")
    X = np.log([N, S])
    center = X.mean(1)
    starts, lo, hi = additive_bounds(L, 2, 0.0)

    def natural(t):
        scale = np.exp(np.clip(t[:, 1::2] / t[:, 2::2] + center, -600, 600))
        return {"alpha_N": t[:, 2], "alpha_S": t[:, 4], "N_c": scale[:, 0], "S_c": scale[:, 1]}
    return fit_law("kaplan_ns", additive, X - center[:, None], np.log(L), starts, lo, hi, natural,
                   ["E", "N_c", "alpha_N", "S_c", "alpha_S"], {"N": N, "S": S, "loss": L}, run, bootstrap, seed)


def fit_broken(x: Array, L: Array, run=None, name: str = "N", bootstrap: int = 1000, seed: int = 0) -> dict:
    """L_inf + A x^-c0 (1 + (x/x_break)^(1/f))^(-c1 f): the exponent turns from c0 to c0 + c1 at `x_break`, over a range
    that grows with f (Caballero et al. 2023). Raises UserError."""
    x, L = checked(**{name: x, "loss": L})
    distinct(name, x, 7, "a broken power law")
    X = np.log(x)[None]
    center = X.mean()
    low, top = np.log(L.min()), np.log(L.max())
    X = X - center
    lo = np.array([low - 14, low - 14, 1e-3, -2.0, X.min(), np.log(0.02)])
    hi = np.array([low + 0.1, top + 5, 3.0, 2.0, X.max(), np.log(3.0)])
    axes = np.meshgrid((0.1, 0.7), (0.05, 0.2, 0.5), (-0.1, 0.1), np.quantile(X, (0.25, 0.5, 0.75)), (-2.0, -0.5))
    share, c0, c1, at, log_f = (v.ravel() for v in axes)
    starts = np.stack([np.log(share) + low, np.log(np.median(L) - share * L.min()), c0, c1, at, log_f], 1)

    def natural(t):
        e, a, c0, c1, at, log_f = t.T
        return {"L_inf": np.exp(e), "A": np.exp(a + c0 * center), "c0": c0, "c1": c1, f"{name}_break": np.exp(at + center),
                "f": np.exp(log_f)}
    return fit_law("broken", broken, X, np.log(L), starts, lo, hi, natural, ["L_inf", "A", "c0", "c1", f"{name}_break", "f"],
                   {name: x, "loss": L}, run, bootstrap, seed)


def repeated_setup(N: Array, D: Array, U: Array, L: Array, base: dict | None):
    """What `fit_law` and the profile of R share: X (3, n), starts, lo, hi, natural. base = None frees all seven."""
    low, top = np.log(L.min()), np.log(L.max())
    names = ("E", "A", "B")
    first = base or fit_surface(N, D, L, bootstrap=0)
    theta = np.array([*(np.log(max(first[k], 1e-9)) for k in names), first["alpha"], first["beta"]])
    R = np.stack([v.ravel() for v in np.meshgrid(*[np.log([1, 5, 20, 200, 1e5])] * 2)], 1)
    starts = np.hstack([np.repeat(theta[None], len(R), 0), R])
    lo, hi = np.append(theta, np.log([0.05, 0.05])), np.append(theta, np.log([1e12, 1e12]))
    if base is None:
        lo[:5], hi[:5] = [low - 14, -10, -10, 0.02, 0.02], [low + 0.1, 60, 60, 3, 3]

    def natural(t):
        return {**{k: np.exp(t[:, i]) for i, k in enumerate(names)}, "alpha": t[:, 3], "beta": t[:, 4],
                "R_D": np.exp(t[:, 5]), "R_N": np.exp(t[:, 6])}
    return np.log([N, D, U]), starts, lo, hi, natural


def fit_repeated(N: Array, D: Array, U: Array, L: Array, run=None, base: dict | None = C4, bootstrap: int = 1000,
                 seed: int = 0) -> dict:
    """The data-constrained surface of Muennighoff et al. 2023: D tokens of which U are unique; decay constants R_D, R_N.

    `base` fixes E, A, B, alpha and beta (default: their values on C4); None fits them too. Raises UserError.
    """
    N, D, U, L = checked(params=N, tokens=D, unique_tokens=U, loss=L)
    if not (D > 1.001 * U).any():
        raise UserError("no run repeats its data (tokens > unique_tokens): the decay of repeated data cannot be fitted")
    X, starts, lo, hi, natural = repeated_setup(N, D, U, L, base)
    fit = fit_law("repeated", repeated, X, np.log(L), starts, lo, hi, natural,
                  ["E", "A", "B", "alpha", "beta", "R_D", "R_N"], {"N": N, "D": D, "U": U, "loss": L}, run, bootstrap, seed)
    for k in ("R_D", "R_N"):
        if k in fit["ci"] and fit["ci"][k][1] > 30 * fit["ci"][k][0]:
            fit["health"]["lines"].append(f"{k} is not identified: its interval is {fit['ci'][k][0]:.3g} to "
                                          f"{fit['ci'][k][1]:.3g}; runs of many more epochs would pin it")
            fit["health"]["ok"] = False
    return fit


def repeated_optimum(p: dict, C: float, U: float) -> tuple[float, float, float, float]:
    """(N, D, epochs, loss) that minimise `repeated_loss` for C = 6 N D FLOPs and U unique tokens, on a grid of log N."""
    low, high = 1e3, C / 6 / 1e3
    for _ in range(6):                                                      # each pass narrows the bracket 200-fold
        N = np.geomspace(low, high, 401)
        loss = repeated_loss(p, N, C / 6 / N, U)
        i = int(np.clip(loss.argmin(), 1, 399))
        low, high = N[i - 1], N[i + 1]
    return float(N[i]), float(C / 6 / N[i]), float(max(C / 6 / N[i] / U, 1)), float(loss[i])


# ---- Profiles: how far can one parameter move before the data object? ----

def profile(model: Model, X: Array, y: Array, starts: Array, lo: Array, hi: Array, k: int, grid: Array, run=None,
            bootstrap: int = 200, seed: int = 0) -> dict:
    """Profile likelihood of theta[k]: refit all others at each value of `grid` (G,) of it.

    `deviance` is 2 n log(F/F_min), minus twice a Laplace log-likelihood. Its cutoff is not taken from chi-squared, which
    would assume Laplace noise, but from the bootstrap: the 95 % quantile of the deviance, in each resample, of the
    value fitted to the data. Returns {grid, deviance, cutoff, lo, hi}; lo or hi is None where the profile never rises
    above the cutoff on that side.
    """
    n, G = len(y), len(grid)
    one = np.ones((1, n))
    theta, F = minimise(model, starts, X, y, one, lo, hi)
    best, least = theta[F.argmin()], F.min()
    near = np.vstack([best[None], theta[np.argsort(F)[:: max(1, len(F) // 12)]]])
    at = np.repeat(grid, len(near))

    def fixed(value, count):
        low, high = np.repeat(lo[None], count, 0), np.repeat(hi[None], count, 0)
        low[:, k] = high[:, k] = value
        return low, high
    _, F = minimise(model, np.tile(near, (G, 1)), X, y, one, *fixed(at, len(at)), *DRAW)
    deviance = 2 * n * np.log(np.maximum(F.reshape(G, -1).min(1) / least, 1))
    group = clusters(run, n)
    Y, W, _ = resample(n, int((lo < hi).sum()), group, bootstrap, np.random.default_rng(seed), model(best[None], X)[0][0], y)
    many = np.repeat(best[None], bootstrap, 0)
    _, free = minimise(model, many, X, Y, W, lo, hi, *DRAW)
    _, held = minimise(model, many, X, Y, W, *fixed(best[k], bootstrap), *DRAW)
    cutoff = float(np.quantile(2 * n * np.log(np.maximum(held / free, 1)), LEVEL))
    return {"grid": grid.tolist(), "deviance": deviance.tolist(), "cutoff": cutoff,
            **dict(zip(("lo", "hi"), crossings(grid, deviance, cutoff)))}


def crossings(x: Array, deviance: Array, cutoff: float) -> tuple[float | None, float | None]:
    """Where `deviance` last crosses `cutoff` on either side of its minimum, linearly between grid points, or None."""
    def cross(order):
        for i, j in zip(order, order[1:]):
            if deviance[j] > cutoff >= deviance[i]:
                return float(x[i] + (x[j] - x[i]) * (cutoff - deviance[i]) / (deviance[j] - deviance[i]))
        return None
    i = int(deviance.argmin())
    return cross(range(i, -1, -1)), cross(range(i, len(x)))


def profile_E(N: Array, D: Array, L: Array, run=None, bootstrap: int = 200, seed: int = 0) -> dict:
    """The profile of the surface's E, in nats: {grid, deviance, cutoff, lo, hi, identified}; lo is None when E = 0 fits."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    X, starts, lo, hi, _ = surface_setup(N, D, L, None)
    grid = L.min() * np.append(np.geomspace(1e-4, 0.02, 4), np.linspace(0.04, 1.04, 51))
    result = profile(additive, X, np.log(L), starts, lo, hi, 0, np.log(grid), run, bootstrap, seed)
    result |= {"grid": grid.tolist()} | {k: float(np.exp(result[k])) if result[k] is not None else None for k in ("lo", "hi")}
    return result | {"identified": result["lo"] is not None and result["hi"] is not None}


def profile_R(N: Array, D: Array, U: Array, L: Array, which: str = "R_D", base: dict | None = C4, bootstrap: int = 200,
              seed: int = 0) -> dict:
    """The profile of R_D or R_N of the data-constrained surface: {grid, deviance, cutoff, lo, hi, identified}."""
    X, starts, lo, hi, _ = repeated_setup(*checked(params=N, tokens=D, unique_tokens=U, loss=L), base)
    grid = np.log(np.geomspace(0.3, 1e6, 40))
    result = profile(repeated, X, np.log(L), starts, lo, hi, 5 + ("R_D", "R_N").index(which), grid, None, bootstrap, seed)
    result |= {"grid": np.exp(grid).tolist()} | {k: float(np.exp(result[k])) if result[k] is not None else None
                                                 for k in ("lo", "hi")}
    return result | {"identified": result["lo"] is not None and result["hi"] is not None}


# ---- Which form do the data prefer? ----

def loss_of(fit: dict, inputs: dict) -> Array:
    """The fitted point's loss at `inputs` {N, D, C, S or U: (m,)}, for any parametric form. Everything broadcasts."""
    form = fit["form"]
    if form == "surface":
        return surface_loss(fit, inputs["N"], inputs["D"])
    if form == "kaplan_nd":
        r = fit["alpha_N"] / fit["alpha_D"]
        return ((fit["N_c"] / inputs["N"]) ** r + fit["D_c"] / inputs["D"]) ** fit["alpha_D"]
    if form == "kaplan_ns":
        return (fit["N_c"] / inputs["N"]) ** fit["alpha_N"] + (fit["S_c"] / inputs["S"]) ** fit["alpha_S"]
    if form == "repeated":
        return repeated_loss(fit, inputs["N"], inputs["D"], inputs["U"])
    name = next(k for k in fit["range"] if k != "loss")
    x = inputs[name]
    if form == "power":
        return fit["L_inf"] + (fit[f"{name}_c"] / x) ** fit["alpha"]
    return (fit["L_inf"] + fit["A"] * x ** -fit["c0"]
            * (1 + (x / fit[f"{name}_break"]) ** (1 / fit["f"])) ** (-fit["c1"] * fit["f"]))


def compare(fits: dict[str, Callable], inputs: dict, L: Array, largest: float = 0.2) -> dict:
    """Forms against each other: {form: {parameters, aicc, held_out, n}}, and `preferred` by each of the two measures.

    `fits` maps a form's name to a function (inputs, L) -> fit; `inputs` {name: (n,)}. AICc is of a Laplace likelihood,
    relative to the best. `held_out` is the mean |log error| on the largest fifth of the first input's values (models),
    predicted from the others: what extrapolation costs. A form that cannot be fitted is reported with the reason.
    """
    first = next(iter(inputs.values()))
    sizes = np.unique(first)
    big = first >= sizes[-max(1, int(round(largest * len(sizes))))]
    table, n = {}, len(L)
    for name, fit in fits.items():
        try:
            full = fit(inputs, L)
            part = fit({k: v[~big] for k, v in inputs.items()}, L[~big])
        except UserError as e:
            table[name] = {"refused": str(e)}
            continue
        k = full["free"] + 1                                                # and the scale of the noise
        error = np.abs(np.log(loss_of(part, {q: v[big] for q, v in inputs.items()}) / L[big]))
        table[name] = {"parameters": full["free"], "held_out": float(error.mean()), "objective": full["objective"],
                       "aicc": 2 * n * np.log(full["objective"]) + 2 * k + (2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf)}
    fitted = {name: row for name, row in table.items() if "aicc" in row}
    least = min((row["aicc"] for row in fitted.values()), default=0)
    for row in fitted.values():
        row["aicc"] = float(row["aicc"] - least)
    best = {by: min(fitted, key=lambda f: fitted[f][by]) for by in ("aicc", "held_out")} if fitted else {}
    return {"forms": table, "preferred": best, "held_out_rows": int(big.sum()), "n": n}


def compare_surfaces(N: Array, D: Array, L: Array) -> dict:
    """`compare` of the surface with and without E and of Kaplan's L(N, D)."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    return compare({"E + A/N^alpha + B/D^beta": lambda x, y: fit_surface(x["N"], x["D"], y, bootstrap=0),
                    "A/N^alpha + B/D^beta": lambda x, y: fit_surface(x["N"], x["D"], y, E=0.0, bootstrap=0),
                    "Kaplan L(N, D)": lambda x, y: fit_kaplan_nd(x["N"], x["D"], y, bootstrap=0)}, {"N": N, "D": D}, L)


def compare_powers(x: Array, L: Array, name: str = "N") -> dict:
    """`compare` of a power law with and without a floor and of a smoothly broken one, all in one input."""
    x, L = checked(**{name: x, "loss": L})
    return compare({"power law with a floor": lambda v, y: fit_power(v[name], y, name=name, bootstrap=0),
                    "power law": lambda v, y: fit_power(v[name], y, irreducible=False, name=name, bootstrap=0),
                    "broken power law": lambda v, y: fit_broken(v[name], y, name=name, bootstrap=0)}, {name: x}, L)
