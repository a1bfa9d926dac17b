"""Plan a sweep, run what is missing, then parse, fit, forecast and draw.

    python -m scaling.sweep scaling/sweeps/laptop.py [--dry_run] [--jobs=N] [--launcher=slurm]

A sweep file is plain Python (your own program: run only files you trust) that leaves behind
    runs       a list of dicts: `name` and any train.py settings
    held_out   the same, for models that are forecast before they are trained (optional)
    base       settings shared by all (optional)
    prepare    {dataset: "NAME OPTIONS"} for what data/NAME/prepare.py does not make by default (optional)
    slurm      where --launcher=slurm runs them: dict(time=MINUTES, ...), see scaling/launch/slurm.py (optional)
Instead of train.py's horizons a run may give `budget`, 6 N D in FLOPs (N: non-embedding + head), or
`budgets`, a list: with the wsd schedule the longest trains whole, the others are cooldown branches from its
checkpoints. `seeds` = k makes k runs of it.
`seeds=k` makes k runs of one, NAME_s1 to NAME_sk, with consecutive seeds.
Each run trains in a process of its own into out/STUDY/NAME. A killed sweep loses nothing: run it again.
"""
import argparse
import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # before torch is imported
from tqdm import tqdm

import train
from config.configurator import read_file, set_fields
from runtime.basics import UserError, exit_cleanly, nearest, plain_name
from scaling import fit, forecast, logs, plots
from scaling.launch import slurm
from scaling.tables.csv import read_table, write_table

OUT = train.ROOT / "out"
SWEEP_NAMES = ("base", "runs", "held_out", "prepare", "slurm")
OWN = ("lock", "runs.csv", "curves.csv", "fit.json", "fit_card.json", "forecasts.csv", "forecasts", "figures",
       "slurm")                                        # the study's own files, beside its run directories
QUEUE_SECONDS = 10                                     # from one look at SLURM's queue to the next


@dataclasses.dataclass
class Planned:
    """One run of the sweep: its resolved configuration and what it will cost."""
    name: str
    overrides: dict                 # what the sweep file says, for the command line
    config: train.Config
    params: int                     # non-embedding plus head
    tokens: int
    flops: float                    # exact, of the whole run
    spent: float = 1.0              # share of the run that it trains itself: a branch only its cooldown
    seconds: float = 0.0            # estimated, alone on one core or GPU
    process: subprocess.Popen | None = None

    @property
    def out(self) -> Path:
        return Path(self.config.out_dir)

    def done(self) -> bool:
        return (self.out / "result.json").exists()

    def progress(self) -> float:
        """FLOPs of this run's own (a branch: of its cooldown) that are done so far."""
        done = self.flops if self.done() else min(self.flops, self.log_tail().get("flops", 0))
        return max(0.0, done - (1 - self.spent) * self.flops)

    def ready(self) -> bool:
        """A branch can start when its trunk has left it a checkpoint, or has ended without."""
        return not self.config.branch or Path(self.config.branch).exists()

    def log_tail(self) -> dict:
        """The last whole record of log.jsonl, {} before the first."""
        with contextlib.suppress(OSError, ValueError, IndexError), open(self.out / "log.jsonl", "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 2000))
            return json.loads(f.read().splitlines()[-1])
        return {}


# ---------------------------------------------------------------- plan


def read_sweep(path: str) -> tuple[str, list[dict], list[dict]]:
    """(study name, runs, held-out runs) of a sweep file; each run is its settings with `name`."""
    found = {k: v for k, (v, _) in read_file(path).items()}
    for key in found:
        if key not in SWEEP_NAMES:
            raise UserError(f"{path}: unknown name {key!r}{nearest(key, SWEEP_NAMES)}; "
                            "start the names of helpers with an underscore")
    slurm.check_options(found.get("slurm", {}), path)
    for key in found.keys() & {"runs", "held_out"}:
        if not isinstance(found[key], list) or not all(isinstance(run, dict) for run in found[key]):
            raise UserError(f"{path}: `{key}` must be a list of dicts, one for each run")
    if not isinstance(found.get("base", {}), dict):
        raise UserError(f"{path}: `base` must be a dict of settings")
    lists = [[copy for run in found.get(key, []) for copy in with_seeds(found.get("base", {}) | run, path)]
             for key in ("runs", "held_out")]
    names, study = [run.get("name") for runs in lists for run in runs], Path(path).stem
    if not lists[0]:
        raise UserError(f"{path}: `runs` is missing or empty")
    if not plain_name(study):
        raise UserError(f"{path}: a study is named as its file, and {study!r} is no name for a directory")
    for name in names:
        if not plain_name(name) or name in OWN:
            raise UserError(f"{path}: every run needs a `name` that is a plain file name, not {name!r}")
    require_unique(names, path)
    return study, *lists


def require_unique(names: list[str], path: str) -> None:
    """Two runs of one name would share a directory."""
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise UserError(f"{path}: two runs are named {name!r}")


def with_seeds(run: dict, path: str) -> list[dict]:
    """`run` once for each of its `seeds`, an int, from its `seed` on: their spread is fit.py's noise."""
    if "seeds" not in run or not isinstance(run.get("name"), str):      # read_sweep refuses a missing name
        return [run]
    seeds, first = run["seeds"], run.get("seed", train.Config.seed)
    if type(seeds) is not int or seeds < 1 or type(first) is not int:
        raise UserError(f"{path}: run {run['name']}: `seeds` must say how many, 1 or more (and `seed` which "
                        f"is the first), not {seeds!r}")
    run = {k: v for k, v in run.items() if k != "seeds"}
    return [run | {"name": f"{run['name']}_s{i + 1}", "seed": first + i} for i in range(seeds)]


def resolve(study: str, run: dict, path: str) -> tuple[train.Config, dict, dict]:
    """(resolved config, parameters, FLOPs per token) of a run, as train.py has them. Errors name the run."""
    where = f"{path}: run {run['name']}"
    try:
        settings = {k: (v, where) for k, v in run.items() if k != "name"}
        c = set_fields(train.Config(), settings | {"out_dir": (str(OUT / study / run["name"]), where)})
        meta = train.load_meta(c.dataset)
        train.check(c, meta, 1)
        c = train.derive(c, meta, train.find_device(c.device), 1)
    except UserError as e:
        raise UserError(str(e) if str(e).startswith(where) else f"{where}: {e}") from None
    return c, *train.shape_counts(c)


def plan_run(study: str, run: dict, path: str) -> list["Planned"]:
    """The run, or where it lists `budgets` the longest run and the branches that leave it."""
    budgets = run.get("budgets", [run["budget"]] if "budget" in run else [])
    run = {k: v for k, v in run.items() if k not in ("budget", "budgets")}
    if not isinstance(budgets, (list, tuple)) or not all(isinstance(C, (int, float)) for C in budgets):
        raise UserError(f"{path}: run {run['name']}: `budgets` must list numbers of FLOPs")
    if not budgets:
        return [planned(study, run, path)]
    budgets = sorted(budgets)
    c, params, _ = resolve(study, run | {"max_iters": 10 ** 9}, path)
    tokens = [C / 6 / (params["non_embedding"] + params["head"]) for C in budgets]
    levels = [f"_{C:.3g}".replace("e+", "e") if len(budgets) > 1 else "" for C in budgets]
    names = [run["name"] + level for level in levels]
    runs = [run | {"name": name, "target_tokens": D} for name, D in zip(names, tokens)]
    if len(budgets) == 1:
        return [planned(study, runs[0], path)]
    if c.schedule != "wsd" or c.warmup_iters > 0.05 * 10 ** 9:
        raise UserError(f"{path}: run {run['name']}: `budgets` needs schedule='wsd' and one warmup_iters")
    *short, longest = runs
    branches = []
    for branch in short:                               # each leaves the longest where its own cooldown begins
        steps = resolve(study, branch, path)[0].max_iters
        leave = steps - max(1, round(c.cooldown_frac * steps))
        branches.append((branch, leave, OUT / study / longest["name"] / f"ckpt_{leave}.pt"))
    trunk = planned(study, longest | {"keep_steps": ",".join(str(leave) for _, leave, _ in branches)}, path)
    same = dict(log_interval=trunk.config.log_interval, eval_interval=trunk.config.eval_interval)
    return [trunk] + [planned(study, branch | same | {"branch": str(ckpt)}, path, leave)
                      for branch, leave, ckpt in branches]


def planned(study: str, run: dict, path: str, leave: int = 0) -> "Planned":
    c, params, flops = resolve(study, run, path)
    tokens = c.max_iters * c.batch_size * c.block_size
    overrides = {k: v for k, v in run.items() if k != "name"}
    return Planned(run["name"], overrides, c, params["non_embedding"] + params["head"], tokens,
                   tokens * flops["total"], spent=(c.max_iters - leave) / c.max_iters)


def prepare_data(runs: list[dict], path: str) -> None:
    """Run data/NAME/prepare.py for every dataset of the sweep that is not there (NAME or NAME_TOKENIZER).

    `prepare` in the sweep file `path` may say otherwise of a dataset: NAME and the options that make it.
    """
    recipes = read_file(path).get("prepare", ({}, ""))[0]
    if not isinstance(recipes, dict) or not all(isinstance(x, str) and x for p in recipes.items() for x in p):
        raise UserError(f'{path}: `prepare` must be a dict such as {{"mine_100k": "mine --max_tokens=1e5"}}')
    datasets = [run.get("dataset", train.Config.dataset) for run in runs]
    for dataset in datasets:
        if not plain_name(dataset):                    # its prepare.py will be run
            raise UserError(f"dataset {dataset!r} must be the name of a directory under data/")
    for dataset in sorted(set(datasets)):
        if (train.ROOT / "data" / dataset / "meta.json").exists():
            continue
        name, _, tokenizer = dataset.partition("_")
        flags = [f"--tokenizer={tokenizer}"] if tokenizer else []
        if dataset in recipes:
            name, *flags = *recipes[dataset].split(), f"--out_dir={train.ROOT / 'data' / dataset}"
        script = train.ROOT / "data" / name / "prepare.py"
        if not plain_name(name) or not script.exists():
            raise UserError(f"dataset {dataset!r} is not prepared, and data/{name}/prepare.py does not exist")
        print(f"preparing {dataset}: {' '.join([str(script.relative_to(train.ROOT)), *flags])}", flush=True)
        if subprocess.run([sys.executable, script, *flags]).returncode:
            raise UserError(f"{script.relative_to(train.ROOT)} failed; its line above says why")


def time_step(c: train.Config) -> tuple[float, float]:
    """(seconds, FLOPs) of one small training step on one core: the shorter of five."""
    import torch
    model = train.GPT(train.model_config(c))
    x = torch.zeros(4, c.block_size, dtype=torch.long)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        model(x, x)[1].backward()
        times.append(time.perf_counter() - start)
    return min(times[1:]), x.numel() * model.flops_per_token()["total"]


def estimate(plan: list[Planned]) -> None:
    """Fill in `seconds`: by the rate of finished runs where there are any, else by two timed steps."""
    done = {p.name: json.loads((p.out / "result.json").read_text(encoding="utf-8")) for p in plan if p.done()}
    rates = sorted(p.flops / done[p.name]["wall_s"] for p in plan if p.name in done)
    if rates:
        for p in plan:
            p.seconds = p.spent * p.flops / rates[len(rates) // 2]
        return
    small = train.Config(n_layer=1, n_embd=16, n_head=1, block_size=64, vocab_size=256)
    overhead, _ = time_step(small)                     # a step this small is all dispatch
    seconds, flops = time_step(dataclasses.replace(small, n_embd=256, block_size=256))
    per_flop = max(seconds - overhead, seconds / 2) / flops
    for p in plan:
        p.seconds = p.spent * (p.flops * per_flop + p.config.max_iters * p.config.n_layer * overhead)


def print_plan(plan: list[Planned], held: set[str], jobs: int, states: dict[str, str]) -> None:
    """The plan as a table; `states` are those of SLURM's queue."""
    print(f"{'run':<24}{'N':>12}{'D':>15}{'FLOPs':>11}{'minutes':>9}  status")
    for p in plan:
        step = p.log_tail().get("step")
        status = "done" if p.done() else f"at step {step:,}" if step else "to do"
        status += f", {states[p.name].lower()}" if p.name in states and not p.done() else ""
        print(f"{p.name:<24}{p.params:>12,}{p.tokens:>15,}{p.flops:>11.3g}{p.seconds / 60:>9.1f}  {status}"
              + (", held out" if p.name in held else ""))
    left = sum(p.seconds for p in plan if not p.done())
    print(f"{len(plan)} runs, {sum(p.spent * p.flops for p in plan):.3g} FLOPs; about {left / jobs / 60:.0f} "
          f"minutes left on {jobs} process{'es' if jobs > 1 else ''}", flush=True)


# ---------------------------------------------------------------- run


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(p: Planned) -> list[str]:
    flags = [f"--{k}={v}" for k, v in (p.overrides | dict(out_dir=str(p.out))).items()]
    return [sys.executable, str(train.ROOT / "train.py"), *flags]


def start(p: Planned, lock: tuple) -> None:
    """Start train.py for one run; what it prints goes to train.txt in its directory.

    It holds the study's lock too: should the sweep be killed outright, no second one can start the run again.
    """
    p.out.mkdir(parents=True, exist_ok=True)
    env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"}    # the same sums for any `jobs`
    with open(p.out / "train.txt", "ab") as console:
        p.process = subprocess.Popen(command(p), env=env, pass_fds=lock, stdout=console,
                                     stderr=subprocess.STDOUT, start_new_session=True)


def last_line(p: Planned) -> str:
    if not (p.out / "train.txt").exists():
        return "it did not start"
    lines = (p.out / "train.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it printed nothing"


def stop_all(running: list[Planned]) -> None:
    """Ask every run to checkpoint, and wait until it has."""
    for p in running:
        p.process.terminate()
    for p in running:
        p.process.wait()


def finish(p: Planned) -> list[str]:
    """[] for a run that has its result, else the line that says how it ended."""
    if p.done():
        return []
    tqdm.write(f"failed: {p.name}: {last_line(p)}")
    return [f"{p.name}: exit code {p.process.returncode}: {last_line(p)}"]


def progress_bar(plan: list[Planned]) -> tqdm:
    return tqdm(total=sum(p.spent * p.flops for p in plan), unit="FLOP", unit_scale=True,
                disable=all(p.done() for p in plan), initial=sum(p.progress() for p in plan), smoothing=0.05,
                dynamic_ncols=True, mininterval=1.0 if sys.stderr.isatty() else 30.0)


def advance(bar: tqdm, plan: list[Planned], now: str) -> None:
    bar.update(max(0.0, sum(p.progress() for p in plan) - bar.n))
    bar.set_description(f"{sum(p.done() for p in plan)}/{len(plan)} runs, {now}"[:60], refresh=False)


def run_all(plan: list[Planned], jobs: int, lock: tuple = ()) -> list[str]:
    """Train what has no result, longest first, `jobs` at a time. Returns a line for each run that failed.

    SIGINT and SIGTERM: the running models write their checkpoints, then KeyboardInterrupt is raised.
    """
    todo = sorted((p for p in plan if not p.done()), key=lambda p: -p.seconds)
    running, failed = [], []
    with train.caught_signals() as caught, progress_bar(plan) as bar:
        while (todo or running) and not caught:
            for p in [p for p in todo if p.ready()][:jobs - len(running)]:
                todo.remove(p)
                running.append(p)
                start(p, lock)
            if not running:                            # their trunk failed
                return failed + [f"{p.name}: its trunk left no {p.config.branch}" for p in todo]
            time.sleep(0.2)
            for p in [p for p in running if p.process.poll() is not None]:
                running.remove(p)
                failed += finish(p)
            advance(bar, plan, f"now {', '.join(p.name for p in running)}")
        if caught:
            tqdm.write("interrupted: the running models write their checkpoints")
            stop_all(running)
            raise KeyboardInterrupt
    return failed


def chains(runs: list[Planned]) -> list[list[Planned]]:
    """`runs` by SLURM task, longest first: each with those of its branches that wait for its checkpoints."""
    tasks = {p.out: [p] for p in sorted(runs, key=lambda p: -p.seconds) if p.ready()}
    for p in runs:
        if not p.ready():
            tasks.setdefault(Path(p.config.branch).parent, []).append(p)
    tasks = list(tasks.values())
    return [sum(tasks[i::slurm.MAX_TASKS], []) for i in range(min(len(tasks), slurm.MAX_TASKS))]


def run_queued(plan: list[Planned], options: dict, folder: Path) -> list[str]:
    """As run_all, by SLURM: submit what has no result and is not in the queue yet, then wait for all of it.

    Kill it as you like: the jobs go on, and the next call finds them in the queue.
    """
    states = slurm.queue(folder)
    todo = chains([p for p in plan if not p.done() and p.name not in states])
    if todo:
        tasks = [[(p.name, str(p.out), command(p)) for p in task] for task in todo]
        name = slurm.submit(folder, tasks, options)
        print(f"submitted {name}: squeue --name={name} shows it, scancel --name={name} stops it, what SLURM "
              f"says of it is in {(folder / 'slurm' / name).relative_to(train.ROOT)}", flush=True)
    missed = dict.fromkeys((p.name for p in plan), 0)
    with progress_bar(plan) as bar:
        while waiting := [p for p in plan if missed[p.name] < 2 and not p.done()]:
            time.sleep(QUEUE_SECONDS)
            try:
                states = slurm.queue(folder)
            except UserError as e:                     # its controller restarts, or is busy: the jobs go on
                tqdm.write(str(e))
                continue
            for p in waiting:                          # twice: a file of another machine may come late
                missed[p.name] = 0 if p.name in states else missed[p.name] + 1
                if missed[p.name] == 2 and not p.done():
                    tqdm.write(f"failed: {p.name}: {last_line(p)}")
            counts = collections.Counter(states.values()).items()
            advance(bar, plan, ", ".join(f"{count} {state.lower()}" for state, count in counts))
    return [f"{p.name}: {last_line(p)}" for p in plan if not p.done()]


@contextlib.contextmanager
def locked(folder: Path):
    """One sweep at a time in a study's directory. Yields the lock, free when no process holds it any more."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            raise UserError(f"another sweep (process {f.read().strip()}), or runs that it left, work in "
                            f"{folder}; wait for them, or stop them") from None
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        for litter in folder.glob(".*.tmp"):           # tables that a killed sweep was writing
            litter.unlink()
        yield (f.fileno(),)


@contextlib.contextmanager
def disk_errors(folder: Path):
    """The system's refusal to read or write, wherever the sweep meets it, as a UserError."""
    try:
        yield
    except BrokenPipeError:                            # of our output: exit_cleanly knows
        raise
    except OSError as e:
        raise UserError(f"{e.filename or folder}: {e.strerror}; free some space or allow writing, then run "
                        "the same command") from None


# ---------------------------------------------------------------- after the runs


def parse(folder: Path, fitted: list[Planned]) -> None:
    """out/STUDY/runs.csv and curves.csv from the run directories; held-out runs stay out of them."""
    rows, problems = logs.parse_study(folder)
    names = {p.name for p in fitted}
    for problem in problems:
        print(problem)
    write_table(folder / "runs.csv", [row for row in rows if row["run"] in names], logs.RUN_COLUMNS)
    logs.write_curves(folder, folder / "curves.csv")


def fit_study(folder: Path) -> dict:
    """runs.csv -> fit.json and fit_card.json, with the table on the console."""
    fit.main([str(folder / "runs.csv"), f"--curves={folder / 'curves.csv'}",
              f"--json={folder / 'fit.json'}", f"--card={folder / 'fit_card.json'}"])
    return json.loads((folder / "fit.json").read_text(encoding="utf-8"))


def seal_all(folder: Path, held: list[Planned], fitted: dict) -> None:
    """Forecast every held-out run that is not trained yet; the seal is written before its training starts."""
    todo = [p for p in held if not p.done()]
    if todo:                                           # what error to expect, before it can be known
        print(forecast.rollout_text(forecast.rollout(read_table(folder / "runs.csv"))))
    for p in todo:
        target = dict(run=p.name, config=dataclasses.asdict(p.config), params=p.params, tokens=p.tokens,
                      flops=p.flops)
        sealed = forecast.seal(folder, fitted, target)
        print(f"forecast of {p.name}: {sealed['predicted']:.4f} ({sealed['lo95']:.4f} to "
              f"{sealed['hi95']:.4f}), sha256 {sealed['sha256'][:12]}", flush=True)


def print_scores(rows: list[dict]) -> None:
    for row in rows:
        if row.get("measured") not in (None, ""):
            print(f"{row['run']}: forecast {row['predicted']:.4f} ({row['lo95']:.4f} to {row['hi95']:.4f}), "
                  f"measured {row['measured']:.4f}: error {100 * row['error']:+.2f} %, "
                  f"{'inside' if row['inside'] else 'outside'}")


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaling.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="scaling/sweeps/NAME.py")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; default: one a core; 1 on a GPU")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="slurm: submit the runs as a job array (the sweep file's `slurm` says where)")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    a = parser.parse_args(args)
    study, runs, held_out = read_sweep(a.sweep)
    folder = OUT / study
    options = slurm.read_options(a.sweep) if a.launcher == "slurm" else None
    states = slurm.queue(folder) if options or shutil.which("squeue") else {}
    prepare_data(runs + held_out, a.sweep)
    fitted, held = ([p for run in group for p in plan_run(study, run, a.sweep)] for group in (runs, held_out))
    plan = fitted + held
    require_unique([p.name for p in plan], a.sweep)    # now with the names of branches
    jobs = a.jobs if a.jobs > 0 else 1 if plan[0].config.device.startswith("cuda") else cores()
    if options:
        jobs = options.get("array_parallelism", len(plan))
    estimate(plan)
    print_plan(plan, {p.name for p in held}, jobs, states)
    if a.dry_run:
        return 0
    if states and not options:
        raise UserError(f"{study}: SLURM has runs of it; add --launcher=slurm, or scancel them first")
    with disk_errors(folder), locked(folder) as lock:
        run = (lambda plan: run_queued(plan, options, folder)) if options else (
            lambda plan: run_all(plan, jobs, lock))
        failed = run(fitted)
        parse(folder, fitted)
        law = fit_study(folder)
        if held and not failed:
            seal_all(folder, held, law)
            failed += run(held)
            parse(folder, fitted)                      # again, for the held-out runs' curves
            print_scores(forecast.score(folder))
        plots.draw_study(folder)
    print(f"{folder.relative_to(train.ROOT)}: runs.csv, fit.json, forecasts.csv, figures/", flush=True)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        exit_cleanly(main)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(3)
