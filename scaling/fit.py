"""Runs to laws: read a table of runs, fit every law that it supports, say what agrees and what to doubt.

    python -m scaling.fit RUNS.csv [--key=value ...]
    python -m scaling.fit out/STUDY/runs.csv --curves=out/STUDY/curves.csv --params=total --flops=exact

RUNS.csv needs `params,tokens,loss`, or the columns that sweep.py writes (params_*, tokens, val_loss).
Optional: `flops`, `run` (rows of one run are one cluster) and `budget` (an IsoFLOP level). A new law is a row
of `LAWS`: it is then fitted, printed, written into the fit card and, where it has an exponent a, compared.
"""
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from config.configurator import convert, help_text, read_args, set_fields
from runtime.basics import UserError, exit_cleanly, whole_file
from scaling.laws import counts, forms, frontiers, health
from scaling.report import card, laws_of, summary, text
from scaling.tables.csv import read_table
from scaling.tables.runs import along, select

MIN_REPEATS = 3                                # repeated seeds that make an estimate of their noise


@dataclass
class Options:
    params: str = ""                # what N counts: non_embedding, total, non_embedding_plus_head (default)
    flops: str = ""                 # how C is counted: 6nd (default), 6nd_attention, exact, chinchilla
    bootstrap: int = 1000           # resamples behind the intervals; 0: no intervals
    at: str = ""                    # budgets in FLOPs to find the best run for: 1e18,1e21
    loss: str = ""                  # column of the losses; default: a validation loss, else loss
    where: str = ""                 # rows to use: COLUMN=VALUE[,COLUMN=VALUE]; may be given several times
    best_of: str = ""               # columns that were tuned, COLUMN,...: at each N and D the best counts
    curves: str = ""                # CURVES.csv, losses along the runs: the envelope and L(C) use them
    json: str = ""                  # file for all that was fitted; -: standard output


# ---- What the fits share: columns of the selected data, the noise of seeds, the health. ----

def ends(data: dict, names: str) -> list[np.ndarray]:
    """The columns `names` ("NDL") of the selected data, at the last row of each run."""
    return [data[name][data["last"]] for name in names]


def rows(data: dict) -> list[np.ndarray]:
    """N, D, L of the rows that a surface is fitted to, and the run of each; None where every row is a run."""
    some = data["some"]
    run = data["run"][some] if data["curves"] else None
    return [*(data[name][some] for name in "NDL"), run]


def noise_of(data: dict) -> float:
    """The standard deviation of log-loss between seeds; 0 where too few were repeated to say."""
    return data["seed_noise"] if data["seed_df"] >= MIN_REPEATS else 0.0


def judge(fit: dict, noise: float) -> None:
    """Judge the health of `fit`, also against the `noise` of the losses where that is known (not 0)."""
    if noise:
        fit["health"]["lack_of_fit"] = fit["noise"] / noise
    health.judge(fit)


def exponent(fit: Callable, *args) -> dict:
    """The exponent a of the law `fit(*args)`, with its interval, or why it was refused."""
    try:
        found = fit(*args)
    except UserError as e:
        return {"refused": str(e)}
    return {"a": found["a"], "ci": found["ci"].get("a")}


# ---- The fits: each takes the selected data and the number of resamples. ----

def surface(data: dict, bootstrap: int) -> dict:
    """Approach 3, and the profile of E."""
    fit = forms.fit_surface(*rows(data), bootstrap=bootstrap)
    if bootstrap:
        fit["profile_E"] = forms.profile_E(*rows(data), min(bootstrap, 200))
        fit["health"]["profile_open"] = not fit["profile_E"]["identified"]
    if data["U"] is not None:
        fit["health"]["repeated_rows"] = int((data["D"] > 1.5 * data["U"]).sum())
    judge(fit, noise_of(data))
    return fit


def isoflop(data: dict, bootstrap: int) -> dict:
    """Approach 2 on the last row of each run, and what the other ways to find a minimum say."""
    N, C, L = ends(data, "NCL")
    budget = None if data["budget"] is None else data["budget"][data["last"]]

    def by(method, resamples):
        return frontiers.fit_isoflop(N, C, L, budget, method, noise_of(data), resamples)
    fit = by(frontiers.METHODS[0], bootstrap)
    fit["alternatives"] = {m: exponent(by, m, min(bootstrap, 300)) for m in frontiers.METHODS}
    return fit


def envelope(data: dict, bootstrap: int) -> dict:
    """Approach 1, where there are learning curves: in the table, or beside it."""
    part = data if data["curves"] else data["along"]
    if not part:
        raise UserError("one row per run: an envelope needs learning curves (many rows that share a 'run', "
                        "or --curves=CURVES.csv with validation losses along the runs)")
    return frontiers.fit_envelope(part["N"], part["C"], part["L"], part["run"], bootstrap)


def loss_vs_compute(data: dict, bootstrap: int) -> dict:
    """The hull of all rows and of the losses along the runs, a cluster per run where there are curves."""
    C, L, run = data["C"], data["L"], data["run"]
    if data["along"]:
        C, L, run = (np.append(data[name], data["along"][name]) for name in ("C", "L", "run"))
    elif not data["curves"]:
        run = None
    return frontiers.fit_loss_vs_compute(C, L, run, bootstrap)


def power(name: str, data: dict, bootstrap: int) -> dict:
    """L(N) or L(D), `name`, through the best setting at each value, as far as more of it went with less loss.

    A setting's loss is the mean over its seeds. Three sizes cannot show a floor: there it is left out.
    """
    x, N, D, L = ends(data, name + "NDL")
    _, first, group, seeds = np.unique(data["setting"], True, True, True)
    L = np.exp(np.bincount(group, np.log(L)) / seeds)
    best = frontiers.pareto(x[first], L)
    left = np.setdiff1d(x, x[first][best])
    if len(best) < 3 and len(left):
        raise UserError(f"the best runs at each {name}, as far as more {name} went with less loss, are only "
                        f"{len(best)}; a power law needs 3 or more")
    x = x[first][best]
    L = L[best]
    ratio = (D / N)[first][best]
    floor = len(best) != 3
    fit = forms.fit_power(x, L, irreducible=floor, name=name, bootstrap=bootstrap)
    limit = "data" if name == "N" else "model size"
    fit["note"] = (f"holds only as far as {limit} was never the limit: these {len(best)} runs, the best at "
                   f"each {name}, had {ratio.min():.3g} to {ratio.max():.3g} tokens per parameter")
    if not floor:
        fit["note"] += "; three sizes cannot show a floor, so it has none"
    if len(left):
        values = ", ".join(f"{value:.3g}" for value in left[:5]) + (", ..." if len(left) > 5 else "")
        fit["note"] += f"; {len(left)} of {len(left) + len(best)} values of {name} are left out, as less "
        fit["note"] += f"{name} did better: {values}"
    judge(fit, noise_of(data) / np.sqrt(seeds[best].mean()))
    fit["forms"] = forms.compare_powers(x, L, name)
    fit["points"] = {name: x.tolist(), "loss": L.tolist()}
    return fit


def repeated(data: dict, bootstrap: int) -> dict:
    """The data-constrained surface, on a base fitted to the runs that repeat nothing if there are ten."""
    if data["U"] is None or not (data["D"] > 1.001 * data["U"]).any():
        raise UserError("no run repeats its data (column 'unique_tokens')")
    N, D, U, L = ends(data, "NDUL")
    once = D <= 1.001 * U
    base = None
    if once.sum() >= 10:
        with suppress(UserError):              # too few sizes among them
            base = forms.fit_surface(N[once], D[once], L[once], bootstrap=0)
    return forms.fit_repeated(N, D, U, L, base=base, bootstrap=bootstrap)


def kaplan_nd(data: dict, bootstrap: int) -> dict:
    """Kaplan et al. 2020, eq. 1.5."""
    return forms.fit_kaplan_nd(*rows(data), bootstrap)


def kaplan_ns(data: dict, bootstrap: int) -> dict:
    """Kaplan et al. 2020, eq. 1.6, with S = tokens / batch_tokens."""
    N, D, L, run = rows(data)
    batch = counts.column(data["table"], "batch_tokens", "L(N, S)")[data["some"]]
    fit = forms.fit_kaplan_ns(N, D / batch, L, run, bootstrap)
    if np.ptp(batch):
        fit["note"] = (f"steps of {batch.min():.4g} to {batch.max():.4g} tokens count alike here, as if each "
                       "batch were far below the critical one")
    return fit


class Law(NamedTuple):
    """How a law is written and fitted. If its fit has `a` and `b`, of N_opt, it takes part in the verdict."""
    equation: str
    parameters: str                            # those to print, in order
    fit: Callable[[dict, int], dict]           # (data, bootstrap) -> fit; raises UserError


LAWS = {
    "surface": Law("L = E + A/N^alpha + B/D^beta", "E A B alpha beta a b", surface),
    "isoflop": Law("N_opt = k C^a", "a b gamma L_inf", isoflop),
    "envelope": Law("N_opt = k C^a", "a b gamma L_inf", envelope),
    "loss_vs_compute": Law("L = (C_c/C)^alpha on the lower convex hull", "alpha between C_c L_inf",
                           loss_vs_compute),
    "loss_vs_params": Law("L = L_inf + (N_c/N)^alpha", "alpha N_c L_inf", partial(power, "N")),
    "loss_vs_tokens": Law("L = L_inf + (D_c/D)^alpha", "alpha D_c L_inf", partial(power, "D")),
    "repeated": Law("L = E + A/N'^alpha + B/D'^beta with repeats discounted", "E A B alpha beta R_D R_N",
                    repeated),
    "kaplan_nd": Law("L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D", "alpha_N alpha_D N_c D_c",
                     kaplan_nd),
    "kaplan_ns": Law("L = (N_c/N)^alpha_N + (S_c/S)^alpha_S", "alpha_N alpha_S N_c S_c", kaplan_ns),
}


# ---- What compares laws, and is none. ----

def comparison(data: dict, bootstrap: int) -> dict:
    """Which form in N and D the rows prefer: AICc, and held-out error on the largest models."""
    return forms.compare_surfaces(*rows(data))


def accounting(data: dict, bootstrap: int) -> dict:
    """The exponent a of N_opt for each way to count parameters (rows) and FLOPs (columns), by the surface.

    In each cell N is counted by the row and D is C/(6 N), with C counted by the column: so N_opt is what the
    surface says for a budget counted that way, and the cells of the column 6nd are the plain surface.
    """
    if not any(name.startswith("params_") for name in data["table"]):
        raise UserError("no columns params_total, params_non_embedding, params_head: N has one count only")
    part = {name: v[data["some"]] for name, v in data["table"].items()}
    _, _, L, run = rows(data)

    def recounted(params, flops):
        N = counts.params(part, params)
        C = counts.flops(part, flops, params)
        return forms.fit_surface(N, C / (6 * N), L, run, bootstrap=min(bootstrap, 200))
    matrix = {p: {f: exponent(recounted, p, f) for f in counts.FLOPS} for p in counts.PARAMS}
    for row in matrix.values():                # other columns move D a little, which proves nothing
        if "refused" in row["6nd"]:
            raise UserError(row["6nd"]["refused"])
    return matrix


def verdict(result: dict, at: list[float]) -> dict:
    """a, b and the optimum at each budget of `at`, per approach; do the intervals of a share a point?"""
    approaches = {}
    for name, fit in laws_of(result).items():
        if {"a", "b"} <= set(fit):                     # exponents of N_opt and D_opt in C
            ci = {k: fit["ci"][k] for k in "ab" if k in fit["ci"]}
            approaches[name] = {"a": fit["a"], "b": fit["b"], "ci": ci,
                                "at": [forms.optimum(fit, C) for C in at]}
    spans = [row["ci"]["a"] for row in approaches.values() if "a" in row["ci"]]
    agree = None
    words = "one approach only: nothing to compare" if approaches else "no approach could be fitted"
    if len(spans) > 1:
        lows, highs = zip(*spans)
        agree = max(lows) <= min(highs)
        words = "the approaches disagree: no exponent a lies in all of their 95 % intervals"
    if agree:
        words = f"the approaches agree: their 95 % intervals of a share {max(lows):.3f} to {min(highs):.3f}"
    return {"approaches": approaches, "budgets": at, "agree": agree, "text": words}


# ---- All of them. ----

def fit_each(data: dict, bootstrap: int) -> dict:
    """All fits that `data` supports, {name: fit}, and under `skipped` why it does not support the others."""
    result = {"skipped": {}}
    jobs = {name: law.fit for name, law in LAWS.items()}
    jobs |= {"comparison": comparison, "accounting": accounting}
    with tqdm(jobs.items(), desc="fits", disable=None, leave=False) as bar:
        for name, job in bar:
            bar.set_postfix_str(name)
            try:
                result[name] = job(data, bootstrap)
            except UserError as e:
                result["skipped"][name] = str(e)
                continue
            if name in LAWS:
                law = LAWS[name]
                result[name] |= {"equation": law.equation, "parameters": law.parameters.split()}
    return result


def fit_all(table: dict, params: str | None = None, flops: str | None = None, bootstrap: int = 1000,
            at: list[float] | None = None, curves: dict | None = None, **chosen) -> dict:
    """Every fit that `table` ({column: array}) supports: {law: fit}, and verdict, skipped, data, card.

    `at` lists budgets in FLOPs for the verdict; by default the largest C of the table, three and ten times
    that. `curves` is curves.csv, the losses along the runs of `table`; `chosen` are `loss`, `where` and
    `tuned` for `select`. What the data cannot support is
    absent, with the reason under `skipped`. All is as JSON has it: None for nan and inf. Raises UserError for
    bad data.
    """
    data = select(table, params, flops, **chosen)
    if curves and not data["curves"]:
        data["along"] = along(data, table.get("schedule"), curves)
    result = fit_each(data, bootstrap)
    result["verdict"] = verdict(result, at or [float(data["C"].max() * m) for m in (1, 3, 10)])
    shown = ("loss_column", "unit", "params", "flops", "notes", "curve_notes", "warnings", "separate",
             "seed_noise", "seed_df")
    result["data"] = {k: data[k] for k in shown}
    result["data"] |= {"rows": len(data["L"]), "runs": len(data["last"]), "sizes": len(np.unique(data["N"])),
                       "lengths": len(np.unique(data["D"][data["last"]]))}
    result["card"] = card(data, result, bootstrap)
    return finite(result)


def finite(result: dict) -> dict:
    """`result` as JSON that any reader accepts gives it back: nan and inf become None."""
    return json.loads(json.dumps(result), parse_constant=lambda name: None)


def printed(result: dict) -> str:
    """The summary, and below it the wall of numbers."""
    return "\n".join([*summary(result, "below"), "", text(result)])


def fit_study(folder: str | Path, bootstrap: int = 1000) -> dict:
    """Fit a study's runs.csv and curves.csv; write its fit.json and fit.txt. Raises UserError."""
    folder = Path(folder)
    curves = folder / "curves.csv"
    curves = read_table(curves) if curves.exists() else None
    result = fit_all(read_table(folder / "runs.csv"), bootstrap=bootstrap, curves=curves)
    for name, words in (("fit.json", json.dumps(result)), ("fit.txt", printed(result))):
        with whole_file(folder / name) as f:
            f.write(words + "\n")
    return result


# ---- The command line. ----

def main(args: list[str] | None = None) -> None:
    given, paths = read_args(sys.argv[1:] if args is None else args, Options, several=("where",))
    if {"help", "h"} & set(given) or not (given or paths):
        print(__doc__ + help_text(Options))
        return
    o = set_fields(Options(), given)
    if len(paths) != 1:
        raise UserError(f"give one table of runs, not {len(paths)}: python -m scaling.fit RUNS.csv")
    at = [convert("at", number, float, "--at") for number in listed(o.at)]
    if o.bootstrap < 0 or not all(0 < C < np.inf for C in at):
        raise UserError(f"--bootstrap={o.bootstrap} --at={o.at}: 0 or more resamples are needed, and budgets "
                        "above 0")
    if not Path(o.json).parent.is_dir():
        raise UserError(f"cannot write {o.json}: there is no directory {Path(o.json).parent}; make it first")
    curves = read_table(o.curves) if o.curves else None
    chosen = {"loss": o.loss, "where": listed(o.where), "tuned": listed(o.best_of)}
    result = fit_all(read_table(paths[0]), o.params or None, o.flops or None, o.bootstrap, at, curves,
                     **chosen)
    if o.json not in ("", "-"):                        # before the text, which `| head` may cut short
        with whole_file(o.json) as f:
            f.write(json.dumps(result) + "\n")
    print(printed(result), file=sys.stderr if o.json == "-" else sys.stdout)
    if o.json == "-":
        print(json.dumps(result))


def listed(text: str) -> list[str]:
    """The parts of 'a,b'."""
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    exit_cleanly(main)
