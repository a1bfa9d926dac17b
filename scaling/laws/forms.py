"""Scaling laws: the parametric forms of the field, their fits, and what a fit predicts. No torch, no files.

Each law is a model (log-loss and its gradient) and one row of the table FORMS, so `loss_of` evaluates any of
them. Every fit goes through `scaling.laws.solver`: the summed Huber loss (delta 1e-3) of log-residuals,
many starts, a Newton method on centred logarithms, 95 % bootstrap intervals, findings about its health.

A fit is a plain dict: `form`, the parameters by name, `n`, `objective`, `ci` (intervals), `boot` (the
parameters of each bootstrap resample, from which every derived interval comes), `range`, `noise` (standard
deviation of the log-residuals), `method` (how the intervals were made) and `health`, whose `lines` say in
English what is wrong (scaling/laws/health.py).
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from runtime.basics import UserError
from scaling.laws.health import judge
from scaling.laws.solver import (
    Array,
    Model,
    Problem,
    clusters,
    evidence,
    fit_law,
    huber,
    interval,
    intervals,
    profile,
    score_test,
    span,
)

# Exponents and shares of E to start from. On all data seen so far every one of them ends in the same optimum.
ALPHA_STARTS = (0.1, 0.2, 0.35, 0.6, 1.0)
E_STARTS = (0.1, 0.5, 0.9)
SAME = 0.01                                             # C within this of 6 N D is 6 N D
# Muennighoff et al. 2023, fitted to C4: E, A, B, alpha = beta, and the two constants of repeated data.
C4 = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596,
      "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743}


# ---- Models: theta (B, p) is a batch of parameters, X (k, n) or (B, k, n) the logarithms of k inputs. ----

@np.errstate(over="ignore", invalid="ignore")          # a step too far; the solver refuses it
def additive(theta: Array, X: Array) -> tuple[Array, Array]:
    """log(e^e + sum_k e^(a_k - alpha_k x_k)), theta = (e, a_1, alpha_1, a_2, alpha_2, ...).

    With one input this is L(N) = E + A/N^alpha, with two the surface of Hoffmann et al. 2022 (eq. 2); without
    E (e = -inf) and with (N, S) it is Kaplan et al. 2020, eq. 1.6. Returns log-loss (B, n) and gradient
    (B, p, n).
    """
    E = np.exp(theta[:, :1])
    terms = np.exp(theta[:, 1::2, None] - theta[:, 2::2, None] * X)
    L = E + terms.sum(1)
    grad = np.empty((*theta.shape, X.shape[-1]))
    grad[:, 0] = E / L
    grad[:, 1::2] = terms / L[:, None]
    grad[:, 2::2] = -grad[:, 1::2] * X
    return np.log(L), grad


def one_exponent(theta: Array, X: Array) -> tuple[Array, Array]:
    """Gadre et al. 2024, eq. 4: Hoffmann's form with one exponent; theta = (e, a, b, eta)."""
    y, grad = additive(theta[:, [0, 1, 3, 2, 3]], X)
    return y, np.stack([grad[:, 0], grad[:, 1], grad[:, 3], grad[:, 2] + grad[:, 4]], 1)


def kaplan_nd(theta: Array, X: Array) -> tuple[Array, Array]:
    """Kaplan et al. 2020, eq. 1.5: L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D.

    theta = (n_c, r, d_c, alpha_D), where r = alpha_N/alpha_D and the bracket is e^(n_c - r n) + e^(d_c - d).
    """
    n_c, r, d_c, power = theta.T[:, :, None]
    n, d = np.moveaxis(X, -2, 0)
    u = n_c - r * n
    v = d_c - d
    bracket = np.logaddexp(u, v)
    pu = np.exp(u - bracket)
    pv = np.exp(v - bracket)
    grad = [power * pu,
            -power * pu * n,
            power * pv,
            bracket]
    return power * bracket, np.stack(grad, 1)


def broken(theta: Array, X: Array) -> tuple[Array, Array]:
    """Smoothly broken power law with one break (Caballero et al. 2023, eq. 1 with n = 1):
    L = E + A x^-c0 (1 + (x/d)^(1/f))^(-c1 f); theta = (e, a, c0, c1, log d, log f)."""
    e, a, c0, c1, d, log_f = theta.T[:, :, None]
    x = X[..., 0, :]
    f = np.exp(log_f)
    u = (x - d) / f
    soft = np.logaddexp(0, u)                           # log(1 + e^u)
    slope = 0.5 * (1 + np.tanh(u / 2))                  # and its derivative
    z = a - c0 * x - c1 * f * soft
    y = np.logaddexp(e, z)
    pz = np.exp(z - y)
    grad = [np.exp(e - y),
            pz,
            pz * -x,
            pz * -(f * soft),
            pz * (c1 * slope),
            pz * (c1 * f * (u * slope - soft))]
    return y, np.stack(grad, 1)


def decay(x, log_R) -> tuple[Array, Array, Array]:
    """What x repeats are worth (Muennighoff et al. 2023, eq. 5): log(1 + R (1 - e^(-x/R))), its derivative in
    log R, and that of log(unique times it) in log unique."""
    R = np.exp(log_R)
    gone = np.exp(-x / R)
    worth = -R * np.expm1(-x / R)
    w = 1 + worth
    return np.log(w), (worth - x * gone) / w, 1 - gone * (1 + x) / w


def repeated(theta: Array, X: Array) -> tuple[Array, Array]:
    """The surface of N parameters trained on D tokens of which U are unique: theta = (log E, log A, alpha,
    log B, beta, log R_D, log R_N), X = log (N, D, U), not centred (Muennighoff et al. 2023, eqs. 5, 6, 8).

    Repeats beyond the first epoch, and parameters beyond what is optimal for U, decay in value with constants
    R_D and R_N.
    """
    _, a, alpha, b, beta, log_RD, log_RN = theta.T[:, :, None]
    n, d, u = np.moveaxis(X, -2, 0)
    u = np.minimum(d, u)
    # Where U tokens seen once are optimal, both terms fall alike: alpha A/N^alpha = beta B/U^beta.
    n_opt = (np.log(alpha / beta) + a - b + beta * u) / alpha
    n_unique = np.minimum(n, n_opt)
    more_d, by_RD, _ = decay(np.expm1(d - u), log_RD)
    more_n, by_RN, by_n = decay(np.expm1(n - n_unique), log_RN)
    y, grad = additive(theta[:, :5], np.stack([n_unique + more_n, u + more_d], 1))
    by_RN = -alpha * grad[:, 1] * by_RN
    by_RD = -beta * grad[:, 3] * by_RD
    # The law itself says which parameters are in excess, so A, alpha, B and beta also act through N_opt.
    through = np.where(n > n_opt, -grad[:, 1] * by_n, 0)
    grad[:, 1] += through
    grad[:, 2] += through * (1 / alpha - n_opt)
    grad[:, 3] -= through
    grad[:, 4] += through * (u - 1 / beta)
    return y, np.concatenate([grad, by_RD[:, None], by_RN[:, None]], 1)


# ---- From theta to parameters as papers print them, and back; n, d, s, x, c: the means of the inputs. ----

def scale(x: Array) -> Array:
    """e^x within what a float holds: an N_c can lie anywhere where its exponent is almost 0."""
    return np.exp(np.clip(x, -600, 600))


def surface_of(theta, n, d):
    e, a, alpha, b, beta = theta.T
    return {"E": np.exp(e),
            "A": np.exp(a + alpha * n),
            "B": np.exp(b + beta * d),
            "alpha": alpha,
            "beta": beta,
            "a": beta / (alpha + beta),                 # exponents of N_opt and D_opt in C
            "b": alpha / (alpha + beta)}


def surface_theta(E, A, B, alpha, beta, center=(0, 0), **_):
    n, d = center
    return (np.log(E),
            np.log(A) - alpha * n, alpha,
            np.log(B) - beta * d, beta)


def one_exponent_of(theta, n, d):
    e, a, b, eta = theta.T
    return {"E": np.exp(e),
            "A": np.exp(a + eta * n),
            "B": np.exp(b + eta * d),
            "eta": eta}


def one_exponent_theta(E, A, B, eta, **_):
    return np.log(E), np.log(A), np.log(B), eta


def power_of(theta, x):
    e, a, alpha = theta.T
    return {"alpha": alpha,
            "x_c": scale(a / alpha + x),
            "L_inf": np.exp(e)}


def power_theta(alpha, x_c, L_inf, **_):
    return np.log(L_inf), alpha * np.log(x_c), alpha


def frontier_of(theta, c):
    e, a, gamma = theta.T
    return {"gamma": gamma,
            "log_C_c": a / gamma + c,
            "L_inf": np.exp(e)}


def frontier_theta(gamma, log_C_c, L_inf, **_):
    return np.log(L_inf), gamma * log_C_c, gamma


def kaplan_nd_of(theta, n, d):
    n_c, r, d_c, alpha_D = theta.T
    return {"alpha_N": r * alpha_D,
            "alpha_D": alpha_D,
            "N_c": scale(n_c / r + n),
            "D_c": scale(d_c + d)}


def kaplan_nd_theta(alpha_N, alpha_D, N_c, D_c, **_):
    r = alpha_N / alpha_D
    return r * np.log(N_c), r, np.log(D_c), alpha_D


def kaplan_ns_of(theta, n, s):
    _, n_c, alpha_N, s_c, alpha_S = theta.T
    return {"alpha_N": alpha_N,
            "alpha_S": alpha_S,
            "N_c": scale(n_c / alpha_N + n),
            "S_c": scale(s_c / alpha_S + s)}


def kaplan_ns_theta(alpha_N, alpha_S, N_c, S_c, **_):
    return (-np.inf,
            alpha_N * np.log(N_c), alpha_N,
            alpha_S * np.log(S_c), alpha_S)


def broken_of(theta, x):
    e, a, c0, c1, d, log_f = theta.T
    return {"L_inf": np.exp(e),
            "A": np.exp(a + c0 * x),
            "c0": c0,
            "c1": c1,
            "x_break": np.exp(d + x),
            "f": np.exp(log_f)}


def broken_theta(L_inf, A, c0, c1, x_break, f, **_):
    return (np.log(L_inf),
            np.log(A), c0, c1,
            np.log(x_break), np.log(f))


def repeated_of(theta, n, d, u):
    R_D, R_N = np.exp(theta.T[5:])
    found = surface_of(theta[:, :5], n, d) | {"R_D": R_D, "R_N": R_N}
    del found["a"], found["b"]                          # no power of C gives the best size where data repeat
    return found


def repeated_theta(R_D, R_N, **surface):
    return *surface_theta(**surface), np.log(R_D), np.log(R_N)


class Form(NamedTuple):
    """One law. `natural` and `theta` are inverse to each other where the inputs are not centred; a parameter
    x_... of a law in one input x is called after that input: N_c, D_break."""

    model: Model
    inputs: str                                         # their names, in the order of X's rows
    names: str                                          # of theta's entries, for people
    natural: Callable[..., dict]                        # (theta (B, p), the means) -> {parameter: (B,)}
    theta: Callable[..., tuple]                         # (**parameters) -> p values of any shape


FORMS = {
    "surface": Form(additive, "N D", "E A alpha B beta", surface_of, surface_theta),
    "one_exponent": Form(one_exponent, "N D", "E A B eta", one_exponent_of, one_exponent_theta),
    "power": Form(additive, "x", "L_inf x_c alpha", power_of, power_theta),
    "frontier": Form(additive, "C", "L_inf log_C_c gamma", frontier_of, frontier_theta),
    "kaplan_nd": Form(kaplan_nd, "N D", "N_c alpha_N/alpha_D D_c alpha_D", kaplan_nd_of, kaplan_nd_theta),
    "kaplan_ns": Form(additive, "N S", "E N_c alpha_N S_c alpha_S", kaplan_ns_of, kaplan_ns_theta),
    "broken": Form(broken, "x", "L_inf A c0 c1 x_break f", broken_of, broken_theta),
    "repeated": Form(repeated, "N D U", "E A alpha B beta R_D R_N", repeated_of, repeated_theta),
}


def renamed(parameters: dict, old: str, new: str) -> dict:
    """`parameters` with x_c called N_c, and the like."""
    return {k.replace(f"{old}_", f"{new}_"): v for k, v in parameters.items()}


@np.errstate(over="ignore", divide="ignore")            # log 0 = -inf is a law without a floor
def loss_of(fit: dict, inputs: dict) -> Array:
    """The loss of a fit of any form, or of its draws, at `inputs` {N, D, C, S or U: values}.

    Everything broadcasts. A law in one input takes the first.
    """
    form = FORMS[fit["form"]]
    if fit.get("residuals") == "linear":               # its floor may be negative
        return loss_of(fit | {"residuals": "log", fit["floor"]: 0.0}, inputs) + fit[fit["floor"]]
    names = form.inputs.split()
    if names == ["x"]:
        names = list(inputs)[:1]
        fit = renamed(fit, names[0], "x")
    x = [np.log(inputs[name]) for name in names]
    columns = np.broadcast_arrays(*x, *form.theta(**fit))
    # Each point is a problem of its own, with one row: then draws broadcast against inputs of any shape.
    points = np.array([v.ravel() for v in columns]).T
    log_loss, _ = form.model(points[:, len(x):], points[:, :len(x), None])
    return np.exp(log_loss).reshape(columns[0].shape)[()]


# ---- Fits: what they share. ----

def checked(what: str = "", need: int = 1, **columns) -> tuple[Array, ...]:
    """The columns as float arrays of one length, finite and positive.

    `what` needs `need` different values of each input, which is a column other than `loss`. Raises UserError
    for a bad row, and for too few values.
    """
    arrays = [np.array(v, float, ndmin=1) for v in columns.values()]
    for name, v in zip(columns, arrays):
        if len(v) != len(arrays[0]):
            raise UserError(f"{name} has {len(v)} values where {next(iter(columns))} has {len(arrays[0])}")
        bad = np.flatnonzero(~(np.isfinite(v) & (v > 0)))
        if len(bad):
            raise UserError(f"{name} must be a positive number: row {bad[0] + 1} holds {v[bad[0]]:g}; mend "
                            "or remove it")
        have = len(np.unique(v))
        if have < need and name != "loss":
            values = "the same value" if have == 1 else f"only {have} different values"
            raise UserError(f"all runs have {values} of {name}; {what} needs at least {need}")
    return tuple(arrays)


def centred(*inputs: Array) -> tuple[Array, Array]:
    """(X (k, n), center (k,)): logarithms less their means, so that scale and exponent hardly trade off."""
    X = np.log(inputs)
    center = X.mean(1)
    return X - center[:, None], center


def problem_of(form, X, center, L, starts, lo, hi, name="x") -> Problem:
    """What the solver needs to fit `form` to losses L (n,): for each entry of theta a column (S,) of `starts`
    and its bounds; `name` is that of the input of a law in one."""
    law = FORMS[form]

    def natural(theta):
        return renamed(law.natural(theta, *center), "x", name)

    names = law.names.replace("x_", f"{name}_").split()
    lo = np.array(lo)
    hi = np.array(hi)
    return Problem(law.model, X, np.log(L), np.stack(starts, 1), lo, hi, lo == hi, names, natural)


def absolute(problem: Problem, floor: str, shift: float) -> Problem:
    """`problem`, of losses that are `shift` too high as is the `floor`, with residuals of the loss itself."""
    def model(theta, X):
        log_loss, grad = problem.model(theta, X)
        L = np.exp(log_loss)
        return L, grad * L[:, None]

    def natural(theta):
        found = problem.natural(theta)
        return found | {floor: found[floor] - shift}
    return problem._replace(model=model, natural=natural, y=np.exp(problem.y))


def fit_signed(inputs: dict, L: Array, run=None, bootstrap: int = 1000) -> dict:
    """The surface, or a power law with a floor in one of `inputs` {N, D: (n,)}, of losses L (n,) of any sign.

    It minimises the residuals of the loss itself, not of its logarithm. Losses are seen from as far below the
    smallest as four times their range: a lower floor is none. Raises UserError.
    """
    form, floor = ("surface", "E") if len(inputs) == 2 else ("power", "L_inf")
    inputs = dict(zip(inputs, checked("a law with a floor", 3, **inputs)))
    shift = 4 * np.ptp(L) - L.min()
    bounds = additive_bounds(L + shift, len(inputs), None)
    problem = problem_of(form, *centred(*inputs.values()), L + shift, *bounds, next(iter(inputs)))
    fit = fit_law(form, absolute(problem, floor, shift), inputs | {"loss": L}, run, bootstrap, 0)
    if form == "surface":
        fit["health"]["D_follows_N"] = follows(*inputs.values())
        fit["range"]["C"] = span(C=6 * inputs["N"] * inputs["D"])["C"]
    return judge(fit | {"residuals": "linear", "floor": floor})


def fit_form(form: str, inputs: dict, L: Array, bounds: tuple, run, bootstrap: int, seed: int) -> dict:
    """Fit `form` to losses L (n,) at `inputs` {name: (n,)}, from the (starts, lo, hi) of `bounds`."""
    problem = problem_of(form, *centred(*inputs.values()), L, *bounds, next(iter(inputs)))
    ranges = inputs | {"loss": L}
    if "N" in inputs and "D" in inputs:
        ranges["C"] = 6 * inputs["N"] * inputs["D"]
    return fit_law(form, problem, ranges, run, bootstrap, seed)


def grid_of(*axes) -> list[Array]:
    """Every combination of the values on `axes`, as one column (S,) per axis."""
    return [v.ravel() for v in np.meshgrid(*axes, indexing="ij")]


@np.errstate(divide="ignore")                           # log 0 = -inf is no floor
def additive_bounds(L: Array, K: int, E: float | None) -> tuple[list, list, list]:
    """(starts, lo, hi) for `additive` with K centred inputs and losses `L`; E is free if None, else fixed."""
    low = np.log(L.min())
    lo = [low - 14] + [low - 14, 1e-3] * K
    hi = [low + 0.1] + [np.log(L.max()) + 3, 5.0] * K
    shares = E_STARTS
    if E is not None:
        lo[0] = hi[0] = np.log(E)
        shares = [min(E / L.min(), 0.9)]
    share, *alphas = grid_of(shares, *[ALPHA_STARTS] * K)
    part = np.log((np.median(L) - share * L.min()) / K)                 # the inputs share what E leaves over
    starts = [np.log(share * L.min())]
    for alpha in alphas:
        starts += [part, alpha]
    return starts, lo, hi


# ---- Power laws and the surface. ----

def fit_power(x: Array, L: Array, run=None, irreducible: bool = True, name: str = "N", bootstrap: int = 1000,
              seed: int = 0) -> dict:
    """L(x) = L_inf + (x_c / x)^alpha for x = N, D, C or S (Kaplan et al. 2020, eqs. 1.1 to 1.3: L_inf = 0).

    Returns a fit with alpha, `{name}_c` and L_inf. Raises UserError.
    """
    what = "a power law"
    need = 2
    E = 0.0
    if irreducible:
        what = "a power law with a floor"
        need = 3
        E = None
    x, L = checked(what, need, **{name: x, "loss": L})
    return fit_form("power", {name: x}, L, additive_bounds(L, 1, E), run, bootstrap, seed)


def fit_surface(N: Array, D: Array, L: Array, run=None, E: float | None = None, bootstrap: int = 1000,
                seed: int = 0) -> dict:
    """L(N, D) = E + A/N^alpha + B/D^beta: Hoffmann et al. 2022, approach 3; E free, or fixed (0: no floor).

    N parameters, D tokens, L nats per token, each (n,); `run` names the cluster of each row. Raises
    UserError.
    """
    N, D, L = checked("the surface", 3 if E is None else 2, params=N, tokens=D, loss=L)
    fit = fit_form("surface", {"N": N, "D": D}, L, additive_bounds(L, 2, E), run, bootstrap, seed)
    fit["health"]["D_follows_N"] = follows(N, D)
    if bootstrap and run is None and not fit["health"]["D_follows_N"]:
        fit["health"]["off_law"] = off_law(fit, N, D, L)
    return judge(fit)


def fit_one_exponent(N: Array, D: Array, L: Array, run=None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """L(N, D) = E + A/N^eta + B/D^eta (Gadre et al. 2024): the surface whose a is 1/2. Raises UserError."""
    N, D, L = checked("the surface of one exponent", 2, params=N, tokens=D, loss=L)
    starts, lo, hi = ([v[i] for i in (0, 1, 3, 2)] for v in additive_bounds(L, 2, None))
    return fit_form("one_exponent", {"N": N, "D": D}, L, (starts, lo, hi), run, bootstrap, seed)


def follows(N: Array, D: Array) -> list[float] | None:
    """[s, r] where D = r N^s, s > 0, in all runs (to 5 %): then the two terms of a surface are one."""
    n, d = np.log([N, D])
    if np.ptp(n) < 0.5:
        return None
    s, r = np.polyfit(n, d, 1)
    if s < 0.05 or np.abs(d - r - s * n).max() > 0.05:
        return None
    return [float(s), float(np.exp(r))]


@np.errstate(divide="ignore")                           # log 0: a surface without E
def off_law(fit: dict, N: Array, D: Array, L: Array) -> dict | None:
    """What in the runs (n,) lies off the surface `fit`: {what, at, shift, chance}, or None where nothing can.

    Asked are, by a score test each, a bend of either term along its input (`what` is "bend", `at` N or D) and
    whether the runs of one N, D or C (`what`) lie off the law of all others, by `shift` of the loss. `chance`
    is that of the least likely of them, times how many were asked.
    """
    problem = surface_problem(N, D, L)
    best = np.array([surface_theta(**fit, center=centred(N, D)[1])])
    if len(L) < problem.free() + 3:
        return None
    terms = problem.model(best, problem.X)[1][0, 1::2]
    asked = [("bend", name, column) for name, column in zip("ND", terms * problem.X ** 2)]
    for name, values in {"N": N, "D": D, "C": 6 * N * D}.items():
        level = np.round(np.log(values), 2)
        groups, count = np.unique(level, return_counts=True)
        if len(groups) > 3 and count.min() > 1:
            asked += [(name, float(values[level == g].mean()), 1.0 * (level == g)) for g in groups]
    shift, chance = score_test(problem, best, np.array([column for _, _, column in asked]))
    i = chance.argmin()
    what, at, _ = asked[i]
    return {"what": what, "at": at, "shift": float(shift[i]), "chance": float(min(1, chance[i] * len(asked)))}


def surface_problem(N: Array, D: Array, L: Array) -> Problem:
    """What is minimised to fit the surface. Raises UserError."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    return problem_of("surface", *centred(N, D), L, *additive_bounds(L, 2, None))


def profile_E(N: Array, D: Array, L: Array, run=None, bootstrap: int = 200, seed: int = 0) -> dict:
    """The profile of the surface's E in nats: {grid, deviance, cutoff, lo, hi, identified}.

    Where `lo` is None, E = 0 fits. Raises UserError.
    """
    shares = np.append(np.geomspace(1e-4, 0.02, 4), np.linspace(0.04, 1.04, 51))
    return profile(surface_problem(N, D, L), 0, np.log(np.min(L) * shares), run, bootstrap, seed)


def surface_health(params: dict, N: Array, D: Array, L: Array, start: dict | None = None) -> dict:
    """Judge somebody's published surface {E, A, B, alpha, beta} on the data it was fitted to.

    Returns the health of the point itself beside `excess`, its objective over the best one minus 1, `best`,
    the parameters there, and `moved`, its largest distance from `start`, if given, in log-parameters. Raises
    UserError.
    """
    problem = surface_problem(N, D, L)
    _, center = centred(N, D)
    here = np.array([surface_theta(**params, center=center)])
    best, _, F = problem._replace(starts=np.vstack([problem.starts, here])).best()
    health = evidence(problem, here)
    health["excess"] = float(huber(problem.y - problem.fitted(here)).sum() / F.min() - 1)
    health["best"] = problem.printed(best)
    if start:
        health["moved"] = float(np.abs(here - surface_theta(**start, center=center)).max())
    return judge({"form": "published", "health": health})["health"]


# ---- What a fit predicts. ----

def surface_loss(p: dict, N: Array, D: Array) -> Array:
    """E + A/N^alpha + B/D^beta; everything broadcasts."""
    return loss_of(p | {"form": "surface"}, {"N": N, "D": D})


def repeated_loss(p: dict, N: Array, D: Array, U: Array) -> Array:
    """Loss of N parameters trained on D tokens of which U are unique (`repeated`); everything broadcasts."""
    return loss_of(p | {"form": "repeated"}, {"N": N, "D": D, "U": U})


def outside(fit: dict, **inputs) -> dict:
    """{input: factor} by which each input lies outside the fit's range; inputs inside are left out."""
    factors = {}
    for k, v in inputs.items():
        lo, hi = fit["range"][k]
        factors[k] = float(max(np.max(v) / hi, lo / np.min(v)))
    return {k: factor for k, factor in factors.items() if factor > 1 + 1e-9}


def has_draws(fit: dict) -> bool:
    """Was the fit bootstrapped?"""
    return any(fit["boot"].values())


def draws_of(fit: dict) -> dict:
    """The bootstrap draws of `fit` as columns (B, 1), ready to broadcast. Raises UserError without any."""
    if not has_draws(fit):
        raise UserError("this fit has no bootstrap; fit again with --bootstrap=1000 to get intervals")
    return {k: np.array(v, float)[:, None] for k, v in fit["boot"].items()}


def with_noise(loss: Array, noise: float) -> Array:
    """Draws of a loss (B, m) -> draws of a *measured* loss (20 B, m), with relative noise `noise`."""
    z = np.random.default_rng(0).standard_normal((20, len(loss), 1))
    return (loss * np.exp(noise * z)).reshape(-1, loss.shape[1])


# ---- What a run costs, as its table counts it. ----

def cost_of(N: Array, D: Array, C: Array) -> dict | None:
    """How the FLOPs C of runs (n,) follow from their N and D; None where C is 6 N D, to a percent.

    log C = log(6 N D) + f(log N) + by_D log D, where f is a polynomial of the lowest degree that serves, at
    most the third, and a straight line beyond the sizes of the table. `off` is what this misses: a standard
    deviation of log C.
    """
    n = np.log(N)
    x = n - n.mean()
    rest = np.log(C / (6 * N * D))
    if np.abs(rest).max() < SAME:
        return None
    sizes = len(np.unique(n))
    for by_D, degree in [(by_D, degree) for by_D in (0, 1) for degree in range(min(sizes, 4))]:
        design = np.vander(x, degree + 1)
        if by_D:
            design = np.column_stack([design, np.log(D)])
        found = np.linalg.lstsq(design, rest, rcond=None)[0]
        off = float(np.std(rest - design @ found))
        if off < SAME / 2:
            break
    f, by_D = np.split(found, [degree + 1])
    return {"f": f.tolist(), "by_D": float(by_D.sum()), "center": float(n.mean()),
            "sizes": [float(x.min()), float(x.max())], "off": off}


def beyond_6nd(cost: dict, n: Array) -> tuple[Array, Array]:
    """f and its derivative at n = log N."""
    x = n - cost["center"]
    inside = np.clip(x, *cost["sizes"])
    slope = np.polyval(np.polyder(cost["f"]), inside)
    return np.polyval(cost["f"], inside) + slope * (x - inside), slope


def flops_of(law: dict, N: Array, D: Array) -> Array:
    """C of N parameters on D tokens, as the table counts it that `law` was fitted to.

    A frontier knows it on its own line alone.
    """
    C = 6 * N * D
    if "log_m" in law:
        C = np.exp((np.log(N * D) - law["log_k"] - law["log_m"]) / (law["a"] + law["b"]))
    if law.get("cost"):
        C = C * np.exp(beyond_6nd(law["cost"], np.log(N))[0]) * D ** law["cost"]["by_D"]
    return C


def tokens_of(law: dict, N: Array, C: Array) -> Array:
    """D that C FLOPs buy N parameters: the inverse of `flops_of`."""
    D = C / (6 * N)
    if "log_m" in law:
        D = np.exp(law["log_k"] + law["log_m"] + (law["a"] + law["b"]) * np.log(C)) / N
    if law.get("cost"):
        D = (D * np.exp(-beyond_6nd(law["cost"], np.log(N))[0])) ** (1 / (1 + law["cost"]["by_D"]))
    return D


def counted(fit: dict, N: Array, D: Array, C: Array) -> dict:
    """The surface `fit` with the `cost` of its runs (n,), if that is not 6 N D.

    Then no power of C gives the best size: a and b are the slopes of log N_opt and log D_opt over its C.
    """
    cost = cost_of(N, D, C)
    ends = [float(C.min()), float(C.max())]
    if not cost or ends[0] == ends[1]:
        return fit
    fit = fit | {"cost": cost, "range": fit["range"] | {"C": ends}}

    def slopes(p):
        low, high = (surface_optimum(p | {"cost": cost}, c)[:2] for c in ends)
        return {k: np.log(h / l) / np.log(ends[1] / ends[0]) for k, l, h in zip("ab", low, high)}

    if has_draws(fit):
        found = intervals({k: v[:, 0] for k, v in slopes(draws_of(fit)).items()})
        fit |= {key: fit[key] | found[key] for key in ("ci", "boot")}
    return fit | {k: float(v) for k, v in slopes(fit).items()}


@np.errstate(divide="ignore", over="ignore")           # a law without a best size has it at 0 or infinity
def surface_optimum(p: dict, C: Array) -> tuple[Array, Array, Array]:
    """(N_opt, D_opt, loss) of a surface for C FLOPs, counted as `flops_of` has it.

    For C = 6 N D this is Hoffmann et al. 2022, eq. 4.
    """
    alpha = p["alpha"]
    beta = p["beta"]
    G = (np.log(alpha / beta) + np.log(p["A"]) - np.log(p["B"])) / (alpha + beta)
    N = np.exp(G + beta / (alpha + beta) * np.log(C / 6))
    if p.get("cost"):
        N = np.exp(cheapest(p, C, np.log(N)))
    D = tokens_of(p, N, C)
    return N, D, surface_loss(p, N, D)


def cheapest(p: dict, C: Array, n: Array) -> Array:
    """log N_opt of a surface with a cost of its own, from a first guess.

    Near any N the cost is a power law, 6 N^r D^s e^.., for which the optimum has a closed form; doing this
    again at the N found converges, since r hardly changes with N.
    """
    alpha = p["alpha"]
    beta = p["beta"]
    s = 1 + p["cost"]["by_D"]
    for _ in range(40):
        f, slope = beyond_6nd(p["cost"], n)
        r = np.maximum(1 + slope, 0.05)
        d = (np.log(C / 6) - f + slope * n) / s         # log D + r n / s, the same all along the tangent
        G = np.log(alpha / beta) + np.log(p["A"]) - np.log(p["B"]) + np.log(s / r)
        n = (G + beta * d) / (alpha + beta * r / s)
    return n


def power_optimum(p: dict, C: Array) -> tuple[Array, Array, Array]:
    """(N_opt, D_opt, loss) where N_opt = k C^a, D_opt = m C^b and loss = L_inf + (C_c/C)^gamma.

    Without m (a published law) D is C/(6 N); without gamma the loss is nan.
    """
    N = np.exp(p["log_k"] + p["a"] * np.log(C))
    D = C / (6 * N)
    if "log_m" in p:
        D = np.exp(p["log_m"] + p["b"] * np.log(C))
    loss = N * np.nan
    if "gamma" in p:
        loss = loss_of(p | {"form": "frontier"}, {"C": C})
    return N, D, loss


@np.errstate(divide="ignore", invalid="ignore")        # of such a law; its health says so
def optimum(fit: dict, C: float) -> dict:
    """The compute-optimal run for C FLOPs, as the table counts them, by a surface or a frontier's power laws.

    Returns {C, N_opt, D_opt, tokens_per_param, loss, ci: {each: [lo, hi]}, outside}. The interval of the loss
    is that of the law, without a run's noise. Raises UserError.
    """
    if not C > 0:
        raise UserError(f"a budget must be a positive number of FLOPs, not {C:g}")

    def at(p):
        N, D, loss = surface_optimum(p, C) if fit["form"] == "surface" else power_optimum(p, C)
        return {"N_opt": N, "D_opt": D, "loss": loss, "tokens_per_param": D / N}

    ci = {}
    if has_draws(fit):
        with np.errstate(over="ignore"):               # of a resample that determines nothing
            ci = {k: interval(np.ravel(v)) for k, v in at(fit | draws_of(fit)).items()}
    return {"C": float(C),
            **{k: float(v) for k, v in at(fit).items()},
            "ci": ci,
            "outside": outside(fit, C=C)}


# ---- The other forms. ----

def fit_kaplan_nd(N: Array, D: Array, L: Array, run=None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Kaplan et al. 2020, eq. 1.5: L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D. Raises UserError."""
    N, D, L = checked("L(N, D)", 2, params=N, tokens=D, loss=L)
    ratio, power = grid_of((0.3, 0.7, 1.0, 1.5), (0.05, 0.1, 0.2, 0.4))
    half = np.median(np.log(L)) / power - np.log(2)                 # both terms of the bracket start equal
    starts = [half, ratio, half, power]
    lo = [-500, 1e-3, -500, 1e-3]
    hi = [2000, 20.0, 2000, 5.0]
    return fit_form("kaplan_nd", {"N": N, "D": D}, L, (starts, lo, hi), run, bootstrap, seed)


def fit_kaplan_ns(N: Array, S: Array, L: Array, run=None, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Kaplan et al. 2020, eq. 1.6: L = (N_c/N)^alpha_N + (S_c/S)^alpha_S, S in steps. Raises UserError."""
    N, S, L = checked("L(N, S)", 2, params=N, steps=S, loss=L)
    return fit_form("kaplan_ns", {"N": N, "S": S}, L, additive_bounds(L, 2, 0.0), run, bootstrap, seed)


def fit_broken(x: Array, L: Array, run=None, name: str = "N", bootstrap: int = 1000, seed: int = 0) -> dict:
    """L_inf + A x^-c0 (1 + (x/x_break)^(1/f))^(-c1 f): the exponent turns from c0 to c0 + c1 at `x_break`,
    over a range that grows with f (Caballero et al. 2023). Raises UserError."""
    x, L = checked("a broken power law", 7, **{name: x, "loss": L})
    X, _ = centred(x)
    low = np.log(L.min())
    # The break lies within the data: beyond them nothing tells it from no break at all.
    lo = [low - 14, low - 30, -2.0, -20.0, X.min(), np.log(0.005)]
    hi = [low + 0.1, np.log(L.max()) + 30, 20.0, 20.0, X.max(), np.log(20.0)]
    at = np.quantile(X, (0.25, 0.5, 0.75))
    c0, share, c1, at, log_f = grid_of((0.05, 0.2, 0.5), (0.1, 0.7), (-0.1, 0.1, 2.0), at, (-2.0, -0.5))
    rest = np.log(np.median(L) - share * L.min())
    starts = [np.log(share) + low, rest, c0, c1, at, log_f]
    return fit_form("broken", {name: x}, L, (starts, lo, hi), run, bootstrap, seed)


def repeated_problem(N: Array, D: Array, U: Array, L: Array, base: dict | None) -> Problem:
    """`fit_repeated` as the solver needs it: R_D and R_N are free, and with base = None all of it is."""
    # The surface that knows no repeats is near enough to start from.
    theta = surface_theta(**(base or fit_surface(N, D, L, bootstrap=0)))
    R = np.log([1, 5, 20, 200, 1e5])
    R_N, R_D = grid_of(R, R)
    starts = [*(np.full(len(R_D), v) for v in theta), R_D, R_N]
    lo = hi = theta
    if base is None:
        low = np.log(L.min())
        lo = [low - 14, -10, 0.02, -10, 0.02]
        hi = [low + 0.1, 60, 3, 60, 3]
    lo = [*lo, *np.log([0.05, 0.05])]
    hi = [*hi, *np.log([1e12, 1e12])]
    return problem_of("repeated", np.log([N, D, U]), np.zeros(3), L, starts, lo, hi)


def fit_repeated(N: Array, D: Array, U: Array, L: Array, run=None, base: dict | None = C4,
                 bootstrap: int = 1000, seed: int = 0) -> dict:
    """The data-constrained surface of Muennighoff et al. 2023: N parameters, D tokens of which U are unique.

    `base` fixes E, A, B, alpha and beta (default: their values on C4); None fits them too. Raises UserError.
    """
    N, D, U, L = checked(params=N, tokens=D, unique_tokens=U, loss=L)
    if not (D > 1.001 * U).any():
        raise UserError("no run repeats its data (tokens > unique_tokens): its decay cannot be fitted")
    ranges = {"N": N, "D": D, "U": U, "loss": L}
    return fit_law("repeated", repeated_problem(N, D, U, L, base), ranges, run, bootstrap, seed)


def repeated_optimum(p: dict, C: float, U: float) -> tuple[float, float, float, float]:
    """(N, D, epochs, loss) of the least `repeated_loss` for C = 6 N D FLOPs and U unique tokens."""
    def loss(log_N):
        return repeated_loss(p, np.exp(log_N), C / 6 / np.exp(log_N), U)

    best = minimize_scalar(loss, bounds=(0, np.log(C / 6)), method="bounded", options={"xatol": 1e-9})
    N = float(np.exp(best.x))
    D = C / 6 / N
    return N, D, max(D / U, 1.0), float(best.fun)


# ---- Which form do the data prefer? ----

def compare(fits: dict[str, Callable], inputs: dict, L: Array, run=None) -> dict:
    """Forms against each other: {forms: {name: {parameters, objective, aicc, held_out}}, preferred, ...}.

    `fits` maps a form's name to a function (*inputs, L) -> fit, and `inputs` an input's to its values (n,).
    AICc is of a Laplace likelihood, relative to the best, and takes a learning curve (the rows of one `run`)
    for one observation. `held_out` is the mean |log error| on the largest fifth of the first input's values
    (models), predicted from the others: what extrapolation costs. A form that cannot be fitted is reported
    with the reason.
    """
    x = np.array(list(inputs.values()))
    sizes = np.unique(x[0])
    big = x[0] >= sizes[-max(1, round(0.2 * len(sizes)))]
    n = int(clusters(run, len(L)).max()) + 1
    table = {}
    for name, fit in fits.items():
        try:
            full = fit(*x, L, bootstrap=0)
            part = fit(*x[:, ~big], L[~big], bootstrap=0)
        except UserError as e:
            table[name] = {"refused": str(e)}
            continue
        error = np.log(loss_of(part, dict(zip(inputs, x[:, big]))) / L[big])
        table[name] = {"parameters": full["free"],
                       "held_out": float(np.abs(error).mean()),
                       "objective": full["objective"],
                       "aicc": aicc(full, n)}
    scored = {name: row for name, row in table.items() if "aicc" in row}
    least = min((row["aicc"] for row in scored.values()), default=0)
    for row in scored.values():
        # Too few runs for AICc: none is better than none.
        row["aicc"] = float(row["aicc"] - least) if np.isfinite(row["aicc"]) else np.inf
    best = {}
    if scored:
        best = {by: min(scored, key=lambda name: scored[name][by]) for by in ("aicc", "held_out")}
    return {"forms": table, "preferred": best, "held_out_rows": int(big.sum()), "n": n}


def aicc(fit: dict, n: int) -> float:
    """Akaike's criterion, corrected for n observations, of a Laplace likelihood with the scale fitted too."""
    k = fit["free"] + 1                                                 # and the scale of the noise
    correction = np.inf
    if n > k + 1:
        correction = 2 * k * (k + 1) / (n - k - 1)
    return 2 * n * np.log(max(fit["objective"], 1e-300)) + 2 * k + correction


def compare_surfaces(N: Array, D: Array, L: Array, run: Array | None = None) -> dict:
    """`compare` of the surface with and without E and of Kaplan's L(N, D)."""
    fits = {"E + A/N^alpha + B/D^beta": fit_surface,
            "A/N^alpha + B/D^beta": partial(fit_surface, E=0.0),
            "E + A/N^eta + B/D^eta": fit_one_exponent,
            "Kaplan L(N, D)": fit_kaplan_nd}
    return compare(fits, {"N": N, "D": D}, L, run)


def compare_powers(x: Array, L: Array, name: str = "N") -> dict:
    """`compare` of a power law with and without a floor and of a smoothly broken one, all in one input."""
    fits = {"power law with a floor": partial(fit_power, name=name),
            "power law": partial(fit_power, name=name, irreducible=False),
            "broken power law": partial(fit_broken, name=name)}
    return compare(fits, {name: x}, L)
