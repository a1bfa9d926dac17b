"""Python source code: the standard library and the installed packages of the interpreter that runs this.

    python data/pycode/prepare.py                           # GPT-2 tokens
    python data/pycode/prepare.py --tokenizer=byte --num_tokens=5e7

Needs no network (but for GPT-2's vocabulary). What it finds depends on what is installed: see meta.json. The
same text on every machine, 190 MB of packages without a compiled part, at their versions of November 2026:

    pip install --no-deps --no-compile --target=data/py_packages -r data/pycode/packages.txt
    python data/pycode/prepare.py --tokenizer=byte --packages=data/py_packages --out_dir=data/pycode_pinned

Whole packages are held out. Files come in the order of their hashes, so the head of a split is a fair sample.
"""
import math
import platform
import sys
import sysconfig
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data import common  # noqa: E402, I001    first: it says which package is missing
from runtime.basics import UserError, exit_cleanly  # noqa: E402

from tqdm import tqdm  # noqa: E402


def python_files(folders: list[Path]) -> list[tuple[str, Path]]:
    """(package, path) of every .py file; a package is a top-level name in one of the folders."""
    files = []
    for root in folders:
        for path in sorted(root.rglob("*.py")):
            package = path.relative_to(root).parts[0].removesuffix(".py")
            if path.is_file() and package not in ("site-packages", "dist-packages"):     # roots themselves
                files.append((package, path))
    return files


def unique_files(files: list[tuple[str, Path]]) -> tuple[dict, Counter]:
    """{sha256: (package, text, characters)}, one file per content, sorted by hash; and counts of the rest."""
    found = {}
    dropped = Counter()
    for package, path in tqdm(files, desc="reading", unit="file"):
        data = path.read_bytes()
        digest = common.sha256(data)
        try:
            characters = len(data.decode().strip())
        except UnicodeDecodeError:
            dropped["undecodable"] += 1
            continue
        if not characters:
            dropped["empty"] += 1
        elif digest in found:
            dropped["duplicate"] += 1
        else:
            found[digest] = package, common.to_text(data, path), characters
    return dict(sorted(found.items())), dropped


def main(args: list[str] | None = None) -> None:
    p = common.new_parser("pycode", __doc__, tokenizers=("byte", "gpt2"))
    p.add_argument("--num_tokens", type=common.count, default=math.inf,
                   help="stop after this many training tokens")
    p.add_argument("--packages", type=common.as_path,
                   help="a folder that `pip install --target` filled, in place of this Python's own")
    args = p.parse_args(args)
    tok = common.get_tokenizer(args.tokenizer)
    if args.packages:
        folders = [args.packages]
        source = "Python packages"
        installed = distributions(path=[str(args.packages)])
    else:
        folders = sorted({Path(sysconfig.get_paths()[key]) for key in ("stdlib", "purelib", "platlib")})
        source = f"standard library of Python {platform.python_version()} and installed packages"
        installed = distributions()
    files, dropped = unique_files(python_files(folders))
    sizes = Counter()
    for package, _, characters in files.values():
        sizes[package] += characters
    packages = common.draw(sizes, 0.05 * sum(sizes.values()))
    train = [text for package, text, _ in files.values() if package not in packages]
    val = [text for package, text, _ in files.values() if package in packages]
    if not val and args.packages:
        raise UserError(f"{args.packages} holds too little Python source; fill it: pip install --no-deps "
                        f"--target={args.packages} -r data/pycode/packages.txt")
    if not val:
        raise UserError("too little Python source to hold a package out; use a Python with more packages")
    is_repeat = common.repeats(val)

    def fresh():
        for text in tqdm(train, desc="encoding", unit="file"):
            if is_repeat(text):
                dropped["repeats validation"] += 1
            else:
                yield text

    items = common.cut(common.pieces(fresh(), tok), args.num_tokens, tok)
    common.save(args, tok, items, common.pieces(val, tok), source=source,
                sha256={"sorted sha256 of all files": common.sha256("".join(files).encode())},
                versions=dict(sorted((d.metadata["Name"], d.version) for d in installed)),
                split="by package: 5 % of the characters held out, picked by the hash of the packages' names",
                val_works=sorted(packages), rule=common.OVERLAP_RULE, dropped=dropped)
    print(f"held out {len(packages)} packages; dropped files: {dict(dropped)}")


if __name__ == "__main__":
    exit_cleanly(main)
