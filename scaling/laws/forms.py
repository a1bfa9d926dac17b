"""Scaling laws: the parametric forms of the field, their fits, and what a fit predicts. Knows nothing of
torch.

Every form here gives log-loss, and every fit goes through `scaling.laws.solver`: the summed Huber loss (delta
1e-3) of log-residuals, many starts, a Newton method on centred logarithms, 95 % bootstrap intervals, a health
report.

A fit is a plain dict: the parameters by name, `n`, `objective`, `ci` (intervals), `boot` (the parameters of
each bootstrap resample, from which every derived interval comes), `range`, `noise` (standard deviation of the
log-residuals), `method` (how the intervals were made) and `health`, whose `lines` say in English what is
wrong.
"""
from collections.abc import Callable

import numpy as np

from runtime.basics import UserError
from scaling.laws.solver import (
    LEVEL,
    Array,
    add_lines,
    clusters,
    fit_law,
    health,
    huber,
    interval,
    minimise,
    profile,
)

# Exponents and shares of E to start from. On all data seen so far every one of them ends in the same optimum.
ALPHA_STARTS, E_STARTS = (0.1, 0.2, 0.35, 0.6, 1.0), (0.1, 0.5, 0.9)
# Muennighoff et al. 2023, fitted to C4: E, A, B, alpha = beta, and the two constants of repeated data.
C4 = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596,
      "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743}


# ---- The forms: theta (B, p) is a batch of parameters, X (k, n) the logarithms of k inputs of n runs. ----

@np.errstate(over="ignore", invalid="ignore")          # a step too far; the solver refuses it
def additive(theta: Array, X: Array) -> tuple[Array, Array]:
    """log(e^e + sum_k e^(a_k - alpha_k x_k)), theta = (e, a_1, alpha_1, a_2, alpha_2, ...).

    With one input this is L(N) = E + A/N^alpha, with two the surface of Hoffmann et al. 2022 (eq. 2); without
    E and with (N, S) it is Kaplan et al. 2020, eq. 1.6. Returns log-loss (B, n) and gradient (B, p, n).
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
    """How many fresh units `total` units are worth when only `unique` differ: value decays with repetition,
    constant R (Muennighoff et al. 2023, eq. 5)."""
    return unique * (1 - R * np.expm1(-(total / unique - 1) / R))


def repeated_loss(p: dict, N: Array, D: Array, U: Array) -> Array:
    """Loss of N parameters trained on D tokens of which U are unique (Muennighoff et al. 2023, eqs. 5, 6 and
    8).

    Repeats beyond the first epoch, and parameters beyond what is optimal for U, decay in value with constants
    R_D and R_N. `p` has E, A, B, alpha, beta, R_D, R_N; all broadcast.
    """
    U = np.minimum(D, U)
    log_G = np.log(p["alpha"] * p["A"] / (p["beta"] * p["B"])) / (p["alpha"] + p["beta"])
    N_opt = np.exp(log_G + p["beta"] / p["alpha"] * (np.log(U) + log_G))    # optimal for U tokens seen once
    return (p["E"] + p["A"] * worth(np.minimum(N, N_opt), N, p["R_N"]) ** -p["alpha"]
            + p["B"] * worth(U, D, p["R_D"]) ** -p["beta"])


def decay(x: Array, log_R: Array) -> tuple[Array, Array, Array]:
    """log(1 + R (1 - e^(-x/R))), its derivative in log R, and that of log(unique times it) in log unique."""
    R = np.exp(log_R)
    gone = np.exp(-x / R)
    w = 1 - R * np.expm1(-x / R)
    return np.log(w), -(R * np.expm1(-x / R) + x * gone) / w, 1 - gone * (1 + x) / w


def repeated(theta: Array, X: Array) -> tuple[Array, Array]:
    """`repeated_loss` with theta = (log E, log A, log B, alpha, beta, log R_D, log R_N) and X = log (N, D,
    U)."""
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
    # Below, only the chain N_opt -> N' is left: how the fitted law itself says which parameters are in
    # excess.
    chain, grow = np.where(excess, -al * pN * dn, 0), 1 + be / al
    return y, np.stack([pE, pN + chain * grow / s, pD - chain * grow / s,
                        -pN * log_n + chain * (grow * (1 / al - log_G) / s - be / al ** 2 * (u + log_G)),
                        -pD * log_d + chain * (-grow * (1 / be + log_G) / s + (u + log_G) / al),
                        -be * pD * dRD, -al * pN * dRN], 1)


# ---- Power laws and the surface. ----

def checked(**columns) -> tuple[Array, ...]:
    """The columns as float arrays of one length, finite and positive. Raises UserError for the first bad
    row."""
    arrays = [np.atleast_1d(np.asarray(v, float)) for v in columns.values()]
    for name, v in zip(columns, arrays):
        if len(v) != len(arrays[0]):
            raise UserError(f"{name} has {len(v)} values where {next(iter(columns))} has {len(arrays[0])}")
        bad = np.flatnonzero(~(np.isfinite(v) & (v > 0)))
        if len(bad):
            raise UserError(f"{name} must be a positive number: row {bad[0] + 1} holds {v[bad[0]]:g}; mend "
                            "or remove it")
    return tuple(arrays)


def distinct(name: str, x: Array, need: int, what: str) -> None:
    """Raise UserError when the input `x` takes fewer than `need` values."""
    have = len(np.unique(x))
    if have < need:
        values = "the same value" if have == 1 else f"only {have} different values"
        raise UserError(f"all runs have {values} of {name}; {what} needs at least {need}")


def additive_bounds(L: Array, K: int, E: float | None) -> tuple[Array, Array, Array]:
    """(starts, lo, hi) for `additive` with K centred inputs and losses `L`; E is free where None, else
    fixed."""
    low, top = np.log(L.min()), np.log(L.max())
    lo = np.array([low - 14, *[low - 14, 1e-3] * K])
    hi = np.array([low + 0.1, *[top + 3, 5.0] * K])
    if E is not None:
        lo[0] = hi[0] = np.log(E) if E > 0 else low - 40
    shares = E_STARTS if E is None else (min(E / L.min(), 0.9),)
    axes = np.meshgrid(shares, *[ALPHA_STARTS] * K, indexing="ij")
    share, *alphas = (v.ravel() for v in axes)
    part = np.log((np.median(L) - share * L.min()) / K)                 # the inputs share what E leaves over
    columns = [np.log(np.maximum(share, 1e-12) * L.min())]
    for alpha in alphas:
        columns += [part, alpha]
    return np.stack(columns, 1), lo, hi


def fit_power(x: Array, L: Array, run=None, irreducible: bool = True, name: str = "N", bootstrap: int = 1000,
              seed: int = 0) -> dict:
    """L(x) = L_inf + (x_c / x)^alpha for x = N, D, C or S (Kaplan et al. 2020, eqs. 1.1 to 1.3: L_inf = 0).

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


def fit_surface(N: Array, D: Array, L: Array, run=None, E: float | None = None, bootstrap: int = 1000,
                seed: int = 0, noise: float = float("nan")) -> dict:
    """L(N, D) = E + A/N^alpha + B/D^beta: Hoffmann et al. 2022, approach 3; E free, or fixed (0: no floor).

    N parameters, D tokens, L nats per token, each (n,); `run` names the cluster of each row; `noise` is the
    standard deviation of log-loss between seeds, where known. Raises UserError.
    """
    N, D, L = checked(params=N, tokens=D, loss=L)
    distinct("params", N, 3 if E is None else 2, "the surface")
    distinct("tokens", D, 3 if E is None else 2, "the surface")
    X, starts, lo, hi, natural = surface_setup(N, D, L, E)
    fit = fit_law("surface", additive, X, np.log(L), starts, lo, hi, natural,
                  ["E", "A", "alpha", "B", "beta"], {"N": N, "D": D, "C": 6 * N * D, "loss": L},
                  run, bootstrap, seed)
    if noise > 0:
        fit["health"]["lack_of_fit"] = fit["noise"] / noise
        add_lines(fit)
    return fit


def surface_health(params: dict, N: Array, D: Array, L: Array, start: dict | None = None) -> dict:
    """Judge somebody's published surface {E, A, B, alpha, beta} on the data it was fitted to.

    Returns the health of the point itself beside `excess`, its objective over the best one minus 1, `best`,
    the parameters there, and `moved`, its largest distance from `start` in log-parameters (nan without a
    start).
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
            lines.append(f"the optimiser hardly left its start (largest change of a log-parameter "
                         f"{h['moved']:.1g}): it stopped at once, whatever it reports")
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
    """The bootstrap draws of `fit` as columns (B, 1), ready to broadcast. Raises UserError without any."""
    if not any(len(v) for v in fit["boot"].values()):
        raise UserError("this fit has no bootstrap; fit again with --bootstrap=1000 to get intervals")
    return {k: np.array(v, float)[:, None] for k, v in fit["boot"].items()}


def predict_surface(fit: dict, N: Array, D: Array) -> Array:
    """Loss of N parameters after D tokens at the fitted point; N and D broadcast."""
    return surface_loss(fit, np.asarray(N, float), np.asarray(D, float))


def with_noise(loss: Array, noise: float, seed: int = 0) -> Array:
    """Draws of a loss (B, m) -> draws of a *measured* loss (20 B, m), with relative noise `noise`."""
    z = np.random.default_rng(seed).standard_normal((20, len(loss), 1))
    return (loss * np.exp(noise * z)).reshape(-1, loss.shape[1])


def predict_interval(fit: dict, N: Array, D: Array, level: float = LEVEL, noise: float | None = None) -> dict:
    """Loss of new runs with N parameters and D tokens: {loss, lo, hi, outside} as lists (m,), level, noise.

    The interval holds a fresh *measurement*: the bootstrap of the parameters plus run-to-run noise, by
    default the residuals' standard deviation. noise=0 gives the interval of the law itself.
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
    """The compute-optimal run for C = 6 N D FLOPs, by a surface or by a frontier's power laws in C.

    Returns {C, N_opt, D_opt, tokens_per_param, loss, ci: {each: [lo, hi]}, outside}. The interval of the loss
    is that of the law, without a run's noise. Raises UserError.
    """
    if not C > 0:
        raise UserError(f"a budget must be a positive number of FLOPs, not {C:g}")
    of = surface_optimum if fit["form"] == "surface" else power_optimum
    names = ("N_opt", "D_opt", "loss")
    result = {"C": float(C), **{k: float(v) for k, v in zip(names, of(fit, C))}}
    result["tokens_per_param"] = result["D_opt"] / result["N_opt"]
    result["ci"], result["outside"] = {}, outside(fit, C=C)
    if any(len(v) for v in fit["boot"].values()):
        N, D, loss = (np.ravel(v) for v in of(draws_of(fit), C))
        with np.errstate(over="ignore"):               # of a resample that determines nothing
            draws = zip((*names, "tokens_per_param"), (N, D, loss, D / N))
        result["ci"] = {k: interval(v, level) for k, v in draws}
    return result


def power_optimum(p: dict, C: Array) -> tuple[Array, Array, Array]:
    """(N_opt, D_opt, loss) where N_opt = k C^a and loss = L_inf + (C_c/C)^gamma (nan without gamma)."""
    N = np.exp(p["log_k"] + p["a"] * np.log(C))
    loss = p["L_inf"] + np.exp(p["gamma"] * (p["log_C_c"] - np.log(C))) if "gamma" in p else N * np.nan
    return N, C / (6 * N), loss


# ---- The other forms. ----

def fit_kaplan_nd(N: Array, D: Array, L: Array, run=None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Kaplan et al. 2020, eq. 1.5: L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D. Raises UserError."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    distinct("params", N, 2, "L(N, D)")
    distinct("tokens", D, 2, "L(N, D)")
    X = np.log([N, D])
    center = X.mean(1)
    power, ratio = (v.ravel() for v in np.meshgrid((0.05, 0.1, 0.2, 0.4), (0.3, 0.7, 1.0, 1.5)))
    half = np.median(np.log(L)) / power - np.log(2)                 # both terms of the bracket start equal
    starts = np.stack([half, ratio, half, power], 1)
    lo, hi = np.array([-500, 1e-3, -500, 1e-3]), np.array([2000, 20.0, 2000, 5.0])

    def natural(t):
        n_c, r, d_c, alpha_D = t.T
        return {"alpha_N": r * alpha_D, "alpha_D": alpha_D,
                "N_c": np.exp(np.clip(n_c / r + center[0], -600, 600)),
                "D_c": np.exp(np.clip(d_c + center[1], -600, 600))}
    return fit_law("kaplan_nd", kaplan_nd, X - center[:, None], np.log(L), starts, lo, hi, natural,
                   ["N_c", "alpha_N/alpha_D", "D_c", "alpha_D"], {"N": N, "D": D, "C": 6 * N * D, "loss": L},
                   run, bootstrap, seed)


def fit_kaplan_ns(N: Array, S: Array, L: Array, run=None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Kaplan et al. 2020, eq. 1.6: L = (N_c/N)^alpha_N + (S_c/S)^alpha_S, S in steps. Raises UserError."""
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
                   ["E", "N_c", "alpha_N", "S_c", "alpha_S"], {"N": N, "S": S, "loss": L},
                   run, bootstrap, seed)


def fit_broken(x: Array, L: Array, run=None, name: str = "N", bootstrap: int = 1000, seed: int = 0) -> dict:
    """L_inf + A x^-c0 (1 + (x/x_break)^(1/f))^(-c1 f): the exponent turns from c0 to c0 + c1 at `x_break`,
    over a range that grows with f (Caballero et al. 2023). Raises UserError."""
    x, L = checked(**{name: x, "loss": L})
    distinct(name, x, 7, "a broken power law")
    X = np.log(x)[None]
    center = X.mean()
    low, top = np.log(L.min()), np.log(L.max())
    X = X - center
    lo = np.array([low - 14, low - 14, 1e-3, -2.0, X.min(), np.log(0.02)])
    hi = np.array([low + 0.1, top + 5, 3.0, 2.0, X.max(), np.log(3.0)])
    at = np.quantile(X, (0.25, 0.5, 0.75))
    axes = np.meshgrid((0.1, 0.7), (0.05, 0.2, 0.5), (-0.1, 0.1), at, (-2.0, -0.5))
    share, c0, c1, at, log_f = (v.ravel() for v in axes)
    starts = np.stack([np.log(share) + low, np.log(np.median(L) - share * L.min()), c0, c1, at, log_f], 1)

    def natural(t):
        e, a, c0, c1, at, log_f = t.T
        return {"L_inf": np.exp(e), "A": np.exp(a + c0 * center), "c0": c0, "c1": c1,
                f"{name}_break": np.exp(at + center), "f": np.exp(log_f)}
    return fit_law("broken", broken, X, np.log(L), starts, lo, hi, natural,
                   ["L_inf", "A", "c0", "c1", f"{name}_break", "f"], {name: x, "loss": L},
                   run, bootstrap, seed)


def repeated_setup(N: Array, D: Array, U: Array, L: Array, base: dict | None):
    """What `fit_law` and the profile of R share: X (3, n), starts, lo, hi, natural. base = None frees all."""
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


def fit_repeated(N: Array, D: Array, U: Array, L: Array, run=None, base: dict | None = C4,
                 bootstrap: int = 1000, seed: int = 0) -> dict:
    """The data-constrained surface of Muennighoff et al. 2023: N parameters, D tokens of which U are unique.

    `base` fixes E, A, B, alpha and beta (default: their values on C4); None fits them too. Raises UserError.
    """
    N, D, U, L = checked(params=N, tokens=D, unique_tokens=U, loss=L)
    if not (D > 1.001 * U).any():
        raise UserError("no run repeats its data (tokens > unique_tokens): its decay cannot be fitted")
    X, starts, lo, hi, natural = repeated_setup(N, D, U, L, base)
    fit = fit_law("repeated", repeated, X, np.log(L), starts, lo, hi, natural,
                  ["E", "A", "B", "alpha", "beta", "R_D", "R_N"], {"N": N, "D": D, "U": U, "loss": L}, run,
                  bootstrap, seed)
    for k in ("R_D", "R_N"):
        if k in fit["ci"] and fit["ci"][k][1] > 30 * fit["ci"][k][0]:
            fit["health"]["lines"].append(f"{k} is not identified: its interval is {fit['ci'][k][0]:.3g} to "
                                          f"{fit['ci'][k][1]:.3g}; runs of many more epochs would pin it")
            fit["health"]["ok"] = False
    return fit


def repeated_optimum(p: dict, C: float, U: float) -> tuple[float, float, float, float]:
    """(N, D, epochs, loss) of the least `repeated_loss` for C = 6 N D FLOPs and U unique tokens."""
    low, high = 1e3, C / 6 / 1e3
    for _ in range(6):                                                  # each pass narrows it 200-fold
        N = np.geomspace(low, high, 401)
        loss = repeated_loss(p, N, C / 6 / N, U)
        i = int(np.clip(loss.argmin(), 1, 399))
        low, high = N[i - 1], N[i + 1]
    return float(N[i]), float(C / 6 / N[i]), float(max(C / 6 / N[i] / U, 1)), float(loss[i])


# ---- Profiles: how far can one parameter move before the data object? ----

def in_units(result: dict) -> dict:
    """A profile over a logarithm, with its grid and ends exponentiated, and whether both ends exist."""
    ends = {k: float(np.exp(result[k])) if result[k] is not None else None for k in ("lo", "hi")}
    return result | ends | {"grid": np.exp(result["grid"]).tolist(), "identified": None not in ends.values()}


def profile_E(N: Array, D: Array, L: Array, run=None, bootstrap: int = 200, seed: int = 0) -> dict:
    """The profile of the surface's E in nats: {grid, deviance, cutoff, lo, hi, identified}; lo None: 0
    fits."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    X, starts, lo, hi, _ = surface_setup(N, D, L, None)
    grid = np.log(L.min() * np.append(np.geomspace(1e-4, 0.02, 4), np.linspace(0.04, 1.04, 51)))
    return in_units(profile(additive, X, np.log(L), starts, lo, hi, 0, grid, run, bootstrap, seed))


def profile_R(N: Array, D: Array, U: Array, L: Array, which: str = "R_D", base: dict | None = C4,
              bootstrap: int = 200, seed: int = 0) -> dict:
    """The profile of R_D or R_N of `fit_repeated`: {grid, deviance, cutoff, lo, hi, identified}."""
    X, starts, lo, hi, _ = repeated_setup(*checked(params=N, tokens=D, unique_tokens=U, loss=L), base)
    k, grid = 5 + ("R_D", "R_N").index(which), np.log(np.geomspace(0.3, 1e6, 40))
    return in_units(profile(repeated, X, np.log(L), starts, lo, hi, k, grid, None, bootstrap, seed))


# ---- Which form do the data prefer? ----

def loss_of(fit: dict, inputs: dict) -> Array:
    """The loss of any parametric form at `inputs` {N, D, C, S or U: (m,)}; everything broadcasts."""
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


def compare(fits: dict[str, Callable], inputs: dict, L: Array, run=None, largest: float = 0.2) -> dict:
    """Forms against each other: {forms: {name: {parameters, objective, aicc, held_out}}, preferred}.

    `fits` maps a form's name to a function (inputs, L) -> fit; `inputs` {name: (n,)}. AICc is of a Laplace
    likelihood, relative to the best, and takes a learning curve (the rows of one `run`) for one observation.
    `held_out` is the mean |log error| on the largest fifth of the first input's values (models), predicted
    from the others: what extrapolation costs. A form that cannot be fitted is reported with the reason.
    """
    first = next(iter(inputs.values()))
    sizes = np.unique(first)
    big = first >= sizes[-max(1, int(round(largest * len(sizes))))]
    table, n = {}, int(clusters(run, len(L)).max()) + 1
    for name, fit in fits.items():
        try:
            full = fit(inputs, L)
            part = fit({k: v[~big] for k, v in inputs.items()}, L[~big])
        except UserError as e:
            table[name] = {"refused": str(e)}
            continue
        k = full["free"] + 1                                            # and the scale of the noise
        small = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf
        aicc = 2 * n * np.log(max(full["objective"], 1e-300)) + 2 * k + small
        error = np.abs(np.log(loss_of(part, {q: v[big] for q, v in inputs.items()}) / L[big]))
        table[name] = {"parameters": full["free"], "held_out": float(error.mean()),
                       "objective": full["objective"], "aicc": aicc}
    fitted = {name: row for name, row in table.items() if "aicc" in row}
    least = min((row["aicc"] for row in fitted.values()), default=0)
    for row in fitted.values():
        row["aicc"] = float(row["aicc"] - least)
    best = {by: min(fitted, key=lambda f: fitted[f][by]) for by in ("aicc", "held_out")} if fitted else {}
    return {"forms": table, "preferred": best, "held_out_rows": int(big.sum()), "n": n}


def compare_surfaces(N: Array, D: Array, L: Array, run: Array | None = None) -> dict:
    """`compare` of the surface with and without E and of Kaplan's L(N, D)."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    forms = {"E + A/N^alpha + B/D^beta": lambda x, y: fit_surface(x["N"], x["D"], y, bootstrap=0),
             "A/N^alpha + B/D^beta": lambda x, y: fit_surface(x["N"], x["D"], y, E=0.0, bootstrap=0),
             "Kaplan L(N, D)": lambda x, y: fit_kaplan_nd(x["N"], x["D"], y, bootstrap=0)}
    return compare(forms, {"N": N, "D": D}, L, run)


def compare_powers(x: Array, L: Array, name: str = "N") -> dict:
    """`compare` of a power law with and without a floor and of a smoothly broken one, all in one input."""
    x, L = checked(**{name: x, "loss": L})
    forms = {"power law with a floor": lambda v, y: fit_power(v[name], y, name=name, bootstrap=0),
             "power law": lambda v, y: fit_power(v[name], y, irreducible=False, name=name, bootstrap=0),
             "broken power law": lambda v, y: fit_broken(v[name], y, name=name, bootstrap=0)}
    return compare(forms, {name: x}, L)
