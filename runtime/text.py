"""Whether the token ids in train.bin and val.bin are the model's, found before a run trains on them."""
import contextlib
from pathlib import Path

import numpy as np

from config.settings import Config
from runtime import basics
from runtime.basics import UserError, load_json, write_json


def require_known_ids(c: Config, meta: dict) -> None:
    """Raise UserError for an id at or above vocab_size in train.bin or val.bin: training would fail at it.

    What was found is kept beside the data in ids.json, so that a large file is read once and not by each run.
    """
    folder = basics.ROOT / "data" / c.dataset
    cache = folder / "ids.json"
    known = {}
    with contextlib.suppress(UserError):
        known = load_json(cache)
    found = {split: look(folder / f"{split}.bin", meta.get(f"{split}_sha256"), known.get(split))
             for split in ("train", "val")}
    for split, entry in found.items():
        if entry["largest"] >= c.vocab_size:
            raise UserError(f"{folder / split}.bin has the token id {entry['largest']}, and vocab_size is "
                            f"{c.vocab_size}: set --vocab_size={entry['largest'] + 1}, or prepare it again")
    if found != known:
        with contextlib.suppress(UserError):           # data that may only be read are read again
            write_json(cache, found)


def look(path: Path, sha256, known) -> dict:
    """The largest id in `path`, and of which state of the file it is; `known` where that is its state."""
    stat = path.stat()
    state = dict(sha256=sha256, bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
    if isinstance(known, dict) and known == state | {"largest": known.get("largest")}:
        return known
    return state | {"largest": int(np.memmap(path, dtype=np.uint16, mode="r").max())}
