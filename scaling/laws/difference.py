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


def asked(fit: dict, p: dict, budgets: list[float]) -> dict:
    """{what: value}: a, and N_opt, D_opt and loss (their logs) at budgets, by an approach's parameters p."""
    optimum = forms.surface_optimum if fit["form"] == "surface" else forms.power_optimum
    found = {"a": p["a"]}
    for C in budgets:
        for name, value in zip(("N_opt", "D_opt", "loss"), optimum(fit | p, C)):
            found[f"{name} at C = {C:.3g}"] = np.log(value)
    return found


def surfaces(surface: dict, N: Array, D: Array, C: Array, y: Array) -> dict:
    """The parameters (B,) of the surface refitted to each row of the log-losses y (B, n)."""
    problem = forms.surface_problem(N, D, np.exp(y[0]))
    start = forms.surface_at(surface, N, D)
    theta, _ = minimise(problem, np.repeat(start, len(y), 0), y, np.ones((1, len(N))), *DRAW)
    refitted = surface | {"boot": {k: v.tolist() for k, v in problem.natural(theta).items()}, "ci": {}}
    return {k: np.array(v) for k, v in forms.counted(refitted, N, D, C)["boot"].items()}


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
    seen, theirs = asked(isoflop, {"a": isoflop["a"]}, budgets), asked(surface, {"a": surface["a"]}, budgets)
    profiles = asked(isoflop, {k: np.array(v) for k, v in isoflop["boot"].items()}, budgets)
    laws = asked(surface, surfaces(surface, N, D, C, y), budgets)
    drawn = {what: profiles[what] - laws[what] for what in seen}
    drawn = {what: v[np.isfinite(v)] for what, v in drawn.items()}
    # Worlds of which few have their minima inside tell nothing.
    return [compared(what, float(seen[what] - theirs[what]), v) for what, v in drawn.items()
            if len(v) > count / 2]


def compared(what: str, difference: float, drawn: Array) -> dict:
    """The difference of one answer against those (B,) of worlds in which there is none."""
    low, high = interval(drawn)
    above = (1 + (drawn >= difference).sum()) / (1 + len(drawn))
    below = (1 + (drawn <= difference).sum()) / (1 + len(drawn))
    return {"what": what, "difference": float(difference - np.median(drawn)),
            "ci": [difference - high, difference - low], "p": float(min(1, 2 * min(above, below)))}
