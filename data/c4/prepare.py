"""The first tokens of C4 (English web text), streamed: memory stays small, and a stopped run can go on.

    python data/c4/prepare.py --num_tokens=1e8                                # from the Hugging Face Hub
    python data/c4/prepare.py --num_tokens=1e7 --input c4-train.*.jsonl.gz --val_input c4-validation.jsonl.gz

Ctrl-C and SIGTERM stop it; the same command goes on. Documents (of plain text: paragraphs) are separated by
<|endoftext|>, or with --tokenizer=byte by three newlines; empty ones are left out. Validation text does not
depend on --num_tokens.
"""
import signal
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import common  # noqa: E402, I001    first: it says which package is missing
from runtime.basics import UserError, exit_cleanly, load_json, write_json  # noqa: E402

from tqdm import tqdm  # noqa: E402

HUB = ("allenai/c4", "en", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2")
BATCH = 1024                                          # documents between two notes of how far it is


def take(stream, tok: common.Tokenizer, num_tokens: int) -> tuple[list[str], int]:
    """The first documents of the stream, until they hold `num_tokens`, and how many empty ones came."""
    docs = []
    empty = 0
    for doc in common.texts(stream):
        if not doc.strip():
            empty += 1
            continue
        docs.append(doc)
        num_tokens -= len(tok.encode(doc)) + len(tok.separator)
        if num_tokens <= 0:
            break
    return docs, empty


def load_state(path: Path, part: Path, settings: dict, num_tokens: int) -> dict:
    """How far an interrupted run came, or a fresh start. `stream` is where `datasets` was in its input."""
    if not path.is_file():
        return {"settings": settings, "tokens": 0, "bytes": 0, "documents": 0, "dropped": 0, "stream": None}
    state = load_json(path)
    if state["settings"] != settings or state["tokens"] > num_tokens:
        raise UserError(f"{path} is of an unfinished run with other settings; delete it to start again")
    if not part.is_file() or part.stat().st_size < 2 * state["tokens"]:
        raise UserError(f"{part} is shorter than {path} says; delete {path} to start again")
    return state


def fill(part: Path, state_path: Path, state: dict, stream, tok, is_repeat, num_tokens: int) -> None:
    """Append documents to `part` until it holds `num_tokens`; after a batch `state_path` says how far it is.

    A batch is written where the text of that state ends, so no document comes twice wherever a run died.
    """
    if state["stream"]:
        stream.load_state_dict(state["stream"])
    docs = common.texts(stream)
    with tqdm(total=num_tokens, initial=state["tokens"], unit="tok", unit_scale=True) as bar:
        while state["tokens"] < num_tokens and (batch := list(islice(docs, BATCH))):
            at = state["tokens"]
            fresh = [doc for doc in batch if doc.strip() and not is_repeat(doc)]
            items = common.cut(common.pieces(fresh, tok, follows=at > 0), num_tokens - at, tok)
            tokens, nbytes = common.write_pieces(part, items, at)
            state["tokens"] += tokens
            state["bytes"] += nbytes
            state["documents"] += len(batch)
            state["dropped"] += len(batch) - len(fresh)
            state["stream"] = stream.state_dict()
            write_json(state_path, state)
            bar.update(tokens)


def prepare(args) -> None:
    """Validation text first, then training text, resumed or from the start; then both become visible."""
    tok = common.get_tokenizer(args.tokenizer)
    origin = common.describe(args, HUB)
    out = common.out_dir(args)
    parts = {"train": out / "train.part", "val": out / "val.part"}
    state_path = out / "state.json"
    settings = {"tokenizer": tok.name, "val_tokens": args.val_tokens, **origin}
    state = load_state(state_path, parts["train"], settings, args.num_tokens)
    val_stream = common.open_stream(args.val_input or args.input, HUB, "validation", sample_by="paragraph")
    val, empty = take(val_stream, tok, args.val_tokens)
    if args.input and not args.val_input and not state["stream"]:
        state["stream"] = val_stream.state_dict()     # training text begins where the validation text ended
    out.mkdir(parents=True, exist_ok=True)
    try:
        val_items = common.cut(common.pieces(val, tok), args.val_tokens, tok)
        counts = {"val": common.write_pieces(parts["val"], val_items)}
        stream = common.open_stream(args.input, HUB, "train", sample_by="paragraph")
        fill(parts["train"], state_path, state, stream, tok, common.repeats(val), args.num_tokens)
        if state["tokens"] < 2:
            state_path.unlink(missing_ok=True)
            raise UserError(f"too little text for training: validation took {len(val)} documents, and of the "
                            f"{state['documents']} others {state['dropped']} are empty or repeat it; lower "
                            "--val_tokens; or of your own text, run: python data/text/prepare.py --name=NAME "
                            f"--tokenizer={tok.name} --input FILES")
        counts["train"] = state["tokens"], state["bytes"]
        place = "C4's own split"
        if args.val_input:
            place = "the validation files"
        elif args.input:
            place = "--input"
        common.publish(args, parts, tok, counts, **origin, documents=state["documents"],
                       split=f"validation: the first {args.val_tokens:,} tokens of {place}",
                       dropped={"rule": f"empty, or: {common.OVERLAP_RULE}", "documents": state["dropped"],
                                "val_documents": empty})
        state_path.unlink()
    finally:
        if not state_path.is_file():                  # then there is nothing that a later run could build on
            for path in parts.values():
                path.unlink(missing_ok=True)
    if state["tokens"] < args.num_tokens:
        print(f"the input ended before {args.num_tokens:,} tokens")


def main(args: list[str] | None = None) -> int:
    """Returns 0, or 130 when a signal stopped it."""
    p = common.new_parser("c4", __doc__, tokenizers=("byte", "gpt2"))
    p.add_argument("--num_tokens", type=common.count, default="1e8", help="training tokens (default 1e8)")
    p.add_argument("--val_tokens", type=common.count, default="2e6", help="validation tokens (default 2e6)")
    common.add_input(p)
    args = p.parse_args(args)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)      # as Ctrl-C: KeyboardInterrupt
    try:
        prepare(args)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except OSError as e:
        raise UserError(f"cannot write {common.out_dir(args)}: {e.strerror or e}; make room, then run the "
                        "same command again") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
