"""Predict a run before it is trained, seal the prediction, and hold it to account afterwards.

    python -m scaling.forecast seal out/STUDY config/NAME.py --out_dir=out/STUDY/RUN     # before training
    python -m scaling.forecast score out/STUDY                                           # after it
    python -m scaling.forecast board out/STUDY ...                                       # all forecasts, and coverage
    python -m scaling.forecast rollout out/STUDY/runs.csv                                # what error to expect

A forecast is a weighted mean of two published forms, Hoffmann's with a floor E and Kaplan's without one, because beyond
the data they part, and neither is right: in Porian et al.'s runs (192 extrapolations from 24 runs each, to 4 to 8 times
their compute) the truth lay between the two in 76 % of cases. The 95 % interval of Hoffmann's surface alone held it in
47 %, the one below in 94 % (50 % interval: 56 %), and the median error fell from 2.6 to 1.2 %. A better fit inside the
data does not tell which form to believe (Akaike weights: about 57 %); how well each predicted the study's largest
budget from the smaller ones does, a little, and sets the weights. That rule was chosen on those runs; on others, the
points of Hoffmann et al.'s figure 4 (30 draws of 24, to 3 to 10 times their compute), 97 % and 60 % lay inside.
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

from configurator import UserError, configure, exit_cleanly
from scaling import counts, fit as fitting, frontiers, laws, logs

COLUMNS = ["study", "run", "params", "tokens", "flops", "predicted", "lo95", "hi95", "sealed_at", "sha256", "measured",
           "error", "inside"]
# Settings without bearing on the result: where a run lies, how it is cut, and the machine.
FREE = ("out_dir", "resume", "device", "dtype", "compile", "gradient_accumulation_steps", "ckpt_minutes", "keep_steps",
        "branch")
Z50, Z95 = 0.6745, 1.96                    # normal quantiles of the 50 and 95 % intervals
TENTHS = np.arange(1, 10) / 10             # where along a run the learning curve is predicted
CURVE_DRAWS = 200                          # bootstrap resamples where many fits are made


# ---- Two forms, one prediction. ----

def fit_kaplan(N: np.ndarray, D: np.ndarray, L: np.ndarray, bootstrap: int = 1000) -> dict:
    """L = [(N_c/N)^(alpha/beta) + D_c/D]^beta (Kaplan et al. 2020, eq. 1.5). Raises UserError."""
    X = np.log([N, D])
    n0, d0 = X.mean(1)
    r, power = (v.ravel() for v in np.meshgrid([0.5, 0.8, 1.2], [0.05, 0.1, 0.2, 0.4]))
    each = np.log(np.median(L)) / power - np.log(2)              # both terms of the bracket start equal
    lo, hi = np.array([-50, 0.05, -50, 0.005]), np.array([600, 5.0, 600, 3.0])

    def natural(t):
        n_c, r, d_c, power = t.T
        return {"alpha": r * power, "beta": power, "log_N_c": n_c / r + n0, "log_D_c": d_c + d0}
    return laws.fit_law("kaplan", laws.kaplan_nd, X - [[n0], [d0]], np.log(L), np.stack([each, r, each, power], 1), lo,
                        hi, natural, ["N_c", "alpha/beta", "D_c", "beta"], {"N": N, "D": D, "loss": L},
                        bootstrap=bootstrap)


def kaplan_loss(p: dict, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Kaplan et al. 2020, eq. 1.5; everything broadcasts."""
    return np.exp(p["beta"] * np.logaddexp(p["alpha"] / p["beta"] * (p["log_N_c"] - np.log(N)), p["log_D_c"] - np.log(D)))


LOSS = {"surface": laws.surface_loss, "kaplan": kaplan_loss}


def fit_forms(N: np.ndarray, D: np.ndarray, L: np.ndarray, bootstrap: int = CURVE_DRAWS) -> list[dict]:
    """Both forms fitted to runs (n,) of N parameters, D tokens and loss L. Raises UserError."""
    return [laws.fit_surface(N, D, L, bootstrap=bootstrap), fit_kaplan(N, D, L, bootstrap)]


def combine(fits: list[dict], weights: np.ndarray, N: np.ndarray, D: np.ndarray):
    """(log-loss, its standard deviation, log-loss by form, that one's) of new runs at N, D (m,): (m,) or (forms, m).

    The variance is that of the mixture: of each form's parameters (bootstrap) and residual noise, plus the square of
    each form's distance from the mean. It is a *measurement's*, so seed noise is in it.
    """
    each = np.log([LOSS[f["form"]](f, N, D) for f in fits])
    draws = [np.log(LOSS[f["form"]](laws.draws_of(f), N, D)) for f in fits]
    own = np.array([d.var(0) + f["noise"] ** 2 for d, f in zip(draws, fits)])
    mean = weights @ each
    return mean, np.sqrt(weights @ (own + (each - mean) ** 2)), each, np.sqrt(own)


# ---- Rollout: what a study's own history says about its extrapolation. ----

def levels(C: np.ndarray) -> list[np.ndarray]:
    """Indices of the runs at each budget, smallest first; runs without common budgets are cut into five parts by C."""
    budget = frontiers.group_budgets(C)
    if np.isfinite(budget).all():
        return [np.flatnonzero(budget == b) for b in np.unique(budget)]
    return np.array_split(np.argsort(C, kind="stable"), min(5, max(1, len(C) // 4)))


def final_runs(table: dict, params: str | None = None) -> dict:
    """N, D, C, L and the run's name of each finished run that a fit of `table` uses. Raises UserError."""
    data = fitting.select(table, params)
    return {k: data[k][data["last"]] for k in ("N", "D", "C", "L")} | {
        "run": data["run"][data["last"]] if data["run"] is not None else None}


def rollout(table: dict, params: str | None = None) -> list[dict]:
    """Refit on the smaller budgets only and predict the next, for each in turn: one row per predicted budget.

    Each row holds C, fitted_runs, runs, beyond (the factor in C from the largest fitted run), the mean and rms relative
    error, the share inside the 95 % interval, and each form's rms. The forms' weights are those of `weigh` at the
    time, so a row shows what a forecast made then would have been worth. A budget is left out when fewer than two
    budgets or eight runs lie below it. Raises UserError for a table that no fit can use.
    """
    runs, rows = final_runs(table, params), []
    N, D, C, L = (runs[k] for k in "NDCL")
    groups = levels(C)
    for k in range(2, len(groups)):
        below, at = np.concatenate(groups[:k]), groups[k]
        if len(below) < 8:
            continue
        mean, sd, each, _ = combine(fit_forms(N[below], D[below], L[below]), weigh(rows), N[at], D[at])
        error, rms = mean - np.log(L[at]), np.sqrt(((each - np.log(L[at])) ** 2).mean(1))
        rows.append({"C": float(np.exp(np.log(C[at]).mean())), "fitted_runs": len(below), "runs": len(at),
                     "beyond": float(C[at].max() / C[below].max()), "mean_error": float(error.mean()),
                     "rms_error": float(np.sqrt((error ** 2).mean())), "inside": float((abs(error) < Z95 * sd).mean()),
                     "rms_hoffmann": float(rms[0]), "rms_kaplan": float(rms[1])})
    return rows


def weigh(rows: list[dict]) -> np.ndarray:
    """Weights of the two forms: inverse to their mean square error at the largest budget rolled out; equal without one.

    This is Bates & Granger's combination of forecasts (1969, eq. 1 and method i), with errors taken as independent.
    """
    if not rows:
        return np.array([0.5, 0.5])
    weights = np.maximum([rows[-1]["rms_hoffmann"], rows[-1]["rms_kaplan"]], 1e-6) ** -2
    return weights / weights.sum()


def rollout_text(rows: list[dict]) -> str:
    """`rollout`'s rows as a table for people."""
    if not rows:
        return "rollout: too few budgets to predict one from those below it; three, and eight runs below the last, are needed"
    out = ["rollout: each budget predicted from the smaller ones only",
           f"{'C':>10}{'fitted':>8}{'runs':>6}{'beyond':>8}{'bias':>9}{'rms':>8}{'inside 95 %':>13}"]
    out += [f"{r['C']:>10.3g}{r['fitted_runs']:>8}{r['runs']:>6}{r['beyond']:>7.2g}x{r['mean_error']:>+9.2%}"
            f"{r['rms_error']:>8.2%}{r['inside']:>13.0%}" for r in rows]
    return "\n".join(out)


# ---- Seal. ----

def digest(obj: dict) -> str:
    """SHA-256 of a JSON object with its keys sorted."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()


def read_seal(path: Path) -> dict:
    """The sealed forecast in `path`. Raises UserError when its content is not what was hashed."""
    sealed = logs.load_json(path)
    if sealed.get("sha256") != digest({k: v for k, v in sealed.items() if k != "sha256"}):
        raise UserError(f"{path} does not match its own sha256: it was changed after it was sealed; restore the original")
    return sealed


def describe(target: dict) -> dict:
    """What of a target bears on its result, as JSON holds it: where and on which machine it runs does not."""
    kept = {k: v for k, v in target["config"].items() if k not in FREE}
    return {k: target[k] for k in ("run", "params", "tokens", "flops")} | {"config": json.loads(json.dumps(kept))}


def started(run: Path) -> str | None:
    """The name of a file that shows that training in `run` has begun, or None."""
    return next((name for name in ("result.json", "ckpt.pt", "log.jsonl")
                 if (run / name).exists() and (run / name).stat().st_size), None)


def usable_surface(fit: dict) -> dict:
    """The surface of a fit.json over the convention that targets are counted in. Raises UserError."""
    if "surface" not in fit:
        raise UserError(f"the fit has no surface ({fit.get('skipped', {}).get('surface', 'not fitted')}): "
                        "nothing to forecast from")
    if fit["data"]["params"] not in (counts.DEFAULT_PARAMS, "as given"):
        raise UserError(f"the fit counts parameters as {fit['data']['params']}, a forecast's target as "
                        f"{counts.DEFAULT_PARAMS}; fit again with --params={counts.DEFAULT_PARAMS}")
    return fit["surface"]


def predict(folder: Path, fit: dict, params: float, tokens: float) -> dict:
    """Final loss of `params` parameters after `tokens`, from the study's fit and its runs.csv. Raises UserError.

    Returns the prediction, its intervals and `sd` (of log-loss), what each form says and weighs and `why`, the rollout,
    and how far `beyond` the fitted range this is.
    """
    surface, convention = usable_surface(fit), fit["data"]["params"]
    table, convention = logs.read_table(folder / "runs.csv"), None if convention == "as given" else convention
    runs, rows = final_runs(table, convention), rollout(table, convention)
    weights = weigh(rows)
    fits = [surface, fit_kaplan(runs["N"], runs["D"], runs["L"])]
    mean, sd, each, own = combine(fits, weights, np.array([params]), np.array([tokens]))
    why = (f"weights inverse to the mean square error of predicting C = {rows[-1]['C']:.3g} from the smaller budgets"
           if rows else "equal weights: too few budgets to predict one from those below it")
    forms = {name: {"predicted": float(np.exp(e[0])), "sd": float(s[0]), "weight": float(w)}
             for name, e, s, w in zip(("hoffmann", "kaplan"), each, own, weights)}
    beyond = dict(N=1.0, D=1.0, C=1.0) | laws.outside(surface, N=params, D=tokens, C=6 * params * tokens)
    return interval(mean[0], sd[0]) | {"sd": float(sd[0]), "forms": forms, "why": why, "beyond": beyond, "rollout": rows}


def learning_curve(folder: Path, forms: dict, params: int, tokens: int) -> dict:
    """{points, of}: the loss at each tenth of a run, predicted from the study's curves at the same tenth of theirs.

    Both forms are fitted to the losses of all runs at one tenth over (N, tokens of the whole run): only the shape of the
    schedule must be shared, not its length. Where runs lack validation losses on the way it is the training loss, the
    mean over a tenth of the run. No points without curves.csv, or where a tenth of some run has no record.
    """
    path, runs = folder / "curves.csv", final_runs(logs.read_table(folder / "runs.csv"))
    if not path.exists() or runs["run"] is None:
        return {"points": [], "of": None}
    curves, N, D = logs.read_table(path), np.array([params]), np.array([tokens])
    weights = np.array([f["weight"] for f in forms.values()])
    for of in ("val_loss", "train_loss"):
        losses = np.array([tenths(curves, run, total, of) for run, total in zip(runs["run"], runs["D"])])
        if np.isfinite(losses).all():
            fits = [combine(fit_forms(runs["N"], runs["D"], L), weights, N, D)[:2] for L in losses.T]
            return {"of": of, "points": [{"tokens": float(share * tokens)} | interval(mean[0], sd[0])
                                         for share, (mean, sd) in zip(TENTHS, fits)]}
    return {"points": [], "of": None}


def tenths(curves: dict, run: str, total: float, of: str) -> np.ndarray:
    """Mean of the column `of` of a run within 5 % of the run from each of TENTHS, nan where there is no record."""
    own = (curves["run"] == run) & np.isfinite(curves[of])
    share, loss = curves["tokens"][own] / total, curves[of][own]
    return np.array([loss[abs(share - t) <= 0.05].mean() if (abs(share - t) <= 0.05).any() else np.nan for t in TENTHS])


def interval(mean: float, sd: float) -> dict:
    """The prediction and its intervals from the mean and standard deviation of log-loss."""
    return {key: float(np.exp(mean + z * sd)) for key, z in
            (("predicted", 0), ("lo50", -Z50), ("hi50", Z50), ("lo95", -Z95), ("hi95", Z95))}


def seal(folder: Path, fit: dict, target: dict) -> dict:
    """Write the forecast of `target` {run, config, params, tokens, flops} into folder/forecasts/RUN.json; return it.

    `folder` is out/STUDY with runs.csv, `fit` what fit.json holds. params counts non-embedding plus head. A valid
    seal of the same target is kept. Raises UserError when the target has changed, or the run has already begun.
    """
    import train                                       # torch: only sealing needs it
    folder, target = Path(folder), describe(target)
    path = folder / "forecasts" / f"{target['run']}.json"
    if path.exists():
        sealed = read_seal(path)
        changed = [k for k in target if sealed["target"].get(k) != target[k]]
        if changed:
            raise UserError(f"{path} was sealed for another target ({', '.join(changed)} differ); give the new run another name")
        return sealed
    if evidence := started(folder / target["run"]):
        raise UserError(f"{folder / target['run'] / evidence} exists: a run that has begun cannot be forecast; "
                        "choose a run that has not")
    if target["run"] in logs.read_table(folder / "runs.csv").get("run", ()):
        raise UserError(f"{folder / 'runs.csv'} holds {target['run']}: the fit has seen what it is to forecast")
    found = predict(folder, fit, target["params"], target["tokens"])
    content = {"study": folder.resolve().name, "run": target["run"], **found,
               "curve": learning_curve(folder, found["forms"], target["params"], target["tokens"]),
               "loss_column": fit["data"]["loss_column"], "target": target, "fit_sha256": digest(fit),
               "runs_sha256": hashlib.sha256((folder / "runs.csv").read_bytes()).hexdigest(),
               "sealed_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "commit": train.git_commit()}
    path.parent.mkdir(exist_ok=True)
    train.write_json(path, content | {"sha256": digest(content)})
    return read_seal(path)


# ---- Score. ----

def require_untouched(sealed: dict, run: Path, result: dict) -> None:
    """The finished run must be the one that was forecast, and must have been trained after that."""
    config, want = logs.load_json(run / "config.json"), sealed["target"]
    changed = [k for k, v in want["config"].items() if config.get(k) != v]
    if changed or result["tokens"] != want["tokens"]:
        raise UserError(f"{run} was trained with another {', '.join(changed) or 'number of tokens'} than was forecast; "
                        "train what was forecast, or forecast it under another name")
    since = datetime.fromisoformat(sealed["sealed_at"].replace("Z", "+00:00")).timestamp()
    begun = min(p.stat().st_mtime for p in run.glob("*") if p.name in ("log.jsonl", "result.json", "config.json"))
    if not config.get("branch"):                       # a branch's wall_s includes its trunk's
        begun = min(begun, (run / "result.json").stat().st_mtime - (result.get("wall_s") or 0))
    if config.get("started_at"):
        begun = min(begun, datetime.fromisoformat(config["started_at"].replace("Z", "+00:00")).timestamp())
    if begun < since - 1:                              # sealed_at has whole seconds
        raise UserError(f"{run} was trained before its forecast was sealed ({sealed['sealed_at']}): that is no forecast")


def score_one(folder: Path, sealed: dict) -> dict:
    """The row of one sealed forecast: COLUMNS and z; measured, error, inside and z are None until the run is done."""
    row = {k: sealed[k] for k in COLUMNS if k in sealed} | {k: sealed["target"][k] for k in ("params", "tokens", "flops")}
    row |= dict.fromkeys(("measured", "error", "inside", "z"))
    run = folder / sealed["run"]
    if (run / "result.json").exists():
        result = logs.load_json(run / "result.json")
        require_untouched(sealed, run, result)
        measured = result[sealed["loss_column"]]
        row |= {"measured": measured, "error": sealed["predicted"] / measured - 1,
                "inside": int(sealed["lo95"] <= measured <= sealed["hi95"]),
                "z": math.log(sealed["predicted"] / measured) / sealed["sd"]}
    return row


def score(folder: Path) -> list[dict]:
    """Hold every sealed forecast of a study against its run; write folder/forecasts.csv; return the rows (with z).

    Raises UserError when a seal does not match its content, or its run is older or another than the forecast.
    """
    folder = Path(folder)
    rows = [score_one(folder, read_seal(path)) for path in sorted((folder / "forecasts").glob("*.json"))]
    logs.write_table(folder / "forecasts.csv", [{k: r[k] for k in COLUMNS} for r in rows], COLUMNS)
    return rows


# ---- Board. ----

def board(folders: list[Path]) -> str:
    """The table of all forecasts in the forecasts.csv of `folders`, and how often the 95 % interval was right."""
    out = [f"{'study/run':<28}{'N':>10}{'D':>10}{'predicted':>11}{'95 % interval':>18}{'measured':>10}{'error':>9}  inside"]
    rows = []
    for folder in map(Path, folders):
        table = logs.read_table(folder / "forecasts.csv")
        rows += [dict(zip(table, values)) for values in zip(*table.values())]
    for r in rows:
        done = math.isfinite(r["measured"])
        out.append(f"{r['study'] + '/' + r['run']:<28}{r['params']:>10.3g}{r['tokens']:>10.3g}{r['predicted']:>11.4f}"
                   f"{r['lo95']:>9.4f}-{r['hi95']:<8.4f}"
                   + (f"{r['measured']:>10.4f}{r['error']:>+9.2%}  {'yes' if r['inside'] else 'NO'}" if done else
                      f"{'-':>10}{'-':>9}  not trained"))
    done = [r for r in rows if math.isfinite(r["measured"])]
    return "\n".join(out + [coverage(sum(bool(r["inside"]) for r in done), len(done), len(rows))])


def coverage(inside: int, done: int, sealed: int) -> str:
    """One line: is a 95 % interval right 95 % of the time? The interval of that share is Clopper and Pearson's."""
    if not done:
        return f"{sealed} sealed, none trained yet"
    lo = beta.ppf(0.025, inside, done - inside + 1) if inside else 0.0
    hi = beta.ppf(0.975, inside + 1, done - inside) if inside < done else 1.0
    return (f"{inside} of {done} inside their 95 % interval ({inside / done:.0%}; the true share is {lo:.0%} to {hi:.0%}); "
            f"{sealed - done} sealed but not trained")


# ---- Command line. ----

def seal_config(folder: Path, args: list[str]) -> dict:
    """Seal the run that train.py would make of `args` in `folder`. Raises UserError."""
    import train
    c, _ = configure(train.Config, args)
    if Path(c.out_dir).resolve().parent != folder.resolve():
        raise UserError(f"out_dir is {c.out_dir}, outside the study; add --out_dir={folder}/RUN, and train with the same")
    meta = train.load_meta(c.dataset)
    train.check(c, meta, 1)
    c = train.derive(c, meta, train.find_device(c.device), 1)
    params, flops = train.shape_counts(c)
    tokens = c.max_iters * c.batch_size * c.block_size
    target = dict(run=Path(c.out_dir).name, config=dataclasses.asdict(c), params=params["non_embedding"] + params["head"],
                  tokens=tokens, flops=tokens * flops["total"])
    return seal(folder, logs.load_json(folder / "fit.json"), target)


def sealed_text(s: dict) -> str:
    """A sealed forecast in a few lines."""
    far = ", ".join(f"{v:.3g}x in {k}" for k, v in s["beyond"].items() if v > 1) or "inside the fitted range"
    forms = ", ".join(f"{k} {v['predicted']:.4f} (weight {v['weight']:.2f})" for k, v in s["forms"].items())
    return (f"{s['study']}/{s['run']}: loss {s['predicted']:.4f}, 95 % {s['lo95']:.4f} to {s['hi95']:.4f}, 50 % "
            f"{s['lo50']:.4f} to {s['hi50']:.4f}\n  beyond the data: {far}\n  {forms}; {s['why']}\n"
            f"  sealed {s['sealed_at']}, sha256 {s['sha256']}")


def main(args: list[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    command, rest = (args[0], args[1:]) if args else ("", [])
    if command not in ("seal", "score", "board", "rollout") or not rest:
        print(__doc__)
        raise UserError("give a command and a study: python -m scaling.forecast seal|score|board|rollout PATH ...")
    if command == "rollout":
        print(rollout_text(rollout(logs.read_table(rest[0]))))
    elif command == "seal":
        print(sealed_text(seal_config(Path(rest[0]), rest[1:])))
    else:
        for folder in rest if command == "score" else ():
            score(Path(folder))
        print(board(rest))


if __name__ == "__main__":
    exit_cleanly(main)
