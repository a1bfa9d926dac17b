"""Published data on scaling laws: fetched, checked, converted to tables that scaling.fit takes.

    python -m scaling.published [NAME ...]         # into data/published/NAME.csv; all of them without a name
    python -m scaling.published --input=FOLDER     # from files that are there already
    python -m scaling.published --fit              # then fit each again: what they published, what we find

Each file is pinned to a commit and to its sha256; nothing is opened before that matches. Beside a table,
NAME.json has its sources, licence and citation. A download that broke off goes on where it was.
"""
import csv
import hashlib
import http.client
import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from runtime.basics import ROOT, Parser, UserError, exit_cleanly, nearest, whole_file, write_json
from scaling.laws import forms, frontiers
from scaling.tables.csv import read_table

FOLDER = ROOT / "data" / "published"
SERVER = "https://raw.githubusercontent.com"
WAIT = 60                                  # seconds without an answer until a server is given up


# ---- Conversion: the files of a source -> rows, of the columns that `Source` names. ----

def chinchilla(files: list[Path]) -> Iterable:
    table = read_table(files[0])
    N, C = table["Model Size"], table["Training FLOP"]
    return zip(N, C / 6 / N, C, table["loss"])


def gemstones(files: list[Path]) -> Iterable:
    for line in files[0].read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["run_name"], row["params_active_precise"], row["tokens"], row["final_loss"]


def porian(files: list[Path]) -> Iterable:
    try:
        import pandas  # the file is a pickle of its frames
    except ImportError:
        raise UserError("porian is a pandas file; run: pip install pandas") from None
    for setting in pandas.read_pickle(files[0]).itertuples():
        name = "/".join([setting.dataset, setting.hparams, setting.warmup, setting.decay,
                         setting.param_count, setting.val])
        for level in setting.data.itertuples():
            points = np.column_stack([level.orig_n, level.orig_t, level.orig_loss]).astype(float)
            for point in points[np.isfinite(points[:, 2])]:
                yield name, float(level.flops), *point


def datablations(files: list[Path]) -> Iterable:
    """Of the notebook's printed lines those of a run: a name, N, D and unique tokens in billions, loss."""
    cells = json.loads(files[0].read_text(encoding="utf-8"))["cells"]
    printed = ["".join(output.get("text", ())) for cell in cells for output in cell.get("outputs", ())]
    text = next((text for text in printed if "2b832b4b 2.81 32.0 4.0 2.722962" in text), "")
    for name, *numbers in re.findall(r"^(\w+) ([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)$", text, re.MULTILINE):
        N, D, U, loss = map(float, numbers)
        yield name, round(N * 1e9), D * 1e9, U * 1e9, loss


def width_sweep(files: list[Path]) -> Iterable:
    for path in files:
        run = json.loads(path.read_text(encoding="utf-8"))
        shape = run["config"]
        L, d, T = shape["n_layers"], shape["d_model"], shape.get("n_positions", 1024)
        N = L * (12 * d * d + 13 * d) + 2 * d          # all but the embeddings
        train = dict(run["train_loss"])
        for step, loss in run["eval_loss"]:
            D = step * shape["batch_size"] * T
            yield f"d{d}", L, d, N, step, D, D * 2 * (N + L * T * d), train[step], loss


# ---- What is published with them, and the same by our fit: (what, theirs, ours, its interval). ----

def beside(law: dict, **published: float | None) -> Iterable:
    for key, theirs in published.items():
        yield key, theirs, law[key], law["ci"].get(key)


def besiroglu(table: dict) -> Iterable:
    """Without the five largest losses, as they fitted it."""
    kept = table["loss"] < np.sort(table["loss"])[-5]
    law = forms.fit_surface(table["params"][kept], table["tokens"][kept], table["loss"][kept])
    return beside(law, E=1.8169, alpha=0.3478, beta=0.3658, a=0.513)


def gemstones_surface(table: dict) -> Iterable:
    law = forms.fit_surface(table["params"], table["tokens"], table["loss"], run=table["run"])
    return beside(law, alpha=None, beta=None)


def walk(table: dict) -> Iterable:
    """Exponent a of each setting, by Akima splines, as they fitted it."""
    theirs = {"rw/base/long/kaplan/kaplan/train": 0.835, "rw/base/long/kaplan/standard/val": 0.706,
              "rw/base/short/kaplan/standard/val": 0.602, "rw/base/short/chinchilla/standard/val": 0.571,
              "rw/tuned/short/const/standard/val": 0.497}
    for setting, a in theirs.items():
        own = table["config"] == setting
        N, C, L = (table[key][own] for key in ("params", "flops", "loss"))
        law = frontiers.fit_isoflop(N, C, L, method="akima", D=C)
        yield f"a of {setting}", a, law["a"], law["ci"]["a"]


def repeats(table: dict) -> Iterable:
    law = forms.fit_repeated(table["params"], table["tokens"], table["unique_tokens"], table["loss"])
    return beside(law, R_D=15.387756, R_N=5.309743)


def frontier(table: dict) -> Iterable:
    law = frontiers.fit_loss_vs_compute(table["flops_forward"], table["loss"], table["run"])
    yield "alpha of L(C)", 0.0717, law["alpha"], law["ci"]["alpha"]


# ---- The sources. ----

class Source(NamedTuple):
    """A published data set: where its files are, what becomes of them, and what was published of it."""

    repo: str                                  # owner/name on GitHub
    commit: str
    licence: str
    citation: str
    files: dict[str, str]                      # {path in the repository: sha256}
    columns: str
    convert: Callable[[list[Path]], Iterable]
    refit: Callable[[dict], Iterable]


GEMSTONES = ("mcleish7/gemstone-scaling-laws", "5f420478f6057b0cbb4d13405fb10ca64675bccb", "MIT")
SOURCES = {
    "chinchilla": Source(
        *GEMSTONES, "Besiroglu et al. 2024, arXiv:2404.10102: points of Hoffmann et al. 2022, figure 4",
        {"data/epoch_chinchilla_svg_extracted_data.csv":
         "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30"},
        "params tokens flops loss", chinchilla, besiroglu),
    "gemstones": Source(
        *GEMSTONES, "McLeish et al. 2025, Gemstones, arXiv:2502.06857: the runs without cooldown",
        {"wandb_dfs/wandb_df_for_fitting_hot.jsonl":
         "655467b59c99383403d6f73f5b7f23c02aea3f12935dc110382d8a8b43a0ff5d"},
        "run params tokens loss", gemstones, gemstones_surface),
    "porian": Source(
        "formll/resolving-scaling-law-discrepancies", "0dc60d91b8a525858a3067fc9e4a46ff5374cc6f", "MIT",
        "Porian et al. 2024, arXiv:2406.19146: IsoFLOP points of five settings on RefinedWeb",
        {"data/summary_df.pickle.xz": "afbf07ec92d23182f56a44dd43599f2a7e9716fd70492fbc0a35f6093272b74f"},
        "config flops params tokens loss", porian, walk),
    "datablations": Source(
        "huggingface/datablations", "13701315b163f1c54642b94ad237b2699187c3ee", "Apache-2.0",
        "Muennighoff et al. 2023, arXiv:2305.16264: runs on repeated data",
        {"utils/parametric_fit.ipynb": "6c65d270e70c944a9ac90f5f1213a4584e1ff9d6d2781cd86900663f4ab17db9"},
        "run params tokens unique_tokens loss", datablations, repeats),
    "width_sweep": Source(
        "davidmoser/scaling_laws", "383f12b0c79cda8dfb636f25af03669517f78492", "none stated",
        "davidmoser/scaling_laws on GitHub: nine GPT-2s of 12 layers on C4",
        {f"results/gpt2_{width}_results.json": sha256 for width, sha256 in {
            32: "de4078a074592900a5cb9b87833fb0553b3ad9c22798031f64a9327d922b66a1",
            48: "4da9a1f67371c913f86cad60756aaa988c2cd444bddb6cb54722a93153a6ef98",
            64: "645f6ec5a0c93f90461f185db7d3831acc079b670b36dfccab0927107868db8a",
            96: "17fc592a7b03507412536aa8318d6e216199287b95d5bfc0aac973d9cce0543c",
            112: "29b590850a2e860e1ccd632ae35714179217421ccc0f7658776c32d44fbdbd18",
            128: "8101d4ed48607e15bf3daaec3df696fee5ae04cc46a2fd4c32d0c6dfe28eafeb",
            160: "dcd8cadddb7053221b0eca0307c769d8d3260eb3a2907763fc9cb58daa0b153d",
            196: "4b7977a9d0d2e882caac017f6eaea579beb1b3d96ea4ca2c9c991452273cd146",
            256: "79a1a605cc7be85a1efbe2db488bcc4ff707018ffcf6c105cfd93421d7ae08d4"}.items()},
        "run n_layer n_embd params_non_embedding step tokens flops_forward train_loss loss", width_sweep,
        frontier),
}


# ---- Files. ----

def download(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`. Raises UserError."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    bar = dict(desc=part.stem, disable=None)           # none where no terminal shows it
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            mode = "ab" if answer.status == 206 else "wb"      # a server may send it whole all the same
            with open(part, mode) as f, tqdm.wrapattr(f, "write", total=answer.length, **bar) as counted:
                shutil.copyfileobj(answer, counted)
            if answer.length:                          # what is still to come: Python ends as if all was well
                raise OSError("the connection broke off")
    except (OSError, http.client.HTTPException) as e:
        if have and getattr(e, "code", None) == 416:   # it was whole, but not yet looked at
            return
        raise UserError(f"{url}: {getattr(e, 'reason', e)}; run it again, or without a network give "
                        f"--input=FOLDER, one that holds {part.stem}") from None


def checked(source: Source, path: str, folder: Path | None) -> Path:
    """The file `path` of the source, in `folder` or downloaded. Raises UserError, and keeps no wrong file."""
    name = Path(path).name
    kept = file = FOLDER / "files" / name
    if folder:
        file = next(iter(sorted(folder.rglob(name))), None)
        if not file:
            raise UserError(f"there is no {name} in {folder}")
    elif not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        file = kept.with_name(name + ".part")
        download(f"{SERVER}/{source.repo}/{source.commit}/{path}", file)
    wanted = source.files[path]
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wanted:
        if not folder:
            file.unlink()
        raise UserError(f"{file.name} has sha256 {found[:12]}, not {wanted[:12]}: another file, or a broken "
                        "one; nothing of it was kept")
    return file if folder else file.replace(kept)


def fetch(name: str, folder: Path | None = None) -> Path:
    """Make data/published/NAME.csv, and NAME.json that says where from; of files in `folder`, if given.

    Returns the table's path. Raises UserError.
    """
    source = SOURCES[name]
    files = [checked(source, path, folder) for path in source.files]
    table = FOLDER / f"{name}.csv"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with whole_file(table) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(source.columns.split())
        writer.writerows(source.convert(files))
    write_json(table.with_suffix(".json"), dict(
        source=f"https://github.com/{source.repo}", commit=source.commit, licence=source.licence,
        citation=source.citation, sha256=source.files))
    return table


# ---- Command line. ----

def compare(name: str, table: dict) -> None:
    """Fit the table again and print a line for each published number."""
    for what, theirs, ours, ci in SOURCES[name].refit(table):
        said, verdict = "-", "no number is published"
        if theirs is not None:
            said = f"{theirs:.4g}"
            verdict = "inside" if ci and ci[0] <= theirs <= ci[1] else "OUTSIDE"
        between = f"{ci[0]:.4g} to {ci[1]:.4g}" if ci else "not determined"
        print(f"{name:<13}{what:<43}{said:>10}{ours:>10.4g}   {between:<22}{verdict}", flush=True)


def main(args: list[str] | None = None) -> None:
    p = Parser("scaling.published", __doc__)
    p.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SOURCES) + "; default: all")
    p.add_argument("--input", type=Path, metavar="FOLDER", help="take the files from there, not from the web")
    p.add_argument("--fit", action="store_true", help="fit each again, and say what was published")
    args = p.parse_args(args)
    if odd := [name for name in args.names if name not in SOURCES]:
        raise UserError(f"no published data {odd[0]!r}{nearest(odd[0], SOURCES)}; there are "
                        f"{', '.join(SOURCES)}")
    if args.fit:
        print(f"{'data':<13}{'what':<43}{'published':>10}{'ours':>10}   95 % interval")
    failed = False
    for name in args.names or SOURCES:
        try:
            path = fetch(name, args.input)
            if args.fit:
                compare(name, read_table(path))
            else:
                print(f"{path}: {SOURCES[name].citation}", flush=True)
        except UserError as e:                         # of one; the others may be there
            print(f"error: {name}: {e}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    exit_cleanly(main)
