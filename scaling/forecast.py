"""Predict a run before it is trained, seal the prediction, and hold it to account afterwards.

    python -m scaling.forecast seal out/STUDY config/NAME.py --out_dir=out/STUDY/RUN  # before training
    python -m scaling.forecast score out/STUDY                                        # after it
    python -m scaling.forecast board out/STUDY ... [--git]                            # and their coverage
    python -m scaling.forecast watch out/STUDY/RUN [--follow] [--figure=FILE.png]     # while it trains
    python -m scaling.forecast rollout out/STUDY/runs.csv                             # what error to expect
    python -m scaling.forecast predict RUNS.csv --params=1.4e9 --tokens=9.2e11 [--json=-] # seals nothing

How a forecast is made, and what its intervals are worth: scaling/laws/extrapolate.py. A law that its own fit
calls undetermined forecasts nothing, unless `seal` is told --anyway. `board --git` asks git for a commit that
held the seal before the run began: pushed, it is a witness that nobody's clock can deny.
"""
import dataclasses
import hashlib
import json
import math
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from config import corpus, schema, settings
from runtime.basics import Parser, UserError, exit_cleanly, git_commit, load_json, nearest, write_json
from scaling import watch
from scaling.fit import fit_all
from scaling.laws import counts, extrapolate, forms
from scaling.tables.csv import MALFORMED, read_table, write_table
from scaling.tables.runs import by_arm, final_runs

DRAWS = 200                                # bootstrap resamples of a law that is fitted for one forecast
COLUMNS = ("study run params tokens flops predicted lo95 hi95 sealed_at sha256 "
           "measured error inside").split()
COMMANDS = ("seal", "score", "board", "rollout", "predict", "watch")


# ---- Predict. ----

def rollout_text(rows: list[dict]) -> str:
    """`rollout`'s rows as a table for people."""
    if not rows:
        return "rollout: not possible; it takes three budgets, and eight runs below the largest"
    out = ["rollout: each budget predicted from the smaller ones only",
           f"{'C':>10}{'fitted':>8}{'runs':>6}{'beyond':>8}{'bias':>9}{'rms':>8}{'inside 95 %':>13}"]
    for r in rows:
        out.append(f"{r['C']:>10.3g}{r['fitted_runs']:>8}{r['runs']:>6}{r['beyond']:>7.2g}x"
                   f"{r['mean_error']:>+9.2%}{r['rms_error']:>8.2%}{r['inside']:>13.0%}")
    return "\n".join(out)


def predict(table: dict, fit: dict, N: float, D: float) -> dict:
    """Final loss of N parameters after D tokens, from a study's table of runs and its fit. Raises UserError.

    Returns the prediction with its intervals and `sd` (of log-loss), what each of the `forms` alone says, the
    number of `fitted_runs`, the rollout, and the factors `beyond` the fitted range in N, D and C (1 in it).
    """
    runs = final_runs(table, fit["data"]["params"])
    surface = fit["surface"]
    C = forms.flops_of(surface, N, D)
    law = extrapolate.fit(runs, min(extrapolate.FEW, D / N))
    (mean,), (sd,) = extrapolate.predict(law, np.array([N]), np.array([D]), C)
    data = runs["N"], runs["D"], runs["L"]
    alone = {"hoffmann": surface,
             "one_exponent": forms.fit_one_exponent(*data, bootstrap=0),
             "kaplan": forms.fit_kaplan_nd(*data, bootstrap=0)}
    said = {name: {"predicted": float(forms.loss_of(form, {"N": N, "D": D}))} for name, form in alone.items()}
    return extrapolate.interval(mean, sd) | {
        "sd": float(sd),
        "forms": said,
        "fitted_runs": law.n,
        "beyond": dict(N=1.0, D=1.0, C=1.0) | forms.outside(surface, N=N, D=D, C=C),
        "rollout": extrapolate.rollout(runs)}


def warnings_of(fit: dict) -> list[str]:
    """What a fit warns of, for those who forecast by it."""
    return [*fit["data"].get("warnings", []), *fit["surface"]["health"]["lines"]]


def predicted_text(s: dict) -> str:
    """A forecast in a few lines."""
    far = ", ".join(f"{v:.3g}x in {k}" for k, v in s["beyond"].items() if v > 1) or "inside the fitted range"
    said = ", ".join(f"{name} {form['predicted']:.4f}" for name, form in s["forms"].items())
    out = [f"loss {s['predicted']:.4f}, 95 % {s['lo95']:.4f} to {s['hi95']:.4f}, "
           f"50 % {s['lo50']:.4f} to {s['hi50']:.4f}",
           f"  beyond the data: {far}",
           f"  each form alone: {said}"]
    if s.get("rollout"):
        row = max(s["rollout"], key=lambda row: row["beyond"])
        out.append(f"  backtest: {row['rms_error']:.2%} off (rms) at {row['beyond']:.2g} times the compute")
    return "\n".join([*out, *(f"  warning: {line}" for line in s.get("warnings", []))])


# ---- Is the law one to go by? ----

def load_fit(path: Path) -> dict:
    """What a fit.json holds. Raises UserError, where there is none with the command that makes it."""
    if not path.exists():
        runs = path.with_name("runs.csv")
        command = ["sweep", "scaling/sweeps/STUDY.py"]
        if runs.exists():
            command = ["fit", str(runs), f"--json={path}"]
        raise UserError(f"there is no {path} yet; run: python -m scaling.{shlex.join(command)}")
    return load_json(path)


def left_open(law: dict) -> str:
    """What the runs leave undetermined of a law, by its own health; nothing of a published or an old one."""
    return "; ".join(law.get("health", {}).get("undetermined", []))


def refusal(fit: dict, anyway: bool = False, does: str = "seals it") -> str:
    """Why nothing is forecast by what fit.json holds, or ''; `anyway`, which `does` something: by an
    undetermined law, too."""
    if "surface" not in fit:
        return f"there is no law of N and D ({fit.get('skipped', {}).get('surface', 'it was not fitted')})"
    found = left_open(fit["surface"])
    return f"{found}; --anyway {does} all the same" if found and not anyway else ""


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


def seal_path(folder: Path, run: str) -> Path:
    return folder / "forecasts" / f"{run}.json"


def require_same_target(sealed: dict, target: dict, path: Path) -> None:
    """Raise UserError unless the seal in `path` is of this target."""
    changed = [k for k in ("run", "params", "tokens", "flops") if sealed["target"].get(k) != target[k]]
    changed += schema.differences(sealed["target"]["config"], target["config"])
    changed += [corpus.TEXTS[key][1] for key in corpus.other_texts(sealed["target"], target)]
    if changed:
        raise UserError(f"{path} was sealed for another target ({', '.join(changed)} differ); "
                        "give the new run another name")


def require_not_begun(folder: Path, run: str) -> None:
    """Raise UserError where the run has a result, or a part of one."""
    for name in ("result.json", "ckpt.pt", "log.jsonl"):
        path = folder / run / name
        if path.exists() and path.stat().st_size:
            raise UserError(f"{path} exists: what has begun cannot be forecast any more; give the model that "
                            "is to be forecast another name")


def require_unseen(folder: Path, table: dict, fit: dict, run: str) -> None:
    """Raise UserError unless the run is new to study and fit, and the fit counts parameters as targets do."""
    require_not_begun(folder, run)
    if run in table.get("run", ()):
        raise UserError(f"{folder / 'runs.csv'} holds {run}: the fit has seen what it is to forecast")
    convention = fit["data"]["params"]
    if convention not in (counts.DEFAULT_PARAMS, "as given"):
        raise UserError(f"the fit counts parameters as {convention}, a forecast's target as "
                        f"{counts.DEFAULT_PARAMS}; fit again with --params={counts.DEFAULT_PARAMS}")


def of_arm(table: dict, arm: str) -> dict:
    """The runs of one arm, by which another of it is forecast. Raises UserError where there is none."""
    arms = by_arm(table, "arm")
    if arm not in arms:
        raise UserError(f"no run of the arm {arm!r}; there are {', '.join(arms)}")
    return arms[arm]


def table_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "runs.csv").read_bytes()).hexdigest()


def seal(folder: Path, fit: dict, run: str, resolved: settings.Resolved, anyway: bool = False) -> dict:
    """Write the forecast of `run`, which will train `resolved`, to folder/forecasts/RUN.json; return it.

    `folder` is out/STUDY with its runs.csv, `fit` what fit.json holds. A valid seal of the same target is
    kept. Raises UserError when the target has changed, the run has begun, or there is no law to go by:
    see `refusal`.
    """
    folder = Path(folder)
    path = seal_path(folder, run)
    bearing = {k: v for k, v in dataclasses.asdict(resolved.config).items() if k not in settings.FREE}
    target = dict(run=run, params=resolved.N, tokens=resolved.D, flops=resolved.C, config=bearing)
    target |= corpus.texts(resolved.meta)
    if path.exists():
        sealed = read_seal(path)
        require_same_target(sealed, target, path)
        return sealed
    table = read_table(folder / "runs.csv")
    require_unseen(folder, table, fit, run)
    if "arms" in fit:                                  # the law in `fit` is the reference's
        table = of_arm(table, resolved.config.arm)
        fit = fit_all(table, bootstrap=DRAWS)
    if why := refusal(fit, anyway):
        raise UserError(f"no forecast of {run}: {why}")
    content = {
        "study": folder.resolve().name,
        "run": run,
        **predict(table, fit, resolved.N, resolved.D),
        "warnings": warnings_of(fit),
        "loss_column": fit["data"]["loss_column"],
        "target": target,
        "fit_sha256": digest(fit),
        "runs_sha256": table_sha256(folder),
        "sealed_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": git_commit()}
    path.parent.mkdir(exist_ok=True)
    write_json(path, content | {"sha256": digest(content)})
    return read_seal(path)


# ---- Score. ----

def seconds(stamp: str) -> float:
    """Seconds since the epoch of an ISO time in UTC."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def require_later(sealed: dict, run: Path, result: dict) -> None:
    """The finished run must be the one that was forecast, trained after that. Raises UserError."""
    config = load_json(run / "config.json")
    target = sealed["target"]
    changed = schema.differences(target["config"], config)
    changed += [corpus.TEXTS[key][1] for key in corpus.other_texts(target, config)]
    if result["tokens"] != target["tokens"]:
        changed.append("number of tokens")
    if changed:
        raise UserError(f"{run} was trained with another {', '.join(changed)} than was forecast; train what "
                        "was forecast, or forecast it under another name")
    if config.get("forecast") == sealed["sha256"]:     # it knew the seal when it began; clocks may jump
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
    """COLUMNS of one sealed forecast; measured, error and inside are None until the run is done."""
    row = {k: sealed.get(k, sealed["target"].get(k)) for k in COLUMNS}
    run = folder / sealed["run"]
    if (run / "result.json").exists():
        result = load_json(run / "result.json")
        require_later(sealed, run, result)
        measured = result[sealed["loss_column"]]
        row["measured"] = measured
        row["error"] = sealed["predicted"] / measured - 1
        row["inside"] = int(sealed["lo95"] <= measured <= sealed["hi95"])
    return row


def scores_before(path: Path) -> dict[str, dict]:
    """{sha256 of a seal: what was measured} in forecasts.csv: scaling/results keeps it without the runs."""
    if not path.exists():
        return {}
    found = {}
    table = read_table(path)
    try:
        for sha256, measured, error, inside in zip(*(table[k] for k in ("sha256", *COLUMNS[-3:]))):
            if math.isfinite(measured):
                found[sha256] = {"measured": measured, "error": error, "inside": int(inside)}
    except MALFORMED as e:
        raise UserError(f"{path} is not as it was written ({type(e).__name__}: {e}); restore it") from None
    return found


def score(folder: Path) -> list[dict]:
    """Hold every sealed forecast of a study against its run; write folder/forecasts.csv; return its rows.

    Raises UserError when a seal does not match its content, or its run is older or another than the forecast.
    """
    folder = Path(folder)
    known = scores_before(folder / "forecasts.csv")
    rows = []
    for path in sorted((folder / "forecasts").glob("*.json")):
        try:
            row = score_one(folder, read_seal(path))
            rows.append(row if row["measured"] is not None else row | known.get(row["sha256"], {}))
        except (*MALFORMED, ZeroDivisionError) as e:
            raise UserError(f"{path} or its run is not as it was written ({type(e).__name__}: {e}); restore "
                            "it") from None
    write_table(folder / "forecasts.csv", rows, COLUMNS)
    return rows


# ---- Board. ----

def board_rows(folder: Path) -> list[dict]:
    """The rows of a study's forecasts.csv, none where it is not there. Raises UserError."""
    path = Path(folder) / "forecasts.csv"
    if not path.exists():
        return []
    table = read_table(path)
    for key in (*COLUMNS[2:8], *COLUMNS[10:]):
        counts.column(table, key, "the board of forecasts")
    return [dict(zip(table, values)) for values in zip(*table.values())]


def board(folders: list[Path]) -> str:
    """All forecasts in the forecasts.csv of `folders`, and how often the 95 % interval was right."""
    rows = [row for folder in folders for row in board_rows(folder)]
    if not rows:
        raise UserError(f"no forecast in forecasts.csv of {', '.join(map(str, folders))}; give a study whose "
                        "sweep has held_out runs")
    head = ("study/run", "N", "D", "predicted", "95 % interval", "measured", "error")
    out = ["{:<32}{:>10}{:>10}{:>11}{:>18}{:>10}{:>9}".format(*head), *map(board_line, rows)]
    inside = [bool(r["inside"]) for r in rows if math.isfinite(r["measured"])]
    return "\n".join([*out, coverage(sum(inside), len(inside), len(rows))])


def board_line(r: dict) -> str:
    """A row of forecasts.csv for people."""
    line = (f"{r['study'] + '/' + r['run']:<32}{r['params']:>10.3g}{r['tokens']:>10.3g}"
            f"{r['predicted']:>11.4f}{r['lo95']:>9.4f}-{r['hi95']:<8.4f}")
    if not math.isfinite(r["measured"]):
        return line + f"{'':>19}  not trained"
    verdict = "inside" if r["inside"] else "OUTSIDE"
    return line + f"{r['measured']:>10.4f}{r['error']:>+9.2%}  {verdict}"


def coverage(inside: int, done: int, sealed: int) -> str:
    """Is a 95 % interval right 95 % of the time? With Clopper and Pearson's interval of the true share."""
    if not done:
        return f"{sealed} sealed, none trained yet"
    lo, hi = binomtest(inside, done).proportion_ci()
    return (f"{inside} of {done} inside their 95 % interval: {inside / done:.0%} (the true share is {lo:.0%} "
            f"to {hi:.0%}); {sealed - done} sealed but not trained")


# ---- Witnesses. ----

def git(folder: Path, *args: str) -> str:
    """What a git command says in `folder`. Raises UserError where git or a repository is missing."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("--git needs git, which is not installed") from None
    if done.returncode:
        raise UserError(f"--git: {folder} is in no git repository that can be read "
                        f"({done.stderr.strip():.100})")
    return done.stdout


def committed(path: Path, sha256: str) -> float:
    """When a commit first held the seal in `path`, or its hash in the message; infinite where none did."""
    held = git(path.parent, "log", "--all", f"-S{sha256}", "--format=%ct", "--", path.name)
    said = git(path.parent, "log", "--all", f"--grep={sha256}", "--format=%ct")
    return min(map(float, (held + said).split()), default=math.inf)


def witness(folder: Path, sealed: dict) -> str:
    """Whether a commit older than its run holds a seal, in words."""
    name = f"{sealed['study']}/{sealed['run']}"
    when = committed(seal_path(folder, sealed["run"]), sealed["sha256"])
    if when == math.inf:
        return f"{name}: no commit holds this seal"
    config = folder / sealed["run"] / "config.json"
    begun = load_json(config).get("started_at") if config.exists() else None
    stamp = datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    if not begun:
        return f"{name}: committed {stamp}; its run is not here, so nothing says when it began"
    if when > seconds(begun):
        return f"{name}: committed {stamp}, AFTER its run began ({begun}): no witness"
    return f"{name}: committed {stamp}, before its run began ({begun})"


def witnesses(folder: Path) -> list[str]:
    """A line per seal of a study: is there a commit that held it before its run began? Raises UserError."""
    return [witness(folder, read_seal(path)) for path in sorted((folder / "forecasts").glob("*.json"))]


# ---- Command line. ----

def seal_config(folder: Path, args: list[str]) -> str:
    """Seal the run that train.py would make of `args` in `folder`; return what to print. Raises UserError."""
    anyway = "--anyway" in args
    args = [arg for arg in args if arg != "--anyway"]
    c = settings.configure_run(args)
    out = Path(c.out_dir)
    if out.resolve().parent != folder.resolve():
        raise UserError(f"out_dir is {c.out_dir}, outside the study; add "
                        f"--out_dir={shlex.quote(str(folder))}/RUN")
    sealed = seal(folder, load_fit(folder / "fit.json"), out.name, settings.resolve(c), anyway)
    command = shlex.join(["python", "train.py", *args, f"--forecast={sealed['sha256']}"])
    return f"{sealed_text(sealed)}\nto paste before it trains: {seal_line(sealed)}\nnext: {command}"


def seal_line(s: dict) -> str:
    """A seal in a line, for an issue or the message of a commit."""
    target = s["target"]
    return (f"forecast {s['study']}/{s['run']}: loss {s['predicted']:.4f} ({s['lo95']:.4f} to "
            f"{s['hi95']:.4f}) at N {target['params']:.4g}, D {target['tokens']:.4g}, sha256 {s['sha256']}")


def predict_command(args: list[str]) -> str:
    """`predict RUNS.csv --params= --tokens=`: what to print. Raises UserError."""
    p = Parser("scaling.forecast predict", "The loss of one model, from a table of runs; nothing is sealed.")
    p.add_argument("runs", type=Path, help="a table of runs, as scaling.fit takes it")
    p.add_argument("--params", type=float, required=True, help="N, counted as the table counts it")
    p.add_argument("--tokens", type=float, required=True, help="D")
    p.add_argument("--json", metavar="FILE", help="write it there; - prints it and nothing else")
    p.add_argument("--anyway", action="store_true", help="by a law that is not determined, too")
    args = p.parse_args(args)
    if not (0 < args.params < math.inf and 0 < args.tokens < math.inf):
        raise UserError("--params and --tokens must be positive numbers")
    table = read_table(args.runs)
    fitted = fit_all(table, bootstrap=DRAWS)
    if why := refusal(fitted, args.anyway, "forecasts"):
        raise UserError(f"no forecast: {why}")
    found = predict(table, fitted, args.params, args.tokens) | {"warnings": warnings_of(fitted)}
    if args.json == "-":
        return json.dumps(found)
    if args.json:
        write_json(Path(args.json), found)
    return predicted_text(found)


def watch_command(args: list[str]) -> None:
    """`watch out/STUDY/RUN`: print how the run stands beside its forecast. Raises UserError."""
    p = Parser("scaling.forecast watch", "A run beside its sealed forecast, while it trains.")
    p.add_argument("run", type=Path, help="a run directory of a study: out/STUDY/RUN")
    p.add_argument("--follow", action="store_true", help="again and again, until it is done")
    p.add_argument("--figure", type=Path, metavar="FILE.png", help="draw its log in the band of such runs")
    args = p.parse_args(args)
    folder, run = args.run.parent, args.run
    if not (run / "config.json").exists():
        raise UserError(f"{run} is no run directory: it has no config.json; give out/STUDY/RUN of one that "
                        "trains")
    path = seal_path(folder, run.name)
    sealed = read_seal(path) if path.exists() else None
    if sealed:
        print(seal_line(sealed))
    known = watch.family_of(run)
    watch.follow(run, known, sealed, args.follow)
    if args.figure and not sealed:
        raise UserError(f"no forecast of {run.name} was sealed, so there is no band to draw its log in")
    if args.figure:
        watch.picture(run, known, sealed).savefig(args.figure)


def halfway_text(folders: list[Path]) -> str:
    """How good the forecasts were along the runs, and made again half way; empty where none can be."""
    found = []
    for folder in folders:
        if (folder / "curves.csv").exists():
            found += watch.afterwards(folder, board_rows(folder))
    if not found:
        return ""
    errors, inside, kept, places = np.array(found).T
    return (f"made again half way along the runs: rms error {np.sqrt((errors ** 2).mean()):.2%}, "
            f"{int(inside.sum())} of {len(found)} inside their 95 % interval\n"
            f"along the runs: {int(kept.sum())} of {int(places.sum())} train losses inside the 95 % band "
            "of such a run by the curves of the finished ones")


def sealed_text(s: dict) -> str:
    """A sealed forecast in a few lines."""
    return f"{s['study']}/{s['run']}: {predicted_text(s)}\n  sealed {s['sealed_at']}, sha256 {s['sha256']}"


def unsealed(folder: Path) -> list[str]:
    """The finished runs of a study that are neither in its runs.csv nor sealed. Raises UserError."""
    table = folder / "runs.csv"
    known = {path.stem for path in (folder / "forecasts").glob("*.json")}
    known |= set(read_table(table).get("run", ())) if table.exists() else set()
    return sorted({path.parent.name for path in folder.glob("*/result.json")} - known)


def next_plan(folder: Path, C: float) -> str:
    """The command that plans by a study's law for ten times the compute C."""
    return f"next: python -m scaling.plan {shlex.quote(str(folder / 'fit.json'))} --flops={10 * C:.0e}"


def print_board(folders: list[Path], anew: bool) -> None:
    """Print the board of `folders`, which are scored `anew` if that is asked. Raises UserError."""
    for folder in folders if anew else ():
        score(folder)
        if runs := unsealed(folder):
            print(f"{folder}: not scored, for no forecast was sealed: {', '.join(runs)}")
    print(board(folders))
    if again := halfway_text(folders):
        print(again)
    folder, rows = next((folder, rows) for folder in folders if (rows := board_rows(folder)))
    print(next_plan(folder, max(row["flops"] for row in rows)))


def main(args: list[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    if not args or {"-h", "--help"} & set(args):
        print(__doc__)
        return
    command, *paths = [arg for arg in args if arg != "--git"]
    if command not in COMMANDS or not paths:
        close = "" if command in COMMANDS else nearest(command, COMMANDS)
        raise UserError(f"give a command{close} and a path: python -m scaling.forecast "
                        f"{'|'.join(COMMANDS)} PATH")
    folder = Path(paths[0])
    if command == "rollout":
        runs = final_runs(read_table(folder))
        print(rollout_text(extrapolate.rollout(runs)))
        print(next_plan(folder.parent, runs["C"].max()))
    elif command == "seal":
        print(seal_config(folder, paths[1:]))
    elif command == "watch":
        watch_command(paths)
    elif command == "predict":
        print(predict_command(paths))
    else:
        folders = list(map(Path, paths))
        print_board(folders, command == "score")
        if "--git" in args:
            for folder in folders:
                print(*witnesses(folder), sep="\n")


if __name__ == "__main__":
    exit_cleanly(main)
