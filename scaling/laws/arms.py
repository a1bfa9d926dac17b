"""What a change is worth: the runs of several arms (recipes) as one law, an arm as a multiplier of it.

    L = E + A/(r N)^alpha + B/(s D)^beta

E, A, B, alpha and beta are those of all arms, r = s = 1 of the reference: an arm with r = 1.2 learns as if
its parameters were a fifth more. At the best size for a budget it reaches the reference's loss with 1/(r s)
of the compute, whatever the budget. Arms fitted apart would say far less: floor and exponents of one arm are
ill-conditioned, and a multiplier takes the difference of two (Volkova et al. 2026). Whether the exponents are
one is tested (F); where they are not, each arm has its own, and its multiplier depends on the budget.

Where all runs have one D the law is L = E + A/(r N)^alpha, where they have one N that of D, and where D
follows N that of C: the multiplier is that of N, D or C. No torch, no files.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import f as f_test
from scipy.stats import t as student

from runtime.basics import UserError
from scaling.laws import forms, frontiers
from scaling.laws.solver import LEVEL, robust_sd

FEWEST = 3                                 # settings (N and D) of an arm
DIFFER = 0.05                              # chance below which the exponents are not one
LEAST_NOISE = 1e-4                         # of log-loss: data without noise have a law, too
TIED = 1e-3                                # sd of log r - log s of an arm that cannot tell them apart
SPARE = 2                                  # degrees of freedom
STARTS = [(share, slope) for share in (0.5, 0.85) for slope in (0.25, 0.6)]
Array = np.ndarray


class Runs(NamedTuple):
    """Settings of all arms, each (n,): N, D, C, log-loss (mean over seeds), the arm's index.

    Arm 0 is the reference. `terms` are the inputs that the law has terms of: "ND", "N", "D" or "C".
    """

    N: Array
    D: Array
    C: Array
    y: Array
    arm: Array
    terms: str

    def cost(self, k: int) -> float:
        """Log of C over 6 N D in arm k's runs; 0 where the law is of C as it is."""
        if self.terms == "C":
            return 0.0
        own = self.arm == k
        return float(np.median(np.log(self.C / (6 * self.N * self.D))[own]))

    def inputs(self) -> Array:
        """The logarithms (T, n) of what the law's terms fall with."""
        return np.log([getattr(self, name) for name in self.terms])

    def shared_by(self) -> float:
        """Log of C over the one input that the law has a term of."""
        other = {"N": self.D, "D": self.N, "C": np.full(1, 1 / 6)}[self.terms]
        return float(np.log(6 * other).mean())


class Joint(NamedTuple):
    """A fitted law: theta (p,), its covariance, its cost, noise of log-loss and degrees of freedom."""

    theta: Array
    cov: Array
    cost: float
    noise: float
    df: int
    center: Array
    own: bool                              # whether each arm has exponents of its own


# ---- The law. ----

def unpack(theta: Array, terms: int, own: bool) -> tuple[Array, Array, Array, Array]:
    """theta (..., p) -> log E (...), log terms (..., T) at the mean inputs, exponents and shifts (..., T, K).

    Arm 0 is the reference: its shifts, log r and log s, are 0. Log-exponents of other arms are offsets.
    """
    lead = theta.shape[:-1]
    e = theta[..., 0]                                  # theta: the floor, levels, exponents, what arms add
    level = theta[..., 1:1 + terms]
    slope = theta[..., 1 + terms:1 + 2 * terms, None]
    rest = theta[..., 1 + 2 * terms:].reshape(*lead, 1 + own, terms, -1)
    rest = np.concatenate([np.zeros((*lead, 1 + own, terms, 1)), rest], -1)
    shift = rest[..., 0, :, :]
    slope = slope + (rest[..., 1, :, :] if own else np.zeros_like(shift))
    return e, level, np.exp(np.minimum(slope, 9)), shift


@np.errstate(over="ignore", invalid="ignore")          # a step too far; the solver refuses it
def log_loss(theta: Array, x: Array, arm: Array, own: bool) -> Array:
    """Log-loss (n,) at centred log-inputs x (T, n) of the runs of `arm` (n,)."""
    e, level, slope, shift = unpack(theta, len(x), own)
    terms = level[:, None] - slope[:, arm] * (x + shift[:, arm])
    return np.logaddexp(e, np.logaddexp.reduce(terms, axis=0))


def tied(runs: Runs) -> list[int]:
    """The arms whose own runs cannot tell log r from log s: they have one N, one D, or D follows N."""
    if runs.terms != "ND":
        return []
    found = []
    for k in range(1, runs.arm.max() + 1):
        N, D = runs.N[runs.arm == k], runs.D[runs.arm == k]
        if np.ptp(N) == 0 or np.ptp(np.log(D)) < 0.05 or forms.follows(N, D):
            found.append(k)
    return found


def misfit_of(runs: Runs, own: bool) -> Callable:
    """The residuals of theta (p,), in units of a noise: of each setting, and of r = s where arms tie them."""
    x = runs.inputs()
    x = x - x.mean(1)[:, None]
    T, K = len(x), runs.arm.max()
    together = [1 + 2 * T + np.array([k - 1, K + k - 1]) for k in tied(runs)]

    def misfit(theta, noise):
        apart = [(theta[a] - theta[b]) / TIED for a, b in together]
        return np.append((log_loss(theta, x, runs.arm, own) - runs.y) / noise, apart)
    return misfit


def solve(misfit: Callable, start: Array, noise: float):
    """Least squares, linear beyond three standard deviations, so that an outlier does not decide."""
    return least_squares(misfit, start, args=(noise,), loss="huber", f_scale=3, x_scale="jac")


def start_at(runs: Runs, own: bool, share: float, slope: float) -> Array:
    """theta (p,) of arms that are alike, with a floor of `share` of the lowest loss and exponents `slope`."""
    T, K = len(runs.terms), runs.arm.max()
    low = runs.y.min()
    height = low + np.log((1 - share) / T)
    arms = np.zeros((1 + own) * T * K)
    return np.concatenate([[low + np.log(share)], np.full(T, height), np.full(T, np.log(slope)), arms])


def fit_joint(runs: Runs, own: bool = False) -> Joint:
    """The joint law, with exponents that are each arm's `own` or shared; fit and noise are found in turns."""
    misfit = misfit_of(runs, own)
    starts = [start_at(runs, own, *start) for start in STARTS]
    df = len(runs.y) - len(starts[0]) + len(tied(runs))
    found = min((solve(misfit, start, 0.01) for start in starts), key=lambda found: found.cost)
    for _ in range(3):
        miss = misfit(found.x, 1.0)[:len(runs.y)]
        most = 4 * max(robust_sd(miss), LEAST_NOISE)
        noise = max(float(np.sqrt((np.clip(miss, -most, most) ** 2).sum() / df)), LEAST_NOISE)
        found = solve(misfit, found.x, noise)
    cov = np.linalg.pinv(found.jac.T @ found.jac, hermitian=True)
    cov *= 1 + len(found.x) / df                       # else 93 % are inside, for the law is no straight line
    return Joint(found.x, cov, 2 * found.cost, noise, df, runs.inputs().mean(1), own)


def equal_exponents(runs: Runs, shared: Joint, own: Joint) -> dict:
    """F test of shared exponents against each arm's own, both at the noise of the latter."""
    cost = 2 * solve(misfit_of(runs, False), shared.theta, own.noise).cost
    q = shared.df - own.df
    F = max(cost - own.cost, 0) / q / (own.cost / own.df)
    return {"F": float(F), "p": float(f_test.sf(F, q, own.df)), "df": [q, own.df]}


# ---- What it is worth. ----

def log_multiplier(worse: Array, better: Array, exponent: Array) -> Array:
    """Log of how many times the compute takes one log of a reducible loss to another, along k C^-exponent."""
    return (worse - better) / exponent


def multiplier_of_losses(better: float, worse: float, E: float, alpha: float) -> float:
    """How many times the compute takes a loss `worse` to `better` along L = E + k C^-alpha."""
    return float(np.exp(log_multiplier(np.log(worse - E), np.log(better - E), alpha)))


def parts(law: Joint, theta: Array, k: int, T: int) -> tuple[Array, Array]:
    """(log A, log B) (..., T) and exponents of arm k in raw inputs: term t is e^(level - slope x)."""
    _, level, slope, shift = unpack(theta, T, law.own)
    slope = slope[..., k]
    return level + slope * (law.center - shift[..., k]), slope


def at_best(law: Joint, theta: Array, k: int, runs: Runs, log_C: Array) -> tuple[Array, Array | None]:
    """(log of the reducible loss, log N) of arm k at its best size for 6 N D = e^log_C.

    With one term there is no size to choose: None.
    """
    levels, slopes = parts(law, theta, k, len(runs.terms))
    if len(runs.terms) == 1:
        return levels[..., 0] - slopes[..., 0] * (log_C - runs.shared_by()), None
    A, B = np.moveaxis(np.exp(levels), -1, 0)
    alpha, beta = np.moveaxis(slopes, -1, 0)
    surface = {"E": 0.0, "A": A, "B": B, "alpha": alpha, "beta": beta}
    N, _, loss = forms.surface_optimum(surface, np.exp(log_C))
    return np.log(loss), np.log(N)


def log_factor(law: Joint, theta: Array, k: int, runs: Runs, C: float) -> Array:
    """Log of the compute that the reference takes over arm k's, at arm k's loss for C; theta (..., p)."""
    log_C = np.log(C) - runs.cost(k)
    reached, _ = at_best(law, theta, k, runs, log_C)
    there, _ = at_best(law, theta, 0, runs, log_C)
    _, slopes = parts(law, theta, 0, len(runs.terms))
    exponent = 1 / (1 / slopes).sum(-1)                # the frontier's: alpha beta / (alpha + beta)
    return log_multiplier(there, reached, exponent) - (runs.cost(k) - runs.cost(0))


def log_factor_at_equal(law: Joint, theta: Array, k: int, runs: Runs, t: int, C: float) -> Array:
    """Log of the reference's own input t (0: N, 1: D) over arm k's at its best size, the other being equal.

    Infinite where no amount of it makes up for the change.
    """
    log_C = np.log(C) - runs.cost(k)
    reached, n = at_best(law, theta, k, runs, log_C)
    x = np.stack([n, log_C - np.log(6) - n], -1)
    levels, slopes = parts(law, theta, 0, 2)
    other = np.exp(levels[..., 1 - t] - slopes[..., 1 - t] * x[..., 1 - t])
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.log(np.maximum(np.exp(reached) - other, 0))
        return (levels[..., t] - left) / slopes[..., t] - x[..., t]


def with_interval(f, law: Joint) -> dict:
    """{factor, ci} of a log-factor f(theta): the delta method, with Student's t."""
    sd = np.sqrt(np.diag(law.cov))
    with np.errstate(invalid="ignore"):                # where no amount makes up for a change
        slope = (f(law.theta + 1e-3 * np.diag(sd)) - f(law.theta - 1e-3 * np.diag(sd))) / 2e-3
    scaled = np.divide(slope, sd, out=np.zeros_like(sd), where=sd > 0)
    wide = student.ppf((1 + LEVEL) / 2, law.df) * np.sqrt(scaled @ law.cov @ scaled)
    middle = float(f(law.theta))
    return {"factor": float(np.exp(middle)), "ci": np.exp([middle - wide, middle + wide]).tolist()}


def worth(shared: Joint, own: Joint | None, law: Joint, runs: Runs, k: int, at: list[float]) -> dict:
    """All that is said of arm k: r and s, its multiplier at each budget, that of N and D alone, the trend.

    `law` is the one of `shared` and `own` that holds; a trend needs exponents of its own.
    """
    def at_budget(C):
        return {"C": C} | with_interval(lambda theta: log_factor(law, theta, k, runs, C), law)

    def at_equal(t, C):
        return {"C": C} | with_interval(lambda theta: log_factor_at_equal(law, theta, k, runs, t, C), law)

    def slope(theta):
        low, high = runs.C.min(), runs.C.max()
        rise = log_factor(own, theta, k, runs, high) - log_factor(own, theta, k, runs, low)
        return rise / np.log10(high / low)
    row = {"n": int((runs.arm == k).sum()), "ci": {}}
    for t, name in enumerate({"ND": "rs", "N": "r", "D": "s", "C": "m"}[runs.terms]):
        found = with_interval(lambda theta, t=t: unpack(theta, len(runs.terms), False)[3][..., t, k], shared)
        row[name], row["ci"][name] = found["factor"], found["ci"]
    row["multiplier"] = [at_budget(C) for C in at]
    if runs.terms == "ND":
        for t, name in enumerate(("at_equal_tokens", "at_equal_params")):
            row[name] = [at_equal(t, C) for C in at]
    if own:
        trend = with_interval(slope, own)
        row["trend"] = {"per_tenfold_C": trend["factor"], "ci": trend["ci"]}
    row["curve"] = curve(law, k, runs)
    row["curve"]["multiplier"] = [at_budget(C) for C in row["curve"]["C"]]
    return row


def curve(law: Joint, k: int, runs: Runs) -> dict:
    """What a picture of arm k shows: its runs, and its frontier over the C of all arms."""
    own = runs.arm == k
    C = np.geomspace(runs.C.min(), runs.C.max(), 15)
    reached, _ = at_best(law, law.theta, k, runs, np.log(C) - runs.cost(k))
    return {"runs": {"C": runs.C[own].tolist(), "loss": np.exp(runs.y[own]).tolist()},
            "C": C.tolist(), "loss": (np.exp(law.theta[0]) + np.exp(reached)).tolist()}


# ---- The fit. ----

def settings(arms: dict, reference: str) -> tuple[Runs, list[str], dict]:
    """(settings of all arms, their names with the reference first, {arm: why it is left out}).

    `arms` maps a name to N, D, C and L, each (n,). Raises UserError where nothing is left to compare.
    """
    if reference not in arms:
        raise UserError(f"there is no arm {reference!r} to compare with; there are {', '.join(arms)}: "
                        "--reference=NAME")
    out, rows = {}, {}
    for name in [reference, *(name for name in arms if name != reference)]:
        key, group = np.unique(np.array([arms[name]["N"], arms[name]["D"]]), axis=1, return_inverse=True)
        group = group.reshape(-1)
        count = np.bincount(group)
        if len(count) < FEWEST:
            out[name] = f"{len(count)} settings of N and D are too few; an arm needs {FEWEST}"
            continue
        C, y = (np.bincount(group, v) / count for v in (arms[name]["C"], np.log(arms[name]["L"])))
        rows[name] = np.array([*key, C, y])
    if reference in out:
        raise UserError(f"the reference arm {reference!r}: {out[reference]}")
    if len(rows) < 2:
        why = "; ".join(f"{name}: {words}" for name, words in out.items()) or f"only {reference} is there"
        raise UserError(f"no two arms to compare: {why}")
    N, D, C, y = np.concatenate(list(rows.values()), axis=1)
    arm = np.repeat(np.arange(len(rows)), [v.shape[1] for v in rows.values()])
    terms = "ND"
    if np.ptp(np.log(D)) < 0.05:
        terms = "N"
    elif np.ptp(np.log(N)) < 0.05:
        terms = "D"
    elif forms.follows(N, D):
        terms = "C"
    return Runs(N, D, C, y, arm, terms), list(rows), out


def budgets(runs: Runs) -> list[float]:
    """The budgets that runs share or, where they have none, three over the range that all arms have."""
    level = frontiers.group_budgets(runs.C)
    level = np.unique(level[np.isfinite(level)])
    if len(level):
        return level.tolist()
    spans = [(runs.C[runs.arm == k].min(), runs.C[runs.arm == k].max()) for k in range(runs.arm.max() + 1)]
    lows, highs = zip(*spans)
    low, high = max(lows), min(highs)
    if low >= high:
        low, high = runs.C.min(), runs.C.max()
    return np.geomspace(low, high, 3).tolist()


def speeds(arm: dict) -> tuple[Array, Array]:
    """Log of an arm's sizes (k,), each once, and of their tokens per second, medians of runs."""
    known = arm["tok_per_s"] > 0
    N, group = np.unique(np.log(arm["N"][known]), return_inverse=True)
    speed = np.log(arm["tok_per_s"][known])
    return N, np.array([np.median(speed[group == k]) for k in range(len(N))])


def slowness(arms: dict, name: str, reference: str) -> tuple[float, float] | None:
    """Log of seconds a token over the reference's at the same N, and half its 95 % interval.

    None without speeds of two sizes. The interval is by the scatter between sizes (Student's t): what slows
    all runs of an arm alike, another machine or a busy hour, is not in it.
    """
    if any(arms[arm].get("tok_per_s") is None for arm in (name, reference)):
        return None
    N, mine = speeds(arms[name])
    there, theirs = speeds(arms[reference])
    if min(len(N), len(there)) < 2:
        return None
    slower = np.interp(N, there, theirs) - mine
    error = slower.std(ddof=1) / np.sqrt(len(slower))
    return float(slower.mean()), float(student.ppf((1 + LEVEL) / 2, len(slower) - 1) * error)


def per_hour(multiplier: dict, slower: float, half: float) -> dict:
    """A multiplier at a budget, {C, factor, ci}, of hours in place of FLOPs; see `slowness`."""
    wide = np.hypot(np.log(multiplier["ci"][1] / multiplier["factor"]), half)
    middle = np.log(multiplier["factor"]) - slower
    return {"C": multiplier["C"], "factor": float(np.exp(middle)),
            "ci": np.exp([middle - wide, middle + wide]).tolist()}


def fit_arms(arms: dict, reference: str, at: list[float] | None = None) -> dict:
    """What each arm is worth over `reference` at the budgets `at`: see the head of this file.

    `arms` maps a name to {N, D, C, L} and perhaps tok_per_s, each (n,); rows of one N and D of an arm are
    seeds. Returns reference, shared {E, A, B, alpha, beta, ci, noise, df}, equal_exponents, left_out, arms
    {name: r, s, multiplier ...}, health. Raises UserError.
    """
    runs, names, out = settings(arms, reference)
    at = at or budgets(runs)
    T, K = len(runs.terms), len(names) - 1
    have, need = len(runs.y), 1 + 2 * T + T * K + SPARE
    if have < need:
        raise UserError(f"{have} settings of {len(names)} arms cannot tell {need - SPARE} parameters; train "
                        f"{need - have} more")
    shared = fit_joint(runs)
    test, own, law = None, None, shared
    if have >= need + T * K:
        own = fit_joint(runs, own=True)
        test = equal_exponents(runs, shared, own)
        if test["p"] < DIFFER:
            law = own
    found = {name: worth(shared, own, law, runs, k, at) for k, name in enumerate(names) if k}
    for name, row in found.items():
        if slower := slowness(arms, name, reference):
            row["seconds_per_token"] = float(np.exp(slower[0]))
            row["per_hour"] = [per_hour(m, *slower) for m in row["multiplier"]]
    return {"form": "arms", "terms": runs.terms, "reference": reference, "budgets": at, "n": have,
            "shared": constants(shared, runs.terms), "equal_exponents": test, "arms": found, "left_out": out,
            "curve": curve(law, 0, runs), "health": health(runs, names, test, out)}


def constants(law: Joint, terms: str) -> dict:
    """The shared parameters as in print, with intervals."""
    names = {"ND": ("A", "B", "alpha", "beta"), "N": ("A", "alpha"), "D": ("B", "beta"), "C": ("k", "gamma")}

    def logs(theta):
        levels, slopes = parts(law, theta, 0, len(terms))
        return np.concatenate([theta[..., :1], levels, np.log(slopes)], -1)
    found = {"ci": {}, "noise": law.noise, "df": law.df}
    for i, name in enumerate(("E", *names[terms])):
        value = with_interval(lambda theta, i=i: logs(theta)[..., i], law)
        found[name], found["ci"][name] = value["factor"], value["ci"]
    return found


def health(runs: Runs, names: list[str], test: dict | None, out: dict) -> dict:
    """What to doubt, a sentence each: exponents, arms left out, sizes that do not overlap."""
    lines = [f"{name} is left out: {why}" for name, why in out.items()]
    if test is None:
        lines.append("too few settings to test whether the arms have one pair of exponents")
    elif test["p"] < DIFFER:
        lines.append(f"the exponents are not one (F test, p = {test['p']:.2g}): each arm has its own, and a "
                     "multiplier holds at its budget only")
    for k in tied(runs):
        lines.append(f"the runs of {names[k]} cannot tell what N is worth from what D is: r = s is assumed")
    for k, name in enumerate(names[1:], 1):
        for word in runs.terms.replace("C", "ND"):
            mine, theirs = (getattr(runs, word)[runs.arm == i] for i in (k, 0))
            if mine.min() > 2 * theirs.max() or theirs.min() > 2 * mine.max():
                lines.append(f"{name} and {names[0]} have no {word} in common: the law alone compares them")
    return {"lines": lines, "ok": not lines}
