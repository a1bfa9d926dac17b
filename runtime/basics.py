"""What every part of the lab uses: errors of one line, whole files, names, signals. The standard library only."""
import contextlib
import difflib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]             # the repository


class UserError(Exception):
    """Something the user can mend. The message is one line that names the cause and the fix."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))      # names from outside may hold line ends


def exit_cleanly(main):
    """Run `main()`; print a UserError as one line on stderr and exit with 2. `| head` ends it quietly."""
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


def nearest(word, known):
    """' (did you mean X?)', or nothing when no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def plain_name(name) -> bool:
    """Whether `name` is a str that names something inside a directory, on any system, and is not hidden."""
    return isinstance(name, str) and bool(re.fullmatch(r"(?!\.)[^\x00-\x1f\x7f/\\:]{1,200}", name))


@contextmanager
def whole_file(path: str | Path) -> Iterator[TextIO]:
    """A text file to write that becomes `path` when the block ends: a reader sees the old file or the new.

    Raises UserError when the disk refuses.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():       # /dev/stdout must not be replaced
            part = path
        with open(part, "w", encoding="utf-8", newline="") as f:
            yield f
        os.replace(part, path)                         # of a file onto itself: nothing
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from None
    finally:
        if part != path and part.exists():
            part.unlink()


def load_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError."""
    try:
        data = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', None) or f'not JSON: {e}'}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


@contextlib.contextmanager
def caught_signals():
    """A list that fills with SIGINT and SIGTERM as they come, instead of their killing the process."""
    caught = []
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {s: signal.signal(s, lambda number, frame: caught.append(number)) for s in signals}
    try:
        yield caught
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
