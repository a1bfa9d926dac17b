"""A sweep file: its runs and what they are made of, each as train.py will be told (see scaling.sweep)."""
import collections
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from config import corpus, settings
from config.configurator import read_file, set_fields
from config.settings import Config
from runtime import basics
from runtime.basics import UserError, nearest, plain_name
from scaling.launch import slurm
from scaling.launch.planned import Planned, Runs

OWN = ("lock", "runs.csv", "curves.csv", "fit.json", "fit.txt", "forecasts.csv", "forecasts", "figures",
       "slurm")                        # the study's own files, beside its run directories


# ---- the file ----


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
        dataset = dataset_of(run)
        if not plain_name(dataset):                    # its prepare.py will be run
            raise UserError(f"dataset {dataset!r} must be the name of a directory under data/")
        runs += with_seeds(run, path)
    return runs


def with_seeds(run: dict, path: str) -> list[dict]:
    """`run` once for each of its `seeds`, an int, from its `seed` on: their spread is fit.py's noise."""
    if "seeds" not in run:
        return [run]
    seeds = run.pop("seeds")
    first = run.get("seed", Config.seed)
    if type(seeds) is not int or seeds < 1 or type(first) is not int:
        raise UserError(f"{path}: run {run['name']}: `seeds` must say how many, 1 or more (and `seed` which "
                        f"is the first), not {seeds!r}")
    return [run | {"name": f"{run['name']}_s{i + 1}", "seed": first + i} for i in range(seeds)]


# ---- its data ----


def dataset_of(run: dict) -> str:
    return run.get("dataset", Config.dataset)


def missing_data(study: Study) -> dict[str, list[str]]:
    """{dataset: the command, less python, that prepares it} of what is not there. Raises UserError.

    data/NAME/prepare.py makes it (NAME or NAME_TOKENIZER), or what `prepare` of the sweep file says.
    """
    found = {}
    for dataset in sorted({dataset_of(run) for run in study.runs + study.held_out}):
        if corpus.prepared(dataset):
            continue
        name, _, tokenizer = dataset.partition("_")
        flags = [f"--tokenizer={tokenizer}"] if tokenizer else []
        if dataset in study.prepare:
            name, *flags = study.prepare[dataset].split()
            tokenizer = ""
        script = basics.ROOT / "data" / name / "prepare.py"
        if (not plain_name(name) or not script.exists()
                or tokenizer and tokenizer not in corpus.tokenizers(script)):
            raise UserError(f"dataset {dataset!r} is not prepared; {corpus.how_to_prepare(dataset)}")
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
        corpus.load_meta(dataset)                    # it may have made another one


# ---- its plan ----


def plan_study(study: Study) -> tuple[Runs, Runs]:
    """(the runs that are fitted, those that are held out). Raises UserError."""
    fitted = make_plan(study, study.runs)
    held = make_plan(study, study.held_out)
    for name, times in collections.Counter(p.name for p in fitted + held).items():
        if times > 1:                                  # they would share a directory
            raise UserError(f"{study.path}: two runs are named {name!r}")
    return fitted, held


def make_plan(study: Study, runs: list[dict]) -> Runs:
    """The plan of `runs`. Raises UserError, with the name of the run."""
    plan = []
    for run in runs:
        where = f"{study.path}: run {run['name']}: "
        try:
            plan += plan_run(study, run)
        except UserError as e:                         # some begin so already, see config_of
            raise UserError(where + str(e).removeprefix(where)) from None
    return plan


def plan_run(study: Study, run: dict) -> Runs:
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
    c = config_of(study, run)
    c.vocab_size = max(c.vocab_size, meta_of(c)["vocab_size"])
    N = max(1, settings.default_N(settings.count_params(c)))           # of none `resolve` says what it lacks
    runs = []
    for C in sorted(budgets):
        level = f"_{C:.3g}".replace("e+", "e") if len(budgets) > 1 else ""
        runs.append(run | {"name": run["name"] + level, "target_tokens": C / 6 / N})
    return runs


def is_budget(C) -> bool:
    return isinstance(C, (int, float)) and not isinstance(C, bool) and 0 < C < math.inf


def config_of(study: Study, run: dict) -> Config:
    where = f"{study.path}: run {run['name']}"
    if "out_dir" in run:
        raise UserError(f"{where}: out_dir is out/STUDY/RUN for all runs of a study; leave it out")
    values = {key: (value, where) for key, value in run.items() if key != "name"}
    values["out_dir"] = str(study.folder / run["name"]), where
    return set_fields(Config(), values)


def meta_of(c: Config) -> dict:
    """meta.json of the run's text or, before it is prepared, of one that allows the most steps.

    What such a run will cost is not known yet. But whatever is refused then, no text could mend.
    """
    if corpus.prepared(c.dataset):
        return corpus.load_meta(c.dataset)
    vocab_size = 2 ** 16 if c.tokens_per_param != -1 else 1
    return dict(vocab_size=vocab_size, train_tokens=2 ** 62, val_tokens=2 ** 62)


def planned(study: Study, run: dict, leave: int = 0) -> Planned:
    overrides = {key: value for key, value in run.items() if key != "name"}
    c = config_of(study, run)
    return Planned(run["name"], overrides, settings.resolve(c, meta=meta_of(c)), leave)


def require_one_trunk(alone: list[Config]) -> None:
    """Raise UserError where the runs of several budgets, shortest first, are not alike until they cool."""
    if alone[0].schedule != "wsd":
        raise UserError("`budgets` needs schedule='wsd', whose shorter runs are branches of the longest; of "
                        f"{alone[0].schedule!r} give each `budget` a run of its own")
    for name in ("warmup_iters", "batch_size", "learning_rate"):
        found = [getattr(c, name) for c in alone]
        if len(set(found)) > 1:
            guess = f" (that of the shortest is {found[0]:g})" if corpus.prepared(alone[0].dataset) else ""
            raise UserError(f"`budgets` needs one {name} for all, and -1 gives each its own; set it{guess}")


def branch(study: Study, trunk: Planned, run: dict, step: int) -> Planned:
    """The run as a branch that leaves `trunk` at `step`.

    A budget may be added when the trunk has passed that step, and kept nothing there. Then it leaves at the
    latest step before that was kept, or trains whole: what comes of it is the same.
    """
    found = planned(study, run | {"branch": str(trunk.out / f"ckpt_{step}.pt")}, step)
    at = trunk.config.max_iters if trunk.done() else trunk.log_tail().get("step", 0)
    if found.ready() or found.done() or not trunk.begun() or trunk.changes() or at <= step:
        return found
    kept = {int(path.stem.removeprefix("ckpt_")): str(path) for path in trunk.out.glob("ckpt_[0-9]*.pt")}
    step = max((k for k in kept if k < step), default=0)
    return planned(study, run | {"branch": kept.get(step, "")}, step)
