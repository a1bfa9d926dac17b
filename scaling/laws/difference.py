"""Do IsoFLOP profiles say something else than the surface, beyond noise? No torch, no files.

Intervals that overlap do not answer this: both approaches are fitted to the same losses, so most of their
errors are shared. Here both are fitted to the same simulated studies: the losses that the surface has at the
runs, with noise as large as that between seeds or, without any, as the scatter about the profiles' parabolas.
Where the surface is the truth, the difference of the approaches is what these show: a median, for a profile
is not quite a parabola, and a spread. What the data show beyond that median is the difference reported.

In 400 simulated studies each, runs as in results/laptop and isoflop, 95 to 98 % of the intervals of a,
N_opt, D_opt and loss held 0; in 1 % of the studies `fit` would have said that the approaches disagree.
"""
import numpy as np

from scaling.laws import forms, frontiers
from scaling.laws.solver import DRAW, Array, interval, minimise, t_ratio


def asked(law: dict, budgets: list[float]) -> dict:
    """{what: value}: a, and N_opt, D_opt and loss (their logs) at budgets, by an approach or its draws."""
    optimum = forms.surface_optimum if law["form"] == "surface" else forms.power_optimum
    found = {"a": law["a"]}
    for C in budgets:
        for name, value in zip(("N_opt", "D_opt", "loss"), optimum(law, C)):
            found[f"{name} at C = {C:.3g}"] = np.log(value)
    return found


def surfaces(surface: dict, N: Array, D: Array, C: Array, y: Array) -> dict:
    """The surface with the parameters (B,) that a refit to each row of the log-losses y (B, n) has."""
    problem = forms.surface_problem(N, D, np.exp(y[0]))
    start = forms.surface_at(surface, N, D)
    theta, _ = minimise(problem, np.repeat(start, len(y), 0), y, np.ones((1, len(N))), *DRAW)
    refitted = surface | {"boot": {k: v.tolist() for k, v in problem.natural(theta).items()}, "ci": {}}
    return drawn(forms.counted(refitted, N, D, C))


def drawn(fit: dict) -> dict:
    """`fit` with its draws (B,) for parameters."""
    return fit | {k: np.array(v) for k, v in fit["boot"].items()}


@np.errstate(invalid="ignore", divide="ignore")         # of a world with one minimum, which has no line
def differences(surface: dict, N: Array, D: Array, C: Array, L: Array, budgets: list[float], count: int,
                noise: float = 0.0, budget: Array | None = None) -> list[dict]:
    """What IsoFLOP profiles say less what `surface` says, a fit to the same runs (n,): one row an answer.

    `budgets` are FLOPs at which N_opt, D_opt and loss are compared, by their logs; `noise` and `budget` (n,)
    are as in `fit_isoflop`. Returns [{what, difference, ci, p}]: the difference beyond what
    `count` worlds show in the median, its interval, and how likely one as large is where the surface is true.
    Empty where nothing tells the noise. Raises UserError where there are no profiles.
    """
    if not noise:
        profiles = frontiers.fit_isoflop(N, C, L, budget, bootstrap=0, D=D)
        if not profiles["health"]["noise_df"]:
            return []                      # three sizes a budget leave no scatter, so nothing tells the noise
        noise = profiles["noise"] * t_ratio(profiles["health"]["noise_df"])
    truth = np.log(forms.loss_of(surface, {"N": N, "D": D}))
    y = truth + noise * np.random.default_rng(0).standard_normal((count, len(N)))
    isoflop = frontiers.fit_isoflop(N, C, L, budget, bootstrap=0, D=D, worlds=y)
    found = less(asked(isoflop, budgets), asked(surface, budgets))
    noise = less(asked(drawn(isoflop), budgets), asked(surfaces(surface, N, D, C, y), budgets))
    noise = {what: v[np.isfinite(v)] for what, v in noise.items()}
    # Worlds of which few have their minima inside tell nothing.
    return [compared(what, found[what], v) for what, v in noise.items() if len(v) > count / 2]


def less(answers: dict, others: dict) -> dict:
    """The differences of the answers to the same questions."""
    return {what: value - others[what] for what, value in answers.items()}


def compared(what: str, difference: float, drawn: Array) -> dict:
    """The difference of one answer against those (B,) of worlds in which there is none."""
    low, high = interval(drawn)
    rarer = min((drawn >= difference).sum(), (drawn <= difference).sum())
    return {"what": what,
            "difference": float(difference - np.median(drawn)),
            "ci": [float(difference - high), float(difference - low)],
            "p": float(min(1, 2 * (1 + rarer) / (1 + len(drawn))))}
