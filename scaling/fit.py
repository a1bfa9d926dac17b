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

from configurator import UserError, exit_cleanly, nearest
from scaling import counts, frontiers, laws, report
from scaling.logs import read_table, whole_file
from scaling.robust import add_lines, clusters, seed_noise

OPTIONS = ("params", "flops", "bootstrap", "at", "curves", "json", "card", "help")
ONE_OF = ("dataset", "tokenizer", "config")    # losses do not compare across these: a table holds one of each
MIN_REPEATS = 3                                # repeated seeds that make an estimate of their noise
MAX_ROWS = 5000                                # more rows than this would not sharpen a surface


# ---- The table: what is used, what is dropped, and why. ----

def rows_text(rows: np.ndarray) -> str:
    """'rows 3, 8, 12 and 5 more' for zero-based data rows."""
    shown = ", ".join(str(r + 1) for r in rows[:5])
    return f"row{'s' * (len(rows) > 1)} {shown}" + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def choose_params(table: dict, convention: str | None) -> tuple[np.ndarray, str]:
    """(N, the name of its convention): what was asked, else the column `params` as it is, else the
    default."""
    if convention is None and "params" in table:
        return counts.column(table, "params", "the fit"), "as given"
    counts.check_name(convention or counts.DEFAULT_PARAMS, counts.PARAMS, "parameter")
    if convention is None and "params_head" not in table and "params_non_embedding" in table:
        raise UserError("no column 'params_head', so the default N (non_embedding_plus_head) cannot be "
                        "counted; pass --params=non_embedding to leave the head out")
    if not any(c.startswith("params_") for c in table):
        raise UserError(f"no column params_total or the like, as --params={convention} needs"
                        if convention else f"no column 'params'{nearest('params', table)}; the fit needs "
                        "params,tokens,loss")
    convention = convention or counts.DEFAULT_PARAMS
    return counts.params(table, convention), convention


def choose_flops(table: dict, N: np.ndarray, D: np.ndarray, convention: str | None,
                 params: str) -> tuple[np.ndarray, str]:
    """(C, the name of its convention): what was asked, else the column `flops` as it is, else 6 N D."""
    if convention is None and "flops" in table:
        return counts.column(table, "flops", "the fit"), "as given"
    if convention in (None, "6nd"):
        return 6 * N * D, "6nd"
    params = counts.DEFAULT_PARAMS if params == "as given" else params
    return counts.flops(table, convention, params), convention


def select(table: dict, params: str | None = None, flops: str | None = None) -> dict:
    """The arrays that the fits use: N, D, C, L, run, budget, U, `rows` of the table, and `notes`.

    Rows without a loss (or with an infinite one: diverged), at zero tokens, or twice in the table are
    dropped, and so are all but the best learning rate of a setting: each is noted. Negative numbers and mixed
    data sets raise UserError.
    """
    check_one(table)
    name = "loss" if "loss" in table else "val_loss"
    if name not in table:
        raise UserError(f"no column 'loss' or 'val_loss'{nearest('loss', table)}; the fit needs "
                        "params,tokens,loss")
    L, D = counts.column(table, name, "the fit"), counts.column(table, "tokens", "the fit")
    if not len(L):
        raise UserError("the table has no rows; run the sweep first")
    N, params = choose_params(table, params)
    C, flops = choose_flops(table, N, D, flops, params)
    keep, notes = np.ones(len(L), bool), []

    def drop(bad, why):
        if (bad & keep).any():
            notes.append(f"dropped {(bad & keep).sum()} of {len(L)} rows: {why} "
                         f"({rows_text(np.flatnonzero(bad & keep))})")
            keep[bad] = False
    for label, v in ((name, L), ("params", N), ("tokens", D), ("flops", C)):
        if (v < 0).any():
            raise UserError(f"{label} is negative in {rows_text(np.flatnonzero(v < 0))}; mend or remove it")
        drop(np.isnan(v), f"{label} is missing")
        drop(np.isinf(v), f"{label} is infinite (diverged)")
        drop(v == 0, f"{label} is zero")
        drop((v > 1e40) | (v < 1e-6), f"{label} is outside 1e-6 to 1e40, where no law can be computed")
    drop(repeats(table), "the same row stands earlier in the table")
    drop(worse_rates(table, N, D, L, keep), "another learning rate was better at the same size and tokens")
    if not keep.any():
        raise UserError("no usable row is left: " + "; ".join(notes))
    data = {"N": N[keep], "D": D[keep], "C": C[keep], "L": L[keep], "rows": np.flatnonzero(keep),
            "loss_column": name, "params": params, "flops": flops, "notes": notes,
            "run": np.array([str(r) for r in table["run"]], object)[keep] if "run" in table else None}
    for key, column in (("budget", "budget"), ("U", "unique_tokens")):
        data[key] = counts.column(table, column, "the fit")[keep] if column in table else None
    return add_runs(data, table)


def check_one(table: dict) -> None:
    """Raise UserError when the table mixes data sets, tokenizers or configurations."""
    for name in ONE_OF:
        found = sorted(set(map(str, table.get(name, ()))))
        if len(found) > 1:
            raise UserError(f"column {name!r} holds {len(found)} values ({', '.join(found[:3])}"
                            f"{', ...' * (len(found) > 3)}): their losses do not compare; keep one")


def repeats(table: dict) -> np.ndarray:
    """True for each row that equals an earlier one in every column."""
    seen, again = set(), []
    for row in zip(*(v.tolist() for v in table.values())):
        key = tuple("nan" if v != v else v for v in row)
        again.append(key in seen)
        seen.add(key)
    return np.array(again, bool)


def worse_rates(table: dict, N: np.ndarray, D: np.ndarray, L: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """True for finished runs whose setting (N, D, shape, batch) did better, on average, at another rate."""
    worse, losses = np.zeros(len(L), bool), {}
    if "learning_rate" not in table or ("run" in table and len(set(table["run"])) < len(L)):
        return worse
    rate = counts.column(table, "learning_rate", "the fit")
    keys = list(zip(N, D, *(table[c].tolist() for c in report.SETTINGS if c in table)))
    keys = [tuple("nan" if v != v else v for v in key) for key in keys]
    for i in np.flatnonzero(keep):
        losses.setdefault(keys[i], {}).setdefault(rate[i], []).append(L[i])
    for i in np.flatnonzero(keep):
        mine = losses[keys[i]]
        worse[i] = rate[i] != min(mine, key=lambda r: np.mean(mine[r]))
    return worse


def add_runs(data: dict, table: dict) -> dict:
    """Add `last`, the row with the most tokens of each run; `curves`, do runs have several rows; the noise of
    seeds; and `some`, the rows for a surface."""
    n = len(data["L"])
    group = clusters(data["run"], n)
    order = np.lexsort((data["D"], group))
    data["last"] = last = np.sort(order[np.append(np.diff(group[order]) > 0, True)])
    data["curves"] = len(last) < n
    if data["curves"]:
        data["notes"].append(f"{n} rows of {len(last)} runs: intermediate checkpoints are used, which is "
                             "sound only where the schedule does not depend on the horizon (constant or WSD)")
    settings = [table[c][data["rows"]][last] for c in (*report.SETTINGS, "learning_rate") if c in table]
    key = np.array([[str(v) for v in row] for row in zip(data["N"][last], data["D"][last], *settings)])
    data["setting"] = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)     # equal but for the seed
    data["seed_noise"], data["seed_df"] = seed_noise(key, np.log(data["L"][last]))
    data["some"] = np.arange(n) if n <= MAX_ROWS else thin(group, order, data["curves"])
    if n > MAX_ROWS:
        data["notes"].append(f"the surface is fitted to {len(data['some'])} of {n} rows, evenly spread")
    return data


def thin(group: np.ndarray, order: np.ndarray, curves: bool) -> np.ndarray:
    """About MAX_ROWS of the rows: of each curve evenly over log D, of single runs evenly over D."""
    if not curves:
        return np.sort(order[np.linspace(0, len(order) - 1, MAX_ROWS).astype(int)])
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    each = max(MAX_ROWS // len(parts), 5)
    spread = [p[np.unique(np.geomspace(1, len(p), each).astype(int)) - 1] for p in parts]
    return np.sort(np.concatenate(spread))


def along(data: dict, schedule: np.ndarray | None, curves: dict) -> dict:
    """N, C, L, run (n,) of the validation losses along the runs, before the last; {} where there are none.

    A loss halfway is that of a shorter run only where the schedule has not begun to end: of WSD runs only the
    rows at the peak rate are used. What a branch repeats of its trunk is used once.
    """
    if "run" not in curves:
        raise UserError(f"no column 'run'{nearest('run', curves)}, which the curves need")
    run, (tokens, L) = curves["run"], (counts.column(curves, k, "the curves") for k in ("tokens", "val_loss"))
    final = {data["run"][i]: i for i in data["last"]} if data["run"] is not None else {}
    known = np.isin(run.astype(str), list(final)) & np.isfinite(L)
    run, tokens, L = run[known], tokens[known], L[known]
    at = np.array([final[str(r)] for r in run], int)
    keep = (tokens > 0) & (tokens < data["D"][at])
    if schedule is not None and "lr" in curves:
        peak = {r: np.nanmax(curves["lr"][curves["run"] == r]) for r in np.unique(run)}
        hot = curves["lr"][known] >= 0.999 * np.array([peak[r] for r in run])
        keep &= hot | (schedule[data["rows"][at]] != "wsd")
    N, C = data["N"][at], data["C"][at] * tokens / data["D"][at]
    order = np.argsort(-data["D"][at], kind="stable")           # a trunk before its branches
    order = order[keep[order]]
    rows = order[np.unique(np.stack([N, C, L])[:, order], axis=1, return_index=True)[1]]
    return {"N": N[rows], "C": C[rows], "L": L[rows], "run": run[rows].astype(str)} if len(rows) else {}


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
