"""Runs to laws: read a table of runs, fit every law that it supports, say what agrees and what to doubt.

    python -m scaling.fit RUNS.csv [--key=value ...]
    python -m scaling.fit out/STUDY/runs.csv --curves=out/STUDY/curves.csv --params=total --flops=exact

RUNS.csv needs `params,tokens,loss`, or the columns that sweep.py writes (params_*, tokens, val_loss).
Optional: `flops`, `run` (rows of one run are one cluster) and `budget` (an IsoFLOP level). A new law is a row
of `LAWS`: it is then fitted, printed, written into the fit card and, where it has an exponent a, compared.
"""
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import f as f_test
from tqdm import tqdm

from config.configurator import convert, help_text, read_args, set_fields
from runtime.basics import UserError, exit_cleanly, whole_file
from scaling import watch
from scaling.laws import arms, compare, counts, difference, forms, frontiers, health, hull
from scaling.laws.glossary import explained
from scaling.report import card, summary, text
from scaling.tables import columns
from scaling.tables.csv import read_table
from scaling.tables.runs import along, by_arm, select
from scaling.verdict import verdict

MIN_REPEATS = 3                                # repeated seeds that make an estimate of their noise
FAR = 10                                       # AICc by which another form is clearly better
REFERENCES = ("base", "baseline", "reference", "control")
FEW = 4                                        # points of a hull of finished runs, to do without their curves
WORLDS = 400                               # simulated studies behind a difference of approaches, at least


@dataclass
class Options:
    params: str = ""                # what N counts: non_embedding, total, non_embedding_plus_head (default)
    flops: str = ""                 # how C is counted: 6nd (default), 6nd_attention, exact, chinchilla
    bootstrap: int = 1000           # resamples behind the intervals; 0: no intervals
    at: str = ""                    # budgets in FLOPs to find the best run for: 1e18,1e21
    residuals: str = "log"          # of the loss's logarithm, or linear: of the loss itself, of any sign
    loss: str = ""                  # column of the losses; default: a validation loss, else loss
    where: str = ""                 # rows to use: COLUMN=VALUE[,COLUMN=VALUE]; may be given several times
    best_of: str = ""               # columns that were tuned, COLUMN,...: at each N and D the best counts
    curves: str = ""                # CURVES.csv, losses along the runs: the envelope and L(C) use them
    arm: str = ""                   # column of arms: what is each worth? The other laws are the reference's
    reference: str = ""             # the arm that others are held against; default: base, else the first
    json: str = ""                  # file for all that was fitted; -: standard output
    explain: bool = False           # what every warning means, and what helps


# ---- What the fits share: columns of the selected data, the noise of seeds, the health. ----

def ends(data: dict, names: str) -> list[np.ndarray]:
    """The columns `names` ("NDL") of the selected data, at the last row of each run."""
    return [data[name][data["last"]] for name in names]


def rows(data: dict) -> list[np.ndarray]:
    """N, D, L of the rows that a surface is fitted to, and the run of each; None where every row is a run."""
    some = data["some"]
    run = data["run"][some] if data["curves"] else None
    return [*(data[name][some] for name in "NDL"), run]


def budget_of(data: dict) -> np.ndarray | None:
    """The IsoFLOP level that each run names, if they name one."""
    return None if data["budget"] is None else data["budget"][data["last"]]


def noise_of(data: dict) -> float:
    """The standard deviation of log-loss between seeds; 0 where too few were repeated to say."""
    return data["seed_noise"] if data["seed_df"] >= MIN_REPEATS else 0.0


def judge(fit: dict, data: dict, seeds: float = 1) -> None:
    """Judge the health of `fit`, also against the noise of losses that are means of so many seeds."""
    noise = noise_of(data) / np.sqrt(seeds)
    if noise:
        ratio = fit["noise"] / noise
        chance = f_test.sf(ratio ** 2, fit["n"] - fit["free"], data["seed_df"])
        fit["health"] |= {"lack_of_fit": ratio, "lack_of_fit_chance": float(chance)}
    health.judge(fit)


def floored(data: dict, inputs: dict, L: np.ndarray, run=None, bootstrap: int = 0) -> dict:
    """The surface in N and D, or the power law in one of `inputs`, to losses of the sign that they have."""
    if data.get("signed"):
        return forms.fit_signed(inputs, L, run, bootstrap)
    if len(inputs) == 2:
        return forms.fit_surface(*inputs.values(), L, run, bootstrap=bootstrap)
    (name, x), = inputs.items()
    return forms.fit_power(x, L, name=name, bootstrap=bootstrap)


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
    N, D, L, run = rows(data)
    fit = floored(data, {"N": N, "D": D}, L, run, bootstrap)
    C = data["C"][data["some"]]
    fit = forms.counted(fit, N, D, C)
    if "cost" in fit:
        times = np.sort(C / (6 * N * D))
        fit["note"] = (f"budgets are counted as C is, {times[0]:.3g} to {times[-1]:.3g} times 6 N D in these "
                       "rows; a and b are slopes from the smallest to the largest C")
    if bootstrap and not data.get("signed"):
        fit["profile_E"] = forms.profile_E(*rows(data), min(bootstrap, 200))
        fit["health"]["profile_open"] = not fit["profile_E"]["identified"]
    if data["U"] is not None:
        fit["health"]["repeated_rows"] = int((data["D"] > 1.5 * data["U"]).sum())
    judge(fit, data)
    return fit


def isoflop(data: dict, bootstrap: int) -> dict:
    """Approach 2 on the last row of each run, and what the other ways to find a minimum say."""
    N, C, L, D = ends(data, "NCLD")

    def by(method, resamples):
        return frontiers.fit_isoflop(N, C, L, budget_of(data), method, noise_of(data), resamples, D=D)
    fit = by(frontiers.METHODS[0], bootstrap)
    fit["alternatives"] = {m: exponent(by, m, min(bootstrap, 300)) for m in frontiers.METHODS}
    if bootstrap:
        with suppress(UserError):              # what no surface can be fitted to has no pattern to be off
            fit["health"]["off_law"] = forms.off_law(forms.fit_surface(N, D, L, bootstrap=0), N, D, L)
    health.judge(fit)
    return fit


def envelope(data: dict, bootstrap: int) -> dict:
    """Approach 1, where there are learning curves: in the table, or beside it."""
    part = data if data["curves"] else data["along"]
    if not part:
        raise UserError("one row per run: an envelope needs learning curves (many rows that share a 'run', "
                        "or --curves=CURVES.csv with validation losses along the runs)")
    fit = frontiers.fit_envelope(part["N"], part["C"], part["L"], part["run"], bootstrap, D=part["D"])
    if unfinished(data):
        fit["health"]["unfinished"] = len(fit["points"])
        health.judge(fit)
    return fit


def unfinished(data: dict) -> bool:
    """Are the losses along the runs of runs whose rate was to fall: higher than of runs that end there?"""
    schedule = data["table"].get("schedule")
    return bool(data["along"]) and schedule is not None and bool((schedule != "constant").any())


def loss_vs_compute(data: dict, bootstrap: int) -> dict:
    """The hull of all rows, and of the losses along the runs, a cluster per run where there are curves.

    Where a rate was to fall, what lies along the runs is left out, if the ends alone make a hull.
    """
    if np.ptp(data["N"]) == 0:
        raise UserError("all runs have one size: their loss against compute is L(D), no frontier of sizes")
    C, L, run = data["C"], data["L"], data["run"]
    early = unfinished(data)
    if early:
        with suppress(UserError):
            fit = frontiers.fit_loss_vs_compute(C, L, None, bootstrap)
            if fit["hull"]["fitted"] >= FEW:
                return fit
    if data["along"]:
        C, L, run = (np.append(data[name], data["along"][name]) for name in ("C", "L", "run"))
    elif not data["curves"]:
        run = None
    fit = frontiers.fit_loss_vs_compute(C, L, run, bootstrap)
    if early:
        # A hull's losses are those of the rows themselves, but for the last digit.
        before = np.abs(np.subtract.outer(np.log(fit["hull"]["loss"]), np.log(data["along"]["L"]))).min(1)
        fit["health"]["unfinished"] = int((before[-fit["hull"]["fitted"]:] < 1e-9).sum())
        health.judge(fit)
    return fit


def power(name: str, data: dict, bootstrap: int) -> dict:
    """L(N) or L(D), `name`, through the best setting at each value, as far as more of it went with less loss.

    A setting's loss is the mean over its seeds. Three sizes cannot show a floor: there it is left out.
    """
    x, N, D, L = ends(data, name + "NDL")
    signed = data.get("signed")
    _, first, group, seeds = np.unique(data["setting"], True, True, True)
    L = np.bincount(group, L if signed else np.log(L)) / seeds
    if not signed:
        L = np.exp(L)
    best = hull.pareto(x[first], L)
    own = first[best]                                  # the first run of each of the best settings
    left = np.setdiff1d(x, x[own])
    if len(best) < 3 and len(left):
        raise UserError(f"the best runs at each {name}, as far as more {name} went with less loss, are only "
                        f"{len(best)}; a power law needs 3 or more")
    x = x[own]
    L = L[best]
    ratio = D[own] / N[own]
    if len(best) == 3 and not signed:
        fit = forms.fit_power(x, L, irreducible=False, name=name, bootstrap=bootstrap)
    else:
        fit = floored(data, {name: x}, L, bootstrap=bootstrap)
    if forms.follows(N, D):
        when = "only along these tokens per parameter"
    else:
        limit = "data" if name == "N" else "model size"
        when = f"only as far as {limit} was never the limit"
        fit["health"]["limited"] = limited(name, data, N[own], D[own])
    fit["note"] = (f"holds {when}: these {len(best)} runs, the best at each {name}, had {ratio.min():.3g} to "
                   f"{ratio.max():.3g} tokens per parameter")
    if fit["free"] == 2:
        fit["note"] += "; three sizes cannot show a floor, so it has none"
    if len(left):
        values = ", ".join(f"{value:.3g}" for value in left[:5]) + (", ..." if len(left) > 5 else "")
        fit["note"] += f"; {len(left)} of {len(left) + len(best)} values of {name} are left out, as less "
        fit["note"] += f"{name} did better: {values}"
    if not signed:
        fit["forms"] = compare.compare_powers(x, L, name)
        bend(fit, x, L, name, bootstrap)
    judge(fit, data, seeds[best].mean())
    fit["points"] = {name: x.tolist(), "loss": L.tolist()}
    return fit


def limited(name: str, data: dict, N: np.ndarray, D: np.ndarray) -> dict | None:
    """{own, other}: what a surface says that the loss at N, D falls by along x, `name`, and along the other
    input, with its exponent of x. None where the other hardly counts, or where nothing tells."""
    try:
        p = floored(data, dict(zip("ND", ends(data, "ND"))), *ends(data, "L"))
    except UserError:
        return None
    falls = {"N": np.ptp(p["A"] / N ** p["alpha"]), "D": np.ptp(p["B"] / D ** p["beta"])}
    own = falls.pop(name)
    other, = falls.values()
    noise = p["noise"] * (1 if data.get("signed") else data["L"].mean())
    if other < max(0.1 * own, 3 * noise):
        return None
    return {"own": float(own), "other": float(other), "exponent": p["alpha" if name == "N" else "beta"]}


def bend(fit: dict, x: np.ndarray, L: np.ndarray, name: str, bootstrap: int) -> None:
    """Where these data prefer the broken power law by far, add it to the power law `fit`, as `broken`."""
    row = fit["forms"]["forms"]["broken power law"]
    others = [other["aicc"] for other in fit["forms"]["forms"].values() if other.get("aicc")]
    if row.get("aicc") != 0 or min(others, default=0) < FAR:
        return
    fit["broken"] = forms.fit_broken(x, L, name=name, bootstrap=bootstrap)
    fit["health"]["bend"] = fit["broken"][f"{name}_break"]


def loss_at_ratio(data: dict, bootstrap: int) -> dict:
    """The compute law of runs whose D follows N: no surface can be told from them, but this can."""
    if not forms.follows(*ends(data, "ND")):
        raise UserError("D does not follow N in these runs: see loss_vs_compute")
    return power("C", data, bootstrap)


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


def of_rows(fit: Callable, data: dict, bootstrap: int) -> dict:
    """A law in N and D that asks nothing more of the data."""
    return fit(*rows(data), bootstrap)


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
    "one_exponent": Law("L = E + A/N^eta + B/D^eta", "E A B eta",
                        partial(of_rows, forms.fit_one_exponent)),
    "isoflop": Law("N_opt = k C^a", "a b gamma L_inf", isoflop),
    "envelope": Law("N_opt = k C^a", "a b gamma L_inf", envelope),
    "loss_vs_compute": Law("L = (C_c/C)^alpha on the lower convex hull", "alpha between C_c L_inf",
                           loss_vs_compute),
    "loss_vs_params": Law("L = L_inf + (N_c/N)^alpha", "alpha N_c L_inf", partial(power, "N")),
    "loss_vs_tokens": Law("L = L_inf + (D_c/D)^alpha", "alpha D_c L_inf", partial(power, "D")),
    "loss_at_ratio": Law("L = L_inf + (C_c/C)^alpha", "alpha C_c L_inf", loss_at_ratio),
    "repeated": Law("L = E + A/N'^alpha + B/D'^beta with repeats discounted", "E A B alpha beta R_D R_N",
                    repeated),
    "kaplan_nd": Law("L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D", "alpha_N alpha_D N_c D_c",
                     partial(of_rows, forms.fit_kaplan_nd)),
    "kaplan_ns": Law("L = (N_c/N)^alpha_N + (S_c/S)^alpha_S", "alpha_N alpha_S N_c S_c", kaplan_ns),
}


# What losses of any sign have: the others take logarithms of them.
SIGNED = ("surface", "loss_vs_params", "loss_vs_tokens", "loss_at_ratio")


# ---- What compares laws, and is none. ----

def comparison(data: dict, bootstrap: int) -> dict:
    """Which form in N and D the rows prefer: AICc, and held-out error on the largest models."""
    return compare.compare_surfaces(*rows(data))


def accounting(data: dict, bootstrap: int) -> dict:
    """The exponent a of N_opt for each way to count parameters (rows) and FLOPs (columns), by the surface.

    The rows and their tokens are the same in all cells: N is counted by the row, and a budget by the column.
    """
    if not any(name.startswith("params_") for name in data["table"]):
        raise UserError("no columns params_total, params_non_embedding, params_head: N has one count only")
    part = {name: v[data["some"]] for name, v in data["table"].items()}
    _, D, L, run = rows(data)

    def recounted(fit, N, *names):
        return forms.counted(fit, N, D, counts.flops(part, *names))
    matrix = {}
    for params in counts.PARAMS:
        N = counts.params(part, params)
        fit = forms.fit_surface(N, D, L, run, bootstrap=min(bootstrap, 200))
        matrix[params] = {flops: exponent(recounted, fit, N, flops, params) for flops in counts.FLOPS}
    return matrix


def differences_of(data: dict, result: dict, at: list[float], bootstrap: int) -> list[dict]:
    """IsoFLOP less surface (scaling.laws.difference), also at the budgets inside; empty where not known."""
    N, D, C, L = ends(data, "NDCL")
    law, profiles = result.get("surface"), result.get("isoflop")
    if not bootstrap or not law or not profiles or law["n"] != len(N) or health.of_design(law):
        return []
    inside = [c for c in at if forms.outside(profiles, C=c).get("C", 1) < 1 + forms.SAME]
    count = max(bootstrap, WORLDS)
    found = difference.differences(law, N, D, C, L, inside, count, noise_of(data), budget_of(data))
    return [row for row in found if profiles["budgets"] > 3 or "loss" not in row["what"]]


# ---- Arms. ----

def reference_of(names: list[str], asked: str | None) -> str:
    """The arm that others are held against: the one `asked` for, one that is called so, or the first."""
    return asked or next((name for name in names if name.lower() in REFERENCES), names[0])


def fit_arms(parts: dict, reference: str, at: list[float] | None, **asked) -> dict:
    """What each arm of `parts` {name: table} is worth: scaling.laws.arms. `asked` is what `select` takes.

    Notes and warnings of the arms' tables are in `notes`. Raises UserError.
    """
    found, notes, out = {}, [], {}
    for name, part in parts.items():
        try:
            data = select(part, **asked)
        except UserError as e:                         # of an arm; a reference has to be sound
            if name == reference:
                raise
            out[name] = str(e)
            continue
        last = data["last"]
        found[name] = {key: data[key][last] for key in "NDCL"}
        speed = data["table"].get("tok_per_s")
        if speed is not None and speed.dtype != object:
            found[name]["tok_per_s"] = speed[last]
        lines = data["notes"] + data["warnings"]
        notes += [f"{name}: {line}" for line in lines if "is the column" not in line]
    notes += [f"{name} is left out: {why}" for name, why in out.items()]
    result = arms.fit_arms(found, reference, at)
    return result | {"notes": notes, "left_out": result["left_out"] | out}


# ---- All of them. ----

def fit_each(data: dict, bootstrap: int) -> dict:
    """All fits that `data` supports, {name: fit}, and under `skipped` why it does not support the others."""
    result = {"skipped": {}}
    jobs = {name: law.fit for name, law in LAWS.items()}
    jobs |= {"comparison": comparison, "accounting": accounting}
    if data.get("signed"):
        result["skipped"] = {name: "it takes the logarithm of a loss" for name in jobs if name not in SIGNED}
        jobs = {name: jobs[name] for name in SIGNED}
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
            at: list[float] | None = None, curves: dict | None = None, residuals: str = "log",
            arm: str = "", reference: str = "", **chosen) -> dict:
    """Every fit that `table` ({column: array}) supports: {law: fit}, and verdict, skipped, data, card.

    `at` lists budgets in FLOPs for the verdict; by default the largest C of the table, three and ten times
    that. `curves` is curves.csv, the losses along the runs of `table`; `chosen` are `loss`, `where` and
    `tuned` for `select`. With `arm`, a column, the laws are those of the arm `reference`, and `arms` says
    what the others are worth. What the data cannot support is absent, with the reason under `skipped`. All is
    as JSON has it: None for nan and inf. Raises UserError for bad data.
    """
    if arm:
        if where := chosen.pop("where", ()):
            met = columns.only(table, where)
            table = {name: values[met] for name, values in table.items()}
        parts = by_arm(table, arm)
        reference = reference_of(list(parts), reference)
        compared = fit_arms(parts, reference, at, params=params, flops=flops, **chosen)
        result = fit_all(parts[reference], params, flops, bootstrap, at, curves, residuals, **chosen)
        result["data"]["notes"].append(f"these laws are of the arm {reference!r}; see arms for the others")
        return result | {"arms": finite(compared | {"column": arm})}
    signed = residuals == "linear"
    if signed:
        table, top = positive(table, chosen.get("loss"))
    data = select(table, params, flops, **chosen) | {"signed": signed}
    if signed:
        data["L"] = np.log(data["L"]) + top
        if curves:
            data["curve_notes"].append("curves are not used: what reads them takes the logarithm of a loss")
        curves = None
    if curves and not data["curves"]:
        data["along"] = along(data, table.get("schedule"), curves)
    result = fit_each(data, bootstrap)
    at = at or [float(data["C"].max() * m) for m in (1, 3, 10)]
    result["verdict"] = verdict(result, at, differences_of(data, result, at, bootstrap))
    shown = ("loss_column", "unit", "params", "flops", "notes", "curve_notes", "warnings", "separate",
             "seed_noise", "seed_df")
    result["data"] = {k: data[k] for k in shown}
    result["data"] |= {"rows": len(data["L"]), "runs": len(data["last"]), "sizes": len(np.unique(data["N"])),
                       "lengths": len(np.unique(data["D"][data["last"]]))}
    if curves and (found := watch.collapsed(table, curves)):
        result["collapse"] = found
    result["card"] = card(data, result, bootstrap)
    return finite(result)


def positive(table: dict, loss: str | None) -> tuple[dict, float]:
    """(`table` with e^(loss - the largest one), that one), as losses are read that are above 0."""
    table, _ = columns.renamed(table)
    name, _, _ = columns.choose_loss(table, loss)
    L = counts.column(table, name, "the fit")
    top = float(L[np.isfinite(L)].max(initial=-np.inf))
    return table | {name: np.exp(L - top)}, top


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
    table = read_table(folder / "runs.csv")
    arm = "arm" if len(set(table.get("arm", ()))) > 1 else ""
    result = fit_all(table, bootstrap=bootstrap, curves=curves, arm=arm)
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
    if o.explain:
        print(explained())
        return
    if len(paths) != 1:
        raise UserError(f"give one table of runs, not {len(paths)}: python -m scaling.fit RUNS.csv")
    at = [convert("at", number, float, "--at") for number in listed(o.at)]
    if o.bootstrap < 0 or not all(0 < C < np.inf for C in at):
        raise UserError(f"--bootstrap={o.bootstrap} --at={o.at}: 0 or more resamples are needed, and budgets "
                        "above 0")
    if o.residuals not in ("log", "linear"):
        raise UserError(f"--residuals={o.residuals}: there are log and linear")
    if not Path(o.json).parent.is_dir():
        raise UserError(f"cannot write {o.json}: there is no directory {Path(o.json).parent}; make it first")
    curves = read_table(o.curves) if o.curves else None
    chosen = {"loss": o.loss, "where": listed(o.where), "tuned": listed(o.best_of)}
    table = read_table(table_of(paths[0]))
    result = fit_all(table, o.params or None, o.flops or None, o.bootstrap, at, curves, o.residuals, o.arm,
                     o.reference, **chosen)
    if o.json not in ("", "-"):                        # before the text, which `| head` may cut short
        with whole_file(o.json) as f:
            f.write(json.dumps(result) + "\n")
    print(printed(result), file=sys.stderr if o.json == "-" else sys.stdout)
    if o.json == "-":
        print(json.dumps(result))
    elif {"surface", "isoflop"} & set(result):
        path = shlex.quote(o.json or "fit.json")
        again = "" if o.json else f"the same command with --json={path}, then "
        C = result["verdict"]["budgets"][-1]
        print(f"next: {again}python -m scaling.plan {path} --flops={C:.3g}")


def table_of(name: str) -> Path:
    """The table in `name`, which may be a study's directory. Raises UserError."""
    if name.endswith(".json"):
        raise UserError(f"{name} is no table of runs; make one: python -m scaling.logs {shlex.quote(name)} "
                        "--out=runs.csv")
    return Path(name, "runs.csv") if Path(name).is_dir() else Path(name)


def listed(text: str) -> list[str]:
    """The parts of 'a,b'."""
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    exit_cleanly(main)
