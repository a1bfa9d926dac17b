"""Sampling: the cache changes nothing, seeds and cut-offs do what they say, and a wrong run is refused."""
import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import sample
from config.settings import Config as RunConfig
from data.common import get_tokenizer
from model import GPT
from runtime.basics import UserError, exit_cleanly
from sample import Config, encode_prompt, generate, pick

SMALL = RunConfig(n_layer=2, n_head=2, n_embd=32, block_size=12, vocab_size=40)


def build(**changes) -> GPT:
    """A model with weights so large that its distributions are neither flat nor certain."""
    torch.manual_seed(4)
    model = GPT(dataclasses.replace(SMALL, **changes)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15) if p.dim() > 1 else None
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompt(length: int, rows: int = 3) -> torch.Tensor:
    return torch.randint(40, (1, length), generator=rng(length)).expand(rows, -1)


def text(model: GPT, seed: int = 0, length: int = 5, new: int = 30, **settings) -> torch.Tensor:
    return generate(model, prompt(length), Config(max_new_tokens=new, **settings), rng(seed), 40)


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("length", [1, 5, 11, 12, 13, 30])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@torch.no_grad()
def test_the_cache_changes_nothing(length, temperature):
    """Each token is as from a forward pass over the last block_size tokens, also where the window moves."""
    model, c, dice = build(), Config(max_new_tokens=20, temperature=temperature), rng()
    idx = prompt(length)
    for _ in range(20):
        idx = torch.cat([idx, pick(model(idx[:, -12:])[0][:, -1], c, dice)], dim=1)
    assert torch.equal(generate(model, prompt(length), c, rng(), 40), idx[:, length:])


def test_within_block_size_each_new_token_costs_one_position(monkeypatch):
    model, widths = build(), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda idx, **kw: widths.append(idx.shape[1]) or forward(idx, **kw))
    text(model, length=5, new=10)
    assert widths == [5] + [1] * 7 + [12] * 2               # 12 positions hold 5 + 7; then the window moves


def test_a_seed_gives_the_same_text_again_and_another_seed_another():
    model = build()
    assert torch.equal(text(model), text(model))
    assert not torch.equal(text(model), text(model, seed=1))
    rows = text(model)
    assert rows.shape == (3, 30) and len({tuple(row) for row in rows.tolist()}) == 3


@pytest.mark.parametrize("settings", [dict(top_k=1), dict(top_p=1e-9), dict(temperature=1e-30),
                                      dict(top_k=1, top_p=0.5, temperature=5.0)], ids=str)
def test_top_k_1_and_a_tiny_top_p_are_greedy(settings):
    model = build()
    greedy = text(model, temperature=0.0)
    assert torch.equal(text(model, **settings), greedy)
    assert not torch.equal(text(model, temperature=1.0), greedy)
    assert len(set(greedy[0].tolist())) > 3


def test_ids_that_pad_the_vocabulary_never_come():
    model = build(vocab_size=64)
    table = model.transformer.wte.weight
    with torch.no_grad():                                    # the padding is what the model likes best
        table[40:52], table[52:] = 50 * table[0], -50 * table[0]
        assert (model(prompt(5))[0].argmax(dim=2) >= 40).all()
    for settings in (dict(temperature=0.0), dict(temperature=1.0), dict(top_k=0, temperature=100.0)):
        assert text(model, **settings).max() < 40


@pytest.mark.parametrize("settings, expected", [
    (dict(), [0.5, 0.3, 0.15, 0.05]),
    (dict(temperature=0.5), [0.6849, 0.2466, 0.0616, 0.0068]),       # p squared, normalised
    (dict(top_k=2), [0.625, 0.375, 0, 0]),
    (dict(top_k=9), [0.5, 0.3, 0.15, 0.05]),
    (dict(top_p=0.79), [0.625, 0.375, 0, 0]),
    (dict(top_p=0.81), [0.5263, 0.3158, 0.1579, 0]),
    (dict(top_k=2, top_p=0.55), [1, 0, 0, 0])], ids=str)              # .5 of all, but .625 of the two
def test_frequencies_are_the_distribution_asked_for(settings, expected):
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(20_000, -1)       # not in order
    ids = pick(logits, Config(**dict(temperature=1.0, top_k=0) | settings), rng())
    shares = torch.bincount(ids[:, 0], minlength=4) / 20_000
    assert shares[[1, 3, 0, 2]].tolist() == pytest.approx(expected, abs=0.012)
    assert [s > 0 for s in shares[[1, 3, 0, 2]].tolist()] == [e > 0 for e in expected]


# ---------------------------------------------------------------- prompts


def test_the_empty_prompt_is_what_precedes_a_document():
    chars, byte = get_tokenizer("char", "\nab"), get_tokenizer("byte")
    assert encode_prompt(chars, "", chars.encode("b\na")) == ([0, 0, 0], False)
    assert encode_prompt(chars, "ba", chars.encode("b\na")) == ([2, 1], True)
    assert encode_prompt(byte, "", byte.encode("b\na")) == ([10, 10, 10], False)


@pytest.mark.parametrize("name", ["char", "byte", "gpt2"])
def test_the_empty_prompt_is_never_an_id_that_was_not_trained(name, capsys):
    try:
        tok = get_tokenizer(name, "banana")
    except UserError as e:
        pytest.skip(str(e))
    trained = tok.encode("banana")
    assert encode_prompt(tok, "", trained) == (trained[:1].tolist(), True)
    assert f"this begins with {tok.decode(trained[:1])!r}\n" in capsys.readouterr().err


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(module_lab):
    module_lab.train("run")
    return module_lab


def command(lab, *args, out="run") -> tuple[int, str, str]:
    """`python sample.py` within this process: (exit code, stdout, stderr). An error must be one line."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["sample.py", f"--out_dir={lab.out(out)}", "--max_new_tokens=20", *args])
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            exit_cleanly(sample.main)
    return end.value.code, stdout.getvalue(), stderr.getvalue()


def refused(lab, *args, out="run") -> str:
    """The line that refuses the command. Nothing is printed, and no file changes."""
    before = lab.files()
    code, stdout, stderr = command(lab, *args, out=out)
    assert (code, stdout) == (2, "") and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert lab.files() == before
    return stderr


def test_it_prints_the_prompt_and_each_continuation(trained, tmp_path):
    code, out, err = command(trained, "--start=The ", "--num_samples=2")
    assert (code, err) == (0, "")
    parts = out.split("\n---------------\n")
    assert len(parts) == 3 and parts[2] == "" and parts[0] != parts[1]
    assert all(len(part) == 24 and part.startswith("The ") for part in parts[:2])
    (tmp_path / "prompt.txt").write_text("The ", encoding="utf-8-sig")
    again = command(trained, f"--start=FILE:{tmp_path / 'prompt.txt'}", "--num_samples=2")
    assert again == (0, out, "")
    assert command(trained, "--start=The ", "--num_samples=2", "--seed=2")[1] != out


def test_without_a_prompt_it_begins_a_document(trained):
    code, out, _ = command(trained, "--num_samples=1")
    assert code == 0 and len(out) == 20 + len("\n---------------\n")


def test_many_samples_are_split_so_that_their_logits_fit(trained, monkeypatch):
    sizes = []
    monkeypatch.setattr(sample, "generate", lambda model, idx, *_: sizes.append(len(idx)) or idx)
    assert command(trained, "--start=a", "--num_samples=5")[0] == 0
    assert sizes == [5]
    vocab = trained.checkpoint()["config"]["vocab_size"]
    command(trained, "--start=a", f"--num_samples={2 ** 27 // (32 * vocab) + 3}")
    assert sizes == [5, 2 ** 27 // (32 * vocab), 3]


def test_as_a_process_of_its_own(trained, tmp_path):
    shutil.copy(ROOT / "sample.py", trained.root)
    shutil.copy(ROOT / "data" / "common.py", trained.data)
    run = subprocess.run([sys.executable, str(trained.root / "sample.py"), f"--out_dir={trained.out('run')}",
                          "--start=The ", "--num_samples=1", "--max_new_tokens=40"],
                         cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert (run.returncode, run.stderr) == (0, "") and run.stdout.startswith("The ")


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("setting, message", [
    ("temperature=-1", "temperature must be positive, or 0 for greedy, not -1.0"),
    ("top_k=-1", "top_k must be positive, or 0 for off, not -1"), ("top_p=0", "top_p must be above 0"),
    ("top_p=1.5", "top_p must be above 0 and at most 1, not 1.5"),
    ("num_samples=0", "num_samples must be positive"),
    ("max_new_tokens=0", "max_new_tokens must be positive"),
    ("temprature=1", "did you mean 'temperature'?"), ("top_k=all", "top_k must be int, not 'all'"),
    ("device=tpu", "device 'tpu' is not available here"),
    ("start=a\udcff", "--start=a\udcff: not UTF-8 text"),
    ("start=caf\u00e9 \u20ac", "characters '\u00e9\u20ac' are not in the vocabulary"),
    ("start=FILE:no/such.txt", "no/such.txt: No such file")])
def test_settings_that_make_no_sense(trained, setting, message):
    assert message in refused(trained, f"--{setting}")


def test_a_prompt_file_that_is_not_utf8(trained, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "latin.txt: not UTF-8 text" in refused(trained, f"--start=FILE:{tmp_path / 'latin.txt'}")


def test_a_missing_run(trained, tmp_path, monkeypatch):
    """It names those that there are, as they are called from here; test_hints.py has where there is none."""
    monkeypatch.chdir(tmp_path)                        # where somebody ran `make study` there are more
    assert f"ckpt.pt is missing; there are: {trained.out('run')}\n" in refused(trained, out="nowhere")
    monkeypatch.chdir(trained.root)
    assert refused(trained, "--out_dir=") == "error: give the run, --out_dir=RUN; there are: out/run\n"


@pytest.fixture
def own(trained, lab):
    """A copy of the trained run beside a dataset of its own, for a test to spoil."""
    shutil.copytree(trained.out("run"), lab.out("run"))
    return lab


class Trap:
    """Unpickling one writes a file: torch.load must not get that far."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "not a run", "other weights", "program"])
def test_a_damaged_checkpoint(own, damage):
    path = own.out("run") / "ckpt.pt"
    state, whole = own.checkpoint(), path.read_bytes()
    if damage in ("truncated", "empty", "garbage"):
        path.write_bytes(dict(truncated=whole[:len(whole) // 2], empty=b"", garbage=b"x" * 5000)[damage])
    elif damage == "other weights":
        torch.save(state | dict(model={}), path)
    elif damage == "not a run":
        torch.save({"a": 1}, path)
    else:
        torch.save(state | dict(extra=Trap(own.root / "trapped")), path)
    said = "is not a checkpoint of this project" if damage == "not a run" else "corrupt"
    assert said in refused(own)
    assert not (own.root / "trapped").exists()


def test_another_projects_checkpoint(own):
    """nanoGPT's has other keys, and train.py would not go on from it."""
    path = own.out("run") / "ckpt.pt"
    torch.save(dict(model={}, model_args={}, iter_num=5, best_val_loss=1.0, config={}), path)
    assert "is not a checkpoint of this project (nanoGPT writes such files)" in refused(own)


def test_a_damaged_or_missing_config_json(own):
    path = own.out("run") / "config.json"
    path.write_text('{"tokenizer": "ch', encoding="utf-8")
    assert "config.json is corrupt" in refused(own)
    path.unlink()
    assert "config.json is missing" in refused(own)


def change_meta(lab, **changes) -> None:
    path = lab.data / "tiny" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("changes, message", [
    (dict(train_sha256="0" * 64), "now holds other text, tokenizer char"),
    (dict(tokenizer="byte", vocab_size=20), "trained with tokenizer char and"),
    (dict(vocab_size=70_000), "that now holds tokenizer char and 70000 ids")], ids=lambda x: str(x)[:20])
def test_a_dataset_that_is_not_the_runs(own, changes, message):
    assert command(own)[0] == 0
    change_meta(own, **changes)
    assert message in refused(own)


def test_a_byte_run_samples_on_after_its_dataset_grew(lab):
    """byte and gpt2 ids mean the same whatever the text, so that other text is no reason to refuse."""
    change_meta(lab, tokenizer="byte", vocab_size=256)
    lab.train("run")
    change_meta(lab, train_sha256="0" * 64)
    code, out, _ = command(lab, "--start=\u20ac")
    assert code == 0 and out.startswith("\u20ac")


def test_a_dataset_that_is_gone(own):
    shutil.rmtree(own.data / "tiny")
    assert "dataset 'tiny' is not prepared" in refused(own)
