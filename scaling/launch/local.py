"""Run a plan's missing runs on this machine, each as train.py in a process of its own."""
import os
import time

from tqdm import tqdm

from runtime import basics, system
from scaling.launch.planned import Planned, advance, progress_bar, require_free


def run(plan: list[Planned], jobs: int) -> list[str]:
    """Train what has no result, longest first, `jobs` at a time. Returns a line for each run that failed.

    SIGINT and SIGTERM: the running models write their checkpoints, then KeyboardInterrupt is raised.
    """
    todo = sorted((p for p in plan if not p.done()), key=lambda p: -p.seconds)
    require_free(todo)
    running = []
    failed = []
    with basics.caught_signals() as caught, progress_bar(plan) as bar:
        try:
            while (todo or running) and not caught:
                ready = [p for p in todo if p.ready()]
                for p in ready[:jobs - len(running)]:
                    start(p)
                    todo.remove(p)
                    running.append(p)
                if not running:                        # only branches are left, and their trunks failed
                    return failed + [f"{p.name}: its trunk left no {p.config.branch}" for p in todo]
                time.sleep(0.2)
                for p in [p for p in running if p.process.poll() is not None]:
                    running.remove(p)
                    if not p.done():
                        failed.append(f"{p.name}: exit code {p.process.returncode}: {p.last_line()}")
                        tqdm.write(f"failed: {failed[-1]}")
                advance(bar, plan, f"now {', '.join(p.name for p in running)}")
        finally:                                       # after a signal, or an error such as a full disk
            if running:
                tqdm.write("interrupted: the running models write their checkpoints")
            for p in running:
                p.process.terminate()
            for p in running:
                p.process.wait()
    if caught:
        raise KeyboardInterrupt
    return failed


def start(p: Planned) -> None:
    """Start the run; what it prints goes to train.txt in its directory."""
    p.out.mkdir(parents=True, exist_ok=True)
    # One thread a run, unless the user says otherwise: sums over threads depend on how many there are, and so
    # results must not depend on how many cores a machine has or how many runs share them.
    env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"}
    with open(p.out / "train.txt", "ab") as console:
        p.process = system.start(p.command(), console, env)
