"""Health: what the fits found out about themselves, in words. (Why a budget has no optimum is in frontiers.)

A fit puts its findings (numbers and facts) into fit["health"] as it makes them. `judge` words what is wrong,
a sentence of English each, as health["lines"], and says in health["ok"] whether there is nothing to say.
Those of them that say that the data do not determine the law are health["undetermined"] too: nothing should
be forecast or planned by it. A new finding is a number in health and a sentence here.
"""
import numpy as np
from scipy.stats import f as f_test

MANY_ERRORS = 2                            # standard errors by which one run may move an exponent
CARRIES = 3                                # standard errors by which it may do so by chance
FEW_STARTS = 4.5                           # that find the optimum: one as easily found was missed in 1 %
LACK_OF_FIT = 3                            # residuals over the noise between seeds
VAGUE = 0.05                               # relative error of C as N and D tell it
WIDE = 0.5                                 # an interval of a, of the 0 to 1 that there are, that says little
NOTHING = 0.9                              # and one that says nothing
STRANGE = 0.005                            # chance of what lies off a law's pattern
DRIFTS = 0.57                              # last over first slope of a hull that is not one power law
STREWN = 0.03                              # chance of a gap as wide between points that were strewn
CHANGES = 0.1                              # of d log C/d log N, from the smallest optimum to the largest
FLAT = 0.002                               # an exponent, twice the least that a fit may find
R_RATIO = 30                               # the ends of an interval of R_D or R_N, one over the other


def judge(fit: dict) -> dict:
    """Set `lines`, `ok` and `undetermined` of fit["health"] from its findings, anew at each call.

    Returns the fit.
    """
    health = fit["health"]
    health["lines"] = lines(fit)
    health["ok"] = not health["lines"]
    health["undetermined"] = undetermined(fit)
    return fit


def undetermined(fit: dict) -> list[str]:
    """The sentences on what the data leave open of a law: what is N's and what D's, a bound, the floor."""
    if fit["form"] in ("loss_vs_compute", "published"):
        return []
    if fit["form"] in ("isoflop", "envelope"):
        return of_exponent(fit, NOTHING)
    return of_design(fit) + of_optimum(fit["health"]) + of_floor(fit) + of_profile(fit)


def lines(fit: dict) -> list[str]:
    """A sentence for each thing that is wrong with `fit`, in the order in which they matter."""
    if fit["form"] == "isoflop":
        return of_isoflop(fit)
    if fit["form"] == "envelope":
        return of_envelope(fit)
    if fit["form"] == "loss_vs_compute":
        return of_hull(fit)
    if fit["form"] == "published":
        return of_published(fit["health"])
    h = fit["health"]
    if h.get("limited"):                               # what else such a slice lacks, it lacks for that
        return of_data(fit)
    design = of_design(fit) or of_exponent(fit, WIDE)
    return design + of_optimum(h) + of_floor(fit) + of_slope(fit) + of_parameters(h) + of_data(fit)


# ---- Fits of a formula (scaling.laws.forms). ----

def of_design(fit: dict) -> list[str]:
    """Can these runs tell what falls with N from what falls with D?"""
    if not fit["health"].get("D_follows_N"):
        return of_flat(fit) or of_exponent(fit, NOTHING)
    s, r = fit["health"]["D_follows_N"]
    said = f"D = {r:.3g} N"
    if abs(s - 1) > 0.02:
        said = f"D ~ N^{s:.3g}"
    return [f"N_opt is not identified: {said} in all runs, so A/N^alpha and B/D^beta can change places and a "
            "and 1 - a fit alike; vary the tokens per parameter (a wider range would not help)"]


def of_flat(fit: dict) -> list[str]:
    """Does the loss fall with N and with D at all, as a power of each?"""
    flat = {"alpha", "beta"} & set(fit["health"].get("bounds", []))
    if flat and fit.get("form") == "surface":
        return [f"N_opt is not identified: {' and '.join(sorted(flat))} stopped at a bound, so the loss "
                "falls with size or data as no power law does; see the warnings of the table"]
    return []


def of_exponent(fit: dict, wide: float) -> list[str]:
    """Does the interval of a, which lies between 0 and 1, say anything?"""
    low, high = fit["ci"].get("a", (0, 0))
    if high - low < wide:
        return []
    return [f"a is {low:.2g} to {high:.2g}: these runs hardly say how N_opt grows; add budgets or sizes"]


def of_optimum(h: dict) -> list[str]:
    """Was the minimum found, and is it the only one?"""
    out = []
    if h["improvable"] > 1e-4:
        out.append(f"not at a minimum: one more step lowers the objective by {h['improvable']:.1%}")
    if h["agree"] * h["starts"] < FEW_STARTS:
        out.append(f"only {h['agree']:.0%} of {h['starts']} starts reach this optimum: it has rivals")
    if h["bounds"]:
        out.append(f"stopped at the bound of {', '.join(h['bounds'])}: these data do not determine it")
    return out


def of_floor(fit: dict) -> list[str]:
    """Is the irreducible loss more than nothing?"""
    if fit["health"].get("D_follows_N") or fit["health"].get("limited"):    # that is why
        return []
    if fit.get("residuals") == "linear":                # of a loss that has no 0
        return []
    for name in ("E", "L_inf"):
        if name in fit["ci"] and fit["ci"][name][0] <= 0.05 * fit["range"]["loss"][0]:
            return [f"{name} is not identified: its interval reaches almost 0; a wider range would pin it"]
    return []


def of_slope(fit: dict) -> list[str]:
    """Does the loss fall along a power law for sure?"""
    low, high = fit["ci"].get("alpha", (1, 1))
    if fit["form"] != "power" or not low <= FLAT:
        return []
    return [f"alpha is not identified: its interval, {low:.2g} to {high:.2g}, reaches almost 0, which is no "
            "fall; a wider range would pin it"]


def of_profile(fit: dict) -> list[str]:
    """Does the floor have a best value, where its interval does not say already that it has none?"""
    if fit["health"].get("profile_open") and not of_floor(fit) and not fit["health"].get("D_follows_N"):
        return ["E is not identified: its profile does not rise on both sides; a wider range would pin it"]
    return []


def of_parameters(h: dict) -> list[str]:
    """Do all of the runs, and not one alone, determine the parameters?"""
    out = []
    if h["condition"] > 1e6:
        out.append(f"condition number {h['condition']:.0e}: some parameters can be traded for one another")
    worst = h.get("influence")
    if carries(worst):
        out.append(f"one run (row {worst['row'] + 1}) moves {worst['parameter']} by {worst['shift']:.1f} "
                   f"standard errors, to {worst['without']:.3f} without it")
    return out


def carries(worst: dict | None) -> bool:
    """Does one run (or budget) move an exponent far, and is that neither luck nor shared by others?

    Of many runs one is always the worst: so it counts where it is further off than chance has it, or where
    the design leaves the exponent to it.
    """
    if not worst or worst["shift"] < MANY_ERRORS:
        return False
    return worst["chance"] < 0.01 or worst["carries"] > CARRIES


def of_data(fit: dict) -> list[str]:
    """Does the form hold, and do the data reach far enough for it?"""
    h = fit["health"]
    out = []
    if h.get("lack_of_fit", 0) > LACK_OF_FIT and h.get("lack_of_fit_chance", 0) < 0.01:
        out.append(f"residuals are {h['lack_of_fit']:.1f} times the noise between seeds: the form, or the "
                   "tuning of some sizes, is off")
    out += of_profile(fit) + of_pattern(h)
    if fit.get("cost") and fit["cost"]["off"] > VAGUE:
        off = fit["cost"]["off"]
        out.append(f"N and D tell the C of a run only to {off:.0%}: it depends on more, and so does N_opt")
    if h.get("limited"):
        out.append(of_limit(fit["range"], h["limited"]))
    if h.get("bend") and not h.get("limited"):         # else that is why
        out.append(f"the curve bends at {h['bend']:.3g}: a broken power law fits far better, see 'broken'")
    if h.get("repeated_rows"):
        out.append(f"{h['repeated_rows']} rows repeat their data, which this form ignores; see 'repeated'")
    for name in ("R_D", "R_N"):
        low, high = fit["ci"].get(name, (1, 1))
        if high > R_RATIO * low:
            out.append(f"{name} is not identified: its interval is {low:.3g} to {high:.3g}; runs of many "
                       "more epochs would pin it")
    return out


def of_pattern(h: dict) -> list[str]:
    """Do the runs of one size, length or budget, or all of them along N or D, lie off the surface?"""
    off = h.get("off_law")
    if not off or off["chance"] > STRANGE:
        return []
    if off["what"] == "bend":
        return [f"the losses bend along {off['at']} as no surface does, so N_opt and D_opt beyond these runs "
                "will be off: an N that counts embeddings, or sizes tuned unlike the others, do this"]
    side = "above" if off["shift"] > 0 else "below"
    return [f"the runs of {off['what']} = {off['at']:.3g} lie {abs(off['shift']):.1%} {side} the law of all "
            "others: were they tuned, trained and counted alike?"]


def of_cost(h: dict) -> list[str]:
    """Is N_opt a power of C at all, as C is counted?"""
    slopes = h.get("cost_slopes")
    if not slopes or abs(slopes[1] - slopes[0]) < CHANGES:
        return []
    return [f"C grows as N^{slopes[0]:.2f} at the smallest optimum and as N^{slopes[1]:.2f} at the largest: "
            "N_opt and D_opt are no powers of C beyond these budgets; the surface knows what a run costs"]


def of_limit(inputs: dict, limited: dict) -> str:
    """The loss fell along these runs with what the law knows and with what it does not."""
    own, other = ("model size", "data") if "N" in inputs else ("data", "model size")
    return (f"{other} was a limit too: by the surface, more of it took {limited['other']:.2g} off, and "
            f"more {own} {limited['own']:.2g}, with an exponent of {limited['exponent']:.3g}")


def of_published(h: dict) -> list[str]:
    """Are somebody's published parameters at the minimum, and did their optimiser move at all?"""
    out = []
    if h["excess"] > 1e-4:
        best = ", ".join(f"{k} = {h['best'][k]:.4g}" for k in ("E", "A", "B", "alpha", "beta"))
        out.append(f"not at the minimum: the objective is {h['excess']:.1%} above the best, where {best}")
        if h.get("moved", 1) < 0.05:
            out.append("the optimiser hardly left its start (largest change of a log-parameter "
                       f"{h['moved']:.1g}): it stopped at once, whatever it reports")
    return out


# ---- Frontiers (scaling.laws.frontiers). ----

def of_isoflop(fit: dict) -> list[str]:
    """What was refused and why, and what the line through the other budgets rests on."""
    h = fit["health"]
    out = [f"budget {p['C']:.3g} refused: {p['refused']}" for p in fit["points"] if p["refused"]]
    for p in fit["points"]:
        if p.get("edge", 0) > 0.05:
            out.append(f"budget {p['C']:.3g}: in {p['edge']:.0%} of the resamples its vertex left the sizes; "
                       "add sizes")
    out += of_exponent(fit, WIDE) + of_bridge(h) + of_cost(h) + of_pattern(h)
    if fit["budgets"] < 4:
        out.append(f"a line through {fit['budgets']} budgets: {fit['budgets'] - 2} degrees of freedom left; "
                   "fewer than four cannot tell the floor of the loss, so theirs is 0 and no forecast")
    if np.isnan(fit["noise"]):
        out.append("three sizes per budget leave no scatter to measure, so the intervals mean nothing; "
                   "train five sizes per budget, or repeat seeds")
    # Few optima scatter so by chance, about a line and with a noise that are both estimated.
    limit = f_test.isf(0.002, max(fit["budgets"] - 2, 1), max(h["noise_df"], 1))
    if h["widened"] > max(2, np.sqrt(limit)):
        out.append(f"the optima scatter {h['widened']:.1f} times more about the line than noise explains")
    worst = h["influence"]
    if carries(worst):
        out.append(f"budget {np.exp(worst['log_C']):.3g} moves a by {worst['shift']:.1f} standard errors, to "
                   f"{worst['without']:.3f} without it")
    return out


def of_envelope(fit: dict) -> list[str]:
    """Do the optima lie on a line that rises?"""
    out = of_unfinished(fit) + of_exponent(fit, WIDE) + of_bridge(fit["health"]) + of_cost(fit["health"])
    if (np.diff([p["C"] for p in fit["points"]]) <= 0).any():
        out.append("the optima are out of order, a larger model at a smaller compute: too noisy curves")
    if fit["a"] <= 0:
        out.append("larger models are best at smaller compute: this is no envelope")
    return out


def of_unfinished(fit: dict) -> list[str]:
    """Are the curves of an envelope of runs that had yet to bring their rate down?"""
    if not fit["health"].get("unfinished"):
        return []
    return ["its points are losses halfway along runs, where the rate had yet to fall: a run that ends there "
            "does better, so it is not compared with the other approaches"]


def of_hull(fit: dict) -> list[str]:
    """Does the loss fall with compute, and how much of the hull is one run's own curve?"""
    fitted = fit["hull"]["fitted"]
    inner = fit["hull"]["between"]
    out = []
    if fit["alpha"] <= 0:
        out.append("loss does not fall with compute")
    out += of_bridge(fit["health"]) + of_drift(fit["health"].get("drift"), fitted)
    if fit["health"].get("unfinished"):
        out.append(f"{fit['health']['unfinished']} of {fitted} hull points are losses halfway along runs, "
                   "where the rate had yet to fall: a run that ends there does better")
    if abs(fit["between"] / fit["alpha"] - 1) > 0.05 and inner > 1:
        out.append(f"{fitted - inner} of {fitted} hull points are the first or the last run's own curve, "
                   f"past its optimum; between the runs the slope is -{fit['between']:.4f}")
    return out


def of_bridge(h: dict) -> list[str]:
    """Does the line only join two clusters of points, with nothing measured between them?"""
    bridge = h.get("bridge")
    if not bridge or bridge["chance"] > STREWN:
        return []
    places = [f"{count} at {low:.3g}" + (f" to {high:.3g}" if count > 1 else "")
              for low, high, count in bridge["clusters"]]
    return [f"its points are two clusters of C, {' and '.join(places)}: a line from one to the other says "
            "nothing of the slope inside either, nor of a bend between"]


def of_drift(drift: dict | None, fitted: int) -> list[str]:
    """Is the hull a straight line? Any hull bends, that of an exact power law to DRIFTS in 2 % of studies."""
    first, last = drift["slopes"] if drift else (0, 0)
    said = f"the slope drifts along the hull, from {first:.3f} to {last:.3f}"
    if fitted < 5:                                      # of which no test can tell much
        few = [f"{said}, and only {fitted} hull points carry it: no law to extrapolate"]
        return few if first < 0 and last / first < DRIFTS / 2 else []
    if first >= 0 or last / first > DRIFTS or drift["p"] > 0.03:
        return []
    return [f"{said}: no law to extrapolate; with a floor it is L_inf = {drift['L_inf']:.3g}, alpha = "
            f"{drift['alpha']:.3g}"]
