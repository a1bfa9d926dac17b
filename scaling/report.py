"""Fits in words: the summary that a study ends with, the wall of numbers, the fit card."""
import re

import numpy as np

from config.schema import RUN_COLUMNS
from scaling.laws import counts
from scaling.laws.solver import DELTA
from scaling.tables.runs import SETTINGS

KNOWN = {*RUN_COLUMNS, "params", "loss", "flops", "budget", "d_ff"}


def laws_of(result: dict) -> dict:
    """The laws among what `fit_all` returns: {name: fit}."""
    return {name: fit for name, fit in result.items() if "equation" in fit}


def short(value: float | None, digits: str = ".4g") -> str:
    """A number as text; None is what JSON has for one that is too large or cannot be told."""
    return "none" if value is None else format(value, digits)


def spread(value: float | None, ci: list | None, level: str = "", digits: str = ".4g") -> str:
    """'0.514 (0.483 to 0.557)'; `level` goes before the interval."""
    if not ci:
        return short(value, digits)
    return f"{short(value, digits)} ({level}{short(ci[0], digits)} to {short(ci[1], digits)})"


# ---- The summary. ----

def amount(n: int, word: str) -> str:
    """'one size', '6 sizes'."""
    return f"one {word}" if n == 1 else f"{n} {word}s"


def in_numbers(fit: dict) -> str:
    """The equation of a law with the numbers in the place of its parameters."""
    def number(match):
        name = match[0]
        return short(fit[name]) if name in fit["parameters"] else name
    return re.sub(r"[A-Za-z]\w*", number, fit["equation"])


def law_lines(result: dict) -> list[str]:
    """The surface in numbers; without one, what the table supports instead."""
    data = result["data"]
    laws = laws_of(result)
    unknown = result["verdict"]["approaches"].get("surface", {}).get("unknown")
    if "surface" in laws and not unknown:
        out = [f"law: {in_numbers(laws['surface'])}, from {amount(data['runs'], 'run')}"]
    else:
        law = "law of N and D" if laws else "law"
        why = ", by design"
        if unknown:
            why = ": it is not identified"
        elif min(data["sizes"], data["lengths"]) > 2:        # as many as a surface needs
            why = f" ({result['skipped']['surface']})"
        sizes = amount(data["sizes"], "size")
        lengths = amount(data["lengths"], "training length")
        out = [f"this study has {sizes} and {lengths}: no {law}{why}"]
        for name, fit in laws.items():
            if name not in result["verdict"]["approaches"]:
                numbers = in_numbers(fit) if fit["health"]["ok"] else "fitted, with warnings"
                out.append(f"  {name}: {numbers}")
    if laws:
        out.append(f"  {result['card']['hypothesis']['variables']}")
    return out


def rule_lines(verdict: dict) -> list[str]:
    """The best size for a budget by the first approach that knows it, what it means, do the others agree."""
    name, row = next(((k, v) for k, v in verdict["approaches"].items() if not v.get("unknown")), (None, None))
    if not name or row["at"][0]["N_opt"] is None:
        return []
    k = row["at"][0]["N_opt"] / row["at"][0]["C"] ** row["a"]
    exponent = spread(row["a"], row["ci"].get("a"), "95 %: ")
    out = [f"best size: N_opt = {k:.3g} C^a with a = {exponent}, by the {name}",
           f"  ten times the compute: {10 ** row['a']:.2g} times the parameters, {10 ** row['b']:.2g} times "
           "the data"]
    if verdict["agree"] is not None:
        out.append(f"  {verdict['text']}")
    return out


def health_lines(result: dict) -> list[str]:
    """The first warning and how many more there are, or that there is none."""
    laws = laws_of(result)
    warnings = [f"the table: {line}" for line in result["data"].get("warnings", [])]
    warnings += [f"{name}: {line}" for name, fit in laws.items() for line in fit["health"]["lines"]]
    warnings += [f"the curves: {line}" for line in stray_lines(result.get("collapse"))]
    if not warnings:
        return [f"health: {no_warning(fit)}" for fit in laws.values()][:1]
    more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
    return [f"warning: {warnings[0]}{more}"]


def summary(result: dict, where: str = "fit.txt") -> list[str]:
    """About eight lines for who has just trained a study; `where` says where all the numbers are."""
    return [*law_lines(result), *rule_lines(result["verdict"]), *health_lines(result),
            f"every number, warning and dropped row: {where}"]


# ---- The wall of numbers. ----

def forms_text(rows: dict) -> list[str]:
    """One line per form of a comparison."""
    out = []
    for form, row in rows.items():
        score = row.get("refused")
        if not score:
            above = "too few" if row["aicc"] is None else f"+{row['aicc']:.1f}"
            score = f"AICc {above:<9} held out {short(row['held_out'], '.2%')}"
        out.append(f"  {form:<26} {score}")
    return out


def fit_text(name: str, fit: dict) -> list[str]:
    """One fit as lines: what it rests on, each parameter with its interval, its health.

    A fit straight from scaling.laws, not from fit.py, does not know its equation: then its form stands there.
    """
    head = f"\n{name}: {fit.get('equation', fit['form'])}; n = {fit['n']}"
    if "objective" in fit:
        head += f", objective {fit['objective']:.7g}"
    if (fit.get("noise") or 0) > 0:                    # None, from JSON, where it could not be measured
        head += f", residual {fit['noise']:.4g}" if "residuals" in fit else f", residual {fit['noise']:.2%}"
    out = [head]
    for key in fit.get("parameters", fit["ci"]):
        out.append(f"  {key:<8} {spread(fit[key], fit['ci'].get(key))}")
    if "profile_E" in fit:
        ends = fit["profile_E"]
        out.append(f"  E by profile likelihood: {short(ends['lo'])} to {short(ends['hi'])}")
    for method, other in fit.get("alternatives", {}).items():
        if "a" in other:
            out.append(f"  a by {method:<9} {spread(other['a'], other['ci'])}")
    out.append(f"  intervals: {fit['method']}")
    if "note" in fit:
        out.append(f"  note: {fit['note']}")
    if "forms" in fit:
        out += forms_text(fit["forms"]["forms"])
    out += [f"  warning: {line}" for line in fit["health"]["lines"]] or [f"  health: {no_warning(fit)}"]
    if "broken" in fit:
        broken = fit_text("broken", fit["broken"])
        out += [f"  {line.strip()}" for line in broken[:1]] + [f"  {line}" for line in broken[1:]]
    return out


def no_warning(fit: dict) -> str:
    """What to say of a fit without a warning: without resamples half of them cannot be known."""
    return "good" if fit["ci"] else "not judged: no resamples"


def accounting_text(matrix: dict) -> list[str]:
    """The accounting matrix as lines: exponent a, one row per way to count parameters."""
    out = ["\naccounting: exponent a of N_opt by the surface; rows count parameters, columns FLOPs",
           f"  {'':<24}" + "".join(f"{f:<24}" for f in counts.FLOPS)]
    for params, row in matrix.items():
        line = f"  {params:<24}"
        for cell in row.values():
            text = spread(cell["a"], cell["ci"], digits=".3f") if "a" in cell else "-"
            line += f"{text:<24}"
        out.append(line)
    return out


def verdict_text(verdict: dict) -> list[str]:
    """The verdict as lines: a, b, and N_opt, D_opt and loss at each budget, per approach."""
    out = [f"\nverdict: {verdict['text']}"]
    for name, row in verdict["approaches"].items():
        if row.get("unknown"):                         # older fits lack it
            out.append(f"  {name:<9} {row['unknown'][0]}")
            continue
        a, b = (spread(row[k], row["ci"].get(k)) for k in "ab")
        out.append(f"  {name:<9} a {a}  b {b}")
        for best in row["at"]:
            line = f"    C {best['C']:.3g}: "
            line += ", ".join(f"{k} {spread(best[k], best['ci'].get(k))}" for k in ("N_opt", "D_opt", "loss"))
            far = best["outside"].get("C", 1)
            if far > 1.01:
                line += f"  [{far:.3g}x outside the data]"
            out.append(line)
    for row in verdict.get("differences", ()):         # older fits lack it
        kind = "" if row["what"] == "a" else "log "
        out.append(f"  isoflop less surface: {kind}{row['what']} "
                   f"{spread(row['difference'], row['ci'], digits='+.3g')}, p = {row['p']:.2g}")
    return out


def text(result: dict) -> str:
    """What `fit_all` returns as text: parameters with intervals, health, forms, accounting, verdict."""
    data = result["data"]
    laws = laws_of(result)
    head = (f"{data['runs']} runs, {data['rows']} rows; N {data['params']}, C {data['flops']}, loss from "
            f"{data['loss_column']!r}")
    if any(fit["ci"] for fit in laws.values()):
        head += "; brackets hold 95 % intervals"
    out = [head] + [f"  note: {note}" for note in data["notes"] + data.get("curve_notes", [])]
    out += [f"  warning: {line}" for line in data.get("warnings", [])]
    if data.get("separate"):
        seeds = "" if data["seed_df"] else "; no seed was repeated"
        out.append(f"  settings: rows of one size and tokens differ in {', '.join(data['separate'])}{seeds}")
    if data["seed_df"]:
        out.append(f"  noise between seeds: {data['seed_noise']:.2%} of the loss ({data['seed_df']} repeats)")
    for name, fit in laws.items():
        out += fit_text(name, fit)
    if "comparison" in result:
        rows = result["comparison"]["held_out_rows"]
        out.append(f"\nforms: AICc above the best; mean error on the largest models ({rows} rows), held out")
        out += forms_text(result["comparison"]["forms"])
    if "accounting" in result:
        out += accounting_text(result["accounting"])
    if "arms" in result:
        out += arms_text(result["arms"])
    out += ["", *(f"{name}: skipped: {why}" for name, why in result["skipped"].items())]
    return "\n".join(out + verdict_text(result["verdict"]) + collapse_text(result.get("collapse")))


def collapse_text(found: dict | None) -> list[str]:
    """How well the curves of a study collapse, as lines; none where that is not known."""
    if not found:
        return []
    return [f"\ncurves: at {found['x']:.0%} of a run its loss tells where it ends, to {found['sd']:.2%} (one "
            f"sd, {found['runs']} runs)", *(f"  warning: {line}" for line in stray_lines(found))]


def stray_lines(found: dict | None) -> list[str]:
    """A warning for each run whose curve is not that of the others."""
    strays = found["strays"] if found else []
    return [f"{row['run']} is {row['off']:+.1%} off the curve of the others at {found['x']:.0%} of it (p = "
            f"{row['p']:.2g}): had it another rate, or did its loss jump?" for row in strays]


def worth(row: dict, reference: str) -> str:
    """An arm's multiplier at one budget, in words."""
    if not all(row["ci"]) or not row["factor"]:        # None: more than any number
        return f"C {row['C']:.3g}: not determined"
    low, high = row["ci"]
    said = spread(row["factor"], row["ci"], digits=".3g")
    if low <= 1 <= high:
        said += ", no difference shown"
    less = spread(1 / row["factor"], [1 / high, 1 / low], digits=".3g")
    return f"C {row['C']:.3g}: reaches the loss of {reference} with {less} of its compute; multiplier {said}"


def arms_text(found: dict) -> list[str]:
    """What each arm is worth, as lines."""
    out = [f"\narms: L = E + A/(r N)^alpha + B/(s D)^beta, r = s = 1 of {found['reference']}; "
           f"n = {found['n']}, residual {found['shared']['noise']:.2%}"]
    for name, row in found["arms"].items():
        constants = ", ".join(f"{k} {spread(row[k], ci)}" for k, ci in row["ci"].items())
        out.append(f"  {name}: {constants}")
        same = len({f"{m['factor']:.6g}" for m in row["multiplier"]}) == 1
        out += [f"    {worth(m, found['reference'])}" for m in row["multiplier"][-1 if same else 0:]]
        last = {key: row[key][-1] for key in ("at_equal_params", "at_equal_tokens", "per_hour") if key in row}
        out += [f"    {key.replace('_', ' ')}: {spread(m['factor'], m['ci'])} at C {m['C']:.3g}"
                for key, m in last.items()]
        if "trend" in row:
            ci = row["trend"]["ci"]
            out.append(f"    trend: times {spread(row['trend']['per_tenfold_C'], ci)} for ten times the C")
    test = found["equal_exponents"]
    if test:
        out.append(f"  one pair of exponents for all arms: F = {test['F']:.2f}, p = {test['p']:.2g}")
    out += [f"  note: {line}" for line in found.get("notes", [])]
    return out + [f"  warning: {line}" for line in found["health"]["lines"]]


def runs_text(table: dict) -> str:
    """runs.csv as a table: each setting's shape, parameters by group, tokens, FLOPs; its loss over seeds."""
    columns = ("n_layer", "n_embd", "n_head", "params_embedding", "params_non_embedding", "params_head",
               "params_total", "tokens", "learning_rate")
    out = [f"{'layers x width (heads)':<24}{'embedding':>12}{'body':>12}{'head':>12}{'total':>12}"
           f"{'tokens':>12}{'rate':>9}{'FLOPs':>10}{'loss':>9}{'seeds':>14}"]
    rows = np.stack([table[c] for c in columns], axis=1)
    for row in np.unique(rows, axis=0):
        own = (rows == row).all(1)
        layers, width, heads, *groups, rate = row
        shape = f"{layers:.0f} x {width:.0f} ({heads:.0f})"
        loss = table["val_loss"][own]
        line = f"{shape:<24}" + "".join(f"{n:>12,.0f}" for n in groups)
        line += f"{rate:>9.3g}{table['flops_exact'][own][0]:>10.3g}{loss.mean():>9.4f}"
        seeds = f"+-{loss.std(ddof=1):.4f} ({own.sum()})" if len(loss) > 1 else ""
        out.append(f"{line}{seeds:>14}")
    return "\n".join(out)


# ---- The fit card: what a reader needs to repeat the fit (checklist of Li et al. 2025, "(Mis)Fitting"). ----

def values(column, most: int | None = None) -> list[str] | str:
    """The sorted distinct values of a column as text, at `most` so many, or 'not recorded'."""
    return sorted(set(map(str, column)) - {"nan", ""})[:most] or "not recorded"


def span(x: np.ndarray | None) -> list[float] | str:
    """[smallest, largest] of the numbers that are there, or 'not recorded'."""
    if x is None or not np.isfinite(x).any():
        return "not recorded"
    x = x[np.isfinite(x)]
    return [float(x.min()), float(x.max())]


def fit_entry(fit: dict) -> dict:
    """How one law was fitted."""
    entry = {"loss": "least squares in log-log", "optimiser": "closed form"}
    if "objective" in fit:
        of = "residuals" if "residuals" in fit else "log-residuals"
        entry = {"loss": f"summed Huber, delta {DELTA:g}, of {of}", "objective": fit["objective"],
                 "optimiser": "damped Newton with analytic gradients (scaling/laws/solver.py), no library "
                              "optimiser",
                 "starts": fit["health"]["starts"], "starts_that_agree": fit["health"]["agree"]}
    return entry | {"equation": fit["equation"], "n": fit["n"], "weights": "equal",
                    "intervals": fit["method"], "level": fit["level"],
                    "health": fit["health"]["lines"] or no_warning(fit)}


def sizes(table: dict, N: np.ndarray) -> list[dict]:
    """Per model size: how many rows, and the values of every setting that the table records."""
    recorded = [c for c in (*SETTINGS, "learning_rate", "seed") if c in table]
    out = []
    for n in np.unique(N):
        own = {c: values(table[c][N == n], most=8) for c in recorded}
        out.append({"params": float(n), "rows": int((N == n).sum())} | own)
    return out


def card(data: dict, result: dict, bootstrap: int) -> dict:
    """Hypothesis, training, data with every filter, fit, and held-out validation, ready for publication.

    `data` as `select` gives it, `result` the fits.
    """
    table = data["table"]
    recorded = ("dataset", "tokenizer", "schedule", "batch_tokens", "device", "dtype", "commit")
    training = {c: values(table.get(c, ())) for c in recorded}
    training |= {"runs": len(data["last"]), "params": span(data["N"]), "tokens": span(data["D"]),
                 "flops": span(data["C"]), "tokens_per_param": span(data["D"] / data["N"]),
                 "epochs": span(data["epochs"]), "seed_noise": data["seed_noise"],
                 "repeated_seeds": data["seed_df"], "sizes": sizes(table, data["N"])}
    laws = laws_of(result)
    fits = {name: fit_entry(fit) for name, fit in laws.items()}
    return {"hypothesis": {"equations": {name: fit["equation"] for name, fit in laws.items()},
                           "variables": f"N: {data['params']}; D: tokens; C: {data['flops']}; "
                                        f"L: {data['loss_column']}, {data['unit']}"},
            "training": training,
            "data": {"rows_read": data["rows_read"], "rows_used": len(data["L"]),
                     "filters": data["notes"] or "none",
                     "checkpoints": "intermediate and final" if data["curves"] else "final only",
                     "validation_tokens": values(table.get("val_tokens", ())),
                     "columns_not_used": sorted(set(table) - KNOWN)},
            "fit": fits | {"skipped": result["skipped"], "bootstrap": bootstrap, "random_seed": 0},
            "validation": result.get("comparison", "not possible")}
