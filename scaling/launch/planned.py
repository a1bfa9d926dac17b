"""A run that a sweep has planned, and what both launchers ask of it: its command, and how far it is."""
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from config.settings import Config, Resolved
from runtime import basics, system


@dataclass
class Planned:
    """One run of a sweep: what it is, what it costs, and its process once it has one."""
    name: str
    overrides: dict                 # what the sweep file says, for the command line
    resolved: Resolved              # the run as train.py will have it, with N, D and C
    leave: int = 0                  # the step at which a branch leaves its trunk
    seconds: float = 0.0            # estimated, alone on one core or GPU
    process: subprocess.Popen | None = None

    @property
    def config(self) -> Config:
        return self.resolved.config

    @property
    def out(self) -> Path:
        return Path(self.config.out_dir)

    @property
    def own_flops(self) -> float:
        """FLOPs that this run trains itself: of a branch, those of its cooldown."""
        return self.resolved.C * (1 - self.leave / self.config.max_iters)

    def command(self) -> list[str]:
        settings = self.overrides | {"out_dir": str(self.out)}
        flags = [f"--{key}={value}" for key, value in settings.items()]
        return [sys.executable, str(basics.ROOT / "train.py"), *flags]

    def done(self) -> bool:
        return (self.out / "result.json").exists()

    def ready(self) -> bool:
        """Whether it may start: a branch waits for the checkpoint that its trunk leaves it."""
        return not self.config.branch or Path(self.config.branch).exists()

    def log_tail(self) -> dict:
        """The last whole record of log.jsonl, {} before the first."""
        log = self.out / "log.jsonl"
        try:
            with open(log, "rb") as f:
                f.seek(max(0, log.stat().st_size - 2000))
                return json.loads(f.readlines()[-1])
        except (OSError, ValueError, IndexError):
            return {}

    def progress(self) -> float:
        """How many of its own FLOPs are done."""
        if self.done():
            return self.own_flops
        trunk = self.resolved.C - self.own_flops       # a branch's log begins with that of its trunk
        return max(0.0, self.log_tail().get("flops", 0) - trunk)

    def status(self) -> str:
        if self.done():
            return "done"
        step = self.log_tail().get("step")
        return f"at step {step:,}" if step else "to do"

    def last_line(self) -> str:
        """The last line that the run printed, which says how it ended."""
        path = self.out / "train.txt"
        if not path.exists():
            return "it did not start"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it printed nothing"


def require_free(todo: list[Planned]) -> None:
    """Raise UserError where a run that a killed sweep left behind is still at work: it holds its own lock.

    A process takes that lock a few seconds after it starts. In these, a second one is started, and refuses.
    """
    busy = [str(p.out) for p in todo if system.locked(p.out / "lock")]
    if busy:
        raise basics.UserError(f"runs that another sweep left work in {', '.join(busy)}; wait for them, or "
                               "stop them")


def progress_bar(plan: list[Planned]) -> tqdm:
    """A bar over the FLOPs of `plan`; on no terminal it prints twice a minute, and nothing if all is done."""
    interval = 1.0 if sys.stderr.isatty() else 30.0
    return tqdm(total=sum(p.own_flops for p in plan), initial=sum(p.progress() for p in plan), unit="FLOP",
                unit_scale=True, smoothing=0.05, dynamic_ncols=True, mininterval=interval,
                disable=all(p.done() for p in plan))


def advance(bar: tqdm, plan: list[Planned], now: str) -> None:
    bar.update(sum(p.progress() for p in plan) - bar.n)
    bar.set_description(f"{sum(p.done() for p in plan)}/{len(plan)} runs, {now}"[:60], refresh=False)
