"""Do the approaches agree on the best size: their exponents, and the best run for each budget?"""
import numpy as np

from scaling.laws import forms, health
from scaling.report import laws_of

# How far beyond their intervals optima may lie: a profile is not quite a parabola, nor N_opt a power of C.
SLACK = {"N_opt": 0.02, "D_opt": 0.02, "loss": 0.001}


def verdict(result: dict, at: list[float], differences: list[dict] = ()) -> dict:
    """a, b and the optimum at each budget of `at`, per approach; do they agree?

    Asked are a and, at the budgets inside all their data, N_opt, D_opt and the loss; not the loss of fewer
    than four budgets, which cannot tell its floor. Approaches disagree where their intervals share nothing;
    or IsoFLOP and surface where a difference of theirs is no noise.
    """
    laws = laws_of(result)
    approaches = {name: approach(fit, at) for name, fit in laws.items() if {"a", "b"} <= set(fit)}
    known = [row for row in approaches.values() if not row["unknown"]]
    rows = [row for row in known if "a" in row["ci"]]
    agree = None
    if not approaches:
        words = "no approach could be fitted"
    elif not known:
        words = "no approach can tell the best size from these runs"
    elif len(known) == 1:
        words = "one approach only: nothing to compare"
    elif len(rows) < 2:
        words = "no intervals, so nothing says whether the approaches agree"
    else:
        agree, words = agreement(rows, differences)
        floorless = [name for name, row in approaches.items() if not row["floor"]]
        if floorless:
            words += f" (losses not compared: {', '.join(floorless)} of fewer than four budgets has no floor)"
    return {"approaches": approaches, "budgets": at, "agree": agree, "text": words,
            "differences": list(differences)}


def approach(fit: dict, at: list[float]) -> dict:
    """What a fit with exponents of N_opt and D_opt in C says: a, b, and the optimum at each budget."""
    return {"a": fit["a"],
            "b": fit["b"],
            "ci": {k: fit["ci"][k] for k in "ab" if k in fit["ci"]},
            "at": [forms.optimum(fit, C) for C in at],
            "floor": fit.get("budgets", 4) > 3,
            "unknown": health.of_design(fit) + health.of_unfinished(fit)}


def agreement(rows: list[dict], differences: list[dict]) -> tuple[bool, str]:
    """Do these approaches agree, and why, or why not?"""
    why = [f"no {name} lies in all of their 95 % intervals" for name in disagreements(rows)]
    why += [f"IsoFLOP and surface differ in {row['what']} by more than noise" for row in differences
            if beyond_noise(row, len(differences))]
    if why:
        return False, f"the approaches disagree: {'; '.join(why)}"
    low, high = common([row["ci"]["a"] for row in rows])
    return True, f"the approaches agree: their 95 % intervals of a share {low:.3f} to {high:.3f}"


def beyond_noise(row: dict, asked: int) -> bool:
    """Is this difference, one of so many `asked`, neither noise nor what a parabola may be off by?"""
    slack = SLACK.get(row["what"].split()[0], 0)
    return row["p"] * asked < 0.05 and abs(row["difference"]) > slack


def common(spans: list) -> tuple[float, float]:
    """(low, high) of what intervals share; low > high where they share nothing."""
    lows, highs = zip(*spans)
    return max(lows), min(highs)


def disagreements(rows: list[dict]) -> list[str]:
    """What the intervals of these approaches do not share: the exponent, or an optimum inside the data."""
    spans = {"exponent a": [row["ci"]["a"] for row in rows]}
    asked = set(SLACK) if all(row["floor"] for row in rows) else set(SLACK) - {"loss"}
    for found in zip(*(row["at"] for row in rows)):
        if any("C" in best["outside"] for best in found):
            continue
        for k, slack in SLACK.items():
            if k in asked:
                spans[f"{k} at C = {found[0]['C']:.3g}"] = [
                    (best["ci"][k][0] / (1 + slack), best["ci"][k][1] * (1 + slack)) for best in found]
    return [name for name, each in spans.items() if np.greater(*common(each))]
