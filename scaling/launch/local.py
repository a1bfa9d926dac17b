"""Run a plan's missing runs on this machine, each as train.py in a process of its own."""
import os
import sys
import time

from runtime import basics, system, warm
from scaling.launch import planned
from scaling.launch.planned import Planned, Runs, names, say


def run(plan: Runs, jobs: int) -> list[str]:
    """Train what has no result, longest first, `jobs` at a time. Returns a line for each run that failed.

    What a killed sweep left at work is waited for as if it were ours. SIGINT and SIGTERM: the models that
    were started here write their checkpoints, then KeyboardInterrupt is raised.
    """
    todo = sorted((p for p in plan if not p.done()), key=lambda p: -p.seconds)
    running = planned.left_behind(todo)
    todo = [p for p in todo if p not in running]
    failed = []
    with basics.caught_signals() as caught, planned.progress_bar(plan) as bar:
        try:
            while (todo or running) and not caught:
                ready = [p for p in todo if p.ready()]
                for p in ready[:max(0, jobs - len(running))]:
                    start(p)
                    todo.remove(p)
                    running.append(p)
                if not running:                        # only branches are left, and their trunks failed
                    return failed + [f"{p.name}: its trunk left no {p.config.branch}" for p in todo]
                time.sleep(0.2)
                for p in [p for p in running if p.ended()]:
                    running.remove(p)
                    settle(p, todo, running, failed)
                planned.advance(bar, plan, f"now {names(running)}" if running else "")
        finally:                                       # after a signal, or an error such as a full disk
            stop(running)
    if caught:
        raise KeyboardInterrupt
    return failed


def settle(p: Planned, todo: Runs, running: Runs, failed: list[str]) -> None:
    """Put a run that has ended where it belongs: nowhere once it is done."""
    if p.done():
        return
    if not p.process:                                  # what another sweep left was stopped: it goes on here
        todo.append(p)
    elif p.at_work():                                  # the killed sweep had just started it, and was faster
        p.process = None
        running.append(p)
    else:
        failed.append(f"{p.name}: exit code {p.process.returncode}: {p.last_line()}")
        say(f"failed: {failed[-1]}")


def stop(running: Runs) -> None:
    """Have the models that were started here write their checkpoints and end; name the others."""
    ours = [p for p in running if p.process]
    others = [p for p in running if not p.process]
    if ours:
        say("interrupted: the running models write their checkpoints")
    if others:
        say(planned.still_at_work(others))
    for p in ours:
        p.process.terminate()
    for p in ours:
        p.process.wait()


def start(p: Planned) -> None:
    """Start the run; what it prints goes to train.txt in its directory."""
    p.out.mkdir(parents=True, exist_ok=True)
    # One thread a run, unless the user says otherwise: sums over threads depend on how many there are, and so
    # results must not depend on how many cores a machine has or how many runs share them.
    env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"}
    console = p.out / "train.txt"
    if sys.platform == "linux" and not system.gpus():  # elsewhere a process that has torch may not fork
        p.process = warm.start(p.command()[1:], console, env)
    else:
        p.process = system.start(p.command(), console, env)
