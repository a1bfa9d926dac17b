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
Each run trains in a process of its own into out/STUDY/NAME. A killed sweep loses nothing: run it again. What
was trained there with other settings, or on other text, is not taken for it: --retrain trains it anew.
"""
import argparse
import collections
import contextlib
import subprocess
import sys
import timeit
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import settings
from config.configurator import read_file, set_fields
from runtime import basics, system
from runtime.basics import UserError, exit_cleanly, load_json, nearest, plain_name
from scaling import fit, forecast, logs, plots
from scaling.launch import local, slurm
from scaling.launch.planned import Planned, changes, names

OWN = ("lock", "runs.csv", "curves.csv", "fit.json", "fit.txt", "forecasts.csv", "forecasts", "figures",
       "slurm")                        # the study's own files, beside its run directories

# What a training step takes on a CPU core beyond its matmuls, in seconds: fitted to steps of 512 tokens, 1 to
# 6 layers 8 to 128 wide (those of sweeps/laptop.py among them), torch 2.13 on one core of an AMD EPYC (2026).
SECONDS_PER_STEP = 0.4e-3
SECONDS_PER_LAYER = 0.65e-3
SECONDS_TO_START = 5.0                 # of a process: most of it imports torch


# ---------------------------------------------------------------- the sweep file


class Study(NamedTuple):
    """What a sweep file says; each run is its settings, with its `name`."""
    path: str
    name: str
    runs: list[dict]
    held_out: list[dict]
    prepare: dict[str, str]
    slurm: dict

    @property
    def folder(self) -> Path:
        return basics.ROOT / "out" / self.name


def dicts(value) -> bool:
    return isinstance(value, list) and all(isinstance(run, dict) for run in value)


def commands(value) -> bool:
    return isinstance(value, dict) and all(isinstance(x, str) and x.split() for x in value.values())


# What each name in a sweep file must be, in words and as a test.
SWEEP_NAMES = dict(
    runs=("a list of dicts, one for each run", dicts),
    held_out=("a list of dicts, one for each run", dicts),
    base=("a dict of settings", lambda value: isinstance(value, dict)),
    prepare=('a dict such as {"mine_100k": "mine --max_tokens=1e5"}', commands),
    slurm=("a dict", lambda value: isinstance(value, dict)))


def read_sweep(path: str) -> Study:
    """The study in the sweep file `path`, named as the file. Raises UserError."""
    found = {}
    for key, (value, _) in read_file(path).items():
        if key not in SWEEP_NAMES:
            raise UserError(f"{path}: unknown name {key!r}{nearest(key, SWEEP_NAMES)}; "
                            "start the names of helpers with an underscore")
        words, good = SWEEP_NAMES[key]
        if not good(value):
            raise UserError(f"{path}: `{key}` must be {words}")
        found[key] = value
    name = Path(path).stem
    if not plain_name(name):
        raise UserError(f"{path}: a study is named as its file, and {name!r} is no name for a directory")
    runs = read_runs(found, "runs", path)
    if not runs:
        raise UserError(f"{path}: `runs` is missing or empty")
    options = slurm.check_options(found.get("slurm", {}), path)
    return Study(path, name, runs, read_runs(found, "held_out", path), found.get("prepare", {}), options)


def read_runs(found: dict, key: str, path: str) -> list[dict]:
    """The runs in `runs` or `held_out` of a sweep file, with what `base` says, one for each seed."""
    runs = []
    for run in found.get(key, []):
        run = found.get("base", {}) | run
        name = run.get("name")
        if not plain_name(name) or name in OWN:
            raise UserError(f"{path}: every run needs a `name` that is a plain file name, not {name!r}")
        if not plain_name(dataset_of(run)):            # its prepare.py will be run
            raise UserError(f"dataset {dataset_of(run)!r} must be the name of a directory under data/")
        runs += with_seeds(run, path)
    return runs


def dataset_of(run: dict) -> str:
    return run.get("dataset", settings.Config.dataset)


def with_seeds(run: dict, path: str) -> list[dict]:
    """`run` once for each of its `seeds`, an int, from its `seed` on: their spread is fit.py's noise."""
    if "seeds" not in run:
        return [run]
    seeds = run.pop("seeds")
    first = run.get("seed", settings.Config.seed)
    if type(seeds) is not int or seeds < 1 or type(first) is not int:
        raise UserError(f"{path}: run {run['name']}: `seeds` must say how many, 1 or more (and `seed` which "
                        f"is the first), not {seeds!r}")
    return [run | {"name": f"{run['name']}_s{i + 1}", "seed": first + i} for i in range(seeds)]


# ---------------------------------------------------------------- its data


def missing_data(study: Study) -> dict[str, list[str]]:
    """{dataset: the command, less python, that prepares it} of what is not there. Raises UserError.

    data/NAME/prepare.py makes it (NAME or NAME_TOKENIZER), or what `prepare` of the sweep file says.
    """
    found = {}
    for dataset in sorted({dataset_of(run) for run in study.runs + study.held_out}):
        if (basics.ROOT / "data" / dataset / "meta.json").exists():
            continue
        name, _, tokenizer = dataset.partition("_")
        flags = [f"--tokenizer={tokenizer}"] if tokenizer else []
        if dataset in study.prepare:
            name, *flags = study.prepare[dataset].split()
        script = f"data/{name}/prepare.py"
        if not plain_name(name) or not (basics.ROOT / script).exists():
            raise UserError(f"dataset {dataset!r} is not prepared; {settings.how_to_prepare(dataset)}")
        found[dataset] = [script, *flags]
    return found


def prepare_data(missing: dict[str, list[str]]) -> None:
    """Run what `missing_data` found. Raises UserError."""
    for dataset, (script, *flags) in missing.items():
        flags.append(f"--out_dir={basics.ROOT / 'data' / dataset}")     # where it would not by itself, too
        print(f"preparing {dataset}: {' '.join([script, *flags])}", flush=True)
        if subprocess.run([sys.executable, basics.ROOT / script, *flags]).returncode:
            raise UserError(f"{script} failed; its line above says why")


# ---------------------------------------------------------------- the plan


def require_unique(plan: list[Planned], path: str) -> None:
    """Two runs of one name would share a directory."""
    for name, times in collections.Counter(p.name for p in plan).items():
        if times > 1:
            raise UserError(f"{path}: two runs are named {name!r}")


def make_plan(study: Study, runs: list[dict], missing=()) -> list[Planned]:
    """The plan of `runs`, without those whose dataset is `missing`: sizes depend on its vocabulary.

    Raises UserError, with the name of the run.
    """
    plan = []
    for run in runs:
        where = f"{study.path}: run {run['name']}: "
        try:
            plan += plan_run(study, run) if dataset_of(run) not in missing else []
        except UserError as e:                         # some begin so already, see config_of
            raise UserError(where + str(e).removeprefix(where)) from None
    return plan


def plan_run(study: Study, run: dict) -> list[Planned]:
    """The run, or of one with `budgets` the longest whole, and the branches that leave it. Raises UserError.

    A branch leaves where its own cooldown begins.
    """
    runs = levels(study, run)
    if len(runs) == 1:
        return [planned(study, runs[0])]
    alone = [planned(study, run).config for run in runs]
    for name in ("warmup_iters", "batch_size", "learning_rate"):
        if alone[0].schedule != "wsd" or len({getattr(c, name) for c in alone}) > 1:
            raise UserError(f"`budgets` needs schedule='wsd' and one {name}")
    steps = [settings.cooldown_start(c) for c in alone[:-1]]
    trunk = planned(study, runs[-1] | {"keep_steps": ",".join(map(str, steps))})
    # A branch's log begins with its trunk's, so both have lines at the same steps.
    same = dict(log_interval=trunk.config.log_interval, eval_interval=trunk.config.eval_interval)
    plan = [trunk]
    for run, step in zip(runs, steps):
        branch = run | same | {"branch": str(trunk.out / f"ckpt_{step}.pt")}
        plan.append(planned(study, branch, step))
    return plan


def levels(study: Study, run: dict) -> list[dict]:
    """The run once for each of its budgets, smallest first, with tokens instead; or as it is, without any."""
    budgets = run.get("budgets", [run["budget"]] if "budget" in run else [])
    run = {key: value for key, value in run.items() if key not in ("budget", "budgets")}
    if not isinstance(budgets, (list, tuple)) or not all(isinstance(C, (int, float)) for C in budgets):
        raise UserError("`budgets` must list numbers of FLOPs")
    if not budgets:
        return [run]
    N = params_of(config_of(study, run))
    runs = []
    for C in sorted(budgets):
        level = f"_{C:.3g}".replace("e+", "e") if len(budgets) > 1 else ""
        runs.append(run | {"name": run["name"] + level, "target_tokens": C / 6 / N})
    return runs


def config_of(study: Study, run: dict) -> settings.Config:
    where = f"{study.path}: run {run['name']}"
    values = {key: (value, where) for key, value in run.items() if key != "name"}
    values["out_dir"] = str(study.folder / run["name"]), where
    return set_fields(settings.Config(), values)


def params_of(c: settings.Config) -> int:
    """N of a run whose horizon is not known yet; at least 1, since `resolve` is to say what a shape lacks."""
    c.vocab_size = max(c.vocab_size, settings.load_meta(c.dataset)["vocab_size"])
    return max(1, settings.default_N(settings.count_params(c)))


def planned(study: Study, run: dict, leave: int = 0) -> Planned:
    overrides = {key: value for key, value in run.items() if key != "name"}
    return Planned(run["name"], overrides, settings.resolve(config_of(study, run)), leave)


def estimate(plan: list[Planned]) -> None:
    """Fill in `seconds`, by the speed of the study's finished runs, or else of this machine's matmuls."""
    seconds = {p.name: load_json(p.out / "result.json").get("wall_s") for p in plan if p.done()}
    speeds = [p.resolved.C / seconds[p.name] for p in plan if seconds.get(p.name)]
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


def print_plan(plan: list[Planned], held: set[str], jobs: int, states: dict[str, str]) -> None:
    """The plan as a table; `held` are the names of held-out runs, `states` those of SLURM's queue."""
    print(f"{'run':<24}{'N':>12}{'D':>15}{'FLOPs':>11}{'minutes':>9}  status")
    for p in plan:
        r = p.resolved
        words = [p.status()]
        if p.name in states and not p.done():
            words.append(states[p.name].lower())
        if p.name in held:
            words.append("held out")
        print(f"{p.name:<24}{r.N:>12,}{r.D:>15,}{r.C:>11.3g}{p.seconds / 60:>9.1f}  {', '.join(words)}")
    left = sum(p.seconds for p in plan if not p.done())
    processes = "1 process" if jobs == 1 else f"{jobs} processes"
    print(f"{len(plan)} runs, {sum(p.own_flops for p in plan):.3g} FLOPs; about {left / jobs / 60:.0f} "
          f"minutes left on {processes}", flush=True)


def print_missing(study: Study, missing: dict[str, list[str]]) -> None:
    """What a dry run leaves undone: datasets to prepare, and their runs, whose sizes are not known before."""
    for dataset, command in missing.items():
        print(f"would prepare {dataset}: {' '.join(command)}")
    for run in study.runs + study.held_out:
        if dataset_of(run) in missing:
            print(f"{run['name']:<24}to do, once {dataset_of(run)} is prepared")


def default_jobs(plan: list[Planned]) -> int:
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


def require_own(study: Study, plan: list[Planned], held: list[Planned], retrain: bool) -> None:
    """Have no directory hold another run than the sweep file asks for; with `retrain` those are forgotten.

    Raises UserError where there are any, or where they cannot be trained, or forecast, anew.
    """
    found = {p.name: "; ".join(p.changes()) for p in plan}
    others = {name: words for name, words in found.items() if words}
    seals = {p.name: study.folder / "forecasts" / f"{p.name}.json" for p in held}
    sealed = sealed_otherwise([p for p in held if seals[p.name].exists()], seals, others)
    if others and not retrain or sealed:
        raise UserError(other_settings(study, others, sealed))
    if others:
        forget(study, [p for p in plan if p.name in others])
    for p in held:
        if not p.done() and not seals[p.name].exists():
            forecast.require_not_begun(study.folder, p.name)


def forget(study: Study, runs: list[Planned]) -> None:
    """Remove what was trained of `runs`. Raises UserError, before it does, where a process is at it."""
    if busy := [p for p in runs if p.at_work()]:
        raise UserError(f"{study.path}: {names(busy)} cannot be trained anew while a process that has other "
                        "settings trains there; stop it, or wait for it")
    print(f"trains anew: {names(runs)}", flush=True)
    for p in runs:
        p.forget()


def sealed_otherwise(held: list[Planned], seals: dict[str, Path], others: dict[str, str]) -> dict[str, str]:
    """{run: what differs} of sealed runs whose seal is of other settings or text, or whose directory is."""
    found = {}
    for p in held:
        target = forecast.read_seal(seals[p.name])["target"]
        changed = changes(target | target["config"], p.config, p.resolved.meta)
        found[p.name] = "; ".join(changed) or others.get(p.name)
    return {name: words for name, words in found.items() if words}


def other_settings(study: Study, others: dict[str, str], sealed: dict[str, str]) -> str:
    """The line on runs, {name: what differs}, that are not those of the sweep file; and what to do."""
    parts = []
    if others:
        parts.append(f"{study.folder.relative_to(basics.ROOT)} holds runs that were trained with other "
                     f"settings: {by_difference(others)}; give the new runs other names (or the sweep "
                     "file one, if it is another study), restore the setting, or train them anew: --retrain")
    if sealed:
        parts.append(f"a forecast is sealed of {by_difference(sealed)}, and a seal cannot be used again: "
                     "give the model another name, or restore the setting")
    return f"{study.path}: {'; '.join(parts)}"


def by_difference(found: dict[str, str], most: int = 20) -> str:
    """'a, b (learning_rate 0.001, not 0.002); c (seed 1, not 2)': runs by what differs, the first few."""
    runs = {}
    for name in list(found)[:most]:
        runs.setdefault(found[name], []).append(name)
    more = f"; and {len(found) - most} more, see --dry_run" if len(found) > most else ""
    return "; ".join(f"{', '.join(names)} ({words})" for words, names in runs.items()) + more


def print_unlisted(study: Study, plan: list[Planned]) -> None:
    """Name the run directories of the study that the sweep file does not: they are in no table."""
    known = {*OWN, *(p.name for p in plan)}
    found = sorted(path.parent.name for path in study.folder.glob("*/config.json"))
    found = [name for name in found if name not in known]
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        print(f"not in {study.path}, and so not in runs.csv: {', '.join(found[:10])}{more}", flush=True)


def parse(folder: Path, fitted: list[Planned]) -> None:
    """out/STUDY/runs.csv and curves.csv from the run directories; held-out runs stay out of runs.csv."""
    rows, problems = logs.parse_study(folder)
    for problem in problems:
        print(problem)
    names = {p.name for p in fitted}
    logs.write_runs(folder / "runs.csv", [row for row in rows if row["run"] in names])
    logs.write_curves(folder, folder / "curves.csv")


def seal_all(folder: Path, held: list[Planned], law: dict, anyway: bool) -> list[Planned]:
    """Forecast every held-out run that is not trained yet. It is told the seal's hash when it starts.

    Returns those that are not to start: the law cannot forecast them, or only if it must `anyway`.
    """
    todo = [p for p in held if not p.done()]
    left = []
    if forecast.refusal(law, anyway):
        left = [p for p in todo if not forecast.seal_path(folder, p.name).exists()]
        todo = [p for p in todo if p not in left]
    for p in todo:
        sealed = forecast.seal(folder, law, p.name, p.resolved, anyway)
        if p is todo[0]:                               # what error to expect, before it can be known
            print(forecast.rollout_text(sealed["rollout"]))
        p.overrides["forecast"] = sealed["sha256"]
        print(f"forecast of {p.name}: {sealed['predicted']:.4f} ({sealed['lo95']:.4f} to "
              f"{sealed['hi95']:.4f}), sha256 {sealed['sha256'][:12]}", flush=True)
    print_seals(folder, [p for p in held if p not in left])
    return left


def print_seals(folder: Path, held: list[Planned]) -> None:
    """Say of held-out runs what their score cannot: that the seal is of other runs, or that there is none."""
    now = forecast.table_sha256(folder)
    for p in held:
        path = forecast.seal_path(folder, p.name)
        if not path.exists():
            print(f"{p.name}: not scored, for no forecast was sealed before it was trained", flush=True)
        elif forecast.read_seal(path).get("runs_sha256", now) != now:
            print(f"{p.name}: its forecast was sealed from an earlier table than runs.csv now is", flush=True)


# ---------------------------------------------------------------- the end


def print_end(folder: Path, law: dict, scores: list[dict], pictures: list[Path], plan: list[Planned]) -> None:
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


def next_commands(where: Path, law: dict, scores: list[dict], plan: list[Planned]) -> list[str]:
    best = max((p for p in plan if p.done()), key=lambda p: p.resolved.C)
    commands = [f"python sample.py --out_dir={where / best.name}"]
    if "surface" in law:
        commands.append(f"python -m scaling.plan {where}/fit.json --flops={10 * best.resolved.C:.0e}")
    if scores:
        commands.append(f"python -m scaling.forecast board {where}")
    return commands


# ---------------------------------------------------------------- command line


def carry_out(study: Study, fitted: list[Planned], held: list[Planned], launch, anyway: bool) -> list[str]:
    """Train by `launch(plan)`, then fit, forecast and draw. Returns a line for each run that failed."""
    folder = study.folder
    scores = []
    failed = launch(fitted)
    parse(folder, fitted)
    law = fit.fit_study(folder)
    if held and not failed:
        left = seal_all(folder, held, law, anyway)
        ready = [p for p in held if p not in left]
        if ready:
            failed = launch(ready)
            parse(folder, fitted)                      # again, for the curves of the held-out runs
            scores = forecast.score(folder)
        # What was trained is not lost: it is drawn and told below, without a forecast.
        failed += [f"{p.name}: no forecast, since {forecast.refusal(law)}" for p in left]
    pictures = plots.draw_study(folder)
    print_end(folder, law, scores, pictures, fitted + held)
    return failed


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaling.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="scaling/sweeps/NAME.py")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; default: one a core; 1 on a GPU")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="slurm: submit the runs as a job array (the sweep file's `slurm` says where)")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument("--retrain", action="store_true",
                        help="train anew what is there with other settings, or on other text")
    parser.add_argument("--anyway", action="store_true",
                        help="forecast the held-out runs by a law that its fit calls undetermined, too")
    a = parser.parse_args(args)
    study = read_sweep(a.sweep)
    by_slurm = a.launcher == "slurm"
    if by_slurm:
        slurm.require_usable(study.slurm, a.sweep)
    states = slurm.queue(study.folder)
    missing = missing_data(study)
    if not a.dry_run:
        prepare_data(missing)
        missing = {}
    fitted = make_plan(study, study.runs, missing)
    held = make_plan(study, study.held_out, missing)
    plan = fitted + held
    require_unique(plan, a.sweep)
    if by_slurm:
        jobs = study.slurm.get("array_parallelism", len(plan))
        launch = partial(slurm.run, options=study.slurm, folder=study.folder)
    else:
        jobs = a.jobs if a.jobs > 0 else default_jobs(plan)
        launch = partial(local.run, jobs=jobs)
    print_missing(study, missing)
    if plan:
        estimate(plan)
        print_plan(plan, {p.name for p in held}, jobs, states)
    if not missing:                                    # else it is not known what all runs are called
        print_unlisted(study, plan)
    if a.dry_run:
        return 0
    if states and not by_slurm:
        raise UserError(f"{study.name}: SLURM has runs of it; add --launcher=slurm, or scancel them first")
    with alone_in(study.folder):
        require_own(study, plan, held, a.retrain)
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
