"""Configuration as in nanoGPT: defaults, then config files, then --key=value; the command line always wins.

    c = configure(Config, sys.argv[1:])      # Config is a flat dataclass, one commented field per line

A config file is plain Python, run in a namespace of its own (it is your program: run only files you trust).
Every public name that it assigns must be a field. Names with a leading underscore are its own affair, and so
are the modules, functions and classes that it imports or defines.
"""
import ast
import dataclasses
import difflib
import inspect
import os
import re
import shlex
import sys
import traceback
import types
from pathlib import Path

from runtime import basics
from runtime.basics import UserError, nearest


def convert(key, value, kind, where):
    """`value` as the field's type `kind` (int, float, bool or str). Strings come from the command line.

    1e9 is a good int, 1 a good float; nothing else changes its type. Raises UserError.
    """
    wrong = UserError(f"{where}: {key} must be {kind.__name__}, not {value!r}")
    if kind is str:
        if isinstance(value, str):
            return value
        raise wrong
    if isinstance(value, str):                        # from the command line, or a quoted number in a file
        if not where.startswith("--"):
            raise wrong
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value))
        except (ValueError, SyntaxError):
            raise wrong from None
    if kind is bool:
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        raise wrong
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong
    if kind is int and value % 1 != 0:                # a fraction, infinite, or nan
        raise wrong
    try:
        return kind(value)
    except OverflowError:                             # an int of more digits than a float can hold
        raise wrong from None


def fault(error, path):
    """'FILE:LINE: what went wrong', on one line, for an `error` that the config file `path` raised."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno or 1}: {error.msg}"
    what = " ".join(traceback.format_exception_only(error)[0].split())
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == path:                    # the last line of the file's own that ran
            return f"{path}:{frame.lineno}: {what}"
    return f"{path}: {what}"


def read_file(path):
    """{name: (value, 'file:line')} of the public names that the config file `path` assigns."""
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(no_config(path))
    space = {"__file__": path}
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8-sig"), path)
        exec(compile(tree, path, "exec"), space)
    except Exception as e:                            # the file is a program: its author mends it
        raise UserError(fault(e, path)) from None
    # The line where each name is assigned last; what functions and classes assign are not the file's names.
    nodes = [n for part in tree.body if not isinstance(part, (ast.FunctionDef, ast.ClassDef))
             for n in ast.walk(part)]
    lines = {n.id: n.lineno for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found = {}
    for name, value in space.items():
        helper = callable(value) or isinstance(value, types.ModuleType)     # unless it was assigned
        if not name.startswith("_") and (name in lines or not helper):
            found[name] = value, f"{path}:{lines.get(name, 1)}"
    return found


def no_config(path):
    """What to say of a config file that is none: where it is, or which was meant."""
    if path.endswith(".py") and (basics.ROOT / path).is_file():
        root = shlex.quote(str(basics.ROOT))
        return f"no such config file: {path}; run from the repository's root: cd {root}"
    known = {file.stem: file for file in (basics.ROOT / "config").glob("*_*.py")}
    meant = difflib.get_close_matches(Path(path).stem, known, n=1)
    guess = f"; did you mean config/{meant[0]}.py?" if meant else ""
    if path.endswith(".py"):
        return f"no such config file: {path}{guess}"
    return f"{path}: a config file ends in .py, an override is --key=value{guess}"


def read_args(args, options=None, several=()):
    """Split the command line into {key: (text, '--key')} and a list of config files; a bare --key is True.

    A field of the dataclass `options` that is no bool may have its value as the next argument. Of a key that
    is given twice the last text counts or, for those of `several`, all of them, with commas between.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(options)} if options else {}
    overrides = {}
    files = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("-"):
            files.append(arg)
            continue
        key, equals, text = arg.lstrip("-").partition("=")
        if not equals and kinds.get(key, bool) is not bool:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} needs a value: --{key}=...")
            text = rest.pop(0)
            equals = "="
        if key in several and key in overrides:
            text = f"{overrides[key][0]},{text}"
        overrides[key] = (text if equals else True, f"--{key}")
    return overrides, files


def set_fields(c, values):
    """Return `c` with `values` {key: (value, where)} checked, converted and set. Raises UserError."""
    kinds = {f.name: f.type for f in dataclasses.fields(c)}
    found = {}
    if unknown := [key for key in values if key not in kinds]:     # all at once: nanoGPT's configs have five
        names = ", ".join(f"{key!r}{nearest(key, kinds)}" for key in unknown)
        word = "key" if len(unknown) == 1 else "keys"
        raise UserError(f"{values[unknown[0]][1]}: unknown {word} {names}; --help lists them all")
    for key, (value, where) in values.items():
        found[key] = convert(key, value, kinds[key], where)
        if key in ("out_dir", "branch"):               # after a "=" no shell does it
            found[key] = os.path.expanduser(found[key])
    return dataclasses.replace(c, **found)


def help_text(config_class):
    """The fields with their defaults and trailing comments, straight from the source."""
    field = r"^    (\w+): \w+ = (?:free\((.+?)\)|(.+?))  +# (.*)$"
    heading = r"^    # (.*)$"
    lines = []
    source = inspect.getsource(config_class)
    for name, wrapped, plain, note, head in re.findall(f"{field}|{heading}", source, re.M):
        if head:
            lines.append(f"\n{head}")
        else:
            setting = f"{name}={wrapped or plain}"
            lines.append(f"  --{setting:<34} {note}")
    return "\n".join(lines)


def read_command(config_class, args):
    """What config files and what the command line set, each {key: (value, where)}. `--help` ends here."""
    overrides, files = read_args(args)
    if {"help", "h"} & set(overrides):
        script = Path(sys.argv[0]).name
        print(f"usage: python {script} [config/FILE.py ...] [--key=value ...]\n{help_text(config_class)}")
        sys.exit(0)
    values = {}
    for path in files:
        values |= read_file(path)
    return values, overrides


def configure(config_class, args):
    """Defaults, then config files, then the command line -> a config.

    Raises UserError for an unknown key, a wrong type or a bad file.
    """
    values, overrides = read_command(config_class, args)
    return set_fields(config_class(), values | overrides)
