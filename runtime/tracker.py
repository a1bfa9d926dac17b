"""With wandb_log=True: the log of a run in Weights & Biases too or, where that is not installed, in trackio.

Neither is imported otherwise, and what fails in them is told of once and costs no run anything. Both end
their own run when the process ends.
"""
import dataclasses
import time
from importlib import import_module
from importlib.util import find_spec

from runtime import console


def start(run) -> None:
    """Make `run.tracker` the module that `log` is to use, if `run` (train.Run) asks for it and it is here.

    The seconds that this takes, of an import and a server, are no part of the run's.
    """
    c = run.c
    if not c.wandb_log:
        return
    began = time.perf_counter()
    try:
        module = import_module("wandb" if find_spec("wandb") else "trackio")
        module.init(project=c.wandb_project, name=c.wandb_run_name or c.out_dir, config=dataclasses.asdict(c))
        run.tracker = module
    except Exception as e:
        warn(e)
    run.started += time.perf_counter() - began


def log(run) -> None:
    """Send the last log line of `run` (train.Run); after a failure no more are sent."""
    if run.tracker is None:
        return
    try:
        values = {name: value for name, value in run.record.items() if name != "step"}      # a word of theirs
        run.tracker.log(values, step=run.step)
    except Exception as e:
        run.tracker = None
        warn(e)


def warn(e: Exception) -> None:
    why = " ".join(str(e).split())
    console.say(f"warning: wandb_log: {type(e).__name__}: {why:.200}; the run goes on (log.jsonl has it all)")
