"""WikiText-2 (raw, v1), 2M words of good Wikipedia articles, with its official splits; or your own text.

    python data/wikitext2/prepare.py                                          # from the Hugging Face Hub
    python data/wikitext2/prepare.py --input wiki.train.raw --val_input wiki.valid.raw
    python data/wikitext2/prepare.py --input my/*.txt --out_dir=data/mine     # the last 10 % is held out
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import common  # noqa: E402
from runtime.basics import exit_cleanly  # noqa: E402

HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1", "b08601e04326c79dfdd32d625aee71d232d685c3")


def read(files: list[Path], split: str) -> str:
    """The rows, each ending in one newline (the Hub's rows and lines have it, others have not)."""
    stream = common.open_stream(files, HUB, split, sample_by="line")
    return "".join(text.rstrip("\r\n") + "\n" for text in common.texts(stream))


def main(args: list[str] | None = None) -> None:
    p = common.new_parser("wikitext2", __doc__)
    common.add_input(p)
    args = p.parse_args(args)
    origin = common.describe(args, HUB)
    train = read(args.input, "train")
    if args.input and not args.val_input:
        train, val = common.hold_out(train)
        split = "the last 10 % of the text held out"
    else:
        val = read(args.val_input, "validation")
        split = "validation files given" if args.val_input else "official train and validation; no test"
    (train,), dropped = common.drop_repeats([train], [val], between="\n")
    tok = common.get_tokenizer(args.tokenizer, train, val)
    common.save(args, tok, common.pieces([train], tok), common.pieces([val], tok), **origin, split=split,
                dropped=dropped)


if __name__ == "__main__":
    exit_cleanly(main)
