"""Tiny Shakespeare, 1.1M characters: the first 90 % for training, the rest for validation.

    python data/tinyshakespeare/prepare.py                        # GPT-2 tokens: 301,966 and 36,059
    python data/tinyshakespeare/prepare.py --max_tokens=100000    # of the first 100,000: 90,000 and 10,000
"""
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import common  # noqa: E402
from runtime.basics import UserError, exit_cleanly  # noqa: E402

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def download() -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=30) as reply:
            return reply.read(2 ** 24)                # 15 times its size: what is longer fails the checksum
    except OSError as e:
        raise UserError(f"cannot download {URL} ({getattr(e, 'reason', e)}); check the network, or give a "
                        "copy with --input=FILE") from None


def halves(whole):
    """Nine tenths and one tenth of a text or of tokens."""
    at = int(0.9 * len(whole))
    return whole[:at], whole[at:]


def main(args: list[str] | None = None) -> None:
    p = common.new_parser("tinyshakespeare", __doc__)
    p.add_argument("--input", type=common.as_path,
                   help="a copy of the text; otherwise it comes from char-rnn's repository")
    p.add_argument("--max_tokens", type=common.count, help="keep this many tokens, then split them 90/10")
    args = p.parse_args(args)
    origin = args.input or URL
    text = common.to_text(common.read_bytes(origin) if args.input else download(), origin)
    found = common.sha256(text.encode("utf-8"))
    if found != SHA256:                               # of the decoded text, so other line ends are no matter
        raise UserError(f"{origin} is not Tiny Shakespeare (sha256 {found}, not {SHA256}); get {URL}; or of "
                        "your own text, run: python data/text/prepare.py --name=NAME --input FILES")
    tok = common.get_tokenizer(args.tokenizer, text)
    if args.max_tokens:
        unit = "tokens"
        train, val = halves(tok.encode(text)[:args.max_tokens])
    else:
        unit = "characters"
        train, val = map(tok.encode, halves(text))
    train_text = tok.decode(train)
    val_text = tok.decode(val)
    _, overlap = common.drop_repeats([train_text], [val_text])
    common.save(args, tok, [(train, len(train_text.encode()))], [(val, len(val_text.encode()))],
                source=URL, sha256={"input.txt": SHA256}, max_tokens=args.max_tokens,
                split=f"the first 90 % of the {unit} for training",
                overlap=overlap, dropped="nothing: overlap is only counted, so that published counts hold")


if __name__ == "__main__":
    exit_cleanly(main)
