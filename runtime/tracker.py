"""With wandb_log=True: the log of a run in Weights & Biases too or, where that is not installed, in trackio.

Neither is imported otherwise, and what fails in them is told of once and costs no run anything. Both end
their own run when the process ends.
"""
import dataclasses
from importlib import import_module
from importlib.util import find_spec

from config.settings import Config
from runtime import console


def start(c: Config):
    """The module that `log` is to use; None where the run did not ask for it, or it cannot be had."""
    if not c.wandb_log:
        return None
    try:
        module = import_module("wandb" if find_spec("wandb") else "trackio")
        module.init(project=c.wandb_project, name=c.wandb_run_name or c.out_dir, config=dataclasses.asdict(c))
        return module
    except Exception as e:
        warn(e)


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
