"""Fits as text and as a fit card: what fit.py prints and publishes. No fitting happens here."""
import numpy as np

from scaling.laws import counts
from scaling.laws.solver import DELTA
from scaling.logs import RUN_COLUMNS
from scaling.tables.runs import SETTINGS

EQUATIONS = {"surface": "L = E + A/N^alpha + B/D^beta",
             "isoflop": "N_opt = k C^a", "envelope": "N_opt = k C^a",
             "loss_vs_compute": "L = (C_c/C)^alpha on the lower convex hull",
             "loss_vs_params": "L = L_inf + (N_c/N)^alpha", "loss_vs_tokens": "L = L_inf + (D_c/D)^alpha",
             "repeated": "L = E + A/N'^alpha + B/D'^beta with repeats discounted"}
PRINTED = ("E", "A", "B", "alpha", "beta", "a", "b", "between", "gamma", "N_c", "D_c", "C_c", "L_inf", "R_D",
           "R_N")
KNOWN = {*RUN_COLUMNS, "params", "loss", "flops", "budget", "d_ff"}


# ---- The printed table. ----

def spread(value: float, ci: list[float] | None) -> str:
    """'0.514 (0.483 to 0.557)'."""
    return f"{value:.4g}" + (f" ({ci[0]:.4g} to {ci[1]:.4g})" if ci else "")


def forms_text(rows: dict) -> list[str]:
    """One line per form of a comparison."""
    def score(row):
        return row.get("refused") or f"AICc +{row['aicc']:<8.1f} held out {row['held_out']:.2%}"
    return [f"  {form:<26} {score(row)}" for form, row in rows.items()]


def fit_text(name: str, fit: dict) -> list[str]:
    """One fit as lines: what it rests on, each parameter with its interval, its health."""
    head = f"\n{name}: {EQUATIONS[name]}; n = {fit['n']}"
    head += f", objective {fit['objective']:.7g}" if "objective" in fit else ""
    head += f", residual {fit['noise']:.2%}" if fit.get("noise", 0) > 0 else ""
    out = [head] + [f"  {k:<8} {spread(fit[k], fit['ci'].get(k))}" for k in PRINTED if k in fit]
    if "profile_E" in fit:
        ends = (fit["profile_E"]["lo"], fit["profile_E"]["hi"])
        lo, hi = ("none" if e is None else f"{e:.4g}" for e in ends)
        out.append(f"  E by profile likelihood: {lo} to {hi}")
    out += [f"  a by {method:<9} {spread(other['a'], other['ci'])}"
            for method, other in fit.get("alternatives", {}).items() if "a" in other]
    out += [f"  intervals: {fit['method']}"] + ([f"  note: {fit['note']}"] if "note" in fit else [])
    out += forms_text(fit["forms"]["forms"]) if "forms" in fit else []
    return out + ([f"  SICK: {line}" for line in fit["health"]["lines"]] or ["  health: good"])


def accounting_text(matrix: dict) -> list[str]:
    """The accounting matrix as lines: exponent a, one row per way to count parameters."""
    out = ["\naccounting: exponent a of N_opt by the surface; rows count parameters, columns FLOPs",
           f"  {'':<24}" + "".join(f"{f:<24}" for f in counts.FLOPS)]
    for p, row in matrix.items():
        cells = (f"{c['a']:.3f} ({c['ci'][0]:.3f} to {c['ci'][1]:.3f})" if c.get("ci") else
                 f"{c['a']:.3f}" if "a" in c else "-" for c in row.values())
        out.append(f"  {p:<24}" + "".join(f"{cell:<24}" for cell in cells))
    return out


def verdict_text(v: dict) -> list[str]:
    """The verdict as lines: a, b, and N_opt, D_opt and loss at each budget, per approach."""
    out = [f"\nverdict: {v['text']}"]
    for name, row in v["approaches"].items():
        a, b = (spread(row[k], row["ci"].get(k)) for k in "ab")
        out.append(f"  {name:<9} a {a}  b {b}")
        for o in row["at"]:
            cells = ", ".join(f"{k} {spread(o[k], o['ci'].get(k))}" for k in ("N_opt", "D_opt", "loss"))
            far = f"  [{o['outside']['C']:.3g}x outside the data]" if o["outside"].get("C", 1) > 1.01 else ""
            out.append(f"    C {o['C']:.3g}: {cells}{far}")
    return out


def text(result: dict) -> str:
    """What `fit_all` returns as text: parameters with intervals, health, forms, accounting, verdict."""
    d = result["data"]
    out = [f"{d['runs']} runs, {d['rows']} rows; N {d['params']}, C {d['flops']}, loss from "
           f"{d['loss_column']!r}; brackets hold 95 % intervals"]
    out += [f"  note: {n}" for n in d["notes"]]
    if d["seed_df"]:
        out.append(f"  noise between seeds: {d['seed_noise']:.2%} of the loss ({d['seed_df']} repeats)")
    for name in EQUATIONS:
        out += fit_text(name, result[name]) if name in result else []
    if "comparison" in result:
        rows = result["comparison"]["held_out_rows"]
        out += [f"\nforms: AICc above the best; mean error on the largest models ({rows} rows), held out"]
        out += forms_text(result["comparison"]["forms"])
    out += accounting_text(result["accounting"]) if "accounting" in result else []
    out += [""] + [f"{name}: skipped: {why}" for name, why in result["skipped"].items()]
    return "\n".join(out + verdict_text(result["verdict"]))


def runs_text(table: dict) -> str:
    """runs.csv as a table: each setting's shape, parameters by group, tokens, FLOPs; its loss over seeds."""
    columns = ("n_layer", "n_embd", "n_head", "params_embedding", "params_non_embedding", "params_head",
               "params_total", "tokens", "learning_rate")
    out = [f"{'layers x width (heads)':<24}{'embedding':>12}{'body':>12}{'head':>12}{'total':>12}"
           f"{'tokens':>12}{'rate':>9}{'FLOPs':>10}{'loss':>9}{'seeds':>14}"]
    rows = np.stack([table[c] for c in columns], axis=1)
    for row in np.unique(rows, axis=0):
        own = (rows == row).all(1)
        layers, width, heads, embedding, body, head, total, tokens, rate = row
        loss = table["val_loss"][own]
        seeds = f"+-{loss.std(ddof=1):.4f} ({own.sum()})" if own.sum() > 1 else ""
        out.append(f"{f'{layers:.0f} x {width:.0f} ({heads:.0f})':<24}{embedding:>12,.0f}{body:>12,.0f}"
                   f"{head:>12,.0f}{total:>12,.0f}{tokens:>12,.0f}{rate:>9.3g}"
                   f"{table['flops_exact'][own][0]:>10.3g}{loss.mean():>9.4f}{seeds:>14}")
    return "\n".join(out)


# ---- The fit card: what a reader needs to repeat the fit (checklist of Li et al. 2025, "(Mis)Fitting"). ----

def values(table: dict, name: str):
    """The sorted distinct values of a column as text, or 'not recorded'."""
    found = sorted(set(map(str, table.get(name, ()))) - {"nan", ""})
    return found or "not recorded"


def span(x: np.ndarray) -> list[float] | str:
    """[smallest, largest] of the numbers that are there, or 'not recorded'."""
    x = x[np.isfinite(x)]
    return [float(x.min()), float(x.max())] if len(x) else "not recorded"


def fit_entry(name: str, fit: dict) -> dict:
    """How one law was fitted."""
    if "objective" in fit:
        how = {"loss": f"summed Huber, delta {DELTA:g}, of log-residuals", "objective": fit["objective"],
               "optimiser": "damped Newton with analytic gradients (scaling/robust.py), no library optimiser",
               "starts": fit["health"]["starts"], "starts_that_agree": fit["health"]["agree"]}
    else:
        how = {"loss": "least squares in log-log", "optimiser": "closed form"}
    return {"equation": EQUATIONS[name], "n": fit["n"], "weights": "equal"} | how | {
        "intervals": fit["method"], "level": fit["level"], "health": fit["health"]["lines"] or "good"}


def sizes(used: dict, data: dict) -> list[dict]:
    """Per model size: how many rows, and the values of every setting and hyper-parameter that the table
    records."""
    out, columns = [], [c for c in (*SETTINGS, "learning_rate", "seed") if c in used]
    for n in np.unique(data["N"]):
        rows = data["N"] == n
        out.append({"params": float(n), "rows": int(rows.sum())}
                   | {c: values({c: used[c][rows]}, c)[:8] for c in columns})
    return out


def card(table: dict, data: dict, result: dict, bootstrap: int, seed: int) -> dict:
    """Hypothesis, training, data with every filter, fit, and held-out validation, ready for publication.

    `table` as read, `data` as `select` gives it, `result` the fits.
    """
    used = {k: v[data["rows"]] for k, v in table.items()}
    columns = ("dataset", "tokenizer", "schedule", "batch_tokens", "device", "dtype", "commit")
    training = {c: values(used, c) for c in columns}
    training |= {"runs": len(data["last"]), "params": span(data["N"]), "tokens": span(data["D"]),
                 "flops": span(data["C"]), "tokens_per_param": span(data["D"] / data["N"]),
                 "epochs": span(used["epochs"]) if "epochs" in used else "not recorded",
                 "seed_noise": data["seed_noise"], "repeated_seeds": data["seed_df"],
                 "sizes": sizes(used, data)}
    fits = {name: fit_entry(name, result[name]) for name in EQUATIONS if name in result}
    return {"hypothesis": {"equations": {k: v["equation"] for k, v in fits.items()},
                           "variables": f"N: {data['params']}; D: tokens; C: {data['flops']}; "
                                        f"L: {data['loss_column']}, nats per token"},
            "training": training,
            "data": {"rows_read": len(next(iter(table.values()))), "rows_used": len(data["L"]),
                     "filters": data["notes"] or "none",
                     "checkpoints": "intermediate and final" if data["curves"] else "final only",
                     "validation_tokens": values(used, "val_tokens"),
                     "columns_not_used": sorted(set(table) - KNOWN)},
            "fit": fits | {"skipped": result["skipped"], "bootstrap": bootstrap, "random_seed": seed},
            "validation": result.get("comparison", "not possible")}
