"""What the training loop stands on: files of a run, faster CPU kernels, the noise scale, the machine.

Every program imports this first: it says in one line that Python is too old, or a package is missing.
"""
import os
import re
import sys


def end(fault):
    print(f"error: {fault}", file=sys.stderr)
    sys.exit(2)


def require_python(version):
    if version < (3, 10):
        end("Python 3.10 or newer is needed, not %d.%d: source .venv/bin/activate, which "
            "`make study PYTHON=python3.12` makes" % version[:2])


def say_what_is_missing(kind, error, trace):
    """sys.excepthook: a package that requirements.txt lists is named with the fix; the rest is as ever."""
    listed = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "requirements.txt")
    if kind is ModuleNotFoundError and os.path.exists(listed):
        with open(listed, encoding="utf-8") as f:
            if error.name in re.findall(r"^\w+", f.read(), re.M):
                end(f"the package {error.name} is not installed here: source .venv/bin/activate, which "
                    "`make study` makes, or python -m pip install -r requirements.txt")
    sys.__excepthook__(kind, error, trace)


require_python(sys.version_info)
sys.excepthook = say_what_is_missing
