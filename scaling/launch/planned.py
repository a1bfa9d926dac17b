"""A run that a sweep has planned, and what is asked of it: its command, how far it is, whose files it has."""
import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from config import corpus, schema
from config.settings import Config, Resolved
from runtime import basics, console, system
from runtime.warm import Forked


def short(value, other) -> str:
    """A setting in words: of a float as few digits as tell it from `other`, its value elsewhere."""
    if isinstance(value, float) and isinstance(other, float) and f"{value:.4g}" != f"{other:.4g}":
        return f"{value:.4g}"
    return str(value)


def changes(old: dict, c: Config, meta: dict) -> list[str]:
    """What tells the run that `old` records from the run `c` on the text of `meta`: "seed 1, not 2".

    `old` is a config.json, or the like in a seal; settings without bearing on the result are left aside.
    """
    before = schema.from_dict(old)
    found = []
    for name in schema.differences(old, dataclasses.asdict(c)):
        theirs = getattr(before, name)
        ours = getattr(c, name)
        found.append(f"{name} {short(theirs, ours)}, not {short(ours, theirs)}")
    if before.dataset == c.dataset:                    # another one has another text, of course
        texts = corpus.texts(meta)
        for key in corpus.other_texts(old, texts):
            found.append(f"{corpus.TEXTS[key][1]} {old[key][:8]}, not {texts[key][:8]}")
    return found


@dataclass
class Planned:
    """One run of a sweep: what it is, what it costs, and its process once it has one."""
    name: str
    overrides: dict                 # what the sweep file says, for the command line
    resolved: Resolved              # the run as train.py will have it, with N, D and C
    leave: int = 0                  # the step at which a branch leaves its trunk
    seconds: float = 0.0            # estimated, alone on one core or GPU
    process: subprocess.Popen | Forked | None = None   # none: not started, or by a sweep that was killed
    finished: bool = False          # its result was seen, with the config that was asked for

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

    @property
    def prepared(self) -> bool:
        """Whether its text is there; before that its cost is not known, which depends on the vocabulary."""
        return corpus.prepared(self.config.dataset)

    def command(self) -> list[str]:
        given = self.overrides | {"out_dir": str(self.out)}
        flags = [f"--{key}={value}" for key, value in given.items()]
        return [sys.executable, str(basics.ROOT / "train.py"), *flags]

    def begun(self) -> bool:
        """Whether its directory holds a result, or a checkpoint to go on from or to branch from."""
        return (self.out / "result.json").exists() or any(self.out.glob("ckpt*.pt"))

    def at_work(self) -> bool:
        """Whether a process trains it, of whatever sweep. It takes the lock some seconds after its start."""
        return system.locked(self.out / "lock")

    def changes(self) -> list[str]:
        """What tells the run in its directory from this one, in words; none where nothing has begun."""
        path = self.out / "config.json"
        if not self.begun() and not self.at_work():
            return []
        if not path.exists() and not (self.out / "result.json").exists():
            return []                                  # it begins now; or train.py looks into the checkpoint
        try:
            return changes(basics.load_json(path), self.config, self.resolved.meta)
        except basics.UserError:
            return ["no config.json that says which"]

    def done(self) -> bool:
        """Whether it has its result: one of the config that is asked for."""
        self.finished = self.finished or (self.out / "result.json").exists() and not self.changes()
        return self.finished

    def ended(self) -> bool:
        """Of a run that was at work: whether it is not any more."""
        return self.process.poll() is not None if self.process else not self.at_work()

    def forget(self) -> None:
        """Remove what was trained: the result first, and last what says with which settings it was."""
        kept = sorted(self.out.glob("ckpt*.pt"))
        for path in (self.out / "result.json", *kept, self.out / "log.jsonl", self.out / "config.json"):
            path.unlink(missing_ok=True)

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
        if changed := self.changes():
            return f"trained with other settings ({'; '.join(changed)})"
        step = self.log_tail().get("step")
        return f"at step {step:,}" if step else "to do"

    def last_line(self) -> str:
        """How the run ended: the last line that it printed, or that it was another run than was asked for."""
        path = self.out / "train.txt"
        if changed := self.changes():
            return f"it was trained with other settings ({'; '.join(changed)})"
        if not path.exists():
            return "it did not start"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it printed nothing"


Runs = list[Planned]


def left_behind(todo: Runs) -> Runs:
    """The runs of `todo` that a killed sweep has left at work; says so. They are waited for, not started."""
    found = [p for p in todo if p.at_work()]
    if found:
        print(f"waits for what a sweep that was killed left at work: {names(found)}", flush=True)
    return found


def names(runs: Runs) -> str:
    return ", ".join(p.name for p in runs)


def still_at_work(runs: Runs) -> str:
    """What a sweep says of runs that it waited for, and leaves as it found them."""
    return f"still at work, for they are not this sweep's: {names(runs)}"


def progress_bar(plan: Runs) -> tqdm:
    """A bar over the FLOPs of `plan`; on no terminal it prints twice a minute, and nothing if all is done."""
    interval = 1.0 if sys.stderr.isatty() else 30.0
    return tqdm(total=sum(p.own_flops for p in plan), initial=sum(p.progress() for p in plan), unit="FLOP",
                unit_scale=True, smoothing=0.05, dynamic_ncols=True, mininterval=interval,
                disable=all(p.done() for p in plan))


def advance(bar: tqdm, plan: Runs, now: str) -> None:
    """Show how far `plan` is, and `now`, what is at work; of nothing it says nothing."""
    bar.update(sum(p.progress() for p in plan) - bar.n)
    done = f"{sum(p.done() for p in plan)}/{len(plan)} runs"
    bar.set_description(f"{done}, {now}"[:60] if now else done, refresh=False)


def say(line: str) -> None:
    """Print above the bar, if a terminal is there: without one the runs must still be stopped."""
    with tqdm.external_write_mode():
        console.say(line)
