"""Predict a run before it is trained, seal the prediction, and hold it to account afterwards.

    python -m scaling.forecast seal out/STUDY config/NAME.py --out_dir=out/STUDY/RUN  # before training
    python -m scaling.forecast score out/STUDY                                        # after it
    python -m scaling.forecast board out/STUDY ...                                    # and their coverage
    python -m scaling.forecast rollout out/STUDY/runs.csv                             # what error to expect

A forecast is a weighted mean of two published forms, Hoffmann's with a floor E and Kaplan's without one:
beyond the data they part, and neither is right. In Porian et al.'s runs (192 extrapolations from 24 runs
each, to 4 to 8 times their compute) the truth lay between the two in 76 % of cases; the 95 % interval of
Hoffmann's surface alone held it in 46 %, the one below in 94 % (the 50 % interval in 56 %), and the median
error fell from 2.6 to 1.2 %. Which form fits better inside the data does not tell which to believe (Akaike
weights: 57 %). How well each predicted the study's largest budget from the smaller ones does, a little, and
sets the weights. That rule was chosen on those runs; on others, the points of Hoffmann et al.'s figure 4 (30
draws of 24, to 3 to 10 times their compute), 97 % and 60 % lay inside.
"""
import dataclasses
import hashlib
import json
import math
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from scipy.stats import beta

from config.configurator import configure
from runtime.basics import UserError, exit_cleanly, load_json
from scaling.laws import counts, frontiers
from scaling.laws import forms as laws
from scaling.tables.csv import MALFORMED, number, read_table, write_table
from scaling.tables.runs import select

COLUMNS = ["study", "run", "params", "tokens", "flops", "predicted", "lo95", "hi95", "sealed_at", "sha256",
           "measured", "error", "inside"]
# Settings without bearing on the result: where a run lies, how it is cut into parts, and the machine.
FREE = ("out_dir", "resume", "device", "dtype", "compile", "gradient_accumulation_steps", "ckpt_minutes",
        "keep_steps", "branch")
Z50, Z95 = 0.6745, 1.96                    # normal quantiles of the 50 and 95 % intervals
TENTHS = np.arange(1, 10) / 10             # where along a run the learning curve is predicted
DRAWS = 200                                # bootstrap resamples of each of the many fits that are made here
Array = np.ndarray


# ---- Two forms, one prediction. ----

def fit_forms(N: Array, D: Array, L: Array, bootstrap: int = DRAWS) -> list[dict]:
    """Hoffmann's and Kaplan's form fitted to runs (n,): N parameters, D tokens, loss L. Raises UserError."""
    return [laws.fit_surface(N, D, L, bootstrap=bootstrap), laws.fit_kaplan_nd(N, D, L, bootstrap=bootstrap)]


def log_losses(fit: dict, N: Array, D: Array) -> tuple[Array, Array]:
    """Log-loss of new runs at N, D (m,) by the fitted point (m,) and by its bootstrap resamples (B, m)."""
    inputs = {"N": N, "D": D}
    with np.errstate(over="ignore"):                   # a resample may put N_c beyond all numbers: left out
        draws = np.log(laws.loss_of(laws.draws_of(fit) | {"form": fit["form"]}, inputs))
    return np.log(laws.loss_of(fit, inputs)), draws[np.isfinite(draws).all(1)]


def combine(fits: list[dict], weights: Array, N: Array, D: Array) -> tuple[Array, Array, Array, Array]:
    """(log-loss, its sd), each (m,), then (log-loss by form, that one's sd), each (2, m), at N, D (m,).

    The variance is the mixture's: of each form's parameters (bootstrap) and residual noise, plus the square
    of its distance from the mean. It is a *measurement's*, so the noise of seeds is in it.
    """
    points, draws = zip(*(log_losses(f, N, D) for f in fits))
    each = np.array(points)
    own = np.array([d.var(0) + f["noise"] ** 2 for d, f in zip(draws, fits)])
    mean = weights @ each
    return mean, np.sqrt(weights @ (own + (each - mean) ** 2)), each, np.sqrt(own)


def interval(mean: float, sd: float) -> dict:
    """The predicted loss and its intervals from the mean and standard deviation of log-loss."""
    return {key: float(np.exp(mean + z * sd)) for key, z in
            (("predicted", 0), ("lo50", -Z50), ("hi50", Z50), ("lo95", -Z95), ("hi95", Z95))}


# ---- Rollout: what a study's own history says about its extrapolation. ----

def levels(C: Array) -> list[Array]:
    """Indices of the runs of each budget, smallest first; without budgets, five parts in order of C."""
    budget = frontiers.group_budgets(C)
    if np.isfinite(budget).all():
        return [np.flatnonzero(budget == b) for b in np.unique(budget)]
    return np.array_split(np.argsort(C, kind="stable"), min(5, max(1, len(C) // 4)))


def final_runs(table: dict, params: str | None = None) -> dict:
    """N, D, C, L (n,) and names `run` (or None) of the finished runs that a fit uses. Raises UserError."""
    data = select(table, None if params == "as given" else params)
    last, names = data["last"], data["run"]
    return {k: data[k][last] for k in "NDCL"} | {"run": None if names is None else names[last]}


def rollout(table: dict, params: str | None = None) -> list[dict]:
    """Refit on the smaller budgets only and predict the next, for each in turn: one row per predicted budget.

    A row holds C, fitted_runs, runs, beyond (the factor in C from the largest fitted run), the mean and rms
    relative error, the share inside the 95 % interval, and each form's rms error. The weights are those that
    `weigh` would have given at the time, so a row shows what a forecast made then was worth. Budgets with
    fewer than two others or eight runs below them are left out. Raises UserError for a table that no fit can
    use.
    """
    runs, rows = final_runs(table, params), []
    N, D, C, L = (runs[k] for k in "NDCL")
    groups = levels(C)
    for k in range(2, len(groups)):
        below, at = np.concatenate(groups[:k]), groups[k]
        if len(below) < 8:
            continue
        fits, truth = fit_forms(N[below], D[below], L[below]), np.log(L[at])
        mean, sd, each, _ = combine(fits, weigh(rows), N[at], D[at])
        error, rms = mean - truth, np.sqrt(((each - truth) ** 2).mean(1))
        rows.append({"C": float(np.exp(np.log(C[at]).mean())), "fitted_runs": len(below), "runs": len(at),
                     "beyond": float(C[at].max() / C[below].max()), "mean_error": float(error.mean()),
                     "rms_error": float(np.sqrt((error ** 2).mean())),
                     "inside": float((abs(error) < Z95 * sd).mean()),
                     "rms_hoffmann": float(rms[0]), "rms_kaplan": float(rms[1])})
    return rows


def weigh(rows: list[dict]) -> Array:
    """Weights of the two forms: inverse to their mean square error at the largest budget rolled out, equal
    without.

    This combines forecasts as Bates & Granger (1969) do, with the forms' errors taken as independent.
    """
    if not rows:
        return np.array([0.5, 0.5])
    weights = np.maximum([rows[-1]["rms_hoffmann"], rows[-1]["rms_kaplan"]], 1e-6) ** -2
    return weights / weights.sum()


def rollout_text(rows: list[dict]) -> str:
    """`rollout`'s rows as a table for people."""
    if not rows:
        return "rollout: not possible; it takes three budgets, and eight runs below the largest"
    out = ["rollout: each budget predicted from the smaller ones only",
           f"{'C':>10}{'fitted':>8}{'runs':>6}{'beyond':>8}{'bias':>9}{'rms':>8}{'inside 95 %':>13}"]
    out += [f"{r['C']:>10.3g}{r['fitted_runs']:>8}{r['runs']:>6}{r['beyond']:>7.2g}x{r['mean_error']:>+9.2%}"
            f"{r['rms_error']:>8.2%}{r['inside']:>13.0%}" for r in rows]
    return "\n".join(out)


# ---- Predict. ----

def predict(folder: Path, fit: dict, params: float, tokens: float) -> dict:
    """Final loss of `params` parameters after `tokens`, from a study's fit and its runs.csv. Raises
    UserError.

    Returns the prediction with its intervals and `sd` (of log-loss), what each of the `forms` says and weighs
    and `why`, the rollout, and the factors `beyond` the fitted range in N, D and C (1 inside it).
    """
    if "surface" not in fit:
        raise UserError(f"the fit has no surface ({fit.get('skipped', {}).get('surface', 'not fitted')}): "
                        "nothing to forecast from")
    table, convention, surface = read_table(folder / "runs.csv"), fit["data"]["params"], fit["surface"]
    runs, rows = final_runs(table, convention), rollout(table, convention)
    weights = weigh(rows)
    fits = [surface, laws.fit_kaplan_nd(runs["N"], runs["D"], runs["L"])]
    mean, sd, each, own = combine(fits, weights, np.array([params]), np.array([tokens]))
    why = (f"weights inverse to the mean square error of predicting C = {rows[-1]['C']:.3g} from less"
           if rows else "equal weights: too few budgets to predict one from those below it")
    forms = {name: {"predicted": float(np.exp(e[0])), "sd": float(s[0]), "weight": float(w)}
             for name, e, s, w in zip(("hoffmann", "kaplan"), each, own, weights)}
    beyond = dict(N=1.0, D=1.0, C=1.0) | laws.outside(surface, N=params, D=tokens, C=6 * params * tokens)
    return interval(mean[0], sd[0]) | {"sd": float(sd[0]), "forms": forms, "why": why, "beyond": beyond,
                                       "rollout": rows}


def learning_curve(folder: Path, forms: dict, params: int, tokens: int) -> dict:
    """{points, of}: the loss at each tenth of a run, predicted from the study's curves at the same tenth of
    theirs.

    Both forms are fitted to the losses of all runs at one tenth over (N, tokens of the whole run): the shape
    of the schedule must be shared, not its length. Where runs have no validation loss on the way it is the
    training loss, the mean over a tenth of the run. No points without curves.csv, or where a tenth of some
    run has no record.
    """
    path, runs = folder / "curves.csv", final_runs(read_table(folder / "runs.csv"))
    if not path.exists() or runs["run"] is None:
        return {"points": [], "of": None}
    curves, N, D = read_table(path), np.array([params]), np.array([tokens])
    weights = np.array([f["weight"] for f in forms.values()])
    for of in ("val_loss", "train_loss"):
        losses = np.array([tenths(curves, run, total, of) for run, total in zip(runs["run"], runs["D"])])
        if np.isfinite(losses).all():
            found = [combine(fit_forms(runs["N"], runs["D"], L), weights, N, D)[:2] for L in losses.T]
            return {"of": of, "points": [{"tokens": float(share * tokens)} | interval(mean[0], sd[0])
                                         for share, (mean, sd) in zip(TENTHS, found)]}
    return {"points": [], "of": None}


def tenths(curves: dict, run: str, total: float, of: str) -> Array:
    """Mean of the column `of` of a run near (within 5 % of the run) each of TENTHS, nan without a record."""
    own = (curves["run"] == run) & np.isfinite(curves[of])
    near = abs(curves["tokens"][own] / total - TENTHS[:, None]) <= 0.05
    return np.array([curves[of][own][k].mean() if k.any() else np.nan for k in near])


# ---- Seal. ----

def digest(obj: dict) -> str:
    """SHA-256 of a JSON object with its keys sorted."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()


def read_seal(path: Path) -> dict:
    """The sealed forecast in `path`. Raises UserError when its content is not what was hashed."""
    sealed = load_json(path)
    if sealed.get("sha256") != digest({k: v for k, v in sealed.items() if k != "sha256"}):
        raise UserError(f"{path} does not match its own sha256: it was changed after it was sealed; "
                        "restore the original")
    return sealed


def describe(target: dict) -> dict:
    """What of a target bears on its result, as JSON holds it."""
    config = json.loads(json.dumps({k: v for k, v in target["config"].items() if k not in FREE}))
    return {k: target[k] for k in ("run", "params", "tokens", "flops")} | {"config": config}


def require_unseen(folder: Path, fit: dict, run: str) -> None:
    """Raise UserError unless the run is new to study and fit, and the fit counts parameters as targets do."""
    for name in ("result.json", "ckpt.pt", "log.jsonl"):
        if (folder / run / name).exists() and (folder / run / name).stat().st_size:
            raise UserError(f"{folder / run / name} exists: what has begun cannot be forecast any more")
    if run in read_table(folder / "runs.csv").get("run", ()):
        raise UserError(f"{folder / 'runs.csv'} holds {run}: the fit has seen what it is to forecast")
    if fit["data"]["params"] not in (counts.DEFAULT_PARAMS, "as given"):
        raise UserError(f"the fit counts parameters as {fit['data']['params']}, a forecast's target as "
                        f"{counts.DEFAULT_PARAMS}; fit again with --params={counts.DEFAULT_PARAMS}")


def seal(folder: Path, fit: dict, target: dict) -> dict:
    """Write the forecast of `target` {run, config, params, tokens, flops} to folder/forecasts/RUN.json;
    return it.

    `folder` is out/STUDY with its runs.csv, `fit` what fit.json holds; params counts non-embedding plus head.
    A valid seal of the same target is kept. Raises UserError when the target has changed or the run has
    begun.
    """
    import train  # torch: only sealing needs it
    folder, target = Path(folder), describe(target)
    path = folder / "forecasts" / f"{target['run']}.json"
    if path.exists():
        sealed = read_seal(path)
        changed = [k for k in target if sealed["target"].get(k) != target[k]]
        if changed:
            raise UserError(f"{path} was sealed for another target ({', '.join(changed)} differ); "
                            "give the new run another name")
        return sealed
    require_unseen(folder, fit, target["run"])
    found = predict(folder, fit, target["params"], target["tokens"])
    content = {"study": folder.resolve().name, "run": target["run"], **found,
               "curve": learning_curve(folder, found["forms"], target["params"], target["tokens"]),
               "loss_column": fit["data"]["loss_column"], "target": target, "fit_sha256": digest(fit),
               "runs_sha256": hashlib.sha256((folder / "runs.csv").read_bytes()).hexdigest(),
               "sealed_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
               "commit": train.git_commit()}
    path.parent.mkdir(exist_ok=True)
    train.write_json(path, content | {"sha256": digest(content)})
    return read_seal(path)


# ---- Score. ----

def seconds(stamp: str) -> float:
    """Seconds since the epoch of an ISO time in UTC."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def require_later(sealed: dict, run: Path, result: dict) -> None:
    """The finished run must be the one that was forecast, trained after that. Raises UserError."""
    config, want = load_json(run / "config.json"), sealed["target"]
    changed = [k for k, v in want["config"].items() if config.get(k) != v]
    if changed or result["tokens"] != want["tokens"]:
        raise UserError(f"{run} was trained with another {', '.join(changed) or 'number of tokens'} than was "
                        "forecast; train what was forecast, or forecast it under another name")
    if config.get("forecast") == sealed["sha256"]:      # it knew the seal when it began; clocks may jump
        return
    files = [run / name for name in ("config.json", "log.jsonl", "result.json")]
    begun = [path.stat().st_mtime for path in files if path.exists()]
    if not config.get("branch"):                       # a branch's wall_s includes its trunk's
        begun.append(begun[-1] - (result.get("wall_s") or 0))
    if config.get("started_at"):
        begun.append(seconds(config["started_at"]))
    if min(begun) < seconds(sealed["sealed_at"]) - 1:  # it has whole seconds
        raise UserError(f"{run} was trained before its forecast was sealed ({sealed['sealed_at']}): "
                        "that is no forecast")


def score_one(folder: Path, sealed: dict) -> dict:
    """COLUMNS and z of one sealed forecast; measured, error, inside and z are None until the run is done."""
    row = {k: sealed.get(k, sealed["target"].get(k)) for k in (*COLUMNS, "z")}
    run = folder / sealed["run"]
    if (run / "result.json").exists():
        result = load_json(run / "result.json")
        require_later(sealed, run, result)
        measured = result[sealed["loss_column"]]
        row |= {"measured": measured, "error": sealed["predicted"] / measured - 1,
                "inside": int(sealed["lo95"] <= measured <= sealed["hi95"]),
                "z": math.log(sealed["predicted"] / measured) / sealed["sd"]}
    return row


def score(folder: Path) -> list[dict]:
    """Hold every sealed forecast of a study against its run; write folder/forecasts.csv; return the rows,
    with z.

    Raises UserError when a seal does not match its content, or its run is older or another than the forecast.
    """
    folder = Path(folder)
    rows = []
    for path in sorted((folder / "forecasts").glob("*.json")):
        try:
            rows.append(score_one(folder, read_seal(path)))
            for key in COLUMNS[2:8]:
                number(rows[-1][key])
        except (*MALFORMED, ZeroDivisionError) as e:
            raise UserError(f"{path} or its run is not as it was written ({type(e).__name__}: {e}); restore "
                            "it") from None
    write_table(folder / "forecasts.csv", [{k: r[k] for k in COLUMNS} for r in rows], COLUMNS)
    return rows


# ---- Board. ----

def board(folders: list[Path]) -> str:
    """All forecasts in the forecasts.csv of `folders`, and how often the 95 % interval was right."""
    paths = [Path(folder) / "forecasts.csv" for folder in folders]
    tables = [read_table(path) for path in paths if path.exists()]
    if not tables:
        raise UserError(f"no {paths[0]}{' or the like' * (len(paths) > 1)}; give a study whose sweep has "
                        "held_out runs")
    for key in (*COLUMNS[2:8], *COLUMNS[10:]):
        for table in tables:
            counts.column(table, key, "the board of forecasts")
    rows = [dict(zip(t, values)) for t in tables for values in zip(*t.values())]
    head = ("study/run", "N", "D", "predicted", "95 % interval", "measured", "error")
    out = ["{:<32}{:>10}{:>10}{:>11}{:>18}{:>10}{:>9}".format(*head)]
    for r in rows:
        out.append(f"{r['study'] + '/' + r['run']:<32}{r['params']:>10.3g}{r['tokens']:>10.3g}"
                   f"{r['predicted']:>11.4f}{r['lo95']:>9.4f}-{r['hi95']:<8.4f}"
                   + (f"{r['measured']:>10.4f}{r['error']:>+9.2%}  {'inside' if r['inside'] else 'OUTSIDE'}"
                      if math.isfinite(r["measured"]) else f"{'':>19}  not trained"))
    inside = [bool(r["inside"]) for r in rows if math.isfinite(r["measured"])]
    return "\n".join(out + [coverage(sum(inside), len(inside), len(rows))])


def coverage(inside: int, done: int, sealed: int) -> str:
    """Is a 95 % interval right 95 % of the time? With Clopper and Pearson's interval of the true share."""
    if not done:
        return f"{sealed} sealed, none trained yet"
    lo = beta.ppf(0.025, inside, done - inside + 1) if inside else 0.0
    hi = beta.ppf(0.975, inside + 1, done - inside) if inside < done else 1.0
    return (f"{inside} of {done} inside their 95 % interval: {inside / done:.0%} (the true share is {lo:.0%} "
            f"to {hi:.0%}); {sealed - done} sealed but not trained")


# ---- Command line. ----

def seal_config(folder: Path, args: list[str]) -> dict:
    """Seal the run that train.py would make of `args` in `folder`. Raises UserError."""
    import train
    c, _ = configure(train.Config, args)
    if Path(c.out_dir).resolve().parent != folder.resolve():
        raise UserError(f"out_dir is {c.out_dir}, outside the study; add --out_dir={folder}/RUN")
    meta = train.load_meta(c.dataset)
    train.check(c, meta, 1)
    c = train.derive(c, meta, train.find_device(c.device), 1)
    params, flops = train.shape_counts(c)
    tokens = c.max_iters * c.batch_size * c.block_size
    target = dict(run=Path(c.out_dir).name, config=dataclasses.asdict(c), tokens=tokens,
                  params=params["non_embedding"] + params["head"], flops=tokens * flops["total"])
    return seal(folder, load_json(folder / "fit.json"), target)


def sealed_text(s: dict) -> str:
    """A sealed forecast in a few lines."""
    far = ", ".join(f"{v:.3g}x in {k}" for k, v in s["beyond"].items() if v > 1) or "inside the fitted range"
    forms = ", ".join(f"{k} {v['predicted']:.4f} (weight {v['weight']:.2f})" for k, v in s["forms"].items())
    return (f"{s['study']}/{s['run']}: loss {s['predicted']:.4f}, 95 % {s['lo95']:.4f} to {s['hi95']:.4f}, "
            f"50 % {s['lo50']:.4f} to {s['hi50']:.4f}\n  beyond the data: {far}\n  {forms}; {s['why']}\n"
            f"  sealed {s['sealed_at']}, sha256 {s['sha256']}")


def main(args: list[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if args is None else args) or [""]
    if command not in ("seal", "score", "board", "rollout") or not rest:
        raise UserError("give a command and a path: python -m scaling.forecast seal|score|board|rollout PATH")
    if command == "rollout":
        print(rollout_text(rollout(read_table(rest[0]))))
    elif command == "seal":
        print(sealed_text(seal_config(Path(rest[0]), rest[1:])))
    else:
        for folder in rest if command == "score" else ():
            score(Path(folder))
        print(board(rest))


if __name__ == "__main__":
    exit_cleanly(main)
