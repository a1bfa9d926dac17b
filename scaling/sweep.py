"""Plan a sweep, run what is missing, then parse, fit, forecast and draw.

    python -m scaling.sweep scaling/sweeps/laptop.py [--dry_run] [--jobs=N] [--launcher=slurm] [--retrain]

A sweep file is plain Python (your own program: run only files you trust) that leaves behind
    runs       a list of dicts: `name` and any train.py settings
    held_out   the same, for models that are forecast before they are trained (optional)
    base       settings shared by all (optional)
    prepare    {dataset: "NAME OPTIONS"} for what data/NAME/prepare.py does not make by default (optional)
    slurm      where --launcher=slurm runs them: dict(time=MINUTES, ...), see launch/slurm.py (optional)
Instead of train.py's horizons a run may give `budget`, 6 N D in FLOPs (N: non-embedding + head), or
`budgets`, a list: with the wsd schedule the longest trains whole, the others are cooldown branches from its
checkpoints. `seeds=k` makes k runs of one, NAME_s1 to NAME_sk, with consecutive seeds.
For example:
    base = dict(dataset="shakespeare", n_layer=3, n_head=2, block_size=32, batch_size=16, schedule="wsd",
                warmup_iters=50, learning_rate=4e-3)
    runs = [dict(name=f"d{d}", n_embd=d, budgets=[5e10, 1e11, 2e11], seeds=2) for d in (12, 16, 24)]
    held_out = [dict(name="large", n_embd=32, budget=6e11)]
    prepare = {"shakespeare_gpt2": "shakespeare --tokenizer=gpt2"}
    slurm = dict(time=60, partition="gpu")
Each run trains in a process of its own into out/STUDY/NAME. A killed sweep loses nothing: run it again. What
was trained there with other settings, or on other text, is not taken for it: --retrain trains it anew.
"""
import argparse
import contextlib
import heapq
import math
import shlex
import sys
import timeit
from functools import partial
from pathlib import Path

import numpy as np

from config import settings
from runtime import basics, system
from runtime.basics import Parser, UserError, exit_cleanly, load_json
from scaling import fit, forecast, logs, plots
from scaling.launch import local, slurm
from scaling.launch.planned import Planned, Runs, changes, names
from scaling.launch.study import OWN, Study, missing_data, plan_study, prepare_data, read_sweep
from scaling.report import amount

# What a training step takes on a CPU core beyond its matmuls, in seconds: fitted to steps of 512 tokens, 1 to
# 6 layers 8 to 128 wide (those of sweeps/laptop.py among them), torch 2.13 on one core of an AMD EPYC (2026).
SECONDS_PER_STEP = 0.4e-3
SECONDS_PER_LAYER = 0.65e-3
MANY_EPOCHS = 4                        # of repeated text more gives less and less (Muennighoff et al. 2023)
SECONDS_TO_START = 5.0                 # of a process: most of it imports torch


# ---------------------------------------------------------------- the plan, for people


def estimate(plan: Runs) -> None:
    """Fill in `seconds`, by the speed of the study's finished runs, or else of this machine's matmuls."""
    speeds = []
    for p in plan:
        took = load_json(p.out / "result.json").get("wall_s") if p.done() else None
        if took:
            speeds.append(p.resolved.C / took)
    speed = float(np.median(speeds)) if speeds else core_speed()
    for p in plan:
        p.seconds = SECONDS_TO_START + p.own_flops / speed
        if not speeds:
            per_step = SECONDS_PER_STEP + p.config.n_layer * SECONDS_PER_LAYER
            p.seconds += (p.config.max_iters - p.leave) * per_step


def core_speed() -> float:
    """FLOPs a second of one core, from a millisecond of matmuls too small for BLAS to share among cores."""
    a = np.ones((64, 64), np.float32)
    fastest = min(timeit.repeat(lambda: a @ a, number=20, repeat=10))
    return 20 * 2 * a.size * len(a) / fastest


def seconds_left(plan: Runs, jobs: int) -> float:
    """Until all of `plan` is done, `jobs` at a time as `local.run` has them: the longest that may start."""
    todo = sorted((p for p in plan if not p.done()), key=lambda p: -p.seconds)
    opens = {p.config.branch: 0.0 for p in todo if p.ready()}      # {checkpoint: when its trunk has kept it}
    free = [0.0] * min(jobs, len(todo))                # when each process has ended what it does
    while todo:
        now = heapq.heappop(free)
        # The longest of those that may start; where all wait for their trunks, the first that will.
        p = min(todo, key=lambda p: max(now, opens.get(p.config.branch, math.inf)))
        todo.remove(p)
        now = max(now, opens.get(p.config.branch, now))
        left = p.seconds * (1 - p.progress() / p.own_flops)
        for step in settings.kept_steps(p.config):
            opens[str(p.out / f"ckpt_{step}.pt")] = now + left * step / p.config.max_iters
        heapq.heappush(free, now + left)
    return max(free, default=0.0)


def print_found(study: Study, plan: Runs) -> None:
    """What a user reads first: the study, how much of it is done, and its text."""
    done = sum(p.done() for p in plan)
    texts = ", ".join(sorted({p.config.dataset for p in plan}))
    print(f"{study.name}: {amount(len(plan), 'run')} on {texts}, {done} done, {len(plan) - done} to do",
          flush=True)


def print_plan(plan: Runs, held: set[str], states: dict[str, str]) -> None:
    """The plan as a table; `held` are the names of held-out runs, `states` those of SLURM's queue."""
    wide = max(24, *(len(p.name) + 1 for p in plan))
    print(f"{'run':<{wide}}{'N':>12} {'D':>15} {'epochs':>8} {'FLOPs':>10} {'minutes':>9}  status")
    for p in plan:
        columns = " " * 58
        words = [f"to do, once {p.config.dataset} is prepared"]
        if p.prepared:
            r = p.resolved
            columns = f"{r.N:>12,} {r.D:>15,} {epochs(p):>8.3g} {r.C:>10.3g} {p.seconds / 60:>9.1f}"
            words = [p.status()]
        if p.name in states and not p.done():
            words.append(states[p.name].lower())
        if p.name in held:
            words.append("held out")
        print(f"{p.name:<{wide}}{columns}  {', '.join(words)}")
    for line in doubts(plan):
        print(f"warning: {line}")


def epochs(p: Planned) -> float:
    """How many times the run reads its text."""
    one = settings.Config(epochs=1, block_size=p.config.block_size)
    return p.resolved.D / settings.horizon_tokens(one, p.resolved.meta, p.resolved.N, 1)


def doubts(plan: Runs) -> list[str]:
    """What train.py will warn of where hardly anybody reads it: a line for all runs that it is true of."""
    found = {}
    for p in plan:
        if p.done() or not p.prepared:
            continue
        lines = settings.doubts(p.config)
        if epochs(p) > MANY_EPOCHS:
            lines.insert(0, "the text is read many times, see epochs: is it all there?")
        for line in lines:
            found.setdefault(line, []).append(p)
    return [f"{line} ({names(runs[:3])}{', ...' if runs[3:] else ''})" for line, runs in found.items()]


def print_cost(fitted: Runs, held: Runs, jobs: int) -> None:
    """FLOPs of all whose text is prepared, and the minutes left: what is held out trains after the others."""
    parts = [[p for p in runs if p.prepared] for runs in (fitted, held)]
    plan = parts[0] + parts[1]
    if plan:
        left = sum(seconds_left(part, jobs) for part in parts)
        processes = "one process" if jobs == 1 else f"{jobs} processes"
        print(f"{amount(len(plan), 'run')}, {sum(p.own_flops for p in plan):.3g} FLOPs; about "
              f"{amount(math.ceil(left / 60), 'minute')} left on {processes}", flush=True)


def print_unforecast(fitted: Runs, held: Runs) -> None:
    """Say it before anything trains where the runs will make no law of N and D to forecast `held` by."""
    sizes, lengths = ({getattr(p.resolved, name) for p in fitted} for name in "ND")
    if held and min(len(sizes), len(lengths)) < 3 and all(p.prepared for p in fitted):
        print(f"warning: {names(held)} cannot be forecast: a law of N and D needs runs of three sizes, and "
              "of three numbers of tokens")


def default_jobs(plan: Runs) -> int:
    """Runs at a time: one a core, or one on a GPU, which a single run fills."""
    for device in {p.config.device for p in plan}:
        if device.startswith("cuda") or device == "auto" and system.gpus():
            return 1
    return system.cores()


# ---------------------------------------------------------------- the study's directory


@contextlib.contextmanager
def alone_in(folder: Path):
    """Hold the study's directory: one sweep at a time works in it. Disk errors become UserErrors.

    Raises UserError where another has it. Runs hold their own directories (see `left_behind`).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with system.lock(folder / "lock", "another sweep"):
            for litter in (*folder.glob(".*.tmp"), *folder.glob("forecasts/.*.tmp")):
                litter.unlink()                        # what a killed sweep was writing
            yield
    except BrokenPipeError:                            # of our output: exit_cleanly knows
        raise
    except OSError as e:
        raise UserError(f"{e.filename or folder}: {e.strerror}; free some space or allow writing, then run "
                        "the same command") from None


def require_own(study: Study, plan: Runs, held: Runs, retrain: bool, queued=()) -> Runs:
    """Have no directory hold another run than the sweep file asks for, but those to `retrain`: these.

    Raises UserError where there are any, or where they cannot be trained, or forecast, anew; `queued` are the
    names of those that SLURM has. Runs whose text is not prepared (of a dry run) are left aside.
    """
    plan = [p for p in plan if p.prepared]
    held = [p for p in held if p.prepared]
    others = {p.name: words for p in plan if (words := "; ".join(p.changes()))}
    sealed = {}
    unsealed = []
    for p in held:
        path = forecast.seal_path(study.folder, p.name)
        if not path.exists():
            unsealed.append(p)
        elif words := sealed_otherwise(path, p, others.get(p.name)):
            sealed[p.name] = words
            others.pop(p.name, None)
    faults = []
    if others and (sealed or not retrain):
        faults.append(f"{study.folder.relative_to(basics.ROOT)} holds runs that were trained with other "
                      f"settings: {by_difference(others)}; give the new runs other names (or the sweep file "
                      "one, if it is another study), restore the setting, or train them anew: --retrain")
    if sealed:
        faults.append(f"a forecast is sealed of {by_difference(sealed)}, and a seal cannot be used again: "
                      "give the model another name, or restore the setting")
    if faults:
        raise UserError(f"{study.path}: {'; '.join(faults)}")
    again = [p for p in plan if p.name in others]
    if busy := [p for p in again if p.at_work() or p.name in queued]:
        raise UserError(f"{study.path}: {names(busy)} cannot be trained anew while a process that has other "
                        "settings trains there; stop it (a job of SLURM: scancel), or wait for it")
    for p in unsealed:
        if not p.done() and p not in again:
            forecast.require_not_begun(study.folder, p.name)
    return again


def sealed_otherwise(path: Path, p: Planned, trained: str | None) -> str | None:
    """What tells the run from the one that was sealed in `path`, if anything does.

    An old seal does not tell of the text. Then what was trained does, which differs in `trained`.
    """
    target = forecast.read_seal(path)["target"]
    changed = changes(target | target["config"], p.config, p.resolved.meta)
    if not changed and "data_sha256" not in target:
        return trained
    return "; ".join(changed)


def by_difference(found: dict[str, str], most: int = 20) -> str:
    """'a, b (learning_rate 0.001, not 0.002); c (seed 1, not 2)': runs by what differs, the first few."""
    runs = {}
    for name, words in list(found.items())[:most]:
        runs.setdefault(words, []).append(name)
    more = f"; and {len(found) - most} more, see --dry_run" if len(found) > most else ""
    return "; ".join(f"{', '.join(names)} ({words})" for words, names in runs.items()) + more


def print_unlisted(study: Study, plan: Runs) -> None:
    """Name the run directories of the study that the sweep file does not: they are in no table."""
    known = {*OWN, *(p.name for p in plan)}
    if found := sorted({path.parent.name for path in study.folder.glob("*/config.json")} - known):
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        print(f"not in {study.path}, and so not in runs.csv: {', '.join(found[:10])}{more}", flush=True)


def parse(folder: Path, fitted: Runs) -> None:
    """out/STUDY/runs.csv and curves.csv from the run directories; held-out runs stay out of runs.csv."""
    rows, problems = logs.parse_study(folder)
    for problem in problems:
        print(problem)
    names = {p.name for p in fitted}
    logs.write_runs(folder / "runs.csv", [row for row in rows if row["run"] in names])
    logs.write_curves(folder, folder / "curves.csv")


def seal_all(folder: Path, held: Runs, law: dict, anyway: bool) -> None:
    """Forecast every held-out run that is not trained yet. It is told the seal's hash when it starts."""
    todo = [p for p in held if not p.done()]
    for p in todo:
        sealed = forecast.seal(folder, law, p.name, p.resolved, anyway)
        if p is todo[0]:                               # what error to expect, before it can be known
            print(forecast.rollout_text(sealed["rollout"]))
        p.overrides["forecast"] = sealed["sha256"]
        print(f"forecast of {p.name}: {sealed['predicted']:.4f} ({sealed['lo95']:.4f} to "
              f"{sealed['hi95']:.4f}), sha256 {sealed['sha256'][:12]}", flush=True)
    print_seals(folder, held)


def print_seals(folder: Path, held: Runs) -> None:
    """Say of held-out runs what their score cannot: that the seal is of other runs, or that there is none."""
    now = forecast.table_sha256(folder)
    for p in held:
        path = forecast.seal_path(folder, p.name)
        if not path.exists():
            print(f"{p.name}: not scored, for no forecast was sealed before it was trained", flush=True)
        elif forecast.read_seal(path).get("runs_sha256", now) != now:
            print(f"{p.name}: its forecast was sealed from an earlier table than runs.csv now is", flush=True)


# ---------------------------------------------------------------- the end


def print_end(folder: Path, law: dict, scores: list[dict], pictures: list[Path], plan: Runs) -> None:
    """What a student reads last: the law, what was forecast and what came, and what to do next."""
    where = folder.relative_to(basics.ROOT)
    if Path.cwd() != basics.ROOT:                      # where out/ is, and the commands are
        print(f"in {basics.ROOT}:")
    print("\n".join(fit.summary(law, f"{where}/fit.txt")))
    for row in scores:
        if row["measured"] is not None:
            inside = "inside" if row["inside"] else "outside"
            print(f"{row['run']}: forecast {row['predicted']:.4f} ({row['lo95']:.4f} to {row['hi95']:.4f}), "
                  f"measured {row['measured']:.4f}: error {100 * row['error']:+.2f} %, {inside}")
    if pictures:
        print(f"pictures: {where}/figures")
    print("next:", *next_commands(where, law, scores, plan), sep="\n    ", flush=True)


def next_commands(where: Path, law: dict, scores: list[dict], plan: Runs) -> list[str]:
    best = max((p for p in plan if p.done()), key=lambda p: p.resolved.C)
    study = shlex.quote(str(where))
    commands = [f"python sample.py --out_dir={shlex.quote(str(where / best.name))}"]
    if (basics.ROOT / "scaling" / "recipe" / f"{where.name}.py").exists():     # what the study is for
        commands.append(f"python -m scaling.recipe.{where.name} {study}")
    if "surface" in law:
        commands.append(f"python -m scaling.plan {study}/fit.json --flops={10 * best.resolved.C:.0e}")
    if scores:
        commands.append(f"python -m scaling.forecast board {study}")
    if "surface" in law:                               # a page that explains it
        commands.append(f"STUDY={study} make notebook")
    return commands


# ---------------------------------------------------------------- command line


def carry_out(study: Study, fitted: Runs, held: Runs, launch, anyway: bool) -> list[str]:
    """Train by `launch(plan)`, then fit, forecast and draw. Returns a line for each run that failed."""
    folder = study.folder
    scores = []
    failed = launch(fitted)
    if not any(p.done() for p in fitted):              # there is nothing to fit
        return failed
    parse(folder, fitted)
    law = fit.fit_study(folder)
    if held and not failed:
        why = forecast.refusal(law, anyway)
        left = [p for p in held if why and not p.done() and not forecast.seal_path(folder, p.name).exists()]
        ready = [p for p in held if p not in left]
        if ready:
            seal_all(folder, ready, law, anyway)
            failed = launch(ready)
            parse(folder, fitted)                      # again, for the curves of the held-out runs
            scores = forecast.score(folder)
        # What was trained is not lost: it is drawn and told below, without a forecast.
        failed += [f"{p.name}: no forecast, since {why}" for p in left]
    pictures = plots.draw_study(folder)
    print_end(folder, law, scores, pictures, fitted + held)
    return failed


def read_args(args: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = Parser("python -m scaling.sweep", __doc__)
    parser.add_argument("sweep", metavar="SWEEP.py", help="scaling/sweeps/NAME.py, or your own")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; default: one a core; 1 on a GPU")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="slurm: submit the runs as a job array (the sweep file's `slurm` says where)")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument("--retrain", action="store_true",
                        help="train anew what is there with other settings, or on other text")
    parser.add_argument("--anyway", action="store_true",
                        help="forecast the held-out runs by a law that its fit calls undetermined, too")
    a = parser.parse_args(args)
    if a.jobs < 0:
        raise UserError(f"--jobs={a.jobs}: give how many runs at a time, 1 or more")
    return a


def main(args: list[str] | None = None) -> int:
    a = read_args(args)
    study = read_sweep(a.sweep)
    by_slurm = a.launcher == "slurm"
    if by_slurm:
        slurm.require_usable(study.slurm, a.sweep)
    states = slurm.queue(study.folder)
    if states and not by_slurm:
        raise UserError(f"{study.name}: SLURM has runs of it; add --launcher=slurm, or scancel them first")
    missing = missing_data(study)
    fitted, held = plan_study(study)                   # refuses what it can before any text is prepared
    print_found(study, fitted + held)
    prepare_data(missing, a.dry_run)
    if missing:
        fitted, held = plan_study(study)
    plan = fitted + held
    if by_slurm:
        jobs = study.slurm.get("array_parallelism", len(plan))
        launch = partial(slurm.run, options=study.slurm, folder=study.folder)
    else:
        jobs = a.jobs or default_jobs(plan)
        launch = partial(local.run, jobs=jobs)
    estimate(plan)
    print_plan(plan, {p.name for p in held}, states)
    print_cost(fitted, held, jobs)
    print_unforecast(fitted, held)
    print_unlisted(study, plan)
    if a.dry_run:
        if again := require_own(study, plan, held, a.retrain, states):
            print(f"would train anew: {names(again)}")
        print("next: the same command without --dry_run")
        return 0
    with alone_in(study.folder):
        if again := require_own(study, plan, held, a.retrain, states):
            print(f"trains anew: {names(again)}", flush=True)
        for p in again:
            p.forget()
        failed = carry_out(study, fitted, held, launch, a.anyway)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        exit_cleanly(main)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(3)
