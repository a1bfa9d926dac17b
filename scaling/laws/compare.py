"""Which form of a law do the data prefer: by Akaike's criterion, and by what extrapolation costs."""
from collections.abc import Callable
from functools import partial

import numpy as np

from runtime.basics import UserError
from scaling.laws.forms import fit_broken, fit_kaplan_nd, fit_one_exponent, fit_power, fit_surface
from scaling.laws.models import loss_of
from scaling.laws.solver import Array, clusters


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
