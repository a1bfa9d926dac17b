"""What a run prints: its start, warnings, a line for each record of the log. `run` is train.Run."""
import errno
import math
import os
import shlex
import sys

from config import settings
from config.settings import Config
from runtime import basics
from runtime.basics import from_here


def say(line: str) -> None:
    """Print `line` at once. A terminal that is gone, after SIGHUP, is no reason to lose the checkpoint."""
    try:
        print(line, flush=True)
    except OSError as e:
        if e.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_start(run) -> None:
    c = run.c
    tokens = c.max_iters * c.batch_size * c.block_size
    on = f"; goes on from step {run.step:,}" if run.step else ""
    say(f"{run.out}: {run.params['total']:,} parameters, {tokens:,} tokens in {c.max_iters:,} steps, "
        f"{tokens * run.flops['total']:.3g} FLOPs on {c.device}{on}")
    late = [step for step in sorted(settings.kept_steps(c))
            if step < run.step and not (run.out / f"ckpt_{step}.pt").exists()]
    if late:
        say(f"warning: keep_steps {late[0]} is behind: this run goes on from step {run.step}")
    for line in settings.doubts(c):
        say(f"warning: {line}")


def say_progress(record: dict, c: Config) -> None:
    left = (c.max_iters - record["step"]) * record["elapsed_s"] / record["step"]
    val = f" | val {record['val_loss']:.4f}" if "val_loss" in record else ""
    say(f"step {record['step']:,}/{c.max_iters:,} | train {record['train_loss']:.4f}{val} | "
        f"lr {record['lr']:.2e} | norm {record['grad_norm']:.2f} | {record['tok_per_s']:,.0f} tok/s | "
        f"ETA {left // 60:.0f}:{left % 60:02.0f}")


def say_end(out_dir: str, result: dict) -> None:
    loss = result["val_loss"]
    guess = math.log(result.get("vocab_size", math.inf))       # old results lack it
    if loss > guess:
        say(f"warning: val_loss {loss:.4f} is worse than guessing uniformly (ln V = {guess:.4f}): it "
            f"diverged, or has hardly begun; lower learning_rate (now {result['learning_rate']:g}), or train "
            "for longer")
    say(f"{out_dir}: val_loss {loss:.4f} nats per token, {result['val_bits_per_byte']:.4f} bits per byte, "
        f"{result['tokens']:,} tokens in {result['wall_s']:.0f} s; next: python "
        f"{from_here(basics.ROOT / 'sample.py')} --out_dir={shlex.quote(out_dir)}")
