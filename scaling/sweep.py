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
import collections
import contextlib
import heapq
import math
import shlex
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
from runtime.basics import Parser, UserError, exit_cleanly, load_json, nearest, plain_name
from scaling import fit, forecast, logs, plots
from scaling.launch import local, slurm
from scaling.launch.planned import Planned, changes, names
from scaling.report import amount

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


def require_file(path: str) -> None:
    """Raise UserError unless `path` is a Python file, with the sweep that was meant, or those there are."""
    if path.endswith(".py") and Path(path).is_file():
        return
    name = Path(path).stem
    known = sorted(file.stem for file in (basics.ROOT / "scaling" / "sweeps").glob("*.py"))
    fix = f"did you mean scaling/sweeps/{name}.py?"
    if name not in known:
        fix = f"scaling/sweeps/NAME.py has {', '.join(known)}{nearest(name, known)}"
    raise UserError(f"no such sweep file: {path}; {fix}")


def read_sweep(path: str) -> Study:
    """The study in the sweep file `path`, named as the file. Raises UserError."""
    require_file(path)
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
            tokenizer = ""
        script = basics.ROOT / "data" / name / "prepare.py"
        if (not plain_name(name) or not script.exists()
                or tokenizer and tokenizer not in settings.tokenizers(script)):
            raise UserError(f"dataset {dataset!r} is not prepared; {settings.how_to_prepare(dataset)}")
        found[dataset] = [f"data/{name}/prepare.py", *flags]
    return found


def prepare_data(missing: dict[str, list[str]], dry_run: bool = False) -> None:
    """Run what `missing_data` found; of a dry run, say so. Raises UserError."""
    for dataset, (script, *flags) in missing.items():
        flags.append(f"--out_dir={basics.ROOT / 'data' / dataset}")     # where it would not by itself, too
        does = "would prepare" if dry_run else "preparing"
        print(f"{does} {dataset}: {' '.join([script, *flags])}", flush=True)
        if dry_run:
            continue
        if subprocess.run([sys.executable, basics.ROOT / script, *flags]).returncode:
            raise UserError(f"{script} failed; its line above says why")
        settings.load_meta(dataset)                    # it may have made another one


# ---------------------------------------------------------------- the plan


def require_unique(plan: list[Planned], path: str) -> None:
    """Two runs of one name would share a directory."""
    for name, times in collections.Counter(p.name for p in plan).items():
        if times > 1:
            raise UserError(f"{path}: two runs are named {name!r}")


def plan_study(study: Study) -> tuple[list[Planned], list[Planned]]:
    """(the runs that are fitted, those that are held out). Raises UserError."""
    fitted = make_plan(study, study.runs)
    held = make_plan(study, study.held_out)
    require_unique(fitted + held, study.path)
    return fitted, held


def make_plan(study: Study, runs: list[dict]) -> list[Planned]:
    """The plan of `runs`. Raises UserError, with the name of the run."""
    plan = []
    for run in runs:
        where = f"{study.path}: run {run['name']}: "
        try:
            plan += plan_run(study, run)
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
    require_one_trunk(alone)
    steps = [settings.cooldown_start(c) for c in alone[:-1]]
    trunk = planned(study, runs[-1] | {"keep_steps": ",".join(map(str, steps))})
    # A branch's log begins with its trunk's, so both have lines at the same steps.
    same = dict(log_interval=trunk.config.log_interval, eval_interval=trunk.config.eval_interval)
    return [trunk, *(branch(study, trunk, run | same, step) for run, step in zip(runs, steps))]


def require_one_trunk(alone: list[settings.Config]) -> None:
    """Raise UserError where the runs of several budgets, shortest first, are not alike until they cool."""
    if alone[0].schedule != "wsd":
        raise UserError("`budgets` needs schedule='wsd', whose shorter runs are branches of the longest; of "
                        f"{alone[0].schedule!r} give each `budget` a run of its own")
    for name in ("warmup_iters", "batch_size", "learning_rate"):
        found = [getattr(c, name) for c in alone]
        if len(set(found)) > 1:
            shortest = f" (that of the shortest is {found[0]:g})" if prepared(alone[0]) else ""
            raise UserError(f"`budgets` needs one {name} for all, and -1 gives each its own; set it"
                            f"{shortest}")


def branch(study: Study, trunk: Planned, run: dict, step: int) -> Planned:
    """The run as a branch that leaves `trunk` at `step`.

    A budget may be added when the trunk has passed that step, and kept nothing there. Then it leaves at the
    latest step before that was kept, or trains whole: what comes of it is the same.
    """
    def leaving(step):
        at = {"branch": str(trunk.out / f"ckpt_{step}.pt")} if step else {}
        return planned(study, run | at, step)
    found = leaving(step)
    at = trunk.config.max_iters if trunk.done() else trunk.log_tail().get("step", 0)
    if found.ready() or found.done() or not trunk.begun() or trunk.changes() or at <= step:
        return found
    kept = [int(path.stem.removeprefix("ckpt_")) for path in trunk.out.glob("ckpt_[0-9]*.pt")]
    return leaving(max((k for k in kept if k < step), default=0))


def levels(study: Study, run: dict) -> list[dict]:
    """The run once for each of its budgets, smallest first, with tokens instead; or as it is, without any."""
    given = [name for name in ("budget", "budgets") if name in run]
    if not given:
        return [run]
    given += [name for name in settings.HORIZONS if run.get(name, -1) != -1]
    if len(given) > 1:
        raise UserError(f"set exactly one horizon, not {' and '.join(given)}; leave one out")
    budgets = run.get("budgets", [run.get("budget")])
    if not isinstance(budgets, (list, tuple)) or not budgets or not all(map(is_budget, budgets)):
        words = "list numbers" if "budgets" in run else "be a number"
        raise UserError(f"`{given[0]}` must {words} of FLOPs above 0, not {run[given[0]]!r}")
    run = {key: value for key, value in run.items() if key not in given}
    N = params_of(config_of(study, run))
    runs = []
    for C in sorted(budgets):
        level = f"_{C:.3g}".replace("e+", "e") if len(budgets) > 1 else ""
        runs.append(run | {"name": run["name"] + level, "target_tokens": C / 6 / N})
    return runs


def is_budget(C) -> bool:
    return isinstance(C, (int, float)) and not isinstance(C, bool) and 0 < C < math.inf


def config_of(study: Study, run: dict) -> settings.Config:
    where = f"{study.path}: run {run['name']}"
    values = {key: (value, where) for key, value in run.items() if key != "name"}
    values["out_dir"] = str(study.folder / run["name"]), where
    return set_fields(settings.Config(), values)


def params_of(c: settings.Config) -> int:
    """N of a run whose horizon is not known yet; at least 1, since `resolve` is to say what a shape lacks."""
    c.vocab_size = max(c.vocab_size, meta_of(c)["vocab_size"])
    return max(1, settings.default_N(settings.count_params(c)))


def prepared(c: settings.Config) -> bool:
    return (basics.ROOT / "data" / c.dataset / "meta.json").exists()


def meta_of(c: settings.Config) -> dict:
    """meta.json of the run's text or, before it is prepared, of one that allows the most steps.

    What such a run will cost is not known yet. But whatever is refused then, no text could mend.
    """
    if prepared(c):
        return settings.load_meta(c.dataset)
    vocab_size = 2 ** 16 if c.tokens_per_param != -1 else 1
    return dict(vocab_size=vocab_size, train_tokens=2 ** 62, val_tokens=2 ** 62)


def planned(study: Study, run: dict, leave: int = 0) -> Planned:
    overrides = {key: value for key, value in run.items() if key != "name"}
    c = config_of(study, run)
    return Planned(run["name"], overrides, settings.resolve(c, meta=meta_of(c)), leave)


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


def seconds_left(plan: list[Planned], jobs: int) -> float:
    """Until all of `plan` is done, `jobs` at a time as `local.run` has them: the longest that may start."""
    todo = sorted((p for p in plan if not p.done()), key=lambda p: -p.seconds)
    opens = {p.config.branch: 0.0 for p in todo if p.ready()}      # {checkpoint: when its trunk has kept it}
    free = [0.0] * min(jobs, len(todo))                # when each process has ended what it does
    while todo:
        now = heapq.heappop(free)
        first = next((i for i, p in enumerate(todo) if opens.get(p.config.branch, math.inf) <= now), None)
        if first is None:                              # all wait for their trunks
            first = min(range(len(todo)), key=lambda i: opens.get(todo[i].config.branch, math.inf))
            now = opens.get(todo[first].config.branch, now)
        p = todo.pop(first)
        left = p.seconds * (1 - p.progress() / p.own_flops)
        for step in settings.kept_steps(p.config):
            opens[str(p.out / f"ckpt_{step}.pt")] = now + left * step / p.config.max_iters
        heapq.heappush(free, now + left)
    return max(free, default=0.0)


def print_found(study: Study, plan: list[Planned]) -> None:
    """What a user reads first: the study, how much of it is done, and its text."""
    done = sum(p.done() for p in plan)
    texts = ", ".join(sorted({p.config.dataset for p in plan}))
    print(f"{study.name}: {amount(len(plan), 'run')} on {texts}, {done} done, {len(plan) - done} to do",
          flush=True)


def print_plan(plan: list[Planned], held: set[str], states: dict[str, str]) -> None:
    """The plan as a table; `held` are the names of held-out runs, `states` those of SLURM's queue.

    What a run on text that is not prepared will cost is not known: it depends on the vocabulary.
    """
    wide = max(24, *(len(p.name) + 1 for p in plan))
    print(f"{'run':<{wide}}{'N':>12}{'D':>15}{'epochs':>8}{'FLOPs':>11}{'minutes':>9}  status")
    for p in plan:
        words = [p.status() if prepared(p.config) else f"to do, once {p.config.dataset} is prepared"]
        if p.name in states and not p.done():
            words.append(states[p.name].lower())
        if p.name in held:
            words.append("held out")
        print(f"{p.name:<{wide}}{numbers(p) if prepared(p.config) else '':55}  {', '.join(words)}")
    for line in doubts(plan):
        print(f"warning: {line}")


def numbers(p: Planned) -> str:
    """N, D, passes over the text, FLOPs and minutes of a run, as columns."""
    r = p.resolved
    epoch = settings.horizon_tokens(settings.Config(epochs=1, block_size=p.config.block_size), r.meta, r.N, 1)
    return f"{r.N:>12,}{r.D:>15,}{r.D / epoch:>8.3g}{r.C:>11.3g}{p.seconds / 60:>9.1f}"


def doubts(plan: list[Planned]) -> list[str]:
    """What train.py will warn of where hardly anybody reads it: a line for all runs that it is true of."""
    found = {}
    for p in plan:
        for line in [] if p.done() or not prepared(p.config) else settings.doubts(p.config):
            found.setdefault(line, []).append(p)
    return [f"{line} ({names(runs[:3])}{', ...' if runs[3:] else ''})" for line, runs in found.items()]


def print_cost(fitted: list[Planned], held: list[Planned], jobs: int) -> None:
    """FLOPs of all whose text is prepared, and the minutes left: what is held out trains after the others."""
    parts = [[p for p in runs if prepared(p.config)] for runs in (fitted, held)]
    plan = parts[0] + parts[1]
    if plan:
        left = sum(seconds_left(part, jobs) for part in parts)
        processes = "one process" if jobs == 1 else f"{jobs} processes"
        print(f"{amount(len(plan), 'run')}, {sum(p.own_flops for p in plan):.3g} FLOPs; about "
              f"{amount(math.ceil(left / 60), 'minute')} left on {processes}", flush=True)


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


def require_own(study: Study, plan: list[Planned], held: list[Planned], retrain: bool,
                queued=()) -> list[Planned]:
    """Have no directory hold another run than the sweep file asks for, but those to `retrain`: these.

    Raises UserError where there are any, or where they cannot be trained, or forecast, anew; `queued` are the
    names of those that SLURM has.
    """
    found = {p.name: "; ".join(p.changes()) for p in plan}
    others = {name: words for name, words in found.items() if words}
    seals = {p.name: study.folder / "forecasts" / f"{p.name}.json" for p in held}
    sealed = sealed_otherwise([p for p in held if seals[p.name].exists()], seals, others)
    if others and not retrain or sealed:
        raise UserError(other_settings(study, others, sealed))
    again = [p for p in plan if p.name in others]
    if busy := [p for p in again if p.at_work() or p.name in queued]:
        raise UserError(f"{study.path}: {names(busy)} cannot be trained anew while a process that has other "
                        "settings trains there; stop it (a job of SLURM: scancel), or wait for it")
    for p in held:
        if not p.done() and not seals[p.name].exists() and p not in again:
            forecast.require_not_begun(study.folder, p.name)
    return again


def forget(runs: list[Planned]) -> None:
    """Remove what was trained of `runs`."""
    if runs:
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
    study = shlex.quote(str(where))
    commands = [f"python sample.py --out_dir={shlex.quote(str(where / best.name))}"]
    if (basics.ROOT / "scaling" / "recipe" / f"{where.name}.py").exists():     # what the study is for
        commands.append(f"python -m scaling.recipe.{where.name} {study}")
    if "surface" in law:
        commands.append(f"python -m scaling.plan {study}/fit.json --flops={10 * best.resolved.C:.0e}")
    if scores:
        commands.append(f"python -m scaling.forecast board {study}")
    return commands


# ---------------------------------------------------------------- command line


def carry_out(study: Study, fitted: list[Planned], held: list[Planned], launch, anyway: bool) -> list[str]:
    """Train by `launch(plan)`, then fit, forecast and draw. Returns a line for each run that failed."""
    folder = study.folder
    scores = []
    failed = launch(fitted)
    if not any(p.done() for p in fitted):              # there is nothing to fit
        return failed
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
    print_unlisted(study, plan)
    if a.dry_run:
        known, later = ([p for p in runs if prepared(p.config)] for runs in (plan, held))
        if again := require_own(study, known, later, a.retrain, states):
            print(f"would train anew: {names(again)}")
        print("next: the same command without --dry_run")
        return 0
    with alone_in(study.folder):
        forget(require_own(study, plan, held, a.retrain, states))
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
