"""Runs to laws: read a table of runs, fit every form that it supports, say what agrees and what is sick.

    python -m scaling.fit RUNS.csv [--params=CONVENTION] [--flops=CONVENTION] [--bootstrap=1000] [--at=1e18,1e21]
                          [--json=PATH|-] [--card=PATH]

RUNS.csv needs `params,tokens,loss`, or the columns of runs.csv (DESIGN: params_*, tokens, val_loss). Optional: `flops`,
`run` (rows of one run are one cluster) and `budget` (an IsoFLOP level).
"""
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import UserError, exit_cleanly, nearest
from scaling import counts, frontiers, laws
from scaling.logs import RUN_COLUMNS, read_table

OPTIONS = ("params", "flops", "bootstrap", "at", "json", "card", "help")
KNOWN = {*RUN_COLUMNS, "params", "loss", "flops", "budget", "d_ff"}
PRINTED = ("E", "A", "B", "alpha", "beta", "a", "b", "between", "gamma", "N_c", "D_c", "C_c", "L_inf", "R_D", "R_N")
SETTINGS = ("n_layer", "n_head", "n_embd", "block_size", "batch_tokens", "schedule", "unique_tokens")
ONE_OF = ("dataset", "tokenizer", "config")     # losses across these cannot be compared, so a table holds one of each


# ---- The table: what is used, what is dropped, and why. ----

def rows_text(rows: np.ndarray) -> str:
    """'rows 3, 8, 12 and 5 more' for zero-based data rows."""
    shown = ", ".join(str(r + 1) for r in rows[:5])
    return f"row{'s' * (len(rows) > 1)} {shown}" + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def choose_params(table: dict, convention: str | None) -> tuple[np.ndarray, str]:
    """(N, the name of its convention): what was asked, else the column `params` as it is, else the default."""
    if convention is None and "params" in table:
        return counts.column(table, "params", "the fit"), "as given"
    if convention is None and "params_head" not in table and "params_non_embedding" in table:
        raise UserError("no column 'params_head', so the default N (non_embedding_plus_head) cannot be counted; pass "
                        "--params=non_embedding to leave the head out")
    if "params" not in table and not any(c.startswith("params_") for c in table):
        raise UserError(f"no column 'params'{nearest('params', table)}; the fit needs params,tokens,loss")
    convention = convention or counts.DEFAULT_PARAMS
    return counts.params(table, convention), convention


def choose_flops(table: dict, N: np.ndarray, D: np.ndarray, convention: str | None, params: str):
    """(C, the name of its convention): what was asked, else the column `flops` as it is, else 6 N D."""
    if convention is None and "flops" in table:
        return counts.column(table, "flops", "the fit"), "as given"
    if convention in (None, "6nd"):
        return 6 * N * D, "6nd"
    return counts.flops(table, convention, counts.DEFAULT_PARAMS if params == "as given" else params), convention


def select(table: dict, params: str | None = None, flops: str | None = None) -> dict:
    """The arrays that the fits use: N, D, C, L, run, budget, noise, and `notes`: every dropped row, with its reason.

    Rows without a loss (or with an infinite one: diverged), at zero tokens, or twice in the table are dropped and noted;
    so are all but the best learning rate of a setting. Negative numbers and mixed data sets raise UserError.
    """
    for name in ONE_OF:
        values = sorted(set(map(str, table.get(name, [])))) if name in table else []
        if len(values) > 1:
            raise UserError(f"column {name!r} holds {len(values)} values ({', '.join(values[:3])}, ...): their losses cannot "
                            "share a law; keep the rows of one")
    name = "loss" if "loss" in table else "val_loss"
    if name not in table:
        raise UserError(f"no column 'loss' or 'val_loss'{nearest('loss', table)}; the fit needs params,tokens,loss")
    L, D = counts.column(table, name, "the fit"), counts.column(table, "tokens", "the fit")
    if not len(L):
        raise UserError("the table has no rows; run the sweep first")
    N, params = choose_params(table, params)
    C, flops = choose_flops(table, N, D, flops, params)
    keep, notes = np.ones(len(L), bool), []

    def drop(bad, why):
        if (bad & keep).any():
            notes.append(f"dropped {(bad & keep).sum()} of {len(L)} rows: {why} ({rows_text(np.flatnonzero(bad & keep))})")
            keep[bad] = False
    for label, v in ((name, L), ("params", N), ("tokens", D), ("flops", C)):
        if (v < 0).any():
            raise UserError(f"{label} is negative in {rows_text(np.flatnonzero(v < 0))}; mend or remove it")
        drop(np.isnan(v), f"{label} is missing")
        drop(np.isinf(v), f"{label} is infinite (diverged)")
        drop(v == 0, f"{label} is zero")
    drop(repeats(table), "the same row stands earlier in the table")
    drop(worse_rates(table, N, D, L, keep), "another learning rate was better at the same size and tokens")
    if not keep.any():
        raise UserError("no usable row is left: " + "; ".join(notes))
    data = {"N": N[keep], "D": D[keep], "C": C[keep], "L": L[keep], "loss_column": name, "params": params,
            "flops": flops, "notes": notes, "rows": np.flatnonzero(keep)}
    data["run"] = np.array([str(r) for r in table["run"]], object)[keep] if "run" in table else None
    for key, name in (("budget", "budget"), ("U", "unique_tokens")):
        data[key] = counts.column(table, name, "the fit")[keep] if name in table else None
    add_runs(data)
    settings = [table[c][keep][data["last"]] for c in SETTINGS + ("learning_rate",) if c in table]
    key = np.array([[str(v) for v in row] for row in zip(data["N"][data["last"]], data["D"][data["last"]], *settings)])
    data["seed_noise"], data["seed_df"] = laws.seed_noise(key, np.log(data["L"][data["last"]]))
    return data


def repeats(table: dict) -> np.ndarray:
    """True for each row that equals an earlier one in every column."""
    seen, again = set(), []
    for row in zip(*(v.tolist() for v in table.values())):
        key = tuple("nan" if v != v else v for v in row)
        again.append(key in seen)
        seen.add(key)
    return np.array(again)


def worse_rates(table: dict, N, D, L, keep) -> np.ndarray:
    """True for finished runs whose setting (N, D, shape, batch) did better, on average, at another learning rate."""
    worse = np.zeros(len(L), bool)
    if "learning_rate" not in table or ("run" in table and len(set(table["run"])) < len(L)):
        return worse
    best = {}
    keys = [tuple(map(str, row)) for row in zip(N, D, *(table[c] for c in SETTINGS if c in table))]
    rate = counts.column(table, "learning_rate", "the fit")
    for i in np.flatnonzero(keep):
        best.setdefault(keys[i], {}).setdefault(rate[i], []).append(L[i])
    for i in np.flatnonzero(keep):
        losses = best[keys[i]]
        worse[i] = rate[i] != min(losses, key=lambda r: np.mean(losses[r]))
    return worse


def add_runs(data: dict) -> None:
    """Add `last`, the row with the most tokens of each run, and `curves`: do runs have several rows?"""
    group = laws.clusters(data["run"], len(data["L"]))
    order = np.lexsort((data["D"], group))
    data["last"] = np.sort(order[np.append(np.diff(group[order]) > 0, True)])
    data["curves"] = len(data["last"]) < len(group)
    if data["curves"]:
        data["notes"].append(f"{len(group)} rows of {len(data['last'])} runs: intermediate checkpoints are used, which is "
                             "sound only where the schedule does not depend on the horizon (constant or WSD)")


# ---- All fits of one table. ----

def thin(data: dict, rows: int = 5000) -> np.ndarray:
    """Indices of at most about `rows` rows, evenly spread over log D of each run, noted when any is left out."""
    n = len(data["L"])
    if n <= rows:
        return np.arange(n)
    group = laws.clusters(data["run"], n)
    order = np.lexsort((data["D"], group))
    if not data["curves"]:
        kept = order[np.linspace(0, n - 1, rows).astype(int)]
    else:
        parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        each = max(rows // len(parts), 5)
        kept = np.concatenate([p[np.unique(np.geomspace(1, len(p), each).astype(int)) - 1] for p in parts])
    data["notes"].append(f"the surface is fitted to {len(kept)} of {n} rows, spread evenly; more would not sharpen it")
    return np.sort(kept)


def power_points(x: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Indices of the best run at each value of x, as far as more x went with less loss: where x was the limit."""
    order = np.lexsort((L, x))
    best = order[np.append(True, np.diff(x[order]) > 0)]
    return best[L[best] <= np.minimum.accumulate(L[best])]


def fit_all(table: dict, params: str | None = None, flops: str | None = None, bootstrap: int = 1000,
            at: list[float] | None = None, seed: int = 0, progress: bool = False) -> dict:
    """Every fit that `table` ({column: array}) supports, as DESIGN section 2 lists them. Raises UserError for bad data.

    `at` lists budgets in FLOPs for the verdict; by default the largest C of the table, three and ten times that. What the
    data cannot support is absent, with the reason under `skipped`.
    """
    data = select(table, params, flops)
    data["some"] = thin(data)
    result = {"skipped": {}}
    jobs = {"surface": surface, "isoflop": isoflop, "envelope": envelope, "loss_vs_compute": loss_vs_compute,
            "loss_vs_params": lambda d, *a: power(d, "N", *a), "loss_vs_tokens": lambda d, *a: power(d, "D", *a),
            "repeated": repeated, "comparison": comparison,
            "accounting": lambda d, *a: accounting(table, d, *a)}
    with tqdm(total=len(jobs), desc="fits", disable=not progress, file=sys.stderr, leave=False) as bar:
        for name, job in jobs.items():
            bar.set_postfix_str(name)
            try:
                result[name] = job(data, bootstrap, seed)
            except UserError as e:
                result["skipped"][name] = str(e)
            bar.update()
    at = at or [float(data["C"].max() * m) for m in (1, 3, 10)]
    result["verdict"] = verdict(result, at)
    result["data"] = {k: data[k] for k in ("loss_column", "params", "flops", "notes", "seed_df")}
    result["data"] |= {"rows": len(data["L"]), "runs": len(data["last"]), "seed_noise": data["seed_noise"]}
    result["card"] = card(table, data, result, bootstrap, seed)
    return result


def surface(data: dict, bootstrap: int, seed: int) -> dict:
    """Approach 3, and the profile of E."""
    some = data["some"]
    N, D, L = (data[k][some] for k in "NDL")
    run = data["run"][some] if data["curves"] else None
    fit = laws.fit_surface(N, D, L, run, bootstrap=bootstrap, seed=seed, noise=data["seed_noise"])
    if bootstrap:
        fit["profile_E"] = laws.profile_E(N, D, L, run, min(bootstrap, 200), seed)
        if not fit["profile_E"]["identified"] and "E" not in " ".join(fit["health"]["lines"]).split():
            fit["health"]["lines"].append("E is not identified: its profile never turns up on one side; a wider range would pin it")
            fit["health"]["ok"] = False
    if data["U"] is not None and (data["D"] > 1.5 * data["U"]).any():
        fit["health"]["lines"].append(f"{(data['D'] > 1.5 * data['U']).sum()} rows repeat their data: see 'repeated' instead")
        fit["health"]["ok"] = False
    return fit


def isoflop(data: dict, bootstrap: int, seed: int) -> dict:
    """Approach 2 on the last row of each run, and what the other ways to find a minimum say."""
    last = data["last"]
    runs = (*(data[k][last] for k in "NCL"), data["budget"][last] if data["budget"] is not None else None)
    fit = frontiers.fit_isoflop(*runs, noise=data["seed_noise"] if data["seed_df"] >= 3 else None, bootstrap=bootstrap, seed=seed)
    fit["alternatives"] = {m: alternative(runs, m, bootstrap, seed) for m in frontiers.METHODS}
    return fit


def envelope(data: dict, bootstrap: int, seed: int) -> dict:
    """Approach 1, where the table holds learning curves."""
    if not data["curves"]:
        raise UserError("one row per run: an envelope needs learning curves (many rows that share a 'run')")
    return frontiers.fit_envelope(*(data[k] for k in "NCL"), data["run"], bootstrap, seed)


def loss_vs_compute(data: dict, bootstrap: int, seed: int) -> dict:
    """The hull of all rows."""
    return frontiers.fit_loss_vs_compute(data["C"], data["L"], data["run"] if data["curves"] else None, bootstrap, seed)


def power(data: dict, name: str, bootstrap: int, seed: int) -> dict:
    """L(N) or L(D) through the best run at each size, or at each number of tokens."""
    last = data["last"]
    x, L = data[name][last], data["L"][last]
    best = power_points(x, L)
    fit = laws.fit_power(x[best], L[best], name=name, bootstrap=bootstrap, seed=seed)
    ratio = data["D"][last][best] / data["N"][last][best]
    fit["forms"] = laws.compare_powers(x[best], L[best], name)
    what = "data" if name == "N" else "model size"
    return fit | {"note": f"holds only as far as {what} was never the limit: these {len(best)} runs, the best at each {name}, "
                          f"had {ratio.min():.3g} to {ratio.max():.3g} tokens per parameter"}


def repeated(data: dict, bootstrap: int, seed: int) -> dict:
    """The data-constrained surface; its base is fitted to the runs that repeat nothing, where there are enough."""
    if data["U"] is None or not (data["D"] > 1.001 * data["U"]).any():
        raise UserError("no run repeats its data (column 'unique_tokens')")
    N, D, U, L = (data[k][data["last"]] for k in "NDUL")
    once = D <= 1.001 * U
    try:
        base = laws.fit_surface(N[once], D[once], L[once], bootstrap=0) if once.sum() >= 10 else None
    except UserError:
        base = None
    return laws.fit_repeated(N, D, U, L, base=base, bootstrap=bootstrap, seed=seed)


def comparison(data: dict, bootstrap: int, seed: int) -> dict:
    """Which two-variable form the rows prefer: AICc, and held-out error on the largest models."""
    return laws.compare_surfaces(*(data[k][data["some"]] for k in "NDL"))


def accounting(table: dict, data: dict, bootstrap: int, seed: int) -> dict:
    """The exponent a of N_opt for each way to count parameters (rows) and FLOPs (columns), by the surface.

    In each cell N is counted by the row and D is C/(6 N), with C by the column: so N_opt is what the surface says for a
    budget counted that way, and the cells of the column 6nd are the plain surface.
    """
    rows, matrix = data["rows"][data["some"]], {}
    part = {k: v[rows] for k, v in table.items()}
    if not any(c.startswith("params_") for c in table):
        raise UserError("no columns params_total, params_non_embedding, params_head: nothing to count differently")
    L = counts.column(part, data["loss_column"], "the fit")
    run = data["run"][data["some"]] if data["curves"] else None
    for p in counts.PARAMS:
        for f in counts.FLOPS:
            try:
                N, C = counts.params(part, p), counts.flops(part, f, p)
                fit = laws.fit_surface(N, C / (6 * N), L, run, bootstrap=min(bootstrap, 200), seed=seed)
                cell = {"a": fit["a"], "ci": fit["ci"].get("a")}
            except UserError as e:
                cell = {"refused": str(e)}
            matrix.setdefault(p, {})[f] = cell
    return matrix


def alternative(runs: tuple, method: str, bootstrap: int, seed: int) -> dict:
    """Exponent a and its interval by another IsoFLOP method, or why it has none."""
    try:
        fit = frontiers.fit_isoflop(*runs, method=method, bootstrap=min(bootstrap, 300), seed=seed)
        return {"a": fit["a"], "ci": fit["ci"].get("a")}
    except UserError as e:
        return {"refused": str(e)}


def verdict(result: dict, at: list[float]) -> dict:
    """a, b and the optimum at each budget of `at`, a row per approach; and whether the intervals of a share a point."""
    rows = {name: {"a": result[name]["a"], "b": result[name]["b"], "ci": result[name]["ci"],
                   "at": [laws.optimum(result[name], C) for C in at]}
            for name in ("surface", "isoflop", "envelope") if name in result}
    for row in rows.values():
        row["ci"] = {k: row["ci"][k] for k in ("a", "b") if k in row["ci"]}
    spans = [row["ci"]["a"] for row in rows.values() if "a" in row["ci"]]
    agree, text = None, "one approach only: nothing to compare" if rows else "no approach could be fitted"
    if len(spans) > 1:
        lo, hi = max(s[0] for s in spans), min(s[1] for s in spans)
        agree = lo <= hi
        text = (f"the approaches agree: their 95 % intervals of a share {lo:.3f} to {hi:.3f}" if agree else
                "the approaches disagree: no exponent a lies in all of their 95 % intervals")
    return {"approaches": rows, "budgets": list(at), "agree": agree, "text": text}


# ---- The fit card: what a reader needs to repeat the fit (after the checklist of Li et al. 2025, "(Mis)Fitting"). ----

FITS = ("surface", "isoflop", "envelope", "loss_vs_compute", "loss_vs_params", "loss_vs_tokens", "repeated")
EQUATIONS = {"surface": "L = E + A/N^alpha + B/D^beta", "isoflop": "N_opt = k C^a", "envelope": "N_opt = k C^a",
             "loss_vs_compute": "L = (C_c/C)^alpha on the lower convex hull", "loss_vs_params": "L = L_inf + (N_c/N)^alpha",
             "loss_vs_tokens": "L = L_inf + (D_c/D)^alpha", "repeated": "L = E + A/N'^alpha + B/D'^beta, N', D' discounted"}


def card(table: dict, data: dict, result: dict, bootstrap: int, seed: int) -> dict:
    """Form, data, filters, training, optimiser, intervals and what the table does not record, for publication."""
    used = {k: v[data["rows"]] for k, v in table.items()}

    def span(x):
        return [float(np.nanmin(x)), float(np.nanmax(x))]

    def values(name):
        return sorted(set(map(str, used[name]))) if name in used else "not recorded"
    shape = [c for c in (*SETTINGS, "learning_rate", "seed") if c in used]
    sizes = []
    for n in np.unique(data["N"]):
        rows = data["N"] == n
        sizes.append({"params": float(n), "rows": int(rows.sum())} | {c: sorted(set(map(str, used[c][rows])))[:8] for c in shape})
    least_squares = "least squares in closed form; no start, no optimiser"
    fits = {name: {"equation": EQUATIONS[name], "n": result[name]["n"], "intervals": result[name]["method"],
                   "level": result[name]["level"], "weights": "equal", "health": result[name]["health"]["lines"] or "good",
                   **({"loss": f"summed Huber, delta {laws.DELTA:g}, of log-residuals",
                       "optimiser": "damped Newton with analytic gradients, no library optimiser",
                       "starts": result[name]["health"]["starts"], "starts_that_agree": result[name]["health"]["agree"],
                       "objective": result[name]["objective"]} if "objective" in result[name] else {"optimiser": least_squares})}
            for name in FITS if name in result}
    training = {c: values(c) for c in ("dataset", "tokenizer", "schedule", "batch_tokens", "device", "dtype", "commit")}
    return {"hypothesis": {"equations": {k: v["equation"] for k, v in fits.items()},
                           "variables": f"N: {data['params']}; D: tokens; C: {data['flops']}; L: {data['loss_column']}, nats per token"},
            "training": training | {"runs": len(data["last"]), "sizes": sizes, "params": span(data["N"]), "tokens": span(data["D"]),
                                    "flops": span(data["C"]), "tokens_per_param": span(data["D"] / data["N"]),
                                    "epochs": span(used["epochs"]) if "epochs" in used else "not recorded",
                                    "seed_noise": data["seed_noise"], "repeated_seeds": data["seed_df"]},
            "data": {"rows_read": len(next(iter(table.values()))), "rows_used": len(data["L"]), "filters": data["notes"] or "none",
                     "checkpoints": "intermediate and final" if data["curves"] else "final only",
                     "validation_tokens": values("val_tokens"), "columns_not_used": sorted(set(table) - KNOWN)},
            "fit": fits | {"skipped": result["skipped"], "bootstrap": bootstrap, "random_seed": seed},
            "validation": result.get("comparison", "not possible")}


# ---- The printed table. ----

def spread(value: float, ci: list[float] | None) -> str:
    """'0.514 (0.483 to 0.557)'."""
    return f"{value:.4g}" + (f" ({ci[0]:.4g} to {ci[1]:.4g})" if ci else "")


def fit_lines(name: str, fit: dict) -> list[str]:
    """One fit as lines of text: what it rests on, each parameter with its interval, its health."""
    head = f"\n{name}: {EQUATIONS[name]}; n = {fit['n']}"
    head += f", objective {fit['objective']:.7g}" if "objective" in fit else ""
    out = [head + (f", residual {fit['noise']:.2%}" if fit.get("noise", np.nan) == fit.get("noise", np.nan) else "")]
    out += [f"  {k:<8} {spread(fit[k], fit['ci'].get(k))}" for k in PRINTED if k in fit]
    profile = fit.get("profile_E")
    if profile:
        ends = [f"{profile[k]:.4g}" if profile[k] is not None else "none" for k in ("lo", "hi")]
        out.append(f"  E by profile likelihood: {ends[0]} to {ends[1]}")
    out += [f"  a by {m:<9} {spread(v['a'], v['ci'])}" for m, v in fit.get("alternatives", {}).items() if "a" in v]
    out += [f"  intervals: {fit['method']}"] + ([f"  note: {fit['note']}"] if "note" in fit else [])
    for form, row in fit.get("forms", {}).get("forms", {}).items():
        out.append(f"  {form:<24} " + (row.get("refused") or f"AICc +{row['aicc']:.1f}, held out {row['held_out']:.2%}"))
    return out + ([f"  SICK: {line}" for line in fit["health"]["lines"]] or ["  health: good"])


def form_lines(c: dict, title: str) -> list[str]:
    """A comparison of forms as lines."""
    return [f"\n{title}, by AICc (lower is better) and by mean error on the {c['held_out_rows']} rows of the largest models, held out"
            ] + [f"  {f:<26} " + (row.get("refused") or f"AICc +{row['aicc']:<8.1f} held out {row['held_out']:.2%}")
                 for f, row in c["forms"].items()]


def matrix_lines(matrix: dict) -> list[str]:
    """The accounting matrix as lines: exponent a, one row per way to count parameters."""
    out = ["\naccounting: exponent a of N_opt by the surface; rows count parameters, columns FLOPs",
           f"  {'':<24}" + "".join(f"{f:<24}" for f in counts.FLOPS)]
    for p, row in matrix.items():
        out.append(f"  {p:<24}" + "".join(f"{spread(c['a'], c['ci']) if 'a' in c else '-':<24}" for c in row.values()))
    return out


def verdict_lines(v: dict) -> list[str]:
    """The verdict as lines: a, b, and N_opt, D_opt and loss at each budget, per approach."""
    out = [f"\nverdict: {v['text']}"]
    for name, row in v["approaches"].items():
        out.append(f"  {name:<9} a {spread(row['a'], row['ci'].get('a'))}  b {spread(row['b'], row['ci'].get('b'))}")
        for o in row["at"]:
            far = f"  [{o['outside']['C']:.3g}x outside the data]" if "C" in o["outside"] else ""
            out.append(f"    C {o['C']:.3g}: " + ", ".join(f"{k} {spread(o[k], o['ci'].get(k))}" for k in ("N_opt", "D_opt", "loss"))
                       + far)
    return out


def report(result: dict) -> str:
    """The fits as text: parameters with 95 % intervals, health, comparison of forms, accounting, verdict."""
    d = result["data"]
    out = [f"{d['runs']} runs, {d['rows']} rows; N {d['params']}, C {d['flops']}, loss from {d['loss_column']!r}; "
           "brackets hold 95 % intervals"]
    out += [f"  note: {n}" for n in d["notes"]]
    if d["seed_df"]:
        out.append(f"  noise between seeds: {d['seed_noise']:.2%} of the loss ({d['seed_df']} degrees of freedom)")
    for name in FITS:
        out += fit_lines(name, result[name]) if name in result else []
    out += form_lines(result["comparison"], "forms") if "comparison" in result else []
    out += matrix_lines(result["accounting"]) if "accounting" in result else []
    out += [""] + [f"{name}: skipped: {why}" for name, why in result["skipped"].items()]
    return "\n".join(out + verdict_lines(result["verdict"]))


def read_options(args: list[str]) -> tuple[str, dict]:
    """(path of the table, options) from the command line. Raises UserError."""
    paths, options = [], {}
    for arg in args:
        key, equals, value = arg.lstrip("-").partition("=")
        if not arg.startswith("-"):
            paths.append(arg)
        elif key not in OPTIONS:
            raise UserError(f"unknown option --{key}{nearest(key, OPTIONS)}; options are " + ", ".join(f"--{o}" for o in OPTIONS))
        else:
            options[key] = value
    if "help" in options or not args:
        print(__doc__)
        sys.exit(0)
    if len(paths) != 1:
        raise UserError(f"give one table of runs, not {len(paths)}: python -m scaling.fit RUNS.csv")
    return paths[0], options


def number(options: dict, key: str, default: str) -> list[float]:
    """The comma-separated positive numbers of an option. Raises UserError."""
    try:
        values = [float(v) for v in options.get(key, default).split(",") if v]
    except ValueError:
        values = [-1.0]
    if any(not v >= 0 or v == float("inf") for v in values):
        raise UserError(f"--{key}={options[key]}: numbers are needed, separated by commas, none of them negative")
    return values


def finite(value):
    """`value` with nan and inf as None, for JSON that any reader accepts."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write(path: str, text: str) -> None:
    """Write `text` to `path`. Raises UserError where that cannot be done."""
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from None


def main() -> None:
    path, options = read_options(sys.argv[1:])
    bootstrap = number(options, "bootstrap", "1000")
    if len(bootstrap) != 1 or bootstrap[0] != int(bootstrap[0]):
        raise UserError(f"--bootstrap={options['bootstrap']}: one whole number is needed, such as 1000 (0: no intervals)")
    result = fit_all(read_table(path), options.get("params"), options.get("flops"), int(bootstrap[0]),
                     number(options, "at", ""), progress=True)
    to_stdout = options.get("json") == "-"
    print(report(result), file=sys.stderr if to_stdout else sys.stdout)
    text = json.dumps(finite(result))
    if to_stdout:
        print(text)
    elif "json" in options:
        write(options["json"], text)
    if "card" in options:
        write(options["card"], json.dumps(finite(result["card"]), indent=1))


if __name__ == "__main__":
    exit_cleanly(main)
