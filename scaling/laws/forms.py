"""Fits of the laws of scaling/laws/models.py to runs, and what a fit says of budgets. No torch, no files.

Every fit goes through `scaling.laws.solver`: the summed Huber loss (delta 1e-3) of log-residuals, many
starts, a Newton method on centred logarithms, 95 % bootstrap intervals, findings about its health.

A fit is a plain dict: `form`, the parameters by name, `n`, `objective`, `ci` (intervals), `boot` (the
parameters of each bootstrap resample, from which every derived interval comes), `range`, `noise` (standard
deviation of the log-residuals), `method` (how the intervals were made) and `health`, whose `lines` say in
English what is wrong (scaling/laws/health.py).
"""
from itertools import product

import numpy as np
from scipy.optimize import minimize_scalar

from runtime.basics import UserError
from scaling.laws import solver
from scaling.laws.health import judge
from scaling.laws.models import C4, FORMS, loss_of, renamed, repeated_loss, surface_loss, surface_theta
from scaling.laws.solver import Array, Problem, fit_law, interval, intervals

# Exponents and shares of E to start from. On all data seen so far every one of them ends in the same optimum.
ALPHA_STARTS = (0.1, 0.2, 0.35, 0.6, 1.0)
E_STARTS = (0.1, 0.5, 0.9)
SAME = 0.01                                             # C within this of 6 N D is 6 N D


# ---- What the fits share. ----

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


def problem_of(form: str, inputs: dict, L: Array, bounds: tuple) -> Problem:
    """What the solver needs to fit `form` to losses L (n,) at `inputs` {name: (n,)}.

    `bounds` are (starts, lo, hi), with an entry for each of theta: a column (S,) of starts and its bounds.
    Logarithms are centred, so that scale and exponent hardly trade off.
    """
    law = FORMS[form]
    X = np.log(list(inputs.values()))
    center = X.mean(1) if law.centred else np.zeros(len(X))
    name = next(iter(inputs))                           # a law in one input x is called after it

    def natural(theta):
        return renamed(law.natural(theta, *center), "x", name)

    names = law.names.replace("x_", f"{name}_").split()
    starts, lo, hi = (np.array(v) for v in bounds)
    return Problem(law.model, X - center[:, None], np.log(L), starts.T, lo, hi, lo == hi, names, natural)


def ranges(inputs: dict, L: Array) -> dict:
    """The columns whose extremes are a fit's range: a law of N and D has one in C, too."""
    columns = inputs | {"loss": L}
    if set(inputs) == {"N", "D"}:
        columns["C"] = 6 * inputs["N"] * inputs["D"]
    return columns


def fit_form(form: str, inputs: dict, L: Array, bounds: tuple, run=None, bootstrap: int = 1000) -> dict:
    """Fit `form` to losses L (n,) at `inputs` {name: (n,)}, from the (starts, lo, hi) of `bounds`."""
    return fit_law(form, problem_of(form, inputs, L, bounds), ranges(inputs, L), run, bootstrap)


def grid_of(*axes) -> list[Array]:
    """Every combination of the values on `axes`, as one column (S,) per axis."""
    return [v.ravel() for v in np.meshgrid(*axes, indexing="ij")]


@np.errstate(divide="ignore")                           # log 0 = -inf is no floor
def additive_bounds(L: Array, K: int, E: float | None = None) -> tuple[list, list, list]:
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


# ---- Laws in one input. ----

def fit_power(x: Array, L: Array, irreducible: bool = True, name: str = "N", bootstrap: int = 1000) -> dict:
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
    return fit_form("power", {name: x}, L, additive_bounds(L, 1, E), None, bootstrap)


def fit_broken(x: Array, L: Array, name: str = "N", bootstrap: int = 1000) -> dict:
    """L_inf + A x^-c0 (1 + (x/x_break)^(1/f))^(-c1 f): the exponent turns from c0 to c0 + c1 at `x_break`,
    over a range that grows with f (Caballero et al. 2023). Raises UserError."""
    x, L = checked("a broken power law", 7, **{name: x, "loss": L})
    X = np.log(x) - np.log(x).mean()
    low = np.log(L.min())
    # The break lies within the data: beyond them nothing tells it from no break at all.
    lo = [low - 14, low - 30, -2.0, -20.0, X.min(), np.log(0.005)]
    hi = [low + 0.1, np.log(L.max()) + 30, 20.0, 20.0, X.max(), np.log(20.0)]
    at = np.quantile(X, (0.25, 0.5, 0.75))
    c0, share, c1, at, log_f = grid_of((0.05, 0.2, 0.5), (0.1, 0.7), (-0.1, 0.1, 2.0), at, (-2.0, -0.5))
    rest = np.log(np.median(L) - share * L.min())
    starts = [np.log(share) + low, rest, c0, c1, at, log_f]
    return fit_form("broken", {name: x}, L, (starts, lo, hi), None, bootstrap)


# ---- Surfaces in N and D (or N and steps). ----

def fit_surface(N: Array, D: Array, L: Array, run=None, E: float | None = None,
                bootstrap: int = 1000) -> dict:
    """L(N, D) = E + A/N^alpha + B/D^beta: Hoffmann et al. 2022, approach 3; E free, or fixed (0: no floor).

    N parameters, D tokens, L nats per token, each (n,); `run` names the cluster of each row. Raises
    UserError.
    """
    N, D, L = checked("the surface", 3 if E is None else 2, params=N, tokens=D, loss=L)
    fit = fit_form("surface", {"N": N, "D": D}, L, additive_bounds(L, 2, E), run, bootstrap)
    fit["health"]["D_follows_N"] = follows(N, D)
    if bootstrap and run is None and not fit["health"]["D_follows_N"]:
        fit["health"]["off_law"] = off_law(fit, N, D, L)
    return judge(fit)


def fit_one_exponent(N: Array, D: Array, L: Array, run=None, bootstrap: int = 1000) -> dict:
    """L(N, D) = E + A/N^eta + B/D^eta (Gadre et al. 2024): the surface whose a is 1/2. Raises UserError."""
    N, D, L = checked("the surface of one exponent", 2, params=N, tokens=D, loss=L)
    bounds = [[v[i] for i in (0, 1, 3, 2)] for v in additive_bounds(L, 2)]
    return fit_form("one_exponent", {"N": N, "D": D}, L, bounds, run, bootstrap)


def fit_kaplan_nd(N: Array, D: Array, L: Array, run=None, bootstrap: int = 1000) -> dict:
    """Kaplan et al. 2020, eq. 1.5: L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D. Raises UserError."""
    N, D, L = checked("L(N, D)", 2, params=N, tokens=D, loss=L)
    ratio, power = grid_of((0.3, 0.7, 1.0, 1.5), (0.05, 0.1, 0.2, 0.4))
    half = np.median(np.log(L)) / power - np.log(2)                 # both terms of the bracket start equal
    starts = [half, ratio, half, power]
    lo = [-500, 1e-3, -500, 1e-3]
    hi = [2000, 20.0, 2000, 5.0]
    return fit_form("kaplan_nd", {"N": N, "D": D}, L, (starts, lo, hi), run, bootstrap)


def fit_kaplan_ns(N: Array, S: Array, L: Array, run=None, bootstrap: int = 1000) -> dict:
    """Kaplan et al. 2020, eq. 1.6: L = (N_c/N)^alpha_N + (S_c/S)^alpha_S, S in steps. Raises UserError."""
    N, S, L = checked("L(N, S)", 2, params=N, steps=S, loss=L)
    return fit_form("kaplan_ns", {"N": N, "S": S}, L, additive_bounds(L, 2, 0.0), run, bootstrap)


def repeated_bounds(N: Array, D: Array, L: Array, base: dict | None) -> tuple[list, list, list]:
    """(starts, lo, hi) for `repeated`: R_D and R_N are free, and with base = None all of it is."""
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
    return starts, [*lo, *np.log([0.05, 0.05])], [*hi, *np.log([1e12, 1e12])]


def fit_repeated(N: Array, D: Array, U: Array, L: Array, base: dict | None = C4,
                 bootstrap: int = 1000) -> dict:
    """The data-constrained surface of Muennighoff et al. 2023: N parameters, D tokens of which U are unique.

    `base` fixes E, A, B, alpha and beta (default: their values on C4); None fits them too. Raises UserError.
    """
    N, D, U, L = checked(params=N, tokens=D, unique_tokens=U, loss=L)
    if not (D > 1.001 * U).any():
        raise UserError("no run repeats its data (tokens > unique_tokens): its decay cannot be fitted")
    bounds = repeated_bounds(N, D, L, base)
    return fit_form("repeated", {"N": N, "D": D, "U": U}, L, bounds, None, bootstrap)


# ---- Losses of any sign. ----

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
    problem = problem_of(form, inputs, L + shift, additive_bounds(L + shift, len(inputs)))
    fit = fit_law(form, absolute(problem, floor, shift), ranges(inputs, L), run, bootstrap)
    if form == "surface":
        fit["health"]["D_follows_N"] = follows(**inputs)
    return judge(fit | {"residuals": "linear", "floor": floor})


# ---- Is the surface determined, and does it hold? ----

def follows(N: Array, D: Array) -> list[float] | None:
    """[s, r] where D = r N^s, s > 0, in all runs (to 5 %): then the two terms of a surface are one."""
    n, d = np.log([N, D])
    if np.ptp(n) < 0.5:
        return None
    s, r = np.polyfit(n, d, 1)
    if s < 0.05 or np.abs(d - r - s * n).max() > 0.05:
        return None
    return [float(s), float(np.exp(r))]


def surface_problem(N: Array, D: Array, L: Array) -> Problem:
    """What is minimised to fit the surface. Raises UserError."""
    N, D, L = checked(params=N, tokens=D, loss=L)
    return problem_of("surface", {"N": N, "D": D}, L, additive_bounds(L, 2))


@np.errstate(divide="ignore")                           # log 0: a surface without E
def surface_at(p: dict, N: Array, D: Array) -> Array:
    """The theta (1, 5) of a surface's parameters in the `surface_problem` of runs at N, D (n,)."""
    return np.array([surface_theta(**p, center=np.log([N, D]).mean(1))])


def off_law(fit: dict, N: Array, D: Array, L: Array) -> dict | None:
    """What in the runs (n,) lies off the surface `fit`: {what, at, shift, chance}, or None where nothing can.

    Asked are, by a score test each, a bend of either term along its input (`what` is "bend", `at` N or D) and
    whether the runs of one N, D or C (`what`) lie off the law of all others, by `shift` of the loss. `chance`
    is that of the least likely of them, times how many were asked.
    """
    problem = surface_problem(N, D, L)
    best = surface_at(fit, N, D)
    if len(L) < problem.free() + 3:
        return None
    terms = problem.model(best, problem.X)[1][0, 1::2]
    asked = [("bend", name, column) for name, column in zip("ND", terms * problem.X ** 2)]
    for name, values in {"N": N, "D": D, "C": 6 * N * D}.items():
        level = np.round(np.log(values), 2)
        groups, count = np.unique(level, return_counts=True)
        if len(groups) > 3 and count.min() > 1:
            asked += [(name, float(values[level == g].mean()), 1.0 * (level == g)) for g in groups]
    shift, chance = solver.score_test(problem, best, np.array([column for _, _, column in asked]))
    i = chance.argmin()
    what, at, _ = asked[i]
    return {"what": what, "at": at, "shift": float(shift[i]), "chance": float(min(1, chance[i] * len(asked)))}


def profile_E(N: Array, D: Array, L: Array, run=None, bootstrap: int = 200) -> dict:
    """The profile of the surface's E in nats: {grid, deviance, cutoff, lo, hi, identified}.

    Where `lo` is None, E = 0 fits. Raises UserError.
    """
    shares = np.append(np.geomspace(1e-4, 0.02, 4), np.linspace(0.04, 1.04, 51))
    return solver.profile(surface_problem(N, D, L), 0, np.log(np.min(L) * shares), run, bootstrap)


def surface_health(params: dict, N: Array, D: Array, L: Array, start: dict | None = None) -> dict:
    """Judge somebody's published surface {E, A, B, alpha, beta} on the data it was fitted to.

    Returns the health of the point itself beside `excess`, its objective over the best one minus 1, `best`,
    the parameters there, and `moved`, its largest distance from `start`, if given, in log-parameters. Raises
    UserError.
    """
    problem = surface_problem(N, D, L)
    here = surface_at(params, N, D)
    best, _, F = problem._replace(starts=np.vstack([problem.starts, here])).best()
    health = solver.evidence(problem, here)
    health["excess"] = float(solver.huber(problem.y - problem.fitted(here)).sum() / F.min() - 1)
    health["best"] = problem.printed(best)
    if start:
        health["moved"] = float(np.abs(here - surface_at(start, N, D)).max())
    return judge({"form": "published", "health": health})["health"]


# ---- What a fit predicts. ----

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
    for by_D, degree in product((0, 1), range(min(sizes, 4))):
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

    For C = 6 N D this is Hoffmann et al. 2022, eq. 4. Near any N another cost is a power law, 6 N^r D^s e^..,
    whose optimum has a closed form, too; doing this again at the N found converges, since r hardly changes.
    """
    alpha = p["alpha"]
    beta = p["beta"]
    G = np.log(alpha / beta) + np.log(p["A"]) - np.log(p["B"])
    d = np.log(C / 6)
    n = (G + beta * d) / (alpha + beta)
    if p.get("cost"):
        s = 1 + p["cost"]["by_D"]
        for _ in range(40):
            f, slope = beyond_6nd(p["cost"], n)
            r = np.maximum(1 + slope, 0.05)
            tangent = (d - f + slope * n) / s           # log D + r n / s, the same all along it
            n = (G + np.log(s / r) + beta * tangent) / (alpha + beta * r / s)
    N = np.exp(n)
    D = tokens_of(p, N, C)
    return N, D, surface_loss(p, N, D)


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


def repeated_optimum(p: dict, C: float, U: float) -> tuple[float, float, float, float]:
    """(N, D, epochs, loss) of the least `repeated_loss` for C = 6 N D FLOPs and U unique tokens."""
    def loss(log_N):
        return repeated_loss(p, np.exp(log_N), C / 6 / np.exp(log_N), U)

    best = minimize_scalar(loss, bounds=(0, np.log(C / 6)), method="bounded", options={"xatol": 1e-9})
    N = float(np.exp(best.x))
    D = C / 6 / N
    return N, D, max(D / U, 1.0), float(best.fun)
