"""Your own text, from files, a folder or the Hugging Face Hub, with a vocabulary of its own if you like.

    python data/text/prepare.py --name=mine --input book.txt notes/           # -> data/mine/
    python data/text/prepare.py --name=mine --input pages.jsonl --field=body --tokenizer=bpe --vocab=4096
    python data/text/prepare.py --name=web --hf=HuggingFaceFW/fineweb:sample-10BT --num_tokens=1e7
    python data/text/prepare.py --name=other --input more/ --val_from=mine    # its val.bin and vocabulary

A file of plain text is a document, and so is a row of JSON or parquet; of folders hidden files are left out.
Documents with a twentieth of all characters are held out, chosen by their hashes; of fewer than 20 the last
tenth of each. What comes twice, or repeats validation text, is dropped from training. All of it is held in
memory: for more than a few GB take data/c4/prepare.py.
"""
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import common  # noqa: E402, I001    first: it says which package is missing
from config.corpus import load_meta  # noqa: E402
from runtime import basics  # noqa: E402
from runtime.basics import UserError, exit_cleanly, plain_name  # noqa: E402

import numpy as np  # noqa: E402

FEW = 20                                              # fewer documents are cut instead of held out whole
HUB_TOKENS = 1e7                                      # of the Hub, where --num_tokens is not given
LONGEST = 8                                           # characters a token at most, on average over a text
CONTROLS = rb"[\x00-\x06\x0e-\x19]"                    # bytes that text has in no encoding but UTF-16


# ---- documents ----

def files_below(paths: list[Path]) -> tuple[list[Path], int]:
    """The files, those in folders too, that hold text, and how many in folders do not. Raises UserError."""
    found = []
    binary = 0
    for path in paths:
        if not path.exists():
            raise UserError(f"cannot read {path}: there is no such file or folder; check --input")
        if not path.is_dir():
            found.append(path)
            continue
        below = [p for p in sorted(path.rglob("*")) if p.is_file()]
        # Nobody means what is hidden by the text of a folder: .git, .venv, .DS_Store.
        below = [p for p in below if not re.search(r"(^|/)\.", p.relative_to(path).as_posix())]
        text = [p for p in below if is_text(p)]
        found += text
        binary += len(below) - len(text)
    if not found:
        raise UserError(f"no text in {' '.join(map(str, paths))}; give files of text, JSON or parquet, or a "
                        "folder of them")
    return found, binary


def is_text(path: Path) -> bool:
    """Whether a file of a folder is worth reading: no picture, no program. Raises UserError."""
    try:
        with open(path, "rb") as f:
            head = f.read(4096)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; allow it, or leave it out of --input") from None
    return bool(common.file_format(path)) or bool(head.strip()) and not re.search(CONTROLS, head)


def has_rows(path: Path) -> bool:
    return common.file_format(path) in ("json", "parquet")


def documents(path: Path, field: str):
    """The documents of one file. Raises UserError."""
    rows = has_rows(path)
    for text in common.texts(common.Rows([path], "file"), field if rows else "text"):
        if "\0" in text and not rows:
            raise UserError(f"{path} holds zero bytes: it is no text, or not in UTF-8; leave it out, unpack "
                            "it or convert it")
        yield text


def of_the_hub(asked: str, field: str, limit: float):
    """Documents of --hf=REPO[:CONFIG], until they hold `limit` characters. Raises UserError."""
    repo, _, config = asked.partition(":")
    stream = common.open_stream([], (repo, config or None, None), "train", "paragraph")
    seen = 0
    for text in common.texts(stream, field):
        yield text
        seen += len(text)
        if seen >= limit:
            return


def unique(docs) -> tuple[list[str], dict]:
    """The documents that are not empty, each once, and how many were dropped."""
    docs = [re.sub("\r\n?", "\n", doc) for doc in docs]
    found = dict.fromkeys(doc for doc in docs if doc.strip())
    empty = sum(not doc.strip() for doc in docs)
    return list(found), {"empty": empty, "duplicate": len(docs) - empty - len(found)}


# ---- the split ----

def hold_out(docs: list[str]) -> tuple[list[str], list[str], str]:
    """(training documents, validation documents, how they were parted)."""
    if len(docs) < FEW:
        parts = [common.hold_out(doc) for doc in docs]
        train, val = ([part for part in side if part.strip()] for side in zip(*parts))
        return train, val, "the last 10 % of each document held out"
    held = common.draw({doc: len(doc) for doc in docs}, sum(map(len, docs)) / FEW)
    train, val = [doc for doc in docs if doc not in held], [doc for doc in docs if doc in held]
    return train, val, "by document: a twentieth of the characters held out, by the hash of the text"


# ---- command line ----

def read_args(args: list[str] | None):
    p = common.new_parser("text", __doc__, default="byte", tokenizers=(*common.TOKENIZERS, "bpe"))
    p.add_argument("--name", required=True, help="the dataset's: it goes to data/NAME/")
    p.add_argument("--input", nargs="+", type=common.as_path, default=[], help="files or folders")
    p.add_argument("--hf", default="", help="REPO[:CONFIG] on the Hugging Face Hub, its train split")
    p.add_argument("--field", default="text", help="where JSON, parquet and the Hub have the text")
    p.add_argument("--vocab", type=common.count, help="size of the vocabulary of bpe (default 4096)")
    p.add_argument("--num_tokens", type=common.count, default=None, help="training tokens; default: all, or "
                   f"{HUB_TOKENS:g} of the Hub's")
    p.add_argument("--val_from", default="", metavar="DATASET", help="take its validation text and its "
                   "vocabulary, so that losses can be compared")
    p.set_defaults(tokenizer=None)
    args = p.parse_args(args)
    if not plain_name(args.name):
        raise UserError(f"--name={args.name!r} is no name for a directory under data/")
    if (basics.ROOT / "data" / args.name / "prepare.py").exists() and not args.out_dir:
        raise UserError(f"data/{args.name} is for what it is called after; give another --name")
    if bool(args.input) == bool(args.hf):
        raise UserError("give either --input FILES or --hf=REPO")
    if args.val_from and args.tokenizer:
        raise UserError(f"--val_from={args.val_from} brings its vocabulary; leave --tokenizer out")
    if args.vocab and args.tokenizer != "bpe":
        raise UserError(f"--vocab={args.vocab} is for --tokenizer=bpe; add that, or leave it out")
    args.vocab = args.vocab or 4096
    args.num_tokens = args.num_tokens or (HUB_TOKENS if args.hf else math.inf)
    args.tokenizer = args.tokenizer or "byte"
    args.out_dir = args.out_dir or basics.ROOT / "data" / args.name
    return args


def gather(args) -> tuple[list[str], dict, dict]:
    """(documents, what was dropped, where they are from). Raises UserError."""
    if args.hf:
        docs, dropped = unique(of_the_hub(args.hf, args.field, LONGEST * args.num_tokens))
        return docs, dropped, dict(source=f"https://huggingface.co/datasets/{args.hf}, {args.field}")
    files, binary = files_below(args.input)
    if args.field != "text" and not any(map(has_rows, files)):
        raise UserError(f"--field={args.field}, but none of the files is JSON or parquet, which have fields; "
                        "convert one, or leave --field out")
    docs, dropped = unique(doc for path in files for doc in documents(path, args.field))
    dropped["binary files"] = binary
    digests = "".join(map(common.file_sha256, files))
    return docs, dropped, dict(source=" ".join(path.name for path in args.input), sha256={
        f"sha256 of {len(files)} files": common.sha256(digests.encode())})


def report(args, meta: dict, val: list[str]) -> None:
    """Say what came of it, what could not be done, and what comes next."""
    dropped = ", ".join(f"{count} {why}" for why, count in meta["dropped"].items() if count)
    print(f"{meta['documents']:,} documents; {meta['split']}" + (f"; dropped: {dropped}" if dropped else ""))
    if meta["train_tokens"] < args.num_tokens < math.inf:
        print(f"the input ended before {args.num_tokens:,.0f} tokens")
    if 2 * sum(len(line) for doc in val for line in common.long_lines(doc)) < sum(map(len, val)):
        print("warning: over half of the validation text is in lines under 40 characters, and what repeats "
              "only those was not found")
    if args.out_dir.resolve() == (basics.ROOT / "data" / args.name).resolve():     # else no run finds it
        print(f"next: python train.py config/scale_d32.py --dataset={args.name} --out_dir=out/{args.name}")


def main(args: list[str] | None = None) -> None:
    args = read_args(args)
    docs, dropped, origin = gather(args)
    if not docs:
        raise UserError("there is no text in it; give other files, or another --field")
    if args.val_from:
        other = load_meta(args.val_from)
        tok = common.get_tokenizer(other["tokenizer"], other.get("chars") or other.get("bpe", ""))
        ids = np.fromfile(basics.ROOT / "data" / args.val_from / "val.bin", dtype="<u2")
        train, val, split = docs, [tok.decode(ids)], f"validation: that of {args.val_from}"
    else:
        train, val, split = hold_out(docs)
    train, repeated = common.drop_repeats(train, val)
    train = [doc for doc in train if doc.strip()]
    dropped["paragraphs that repeat validation"] = repeated["paragraphs"]
    if args.tokenizer == "bpe":
        tok = common.bpe_tokenizer(train, args.vocab)
    elif not args.val_from:
        tok = common.get_tokenizer(args.tokenizer, *train, *val)
    held = [(ids, other["val_bytes"])] if args.val_from else common.pieces(val, tok)
    items = common.cut(common.pieces(train, tok), args.num_tokens, tok)
    meta = common.save(args, tok, items, held, **origin, split=split, documents=len(docs),
                       rule=common.OVERLAP_RULE, dropped=dropped)
    report(args, meta, val)


if __name__ == "__main__":
    exit_cleanly(main)
