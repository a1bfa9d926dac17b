"""SLURM for `python -m scaling.sweep STUDY.py --launcher=slurm`: one job array of a study's missing runs.

The sweep file says where: `slurm = dict(time=120, partition="gpu", array_parallelism=8)`, see OPTIONS. SLURM
alone schedules: the sweep submits once, through submitit (pip install submitit), and watches. A task of the
array is a run with the branches that leave it, one after another, since they need its checkpoints. So a
study is one array, with no dependencies between jobs; the price is that the branches of a run, a fifth of it
each, do not overlap.
"""
import collections
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from config.configurator import convert
from runtime import basics
from runtime.basics import UserError, nearest
from scaling.launch import local
from scaling.launch.planned import Runs, advance, left_behind, progress_bar, say, still_at_work

QUEUE_SECONDS = 10                     # from one look at the queue to the next
MAX_TASKS = 1000                       # of an array, by SLURM's default MaxArraySize; then tasks share runs
OPTIONS = dict(time=int,               # minutes a task may run before it must queue again; to be given
               partition=str,          # and so on, as sbatch has them: man sbatch
               array_parallelism=int,  # tasks at a time; default: all
               requeue=int,            # times a task may outlast `time`; default 3; 0: no requeue at all
               cpus_per_task=int,      # and threads of a run; default 1
               gpus_per_node=int, mem=str, account=str, qos=str, constraint=str)


def check_options(options: dict, where: str) -> dict:
    """`slurm` of a sweep file, each value of its type. `where` names the file. Raises UserError."""
    checked = dict(requeue=3, cpus_per_task=1)
    for key, value in options.items():
        if key not in OPTIONS:
            raise UserError(f"{where}: slurm: unknown key {key!r}{nearest(str(key), OPTIONS)}; "
                            f"known are {', '.join(OPTIONS)}")
        checked[key] = convert(key, value, OPTIONS[key], f"{where}: slurm")
        least = 0 if key == "requeue" else 1
        if OPTIONS[key] is int and checked[key] < least:
            raise UserError(f"{where}: slurm: {key} must be {least} or more, not {value}")
    return checked


def require_usable(options: dict, where: str) -> None:
    """Raise UserError where the sweep file `where` does not say how to submit, or a program is missing."""
    if "time" not in options:
        raise UserError(f"{where}: --launcher=slurm needs slurm = dict(time=MINUTES_OF_A_TASK, ...)")
    if not importlib.util.find_spec("submitit"):
        raise UserError("--launcher=slurm needs submitit: pip install submitit")
    for program in ("sbatch", "srun", "squeue"):
        if not shutil.which(program):
            raise UserError(f"no {program} here: --launcher=slurm wants a machine that submits to SLURM")


# ---------------------------------------------------------------- on the node


class Chain:
    """A task of the array: runs, one after another, each as train.py in a process of its own.

    train.py answers SIGTERM with a checkpoint and its end; requeued, the task goes on from there. Signals:
    SIGUSR2, submitit's, before the time limit: submitit calls `checkpoint`, requeues the task and exits;
    SIGUSR1, what some sites send: the same;
    SIGTERM, of SLURM's pre-emption, scontrol requeue and scancel: `terminated`.
    """

    def __init__(self, runs: Runs, options: dict):
        self.runs = runs
        self.options = options

    def __call__(self) -> None:
        users = signal.SIGUSR1, signal.SIGUSR2
        os.environ["OMP_NUM_THREADS"] = str(self.options["cpus_per_task"])
        signal.signal(signal.SIGTERM, self.terminated)
        if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGUSR2))
        for p in self.runs:                            # one that fails stops no other
            if not p.done():
                # SLURM signals every process of a task. train.py inherits what is blocked, and is so spared.
                signal.pthread_sigmask(signal.SIG_BLOCK, users)
                local.start(p)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, users)
                p.process.wait()
        if not all(p.done() for p in self.runs):
            sys.exit(1)                                # for SLURM's books; the sweep looks for result.json

    def stop(self) -> None:
        """Have the running model write its checkpoint; return when its process has ended."""
        for p in self.runs:
            if p.process:
                p.process.terminate()                  # of one that has ended: nothing
                with contextlib.suppress(ChildProcessError):     # gone already; Popen.wait would deadlock
                    os.waitid(os.P_PID, p.process.pid, os.WEXITED | os.WNOWAIT)
            p.process = None

    def checkpoint(self):
        """submitit asks, on its signal, what the task is to go on with. None: nothing."""
        from submitit.helpers import DelayedSubmission
        self.stop()
        return DelayedSubmission(self) if self.options["requeue"] else None

    def terminated(self, *_) -> None:
        """SIGTERM: checkpoint, and requeue if this is pre-emption with a grace time.

        SLURM requeues such a job only if it lives to the end of that time: ask for it, and free the node now.
        A job that is being cancelled or requeued is not RUNNING any more.
        """
        self.stop()
        job = subprocess.run(["squeue", "-h", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"],
                             capture_output=True, text=True, timeout=60)
        if job.stdout.strip() == "RUNNING":
            signal.raise_signal(signal.SIGUSR2)
        sys.exit(3)                                    # interrupted, as train.py has it


# ---------------------------------------------------------------- where the sweep runs


def run(plan: Runs, options: dict, folder: Path) -> list[str]:
    """Submit what has no result and is not queued, and wait for it. Returns a line for each that failed.

    Kill it as you like: the jobs go on, and the next call finds them in the queue.
    """
    states = queue(folder)
    todo = [p for p in plan if not p.done() and p.name not in states]
    wait_for(left_behind(todo))
    todo = [p for p in todo if not p.done()]
    if todo:
        name = submit(folder, chains(todo), options)
        place = (folder / "slurm" / name).relative_to(basics.ROOT)
        print(f"submitted {name}: squeue --name={name} shows it, scancel --name={name} stops it, what SLURM "
              f"says of it is in {place}", flush=True)
    watch(plan, folder)
    return [f"{p.name}: {p.last_line()}" for p in plan if not p.done()]


def wait_for(runs: Runs) -> None:
    """Return when no process has any of `runs` any more: a branch is submitted once its trunk is known."""
    try:
        while any(p.at_work() for p in runs):
            time.sleep(QUEUE_SECONDS)
    except KeyboardInterrupt:
        print(still_at_work([p for p in runs if p.at_work()]), flush=True)
        raise


def watch(plan: Runs, folder: Path) -> None:
    """Show progress until every run of `plan` has its result or has left the queue without."""
    missed = collections.Counter()                     # how often in turn a run was not in the queue
    with progress_bar(plan) as bar:
        while waiting := [p for p in plan if missed[p.name] < 2 and not p.done()]:
            time.sleep(QUEUE_SECONDS)
            try:
                states = queue(folder)
            except UserError as e:                     # its controller restarts, or is busy: the jobs go on
                say(str(e))
                continue
            for p in waiting:                          # twice: a file of another machine may come late
                missed[p.name] = 0 if p.name in states else missed[p.name] + 1
                if missed[p.name] == 2 and not p.done():
                    say(f"failed: {p.name}: {p.last_line()}")
            counts = collections.Counter(states.values()).items()
            advance(bar, plan, ", ".join(f"{count} {state.lower()}" for state, count in counts))


def chains(runs: Runs) -> list[Runs]:
    """`runs` by task, longest first: each with those of its branches that wait for its checkpoints."""
    tasks = {p.out: [p] for p in sorted(runs, key=lambda p: -p.seconds) if p.ready()}
    for p in runs:
        if not p.ready():
            tasks.setdefault(Path(p.config.branch).parent, []).append(p)
    tasks = list(tasks.values())
    return [sum(tasks[i::MAX_TASKS], []) for i in range(min(len(tasks), MAX_TASKS))]


def submit(folder: Path, tasks: list[Runs], options: dict) -> str:
    """Submit one array for the study in `folder`; a task is a list of runs.

    Returns the job's name, STUDY-xxxxxxxx, also that of its directory in folder/slurm. tasks.json there says
    what run is in what task, and is older than the job: whatever is killed when, `queue` knows every job.
    """
    import submitit
    name = f"{folder.name}-{uuid.uuid4().hex[:8]}"
    home = folder / "slurm" / name
    home.mkdir(parents=True)
    basics.write_json(home / "tasks.json", {i: [p.name for p in task] for i, task in enumerate(tasks)})
    requeue = options["requeue"]
    given = {key: value for key, value in options.items() if key != "requeue"}
    executor = submitit.SlurmExecutor(home, max_num_timeout=requeue)
    executor.update_parameters(
        **dict(array_parallelism=len(tasks)) | given, job_name=name, stderr_to_stdout=True,
        srun_args=[f"--cpus-per-task={options['cpus_per_task']}"],       # since SLURM 22.05 not inherited
        additional_parameters={"chdir": str(basics.ROOT), "requeue" if requeue else "no-requeue": True})
    try:
        executor.submit_array([Chain(task, options) for task in tasks])
    except RuntimeError as e:                          # submitit's; sbatch's own words
        raise UserError(f"sbatch took no job: {e}") from None
    return name


def queue(folder: Path) -> dict[str, str]:
    """{run: state} of the study's runs that SLURM holds: PENDING, RUNNING, ... Raises UserError.

    Without SLURM, or where nothing was submitted, there are none.
    """
    homes = {home.name: home for home in (folder / "slurm").glob("*")}
    states = {}
    for line in ask_squeue() if homes and shutil.which("squeue") else ():
        name, index, state = line.rsplit("|", 2)
        if name in homes:
            states |= dict.fromkeys(runs_of_task(homes[name], index), state)
    return states


def ask_squeue() -> list[str]:
    """A line NAME|INDEX|STATE for each of the user's tasks. Raises UserError."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%j|%K|%T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        raise UserError(f"squeue does not answer: {getattr(e, 'stderr', None) or e}") from None
    return answer.stdout.splitlines()


def runs_of_task(home: Path, index: str) -> list[str]:
    """The names of the runs in a task of the job that `submit` noted in `home`. Raises UserError."""
    index = index if index.isdigit() else "0"          # a job of one task is no array: its index is N/A
    try:
        return basics.load_json(home / "tasks.json")[index]
    except (UserError, KeyError):
        raise UserError(f"{home / 'tasks.json'} is missing or damaged; scancel --name={home.name}, then run "
                        "the same command") from None
