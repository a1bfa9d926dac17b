"""What every part of the lab uses: errors of one line, whole files, signals. The standard library only."""
import argparse
import contextlib
import difflib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# The repository. Others read it as `basics.ROOT`, so that a test can put another one in its place.
ROOT = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """Something the user can mend. The message is one line that names the cause and the fix."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))      # names from outside may hold line ends


def exit_cleanly(main) -> None:
    """Run `main()`; print a UserError as one line on stderr and exit with 2. `| head` ends it quietly."""
    if hasattr(sys.stdout, "reconfigure"):            # a text may hold what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            sys.exit(main())
        finally:
            sys.stdout.flush()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:                           # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)                                 # as if SIGPIPE had come


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are UserErrors, and whose --help begins with the whole docstring `doc`."""

    def __init__(self, prog: str, doc: str):
        super().__init__(prog, description=doc, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(f"{message}; --help lists the options")


# ---- names ----


def plain_name(name) -> bool:
    """Whether `name` is a str that names something inside a directory, on any system, and is not hidden."""
    return isinstance(name, str) and bool(re.fullmatch(r"(?!\.)[^\x00-\x1f\x7f/\\:]{1,200}", name))


def from_here(path: Path) -> str:
    """`path`, an absolute one, as a command that is typed in the current directory should name it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def nearest(word: str, known) -> str:
    """' (did you mean X?)', or nothing when no known word is close."""
    close = difflib.get_close_matches(word, known)
    return f" (did you mean {close[0]!r}?)" if close else ""


def counted(number: float, word: str, digits: str = "") -> str:
    """'1 layer', '12 layers'; `digits` formats the number, as "," does."""
    text = format(number, digits)
    return f"{text} {word}" if text == "1" else f"{text} {word}s"


# ---- files ----


@contextlib.contextmanager
def whole_file(path: str | Path, mode: str = "w", previous: Path | None = None):
    """An open file that becomes `path` when the block ends: a full disk or a kill leaves what was there.

    What was there becomes `previous`, if that is given. Raises UserError when the disk refuses.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        if path.exists() and not path.is_file():      # /dev/stdout must not be replaced
            part = path
        with open(part, mode, **text) as f:
            yield f
            f.flush()
            if part != path:
                os.fsync(f.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(part, path)                        # of a file onto itself: nothing
    except (OSError, RuntimeError) as e:              # torch.save turns a failed write into RuntimeError
        why = getattr(e, "strerror", None) or str(e).partition("\n")[0]
        kept = "the one written before is kept" if path.exists() else "nothing was written"
        raise UserError(f"cannot write {path} ({why}); {kept}; free some space or allow writing, then run "
                        "the same command") from None
    finally:
        if part != path:
            with contextlib.suppress(OSError):        # gone, or never made
                part.unlink()


def write_json(path: str | Path, obj: dict) -> None:
    """Write `obj` to `path`, whole or not at all. Raises UserError."""
    with whole_file(path) as f:
        f.write(json.dumps(obj, indent=1) + "\n")


def load_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError."""
    try:
        data = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        why = getattr(e, "strerror", None) or f"not JSON: {e}"
        raise UserError(f"{path}: {why}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


# ---- processes ----


def stop_signals() -> list:
    """The signals that ask a process to end: Ctrl-C, kill, a closed terminal, what schedulers send.

    Where a system lacks one it is left out; so is one that nohup or a shell has this process ignore.
    """
    others = [getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")]
    return [signal.SIGINT, signal.SIGTERM] + [
        number for number in others if number and signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def caught_signals():
    """A list that fills with `stop_signals` as they come, instead of their killing the process."""
    caught = []
    before = {number: signal.signal(number, lambda number, frame: caught.append(number))
              for number in stop_signals()}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def git_commit() -> str:
    """This checkout's commit, with -dirty where files differ; empty outside a checkout or without git."""
    if not shutil.which("git"):
        return ""
    out = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
                         capture_output=True, text=True)
    return out.stdout.strip()
