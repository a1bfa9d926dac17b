"""The formats of logs: each reader yields (place, {column: value}), in the order of the file.

What has no place is true of the runs that follow: `params`, `counted` (which of them), `batch_tokens` (of a
step), `total_flos` (of a run), `kind` (what the file is). What is malformed is reported, and left out.
"""
import json
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path

from runtime.basics import UserError
from scaling.tables.columns import ALIASES, HORIZONS, is_loss, plain
from scaling.tables.console import STEP, UPDATES, read_console
from scaling.tables.csv import MALFORMED, csv_rows, delimiter_of, number, opened, text_lines, unreadable

FORMATS = ("a study or run directory; console logs of nanoGPT, modded-nanogpt, nanochat and others; llm.c's "
           "main.log; Hugging Face's trainer_state.json; Lightning's and LitGPT's metrics.csv; W&B's .wandb, "
           "its charts and runs as .csv; TensorBoard's event files; trackio's .db; .csv, .json and .jsonl "
           "with a loss; but for the .db, each of them as .gz")

# ---- What columns are called. ----

NAMES = {                                              # of several that a log has, the first is used
    "run": f"{ALIASES['run']} name",
    "params": ALIASES["params"],
    "tokens": ALIASES["tokens"],
    "step": "step global_step iteration iter _step",   # W&B's _step counts what it was told, so it comes last
    "flops": ALIASES["flops"],
    "budget": "budget",
    "unique_tokens": "unique_tokens",
    "horizon": HORIZONS["step"]}


@lru_cache(maxsize=10_000)
def tail(column: str) -> str:
    """The last part of a column's name, as NAMES has it: 'total_tokens' of 'throughput/Total tokens'.

    W&B's own columns keep the underscore that they begin with.
    """
    part = column.rpartition("/")[2].strip()
    return "_" * part.startswith("_") + plain(part)


@lru_cache(maxsize=10_000)
def named(columns: tuple[str, ...], ours: str) -> str | None:
    """The column that holds what we call `ours`, by its name, or None."""
    theirs = {tail(column): column for column in reversed(columns)}
    return next((theirs[name] for name in NAMES[ours].split() if name in theirs), None)


@contextmanager
def skipping(where: str, report: Callable):
    """Report what is malformed in the block, at `where`, and go on."""
    try:
        yield
    except (*MALFORMED, struct.error) as e:
        report(f"{where}: malformed ({type(e).__name__}: {e}); skipped")


# ---- Which format it is. ----

def reader_of(path: Path) -> Callable:
    """The reader of a file, by what the file begins with. Raises UserError."""
    with unreadable(path), opened(path) as f:
        head = f.read(65536)
    for magic, reader in ((b":W&B", read_wandb), (b"SQLite format 3\0", read_trackio)):
        if head.startswith(magic):
            return reader
    if b"brain.Event:" in head[:64]:
        return read_tensorboard
    text = head.decode("utf-8-sig", "replace").lstrip()
    if "ppl" in text and UPDATES.search(text):         # fairseq, whose losses are in bits
        return read_console
    if re.match(r"\{\s*[\"}]|\[\s*[{\]]", text) or ".json" in path.suffixes:
        return read_json
    if ".csv" in path.suffixes or ".tsv" in path.suffixes or names_columns(text):
        return read_table
    return read_console


def names_columns(text: str) -> bool:
    """Whether the first line of a text that is no comment names columns, a loss among them.

    A line of a console log has commas and a loss, too, but also its number.
    """
    lines = (line for line in text.splitlines() if not line.startswith(("#", "sep=", '"sep=')))
    header = next(lines, "")
    cells = header.split(delimiter_of(header))
    logged = STEP.search(header) or re.search(r"\d\.\d", header)
    return len(cells) > 1 and not logged and any(is_loss(cell.strip(' "')) for cell in cells)


# ---- Tables. ----

def read_table(path: Path, report: Callable) -> Iterator:
    """A CSV file: of runs, of points, or of steps; or the export of a chart of Weights & Biases."""
    rows = csv_rows(path, report)
    header = next(rows)[1]
    known = set(header)
    theirs = [name for name in header if f"{name}__MIN" in known or " - " in name and is_loss(name)
              and not name.endswith(("__MIN", "__MAX"))]
    yield None, {"kind": "chart of Weights & Biases" if theirs else "table"}
    if theirs and header[0] == "Step":
        report(f"{path}: Step counts what W&B was told; where that is not each step of the optimizer, export "
               "the chart over one that does")
    for line, cells in rows:
        row = dict(zip(header, cells))
        if not theirs:
            yield str(line), row
        of_run = {}
        for name in theirs:                            # a column is named 'RUN - KEY'
            run, _, key = name.rpartition(" - ")
            if row[name].strip():
                of_run.setdefault(run, {header[0]: cells[0], "run": run})[key] = row[name]
        for record in of_run.values():
            yield str(line), record


# ---- JSON. ----

def read_json(path: Path, report: Callable) -> Iterator:
    """A run with its curves, trainer_state.json, a list of runs or of steps, or one object on each line."""
    text = "".join(text_lines(path, "replace"))
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        if '\n{"' not in text and ".json" in path.suffixes:
            raise UserError(f"{path}: not JSON: {e}; mend it there") from None
        if '\n{"' not in text:                         # a config, printed before the log
            yield from read_console(path, report)
            return
        data = list(json_lines(path, text, report))
    yield None, {"kind": "JSON"}
    yield from json_records(path, data, report)


def json_lines(path: Path, text: str, report: Callable) -> Iterator[dict]:
    """The objects of a file with one on each line."""
    for line, part in enumerate(text.splitlines(), 1):
        with skipping(f"{path}:{line}", report):
            if part.strip():
                yield json.loads(part)


def json_records(path: Path, data, report: Callable) -> Iterator:
    """The records in what a JSON file holds."""
    if isinstance(data, dict) and isinstance(data.get("log_history"), list):
        yield None, {"kind": "Hugging Face's trainer_state.json"}
        yield from trainer_records(path, data, report)
    elif isinstance(data, dict) and (columns := columns_in(data)):
        for i, values in enumerate(zip(*columns.values())):
            yield f"[{i}]", dict(zip(columns, values))
    elif isinstance(data, dict) and curves_in(data):
        yield from curve_records(path, data, report)
    elif isinstance(data, dict):
        models = [{"run": name} | part for name, part in data.items() if is_model(part)]
        if models:
            yield from json_records(path, models, report)
        for part in data.values():
            listed = isinstance(part, list) and any(isinstance(item, dict) for item in part)
            if listed or isinstance(part, dict) and columns_in(part):
                yield from json_records(path, part, report)
    elif isinstance(data, list):
        for i, item in enumerate(data):
            with skipping(f"{path}:[{i}]", report):
                if not isinstance(item, dict):
                    raise ValueError(f"{item!r:.40} is no object")
                if curves_in(item):
                    yield from curve_records(path, {"run": f"[{i}]"} | item, report)
                else:
                    yield f"[{i}]", flat(item)


def columns_in(data: dict) -> dict:
    """{column: its values} of a table that stands there by columns, as pandas writes it; else {}."""
    found = {name: list(part.values()) if isinstance(part, dict) else part for name, part in data.items()
             if isinstance(part, (dict, list))}
    cells = [cell for part in found.values() for cell in part]
    nested = any(isinstance(cell, (dict, list)) for cell in cells)
    even = len({len(part) for part in found.values()}) == 1
    return found if even and not nested and any(map(is_loss, found)) else {}


def is_model(part) -> bool:
    """Whether an object has the size of a model and a loss, and is no table of several."""
    told = isinstance(part, dict) and named(tuple(part), "params") is not None and any(map(is_loss, part))
    return told and not columns_in(part)


def flat(item: dict) -> dict:
    """{'config/lr': ...} of {'config': {'lr': ...}}, without long lists."""
    found = {}
    for name, value in item.items():
        if isinstance(value, dict):
            found |= {f"{name}/{key}": part for key, part in flat(value).items()}
        elif not isinstance(value, list) or len(value) < 5 and "[" not in str(value)[1:]:      # no curves
            found[name] = value
    return found


def trainer_records(path: Path, state: dict, report: Callable) -> Iterator:
    """log_history; the size of the model follows from total_flos = 6 x parameters x tokens."""
    if state.get("total_flos"):
        yield None, {"total_flos": state["total_flos"], "counted": "total_flos / (6 tokens): no embeddings"}
    steps, tokens = (number(state.get(key)) for key in ("global_step", "num_input_tokens_seen"))
    if steps > 0 and tokens > 0:
        yield None, {"batch_tokens": tokens / steps}
    for i, entry in enumerate(state["log_history"]):
        with skipping(f"{path}:log_history[{i}]", report):
            record = {"horizon": state.get("max_steps"), "step": int(number(entry["step"]))} | entry
            if "train_runtime" in entry:               # the summary: its train_loss is a mean over the run
                record.pop("train_loss", None)
            yield f"log_history[{i}]", record


def curves_in(data: dict) -> list[str]:
    """The names of the losses that stand in an object as lists of [step, loss]."""
    return [name for name, part in data.items() if isinstance(part, list) and is_loss(name)]


def curve_records(path: Path, data: dict, report: Callable) -> Iterator:
    """The curves of one run, with its size where its config tells."""
    config = data["config"] if isinstance(data.get("config"), dict) else {}
    shape = {key: value for key, value in config.items() if type(value) is int and 0 < value < 10**9}
    if "n_layers" in shape and "d_model" in shape:
        width = shape["d_model"]                       # blocks and last norm, with biases
        yield None, {"params": shape["n_layers"] * (12 * width**2 + 13 * width) + 2 * width,
                     "counted": "of a GPT-2 of its config, non-embedding"}
    if "batch_size" in shape and "n_positions" in shape:
        yield None, {"batch_tokens": shape["batch_size"] * shape["n_positions"]}
    run = {name: value for name, value in data.items()
           if isinstance(value, (str, int, float)) and not is_loss(name)}
    for name in curves_in(data):
        for i, pair in enumerate(data[name]):
            with skipping(f"{path}:{name}[{i}]", report):
                step, loss = pair
                yield f"{name}[{i}]", run | {"step": int(number(step)), name: number(loss)}


# ---- Binary files. ----

def varint(data: bytes, i: int) -> tuple[int, int]:
    """(the protobuf integer at `i`, where it ends). Raises ValueError."""
    value = shift = 0
    while i < len(data) and shift < 70:
        value |= (data[i] & 127) << shift
        if data[i] < 128:
            return value, i + 1
        shift += 7
        i += 1
    raise ValueError("damaged")


def fields(data: bytes) -> Iterator[tuple[int, object]]:
    """(number, value) of the fields of a protobuf message: an int or bytes. Raises ValueError."""
    i = 0
    while i < len(data):
        key, i = varint(data, i)
        if key & 7 == 0:
            value, i = varint(data, i)
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            if size is None:
                if key & 7 != 2:
                    raise ValueError("damaged")
                size, i = varint(data, i)
            value = data[i:i + size]
            i += size
            if len(value) < size:
                raise ValueError("cut short")
        yield key >> 3, value


def parts_of(data: bytes, *numbers: int) -> Iterator:
    """The values of the fields `numbers[0]`, of the fields `numbers[1]` in these, and so on."""
    for number_, value in fields(data):
        if number_ == numbers[0]:
            if len(numbers) == 1:
                yield value
            elif isinstance(value, bytes):
                yield from parts_of(value, *numbers[1:])


def wandb_messages(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a LevelDB log, whose blocks of 32 KiB hold records or parts of them."""
    i = 7                                              # after ':W&B' and the version
    whole = b""
    while i + 7 <= len(data):
        left = -i % 32768 or 32768
        _, size, kind = struct.unpack_from("<IHB", data, i)
        if left < 7 or kind == 0:                      # the rest of a block is empty
            i += left
            continue
        whole = data[i + 7:i + 7 + size] if kind in (1, 2) else whole + data[i + 7:i + 7 + size]
        if kind in (1, 4):                             # the whole of a record, or its last part
            yield whole
        i += 7 + size


def wandb_items(message: bytes, *numbers: int) -> dict:
    """{key: value} of the items in these fields; nested keys are joined by a slash."""
    found = {}
    for item in parts_of(message, *numbers):
        keys = [part for n in (1, 2) for part in parts_of(item, n)]
        text = b"".join(parts_of(item, 16))
        found["/".join(key.decode() for key in keys)] = json.loads(text or b"null")
    return found


def read_wandb(path: Path, report: Callable) -> Iterator:
    """A run of Weights & Biases as it lies on disk: its history, with its config beside each step."""
    yield None, {"kind": "Weights & Biases run"}
    with unreadable(path), opened(path) as f:
        data = f.read()
    config = {}
    for i, message in enumerate(wandb_messages(data)):
        with skipping(f"{path}:record {i}", report):
            config |= settings_of(wandb_items(message, 17, 4, 1) | wandb_items(message, 5, 1))
            for name in parts_of(message, 17, 8):
                config["run"] = name.decode()
            if history := wandb_items(message, 2, 1):
                yield f"record {i}", config | history


def settings_of(config: dict) -> dict:
    """What a logger was told of a run, without what is its own, a step or a loss."""
    return {name: value for name, value in config.items() if isinstance(value, (str, int, float))
            and not name.startswith("_") and not is_loss(name) and named((name,), "step") is None}


def scalar_of(value: bytes) -> float:
    """The number in a TensorBoard summary value: simple_value, or a tensor of one float."""
    for simple in parts_of(value, 2):
        return struct.unpack("<f", simple)[0]
    for n in (5, 4):                                   # float_val, tensor_content
        for content in parts_of(value, 8, n):
            return struct.unpack("<f", content)[0]
    raise ValueError("no scalar")


def read_tensorboard(path: Path, report: Callable) -> Iterator:
    """The scalars of a TensorBoard event file."""
    yield None, {"kind": "TensorBoard event file"}
    with unreadable(path), opened(path) as f:
        data = f.read()
    i = 0
    while i + 12 <= len(data):
        size, = struct.unpack_from("<Q", data, i)
        event = data[i + 12:i + 12 + size]
        with skipping(f"{path}:byte {i}", report):
            step = next(parts_of(event, 2), 0)
            for value in parts_of(event, 5, 1):
                tag = b"".join(parts_of(value, 1)).decode()
                if is_loss(tag) or named((tag,), "tokens"):
                    yield f"byte {i}", {"step": step, tag: scalar_of(value)}
        i += size + 16


def read_trackio(path: Path, report: Callable) -> Iterator:
    """The runs of trackio's SQLite file, with the config of each beside its steps."""
    yield None, {"kind": "trackio project"}
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            config = dict(db.execute("SELECT run_name, config FROM configs"))
            for name, step, metrics in db.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"):
                with skipping(f"{path}:{name} {step}", report):
                    told = settings_of(json.loads(config.get(name) or "{}"))
                    yield f"{name} {step}", told | json.loads(metrics) | {"run": str(name), "step": step}
    except (sqlite3.Error, UnicodeDecodeError) as e:
        raise UserError(f"{path}: no project of trackio: {e}") from None
