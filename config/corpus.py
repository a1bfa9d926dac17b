"""What a dataset is, data/NAME with train.bin, val.bin and meta.json, and the command that makes it."""
import json
import re
import shlex
from pathlib import Path

from runtime import basics
from runtime.basics import UserError, from_here, nearest, plain_name

META = dict(tokenizer=str, vocab_size=int, train_tokens=int, val_tokens=int, val_bytes=int, train_sha256=str)


def prepared(dataset: str) -> bool:
    """Whether data/DATASET is there."""
    return (basics.ROOT / "data" / dataset / "meta.json").exists()


def load_meta(dataset: str) -> dict:
    """The dataset's meta.json, with the sizes of its .bin files checked against it. Raises UserError."""
    if not plain_name(dataset):
        raise UserError(f"dataset {dataset!r} must be the name of a directory under data/")
    folder = basics.ROOT / "data" / dataset
    fix = how_to_prepare(dataset)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = {split: (folder / f"{split}.bin").stat().st_size for split in ("train", "val")}
    except FileNotFoundError as e:
        raise UserError(f"dataset {dataset!r} is not prepared ({e.filename} is missing); {fix}") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / 'meta.json'} is not valid JSON ({e}); {fix}") from None
    found = meta if isinstance(meta, dict) else {}
    bad = [key for key, kind in META.items() if not isinstance(found.get(key), kind)
           or kind is int and found[key] < 1]
    if bad:
        raise UserError(f"{folder / 'meta.json'} lacks a valid {', '.join(bad)}; {fix}")
    for split, size in sizes.items():
        if size != 2 * meta[f"{split}_tokens"]:       # uint16
            raise UserError(f"{folder / split}.bin has {size:,} bytes, its meta.json says "
                            f"{2 * meta[f'{split}_tokens']:,}: it is truncated or stale; {fix}")
    return meta


def how_to_prepare(dataset: str) -> str:
    """The command that makes data/DATASET: by its own prepare.py, else from text of the user's own."""
    data = basics.ROOT / "data"
    name, _, tokenizer = dataset.partition("_")
    script = data / name / "prepare.py"
    known = tokenizers(script) if script.exists() and name != "text" else []
    out = from_here(data / dataset)
    if known and (not tokenizer or tokenizer in known):
        # With --out_dir, because a dataset's usual tokenizer is not in the name of its directory.
        options = f" --tokenizer={tokenizer} --out_dir={out}" if tokenizer else ""
        return f"run: python {from_here(script)}{options}"
    others = [f"{name}_{x}" for x in known] or sorted(p.parent.name for p in data.glob("*/prepare.py")
                                                       if p.parent.name != "text")
    return (f"what can be prepared: {', '.join(others)}{nearest(dataset, others)}; or your own text: python "
            f"{from_here(data / 'text' / 'prepare.py')} --name={shlex.quote(dataset)} --input FILES")


def tokenizers(script: Path) -> list[str]:
    """Those that a prepare.py has, by its source: to import it takes what it imports."""
    some = re.search(r"tokenizers=\((.*?)\)", script.read_text(encoding="utf-8"))
    return re.findall(r"\w+", some[1]) if some else ["char", "byte", "gpt2"]


# What config.json and seals call the sha256 of a text: meta.json's name for it, and a word for people.
TEXTS = dict(data_sha256=("train_sha256", "training text"), val_sha256=("val_sha256", "validation text"))


def texts(meta: dict) -> dict:
    """The sha256 of a dataset's texts, as config.json has them; without those that its `meta` lacks."""
    return {key: meta[name] for key, (name, _) in TEXTS.items() if meta.get(name)}


def other_texts(old: dict, new: dict) -> list[str]:
    """The keys of TEXTS in which two records differ that both have them: old ones lack the younger."""
    return [key for key in TEXTS if old.get(key) and new.get(key) and old[key] != new[key]]
