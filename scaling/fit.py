"""Runs to laws: read a table of runs, fit every form that it supports, say what agrees and what is sick.

    python -m scaling.fit RUNS.csv [--params=CONVENTION] [--flops=CONVENTION] [--bootstrap=1000]
                          [--at=1e18,1e21] [--curves=CURVES.csv] [--json=PATH|-] [--card=PATH]

RUNS.csv needs `params,tokens,loss`, or the columns that sweep.py writes (params_*, tokens, val_loss).
Optional: `flops`, `run` (rows of one run are one cluster) and `budget` (an IsoFLOP level). CURVES.csv, which
sweep.py writes beside it, adds the losses along the runs: the envelope of curves and L(C) use them.
"""
import json
import sys

import numpy as np
from tqdm import tqdm

from runtime.basics import UserError, exit_cleanly, nearest, whole_file
from scaling import report
from scaling.laws import counts, frontiers
from scaling.laws import forms as laws
from scaling.laws.health import judge as add_lines
from scaling.tables.csv import read_table
from scaling.tables.runs import along, select

OPTIONS = ("params", "flops", "bootstrap", "at", "curves", "json", "card", "help")
MIN_REPEATS = 3                                # repeated seeds that make an estimate of their noise


# ---- The table: what is used, what is dropped, and why. ----


# ---- The fits: each takes the selected data, the number of resamples and a random seed. ----

def surface(data: dict, bootstrap: int, seed: int) -> dict:
    """Approach 3, and the profile of E."""
    N, D, L = (data[k][data["some"]] for k in "NDL")
    run = data["run"][data["some"]] if data["curves"] else None
    noise = data["seed_noise"] if data["seed_df"] >= MIN_REPEATS else float("nan")
    fit = laws.fit_surface(N, D, L, run, bootstrap=bootstrap, seed=seed, noise=noise)
    lines = fit["health"]["lines"]
    if bootstrap:
        fit["profile_E"] = laws.profile_E(N, D, L, run, min(bootstrap, 200), seed)
        if not fit["profile_E"]["identified"] and not any(line.startswith("E is not") for line in lines):
            lines.append("E is not identified: its profile does not rise on both sides; a wider range would "
                         "pin it")
    if data["U"] is not None and (data["D"] > 1.5 * data["U"]).any():
        lines.append(f"{(data['D'] > 1.5 * data['U']).sum()} rows repeat their data, which this form "
                     "ignores; see 'repeated'")
    fit["health"]["ok"] = not lines
    return fit


def isoflop(data: dict, bootstrap: int, seed: int) -> dict:
    """Approach 2 on the last row of each run, and what the other ways to find a minimum say."""
    last = data["last"]
    runs = (*(data[k][last] for k in "NCL"), data["budget"][last] if data["budget"] is not None else None)
    noise = data["seed_noise"] if data["seed_df"] >= MIN_REPEATS else None

    def alternative(method):
        try:
            fit = frontiers.fit_isoflop(*runs, method, noise, min(bootstrap, 300), seed)
            return {"a": fit["a"], "ci": fit["ci"].get("a")}
        except UserError as e:
            return {"refused": str(e)}
    fit = frontiers.fit_isoflop(*runs, noise=noise, bootstrap=bootstrap, seed=seed)
    return fit | {"alternatives": {m: alternative(m) for m in frontiers.METHODS}}


def envelope(data: dict, bootstrap: int, seed: int) -> dict:
    """Approach 1, where there are learning curves: in the table, or beside it."""
    part = data if data["curves"] else data.get("along")
    if not part:
        raise UserError("one row per run: an envelope needs learning curves (many rows that share a 'run', "
                        "or --curves=CURVES.csv with validation losses along the runs)")
    return frontiers.fit_envelope(*(part[k] for k in "NCL"), part["run"], bootstrap, seed)


def loss_vs_compute(data: dict, bootstrap: int, seed: int) -> dict:
    """The hull of all rows and of the losses along the runs, a cluster per run where there are curves."""
    part = {k: data[k] if data["curves"] else data[k][data["some"]] for k in "CL"}
    run = data["run"] if data["curves"] else None
    if data.get("along"):
        part = {k: np.append(part[k], data["along"][k]) for k in part}
        run = np.append(data["run"][data["some"]], data["along"]["run"])
    return frontiers.fit_loss_vs_compute(part["C"], part["L"], run, bootstrap, seed)


def power(data: dict, name: str, bootstrap: int, seed: int) -> dict:
    """L(N) or L(D), `name`, through the best setting at each value, as far as more of it went with less loss.

    A setting's loss is the mean over its seeds. Three sizes cannot show a floor: there it is left out.
    """
    _, first, group, seeds = np.unique(data["setting"], True, True, True)
    L = np.exp(np.bincount(group, np.log(data["L"][data["last"]])) / seeds)
    x, ratio = (v[data["last"]][first] for v in (data[name], data["D"] / data["N"]))
    best = frontiers.pareto(x, L)
    floor = len(best) != 3
    fit = laws.fit_power(x[best], L[best], irreducible=floor, name=name, bootstrap=bootstrap, seed=seed)
    limit = "data" if name == "N" else "model size"
    fit["note"] = (f"holds only as far as {limit} was never the limit: these {len(best)} runs, the best at "
                   f"each {name}, had {ratio[best].min():.3g} to {ratio[best].max():.3g} tokens per parameter"
                   + "; three sizes cannot show a floor, so it has none" * (not floor))
    if data["seed_df"] >= MIN_REPEATS:
        fit["health"]["lack_of_fit"] = fit["noise"] / (data["seed_noise"] / np.sqrt(seeds[best].mean()))
        add_lines(fit)
    return fit | {"forms": laws.compare_powers(x[best], L[best], name),
                  "points": {name: x[best].tolist(), "loss": L[best].tolist()}}


def repeated(data: dict, bootstrap: int, seed: int) -> dict:
    """The data-constrained surface, on a base fitted to the runs that repeat nothing where there are ten of
    them."""
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
    """Which form in N and D the rows prefer: AICc, and held-out error on the largest models."""
    run = data["run"][data["some"]] if data["curves"] else None
    return laws.compare_surfaces(*(data[k][data["some"]] for k in "NDL"), run)


def accounting(table: dict, data: dict, bootstrap: int, seed: int) -> dict:
    """The exponent a of N_opt for each way to count parameters (rows) and FLOPs (columns), by the surface.

    In each cell N is counted by the row and D is C/(6 N), with C counted by the column: so N_opt is what the
    surface says for a budget counted that way, and the cells of the column 6nd are the plain surface.
    """
    if not any(c.startswith("params_") for c in table):
        raise UserError("no columns params_total, params_non_embedding, params_head: N has one count only")
    part = {k: v[data["rows"][data["some"]]] for k, v in table.items()}
    L, run = data["L"][data["some"]], data["run"][data["some"]] if data["curves"] else None

    def cell(p, f):
        try:
            N, C = counts.params(part, p), counts.flops(part, f, p)
            fit = laws.fit_surface(N, C / (6 * N), L, run, bootstrap=min(bootstrap, 200), seed=seed)
            return {"a": fit["a"], "ci": fit["ci"].get("a")}
        except UserError as e:
            return {"refused": str(e)}
    matrix = {p: {f: cell(p, f) for f in counts.FLOPS} for p in counts.PARAMS}
    for row in matrix.values():                        # other columns move D a little, which proves nothing
        if "refused" in row["6nd"]:
            raise UserError(row["6nd"]["refused"])
    return matrix


# ---- All of them. ----

def fit_all(table: dict, params: str | None = None, flops: str | None = None, bootstrap: int = 1000,
            at: list[float] | None = None, seed: int = 0, progress: bool = False,
            curves: dict | None = None) -> dict:
    """Every fit that `table` ({column: array}) supports, as DESIGN section 2 lists them.

    `at` lists budgets in FLOPs for the verdict; by default the largest C of the table, three and ten times
    that. `curves` is curves.csv, the losses along the runs of `table`. What the data cannot support is
    absent, with the reason under `skipped`. Raises UserError for bad data.
    """
    data, result = select(table, params, flops), {"skipped": {}}
    if curves and not data["curves"]:
        data["along"] = along(data, table.get("schedule"), curves)
    jobs = {"surface": surface, "isoflop": isoflop, "envelope": envelope, "loss_vs_compute": loss_vs_compute,
            "loss_vs_params": lambda d, *a: power(d, "N", *a),
            "loss_vs_tokens": lambda d, *a: power(d, "D", *a),
            "repeated": repeated, "comparison": comparison,
            "accounting": lambda d, *a: accounting(table, d, *a)}
    with tqdm(jobs.items(), desc="fits", disable=not progress, file=sys.stderr, leave=False) as bar:
        for name, job in bar:
            bar.set_postfix_str(name)
            try:
                result[name] = job(data, bootstrap, seed)
            except UserError as e:
                result["skipped"][name] = str(e)
    result["verdict"] = verdict(result, at or [float(data["C"].max() * m) for m in (1, 3, 10)])
    shown = ("loss_column", "params", "flops", "notes", "seed_noise", "seed_df")
    result["data"] = {k: data[k] for k in shown} | {"rows": len(data["L"]), "runs": len(data["last"])}
    result["card"] = report.card(table, data, result, bootstrap, seed)
    return result


def verdict(result: dict, at: list[float]) -> dict:
    """a, b and the optimum at each budget of `at`, per approach; and whether the intervals of a share a
    point."""
    rows = {}
    for name in ("surface", "isoflop", "envelope"):
        if name in result:
            fit = result[name]
            rows[name] = {"a": fit["a"], "b": fit["b"],
                          "ci": {k: fit["ci"][k] for k in "ab" if k in fit["ci"]},
                          "at": [laws.optimum(fit, C) for C in at]}
    spans = [row["ci"]["a"] for row in rows.values() if "a" in row["ci"]]
    agree, text = None, "one approach only: nothing to compare" if rows else "no approach could be fitted"
    if len(spans) > 1:
        lo, hi = max(s[0] for s in spans), min(s[1] for s in spans)
        agree = lo <= hi
        text = (f"the approaches agree: their 95 % intervals of a share {lo:.3f} to {hi:.3f}" if agree else
                "the approaches disagree: no exponent a lies in all of their 95 % intervals")
    return {"approaches": rows, "budgets": list(at), "agree": agree, "text": text}


# ---- The command line. ----

def read_options(args: list[str]) -> tuple[str, dict]:
    """(path of the table, options) from the command line. Raises UserError."""
    paths, options = [], {}
    for arg in args:
        key, _, value = arg.lstrip("-").partition("=")
        if not arg.startswith("-"):
            paths.append(arg)
        elif key not in OPTIONS:
            raise UserError(f"unknown option --{key}{nearest(key, OPTIONS)}; there are "
                            + ", ".join(f"--{o}" for o in OPTIONS))
        else:
            options[key] = value
    if "help" in options or not args:
        print(__doc__)
        sys.exit(0)
    if len(paths) != 1:
        raise UserError(f"give one table of runs, not {len(paths)}: python -m scaling.fit RUNS.csv")
    return paths[0], options


def numbers(options: dict, key: str, default: str) -> list[float]:
    """The comma-separated numbers of an option, none negative. Raises UserError."""
    try:
        found = [float(v) for v in options.get(key, default).split(",") if v]
    except ValueError:
        found = [-1.0]
    if not all(0 <= v < float("inf") for v in found):
        raise UserError(f"--{key}={options[key]}: numbers of 0 or more are needed, separated by commas")
    return found


def finite(value):
    """`value` with nan and inf as None, for JSON that any reader accepts."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main(args: list[str] | None = None) -> None:
    path, options = read_options(sys.argv[1:] if args is None else args)
    bootstrap = numbers(options, "bootstrap", "1000")
    if len(bootstrap) != 1 or bootstrap[0] != int(bootstrap[0]):
        raise UserError(f"--bootstrap={options['bootstrap']}: one whole number is needed (0: no intervals)")
    curves = read_table(options["curves"]) if "curves" in options else None
    result = fit_all(read_table(path), options.get("params"), options.get("flops"), int(bootstrap[0]),
                     numbers(options, "at", ""), progress=True, curves=curves)
    print(report.text(result), file=sys.stderr if options.get("json") == "-" else sys.stdout)
    if options.get("json") == "-":
        print(json.dumps(finite(result)))
    elif "json" in options:
        with whole_file(options["json"]) as f:
            f.write(json.dumps(finite(result)) + "\n")
    if "card" in options:
        with whole_file(options["card"]) as f:
            f.write(json.dumps(finite(result["card"]), indent=1) + "\n")


if __name__ == "__main__":
    exit_cleanly(main)
