"""train.py: horizons, schedules, data order, losses, files of a run, and what it says to bad input."""
import copy
import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, write_dataset
from torch.nn import functional as F

import runtime
import train
from config import corpus, schema, settings
from config.settings import Config
from model import GPT
from runtime import basics, cpu, rundir, system, text
from runtime.basics import UserError

# The columns of runs.csv, less study and run, which the parser adds.
COLUMNS = """seed dataset tokenizer n_layer n_head n_embd block_size batch_tokens learning_rate schedule
    params_total params_embedding params_non_embedding params_head tokens unique_tokens epochs flops_6nd
    flops_exact train_loss val_loss val_bits_per_byte val_tokens wall_s tok_per_s device dtype
    commit dropout bias tie_weights position norm mlp qk_norm vocab_size parametrization base_width base_depth
    optimizer muon_rate muon_decay warmup_iters warmup_frac lr_decay_iters cooldown_frac min_lr weight_decay
    beta1 beta2 grad_clip val_sha256""".split()


# ---------------------------------------------------------------- horizon


def counts_by_hand(lab):
    """(parameters that work for each token, FLOPs per token) of SMALL, from the shapes of its matrices."""
    V = corpus.load_meta("tiny")["vocab_size"]
    L, D, T = SMALL["n_layer"], SMALL["n_embd"], SMALL["block_size"]
    matrices = L * 12 * D * D + V * D
    return matrices + (2 * L + 1) * D, 6 * matrices + 12 * L * T * D


@pytest.mark.parametrize("horizon, value, tokens", [
    ("max_iters", 17, lambda N, F: 17 * 256),
    ("target_tokens", 12_345, lambda N, F: 12_345),
    ("target_flops", 1e9, lambda N, F: 1e9 / F),
    ("tokens_per_param", 2.5, lambda N, F: 2.5 * N),
    ("epochs", 1.5, lambda N, F: 1.5 * 1249 * 32)])          # 40,000 tokens are 1,249 rows of 32, and targets
def test_each_horizon_gives_its_steps(lab, horizon, value, tokens):
    want = tokens(*counts_by_hand(lab)) / 256                 # 8 sequences of 32 tokens a step
    c = lab.derived(**{"max_iters": None, horizon: value})
    assert abs(c.max_iters - want) <= 0.5 and c.max_iters > 1


def test_a_run_spends_the_flops_it_was_given(lab):
    result = lab.train(max_iters=None, target_flops=1e9)
    flops_per_token = counts_by_hand(lab)[1]
    assert abs(result["flops_exact"] - 1e9) <= 0.5 * 256 * flops_per_token
    assert result["flops_exact"] == result["tokens"] * flops_per_token
    assert lab.log()[-1]["tokens"] == result["tokens"] == 256 * lab.log()[-1]["step"]


@pytest.mark.parametrize("horizon", ["target_tokens", "target_flops", "tokens_per_param", "epochs"])
def test_a_horizon_under_one_step_is_one_step(lab, horizon):
    assert lab.derived(**{"max_iters": None, horizon: 1e-3}).max_iters == 1


# ---------------------------------------------------------------- schedule


def schedule(name, **changes):
    c = Config(schedule=name, learning_rate=1.0, min_lr=0.1, max_iters=100, warmup_iters=10)
    c = dataclasses.replace(c, **dict(lr_decay_iters=100) | changes)
    return [settings.learning_rate(step, c) for step in range(c.max_iters + 1)]


@pytest.mark.parametrize("name, middle, late, end", [
    ("cosine", 0.55, 0.1 + 0.45 * (1 + math.cos(math.pi * 75 / 90)), 0.1),
    ("linear", 0.55, 0.1 + 0.9 * 15 / 90, 0.1),
    ("constant", 1.0, 1.0, 1.0),
    ("wsd", 1.0, 0.1 + 0.9 * (1 - math.sqrt(0.25)), 0.1)])     # step 85 is a quarter into the last fifth
def test_schedule_values(name, middle, late, end):
    lr = schedule(name)
    assert lr[0] == pytest.approx(1 / 11) and lr[9] == pytest.approx(10 / 11)      # warmup: equal steps
    assert lr[10] == pytest.approx(1.0)
    assert lr[55] == pytest.approx(middle)
    assert lr[85] == pytest.approx(late)
    assert lr[100] == pytest.approx(end)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 50, 100])
def test_schedule_rises_to_the_peak_and_never_again(name, warmup):
    lr = schedule(name, warmup_iters=warmup)[:100]
    assert np.all(np.diff(lr[:warmup]) > 0) and np.all(np.diff(lr[warmup:]) <= 1e-15)
    assert 0 < min(lr) and max(lr) <= 1
    assert lr[0] == 1 if warmup == 0 else lr[0] < 1


def test_decay_may_end_before_the_run_does():
    lr = schedule("cosine", lr_decay_iters=50)
    assert lr[49] > 0.1 and lr[50:] == [0.1] * 51


def test_warmup_is_a_share_of_the_run_and_never_longer(lab):
    assert lab.derived(max_iters=500).warmup_iters == 10
    assert lab.derived(max_iters=7, warmup_frac=0.9).warmup_iters == 6
    assert lab.derived(max_iters=20, warmup_iters=20, schedule="constant").warmup_iters == 20
    for key in ("warmup_iters", "lr_decay_iters"):
        with pytest.raises(UserError, match=f"{key} 21 .* 20 steps"):
            lab.derived(max_iters=20, **{key: 21})


def test_the_log_has_the_rate_that_each_step_used(lab, monkeypatch):
    used, step = [], cpu.FusedAdamW.step
    monkeypatch.setattr(cpu.FusedAdamW, "step",
                        lambda self: (used.append(self.param_groups[0]["lr"]), step(self)))
    lab.train(max_iters=10, warmup_iters=3, log_interval=1)
    assert [record["lr"] for record in lab.log()] == used
    assert used == [settings.learning_rate(i, lab.derived(max_iters=10, warmup_iters=3)) for i in range(10)]


# ---------------------------------------------------------------- data


def batches(lab, split="train", T=32, seed=1):
    return train.Batches(lab.data / "tiny" / f"{split}.bin", T, seed, "cpu")


def test_a_batch_depends_on_seed_and_place_alone(lab):
    whole = batches(lab).row_ids(0, 5000)                      # four epochs of 1,249 rows and a bit
    again = batches(lab)
    for start in (4000, 8, 0, 1240, 2490):                     # in any order, across borders of epochs
        assert np.array_equal(again.row_ids(start, 16), whole[start:start + 16])
    assert not np.array_equal(batches(lab, seed=2).row_ids(0, 16), whole[:16])


def test_each_epoch_is_another_permutation_of_all_rows(lab):
    data = batches(lab)
    epochs = data.row_ids(0, 4 * data.rows).reshape(4, data.rows)
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(1249), (4, 1)))
    assert len({tuple(e) for e in epochs}) == 4


def test_a_batch_may_be_larger_than_the_data(lab):
    data = batches(lab, T=20_000)                              # one row
    assert data.row_ids(0, 3000).tolist() == [0] * 3000


def test_rows_cover_the_text_and_targets_lie_one_further(lab):
    data = batches(lab)
    text = np.fromfile(lab.data / "tiny" / "train.bin", dtype="<u2").astype(np.int64)
    x, y = data.get(np.arange(data.rows))
    assert x.shape == y.shape == (1249, 32) and x.dtype == y.dtype == torch.int64
    assert np.array_equal(x.flatten().numpy(), text[:1249 * 32])
    assert np.array_equal(y.flatten().numpy(), text[1:1249 * 32 + 1])
    assert len(text) - (1249 * 32 + 1) < 32                    # what is left over does not fill a row


def test_a_text_of_exactly_one_row_is_enough(lab):
    write_dataset(lab.data / "row", 33, 33)
    assert lab.train(dataset="row", max_iters=2, batch_size=3)["epochs"] == 6


# ---------------------------------------------------------------- losses


def brute_force(lab, name, rows):
    """Mean loss over the first `rows` rows of val.bin, row by row, from the checkpoint and its logits."""
    state = lab.checkpoint(name)
    model = GPT(schema.from_dict(state["config"]))
    model.load_state_dict(state["model"])
    text = torch.from_numpy(np.fromfile(lab.data / "tiny" / "val.bin", dtype="<u2").astype(np.int64))
    total = 0.0
    for i in range(0, 32 * rows, 32):
        logits = model.eval()(text[None, i:i + 32])[0][0].double()
        total += F.cross_entropy(logits, text[i + 1:i + 33], reduction="sum").item()
    return total / (32 * rows)


@torch.no_grad()
def test_validation_loss_is_the_mean_over_val_bin(lab):
    with torch.enable_grad():
        result = lab.train(dropout=0.5)                        # dropout rests while evaluating
        few = lab.train("few", eval_iters=10)
    assert result["val_tokens"] == 624 * 32                    # of 20,000 tokens
    assert result["val_loss"] == pytest.approx(brute_force(lab, "run", 624), rel=1e-6)
    assert few["val_tokens"] == 320
    assert few["val_loss"] == pytest.approx(brute_force(lab, "few", 10), rel=1e-6)
    assert lab.derived(eval_iters=10_000).eval_iters == 624    # no more than there are


def test_bits_per_byte_follow_from_nats_per_token(lab):
    path = lab.data / "tiny" / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | dict(val_bytes=80_000)))         # as if a token were four bytes
    result = lab.train(max_iters=1)
    assert result["val_bits_per_byte"] == pytest.approx(result["val_loss"] / math.log(2) / 4)


def test_validation_loss_knows_nothing_of_batches(lab, monkeypatch):
    def loss(**changes):
        return train.Run(lab.derived(**changes), corpus.load_meta("tiny"), 0, 1).evaluate()

    want = loss()
    assert loss(batch_size=3) == loss(gradient_accumulation_steps=4) == loss(dropout=0.9) == want
    get, sizes = train.Batches.get, []
    monkeypatch.setattr(train.Batches, "get", lambda data, ids: (sizes.append(len(ids)), get(data, ids))[1])
    assert loss() == want and sizes == [512, 112]              # uneven batches of its own, each by its weight


def test_train_loss_is_the_mean_over_the_interval(lab):
    lab.train("each", log_interval=1, max_iters=22)
    lab.train("mean", log_interval=5, max_iters=22, eval_interval=8, dropout=0.0)
    each = [record["train_loss"] for record in lab.log("each")]
    records, before = lab.log("mean"), 0
    assert [r["step"] for r in records] == [5, 8, 10, 15, 16, 20, 22]  # each fifth, each evaluation, the last
    assert [r["step"] for r in records if "val_loss" in r] == [8, 16, 22]
    for r in records:
        assert r["train_loss"] == pytest.approx(np.mean(each[before:r["step"]]), rel=1e-9)
        before = r["step"]


def test_train_loss_is_that_of_the_batch_before_the_step(lab):
    lab.train(log_interval=1, max_iters=1)
    run = train.Run(lab.derived(), corpus.load_meta("tiny"), 0, 1)
    loss = run.raw(*run.data.get(run.data.row_ids(0, 8)))[1]
    assert lab.log()[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 8])                   # 3: micro-batches of 3, 3 and 2 rows
def test_accumulation_changes_nothing(lab, parts):
    settings = dict(log_interval=1, max_iters=10, learning_rate=1e-2)
    plain = lab.train("plain", **settings)
    split = lab.train("split", gradient_accumulation_steps=parts, **settings)
    assert split["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)
    for a, b in zip(lab.log("plain"), lab.log("split"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


def test_accumulation_is_derived_from_free_memory(lab, monkeypatch):
    def parts(gigabytes, **changes):
        free = {"SC_AVPHYS_PAGES": gigabytes * 2 ** 18, "SC_PAGE_SIZE": 2 ** 12}
        monkeypatch.setattr(os, "sysconf", lambda name: free[name])
        return lab.derived(gradient_accumulation_steps=-1, **changes).gradient_accumulation_steps

    big = dict(n_layer=12, n_embd=768, n_head=12, block_size=1024, batch_size=64)
    assert parts(8) == 1                                       # off where memory does not ask for it
    assert 1 < parts(32, **big) < parts(8, **big) < 64
    assert parts(1, **big) == 64                               # one row at a time at most
    lab.train(gradient_accumulation_steps=-1, max_iters=1)


# ---------------------------------------------------------------- the files of a run


def test_result_has_the_columns_of_runs_csv(lab):
    result = lab.train(batch_size=4, max_iters=400, learning_rate=3e-3)
    assert list(result) == COLUMNS
    assert json.loads((lab.out("run") / "result.json").read_text()) == result
    assert result["tokens"] == 400 * 4 * 32 and result["unique_tokens"] == 1249 * 32
    assert result["epochs"] == pytest.approx(51200 / (1249 * 32))
    N = result["params_non_embedding"] + result["params_head"]
    assert result["flops_6nd"] == 6 * N * result["tokens"]
    assert result["wall_s"] > 0 and result["tok_per_s"] > 0
    assert result["val_loss"] < 3.2 < math.log(80)             # it learns: a guess costs ln(vocabulary)


def test_log_and_config_have_what_the_parser_reads(lab):
    lab.train(eval_interval=0)
    wanted = {"step", "tokens", "flops", "train_loss", "lr", "grad_norm", "tok_per_s", "elapsed_s"}
    assert [set(r) - {"val_loss"} for r in lab.log()] == [wanted] * 20
    assert ["val_loss" in r for r in lab.log()] == [False] * 19 + [True]       # 0: only at the end
    config = json.loads((lab.out("run") / "config.json").read_text())
    assert {f.name for f in dataclasses.fields(Config)} <= set(config)
    told = {*settings.HORIZONS, "resume"}
    assert not [k for k, v in config.items() if v in (-1, "auto") and k not in told]
    assert config["data_sha256"] == corpus.load_meta("tiny")["train_sha256"]
    assert config["val_sha256"] == corpus.load_meta("tiny")["val_sha256"] == lab.checkpoint()["val_sha256"]
    assert config["tokenizer"] == "char"
    assert config["torch"] == torch.__version__
    assert {"commit", "params", "flops_per_token", "world_size"} <= set(config)


def test_result_is_written_last(lab, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(b.name), replace(a, b)))
    lab.train()
    assert order[-2:] == ["ckpt.pt", "result.json"]
    names = sorted(p.name for p in lab.out("run").iterdir())
    assert names == ["ckpt.pt", "config.json", "lock", "log.jsonl", "result.json"]


def test_the_commit_is_recorded_or_empty(lab, monkeypatch):
    assert basics.git_commit() == ""                            # a copy without .git
    monkeypatch.setenv("PATH", str(lab.root))
    assert basics.git_commit() == ""                            # a machine without git


def test_a_finished_run_is_not_trained_again(lab, monkeypatch):
    result, files = lab.train(), lab.files()
    monkeypatch.setattr(train, "Run", None)
    assert lab.train() == result
    code, out, err = lab.command()
    assert (code, err) == (0, "") and f"val_loss {result['val_loss']:.4f}" in out
    assert lab.files() == files


@pytest.mark.parametrize("key, value", [
    ("learning_rate", 0.5), ("seed", 2), ("max_iters", 5), ("n_layer", 2), ("batch_size", 4),
    ("eval_iters", 5), ("schedule", "linear"), ("dropout", 0.1), ("tie_weights", False),
    ("dataset", "other")])
@pytest.mark.parametrize("finished", [True, False])
def test_another_setting_in_the_same_directory_is_refused(lab, key, value, finished):
    write_dataset(lab.data / "other")
    lab.train(max_iters=10)
    if not finished:
        (lab.out("run") / "result.json").unlink()
    files = lab.files()
    code, _, err = lab.command(**{"max_iters": 10, key: value})
    assert code == 2 and f"with {key}=" in one_line(err) and "--resume=never" in err
    assert lab.files() == files


@pytest.mark.parametrize("split, says", [("train", "trained on other text than 'tiny' holds now"),
                                         ("val", "evaluated on other text than 'tiny' has for it now")])
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_text_is_refused(lab, finished, split, says):
    lab.train(vocab_size=128)
    if not finished:
        (lab.out("run") / "result.json").unlink()
    meta = corpus.load_meta("tiny")
    edit_meta(lab, **{f"{split}_sha256": "0"})
    files = lab.files()
    code, _, err = lab.command(vocab_size=128)
    assert code == 2 and says in one_line(err) and "--resume=never" in err
    assert lab.files() == files
    edit_meta(lab, **meta)
    assert lab.command(vocab_size=128)[0] == 0                 # as it says: that text again


def test_a_text_for_validation_without_a_hash_is_taken_as_it_is(lab):
    edit_meta(lab, val_sha256=None)
    lab.train(max_iters=10)
    edit_meta(lab, val_sha256="0")
    assert lab.command(max_iters=10)[0] == 0


def test_resume_never_starts_over(lab):
    first = lab.train(max_iters=12, log_interval=1)
    second = lab.train(max_iters=8, log_interval=1, resume="never", seed=2)
    assert second["val_loss"] != first["val_loss"]
    assert [r["step"] for r in lab.log()] == list(range(1, 9))
    assert lab.checkpoint()["step"] == 8


# ---------------------------------------------------------------- a loss that is not finite


def one_line(err: str) -> str:
    assert err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err, err
    return err


def test_a_diverging_run_stops_and_says_where(lab):
    code, _, err = lab.command(learning_rate=1e30, grad_clip=0, log_interval=1, warmup_iters=0)
    assert code == 2 and "loss is nan at step 2" in one_line(err)
    assert "lower learning_rate" in err and "grad_clip" in err
    assert not (lab.out("run") / "result.json").exists()
    assert all(math.isfinite(r["train_loss"]) for r in lab.log())


def test_the_step_is_named_where_the_log_is_sparse(lab):
    code, _, err = lab.command(learning_rate=1e30, grad_clip=0, log_interval=10, warmup_iters=0)
    assert code == 2 and "at step 2;" in one_line(err)


@pytest.mark.parametrize("what", ["loss", "gradient"])         # spoils the weights, and the next loss
def test_the_last_good_checkpoint_outlives_a_bad_step(lab, monkeypatch, what):
    train_step, clip = train.Run.train_step, cpu.clip

    def spoil(parameters, *args):
        parameters = list(parameters)
        parameters[0].grad[0, 0] = math.nan
        return clip(parameters, *args)

    def step(run):
        if run.step == 12 and what == "gradient":
            monkeypatch.setattr(cpu, "clip", spoil)
        train_step(run)
        if run.step == 13 and what == "loss":
            run.losses[-1] = run.losses[-1] * math.nan

    monkeypatch.setattr(train.Run, "train_step", step)
    code, _, err = lab.command(ckpt_minutes=0, log_interval=20, eval_interval=20)
    assert code == 2 and "at step 13" in one_line(err)
    state = lab.checkpoint()
    assert state["step"] == 12 and all(v.isfinite().all() for v in state["model"].values())
    assert not (lab.out("run") / "result.json").exists()
    monkeypatch.setattr(train.Run, "train_step", train_step)
    monkeypatch.setattr(cpu, "clip", clip)
    assert lab.command(log_interval=20, eval_interval=20)[0] == 0      # without the fault it goes on


# ---------------------------------------------------------------- no space


@pytest.fixture
def interrupted(lab):
    """A lab whose run stopped after 10 of 20 steps. Returns (lab, its checkpoint's bytes)."""
    interrupt(lab, at=10)
    return lab, (lab.out("run") / "ckpt.pt").read_bytes()


def interrupt(lab, at, number=signal.SIGTERM, **changes):
    """Train until step `at`, where the signal comes; (exit code, stdout, stderr)."""
    train_step = train.Run.train_step

    def step(run):
        train_step(run)
        if run.step == at:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Run, "train_step", step)
        return lab.command(**changes)


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["os.fsync", "torch.save"])
def test_a_full_disk_keeps_the_last_good_checkpoint(interrupted, monkeypatch, where):
    lab, before = interrupted
    save = torch.save
    with monkeypatch.context() as patch:
        if where == "os.fsync":
            out = lab.out("run")
            patch.setattr(os, "fsync", lambda fd: full() if list(out.glob(".ckpt.pt.*.tmp")) else None)
        else:
            patch.setattr(torch, "save", lambda state, f: (f.write(b"half"), full()))
        code, _, err = lab.command()
    assert code == 2 and "No space left" in one_line(err)
    assert "ckpt.pt" in err and "the one written before is kept" in err
    assert (lab.out("run") / "ckpt.pt").read_bytes() == before
    assert not list(lab.out("run").glob(".*.tmp")) and not (lab.out("run") / "result.json").exists()
    assert torch.save is save and lab.command()[0] == 0


@pytest.mark.parametrize("limit, file", [(20_000, "ckpt.pt"), (3_000, "log.jsonl")])
def test_a_limit_on_file_size(lab, file, limit):
    """The system's own refusal amid a write. The log outgrows 3,000 bytes before the first checkpoint."""
    resource = pytest.importorskip("resource")
    if file == "ckpt.pt":
        interrupt(lab, at=10)
        before = (lab.out("run") / "ckpt.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        code, _, err = lab.command()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and file in one_line(err) and "free some space" in err
    assert not list(lab.out("run").glob(".*.tmp")) and not (lab.out("run") / "result.json").exists()
    if file == "ckpt.pt":
        assert (lab.out("run") / "ckpt.pt").read_bytes() == before
    assert lab.train() | dict(wall_s=0, tok_per_s=0) == lab.train("undisturbed") | dict(wall_s=0, tok_per_s=0)
    assert [r["step"] for r in lab.log()] == list(range(1, 21))


# ---------------------------------------------------------------- bad input


def edit_meta(lab, **changes):
    path = lab.data / "tiny" / "meta.json"
    meta = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))


def truncate(path, size):
    with open(path, "r+b") as f:
        f.truncate(size)


SETTINGS = [                                                   # what the command sets, what the line must say
    (dict(learning_rat=1), ["--learning_rat", "unknown key", "did you mean 'learning_rate'?"]),
    (dict(n_layer="four"), ["--n_layer", "must be int", "'four'"]),
    (dict(n_layer=1.5), ["--n_layer", "must be int"]),
    (dict(max_iters=10, epochs=2), ["exactly one horizon", "max_iters and epochs"]),
    (dict(max_iters=None), ["exactly one horizon", "none is set", "--tokens_per_param=20"]),
    (dict(max_iters=0), ["max_iters must be positive", "0"]),
    (dict(max_iters=None, epochs="nan"), ["epochs must be"]),
    (dict(n_head=3), ["n_embd 16", "n_head 3", "try n_head=2"]),
    (dict(n_layer=0), ["n_layer must be positive"]),
    (dict(schedule="cosin"), ["schedule must be one of cosine, linear, constant, wsd", "'cosin'"]),
    (dict(dtype="float8"), ["dtype must be one of"]),
    (dict(forecast="garbage"), ["forecast must be empty, or the sha256 of a seal", "'garbage'"]),
    (dict(resume="yes"), ["resume must be one of auto, never"]),
    (dict(device="tpu"), ["device 'tpu'", "auto"]),
    (dict(dropout=1.0), ["dropout", "between 0 and 1"]),
    (dict(weight_decay=-0.1), ["weight_decay", "-0.1"]),
    (dict(grad_clip=-1.0), ["grad_clip", "-1"]),
    (dict(min_lr=-1.0), ["min_lr", "-1"]),
    (dict(seed=-1), ["seed", "-1"]),
    (dict(seed=2 ** 70), ["seed"]),
    (dict(ckpt_minutes=-1), ["ckpt_minutes", "-1"]),
    (dict(eval_interval=-5), ["eval_interval", "-5"]),
    (dict(log_interval=0), ["log_interval must be positive, or -1"]),
    (dict(eval_iters=-2), ["eval_iters must be positive, or -1"]),
    (dict(out_dir=""), ["out_dir is empty"]),
    (dict(gradient_accumulation_steps=0), ["gradient_accumulation_steps must be positive, or -1"]),
    (dict(warmup_iters=-7), ["warmup_iters -7", "-1"]),
    (dict(warmup_iters=21), ["warmup_iters 21", "20 steps", "-1"]),
    (dict(lr_decay_iters=21), ["lr_decay_iters 21", "20 steps", "-1"]),
    (dict(min_lr=1e-3, learning_rate=1e-4), ["min_lr 0.001 is above learning_rate 0.0001", "lower min_lr"]),
    (dict(min_lr=1.0, learning_rate=-1), ["min_lr 1 is above learning_rate 0.0"]),
    (dict(keep_steps="5,21"), ["keep_steps 21", "1 to 20"]),
    (dict(keep_steps="0"), ["keep_steps 0", "1 to 20"]),
    (dict(warmup_iters=15, lr_decay_iters=10), ["warmup_iters 15", "cosine", "lr_decay_iters 10", "lower"]),
    (dict(warmup_frac=1.0, schedule="linear"), ["warmup_iters 20", "linear", "lr_decay_iters 20"]),
    (dict(warmup_iters=20, schedule="wsd"), ["warmup_iters 20", "wsd"]),
    (dict(warmup_iters=18, schedule="wsd"), ["warmup_iters 18", "step 16 of 20", "never reached"]),
    (dict(vocab_size=10), ["vocab_size 10 is smaller", "-1"]),
    (dict(batch_size=4, gradient_accumulation_steps=5),
     ["batch_size 4", "5 gradient_accumulation_steps", "raise batch_size"]),
    (dict(block_size=20_000), ["block_size 20000", "val.bin", "lower block_size"]),
    (dict(block_size=50_000), ["block_size 50000", "train.bin", "lower block_size"]),
    (dict(dataset="shakespear"), ["'shakespear' is not prepared", "prepare.py"]),
    (dict(dataset="../data/tiny"), ["dataset", "'../data/tiny'"]),
    (dict(dataset=""), ["dataset"]),
]


@pytest.mark.parametrize("changes, says", SETTINGS, ids=["-".join(changes) for changes, _ in SETTINGS])
def test_a_bad_setting_is_one_line_and_touches_nothing(lab, changes, says):
    files = lab.files()
    code, out, err = lab.command(**changes)
    assert code == 2 and [s for s in says if s not in one_line(err)] == []
    assert lab.files() == files and out == ""


def test_a_misspelt_key_in_a_config_file_names_its_line(lab):
    path = lab.root / "mine.py"
    path.write_text("n_layer = 1\nlearing_rate = 1e-3\n")
    code, _, err = lab.main([str(path), *lab.arguments()])
    assert code == 2 and "mine.py:2" in one_line(err) and "did you mean 'learning_rate'?" in err


DATA = [                                                       # the damage, what the line must say
    (lambda d: (d / "train.bin").unlink(), ["train.bin", "not prepared", "prepare.py"]),
    (lambda d: (d / "meta.json").unlink(), ["meta.json", "not prepared", "prepare.py"]),
    (lambda d: truncate(d / "train.bin", 1001), ["train.bin has 1,001 bytes", "80,000", "prepare.py"]),
    (lambda d: truncate(d / "val.bin", 0), ["val.bin has 0 bytes", "40,000", "prepare.py"]),
    (lambda d: truncate(d / "meta.json", 30), ["meta.json is not valid", "prepare.py"]),
    (lambda d: (d / "meta.json").write_text("[]"), ["meta.json", "prepare.py"]),
    (lambda d: (d / "meta.json").write_bytes(b"\xff\xfe"), ["meta.json", "prepare.py"]),
]


@pytest.mark.parametrize("damage, says", DATA, ids=[says[0] for _, says in DATA])
def test_damaged_data_is_one_line_and_touches_nothing(lab, damage, says):
    damage(lab.data / "tiny")
    files = lab.files()
    code, _, err = lab.command()
    assert code == 2 and [s for s in says if s not in one_line(err)] == []
    assert lab.files() == files


@pytest.mark.parametrize("key", corpus.META)
@pytest.mark.parametrize("value", [None, [], -3])
def test_a_meta_json_that_lacks_what_a_run_needs(lab, key, value):
    edit_meta(lab, **{key: value})
    code, _, err = lab.command()
    assert code == 2 and "meta.json" in one_line(err) and key in err and "prepare.py" in err
    assert not lab.out("run").exists()


def flip_middle(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def drop_from_checkpoint(key):
    def damage(path):
        state = torch.load(path, weights_only=True)
        del state[key]
        torch.save(state, path)
    return damage


def rename_a_weight(path):
    state = torch.load(path, weights_only=True)
    state["model"]["transformer.wpe.old"] = state["model"].pop("transformer.wpe.weight")
    torch.save(state, path)


CHECKPOINTS = dict(empty=lambda p: truncate(p, 0), cut=lambda p: truncate(p, p.stat().st_size // 2),
                   flipped=flip_middle, text=lambda p: p.write_text("not a checkpoint"),
                   list=lambda p: torch.save([1], p),
                   no_model=drop_from_checkpoint("model"), no_step=drop_from_checkpoint("step"),
                   no_config=drop_from_checkpoint("config"), other_model=rename_a_weight)


@pytest.mark.parametrize("damage", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_corrupt_checkpoint_is_one_line_and_stays(interrupted, damage):
    lab, _ = interrupted
    damage(lab.out("run") / "ckpt.pt")
    files = lab.files()
    code, _, err = lab.command()
    assert code == 2 and "ckpt.pt" in one_line(err) and "corrupt" in err and "--resume=never" in err
    assert lab.files() == files
    assert lab.command(resume="never")[0] == 0


NANOGPT = dict(model={}, optimizer={}, model_args=dict(n_layer=1), iter_num=5,
               best_val_loss=torch.tensor(1e9), config=dict(batch_size=12))


@pytest.mark.parametrize("state", [NANOGPT, None], ids=["nanoGPT's", "unreadable"])
def test_a_checkpoint_of_another_program_stays_where_it_is(lab, state):
    path = lab.out("run") / "ckpt.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"who knows") if state is None else torch.save(state, path)
    before = path.read_bytes()
    for changes in (dict(), dict(resume="never"), dict(name="branch", branch=str(path))):
        code, _, err = lab.command(**changes)
        assert code == 2 and f"{path} is not a checkpoint of this project" in one_line(err)
        fix = "branched from; name another" if "branch" in changes else "choose another out_dir"
        assert fix in err and "--resume=never" not in err
    assert path.read_bytes() == before and {p.name for p in path.parent.iterdir()} == {"ckpt.pt", "lock"}
    torch.save(NANOGPT, lab.out("branch") / "ckpt.pt") # also where it lies beside a run of ours
    assert lab.command("branch", resume="never")[0] == 2


DAMAGE = ["", "{\"a\"", "[]", "{}"]


@pytest.mark.parametrize("name, content", [("config.json", None)] + [
    (name, content) for name in ("result.json", "config.json") for content in DAMAGE])
def test_a_finished_run_with_a_damaged_file_is_one_line(lab, name, content):
    lab.train(max_iters=2)
    path = lab.out("run") / name
    path.unlink() if content is None else path.write_text(content)
    files = lab.files()
    code, _, err = lab.command(max_iters=2)
    assert code == 2 and name in one_line(err) and "--resume=never" in err
    assert lab.files() == files
    assert lab.command(max_iters=2, resume="never")[0] == 0


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/nanoscale/run"])
def test_an_out_dir_that_cannot_be_written(lab, out):
    (lab.root / "file").write_text("mine")
    out = str(lab.root / out)                                  # an absolute path stays as it is
    if out.startswith("/proc") and not os.path.isdir("/proc/self"):
        pytest.skip("no /proc on this system")
    code, _, err = lab.command(out_dir=out)
    assert code == 2 and out in one_line(err) and "out_dir" in err
    assert (lab.root / "file").read_text() == "mine"


def test_the_script_itself_prints_one_line_and_exits_with_2(lab):
    command = [sys.executable, str(lab.root / "train.py"), "--lerning_rate=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "learning_rate" in one_line(done.stderr)


# ---------------------------------------------------------------- what is likely not meant


@pytest.mark.parametrize("changes, says", [
    (dict(schedule="constant", warmup_iters=11), "the warmup takes 11 of the run's 20 steps"),
    (dict(schedule="cosine", warmup_iters=11), "the warmup takes 11 of the run's 20 steps"),
    (dict(schedule="wsd", warmup_iters=8), "only 9 of the run's 20 steps are at the full learning rate"),
    (dict(schedule="wsd", cooldown_frac=0.8), "only 5 of the run's 20 steps"),
    (dict(schedule="linear", lr_decay_iters=15), "the learning rate is 0 from step 15 of 20 on"),
    (dict(schedule="constant", warmup_iters=10), None), (dict(schedule="cosine", warmup_iters=10), None),
    (dict(schedule="wsd", warmup_iters=7), None), (dict(lr_decay_iters=15, min_lr=1e-5), None)])
def test_a_schedule_that_hardly_reaches_its_rate_is_warned_of_once(lab, changes, says):
    code, out, err = lab.command(**changes)
    warned = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert (code, err) == (0, "") and len(warned) == bool(says) and (not says or says in warned[0])


def test_the_steps_at_the_full_rate_are_counted_right(lab):
    """Of every WSD run of 20 steps that is accepted; a warning, if and only if they are less than half."""
    for warmup in range(20):
        for cooldown in (0.0, 0.2, 0.5, 0.8):
            try:
                c = lab.derived(schedule="wsd", warmup_iters=warmup, cooldown_frac=cooldown)
            except UserError:
                continue
            full = sum(settings.learning_rate(step, c) == c.learning_rate for step in range(20))
            assert full > 0 and bool(settings.doubts(c)) == (full < 10 or warmup > 10), (warmup, cooldown)


def test_tokens_that_are_no_whole_steps_are_named(lab):
    for tokens, said in ((256, []), (250, []), (10, ["it trains on 256 tokens, not 10: a step takes 256"])):
        found = settings.doubts(lab.derived(max_iters=None, target_tokens=tokens))
        assert [line.partition(";")[0] for line in found] == said


def test_a_kept_step_that_is_behind_is_named(lab):
    interrupt(lab, at=10)
    out = lab.command(keep_steps="5,10,15")[1]
    assert "warning: keep_steps 5 is behind: this run goes on from step 10" in out
    kept = sorted(p.name for p in lab.out("run").glob("ckpt_*"))
    assert kept == ["ckpt_10.pt", "ckpt_15.pt"]
    state = torch.load(lab.out("run") / "ckpt_10.pt", weights_only=True)
    assert state["step"] == 10 and state["record"]["step"] == 10


def test_a_loss_above_a_guess_s_is_warned_of(lab):
    out = lab.command(learning_rate=5, grad_clip=0, warmup_iters=0, schedule="constant")[1]
    guess = math.log(corpus.load_meta("tiny")["vocab_size"])
    warning, last = out.splitlines()[-2:]
    assert warning.startswith("warning: val_loss") and f"uniformly (ln V = {guess:.4f})" in warning
    assert "lower learning_rate (now 5)" in warning and "next: python " in last
    assert "warning" not in lab.command("good", learning_rate=1e-2, max_iters=40)[1]


def test_the_next_command_is_quoted_and_home_is_found(lab, monkeypatch):
    monkeypatch.setenv("HOME", str(lab.root))
    code, out, _ = lab.command(out_dir="~/a run")
    assert code == 0 and out.endswith(f"sample.py --out_dir='{lab.root}/a run'\n")
    assert (lab.root / "a run" / "result.json").exists()


@pytest.mark.parametrize("given, says", [
    (dict(WORLD_SIZE="x"), "WORLD_SIZE is 'x', which is no number"),
    (dict(WORLD_SIZE="2"), "not RANK or MASTER_ADDR or MASTER_PORT"),
    (dict(WORLD_SIZE="2", RANK="0"), "WORLD_SIZE is 2, but not MASTER_ADDR or MASTER_PORT")])
def test_ranks_without_a_launcher_are_one_line(lab, monkeypatch, given, says):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, _, err = lab.command()
    assert code == 2 and says in one_line(err) and "torchrun" in err


# ---------------------------------------------------------------- the Python and the packages


@pytest.mark.parametrize("program", [["train.py"], ["-m", "runtime.bench_gpu"],
                                     [ROOT / "data" / "c4" / "prepare.py"]])
def test_a_package_that_is_not_installed_is_one_line(lab, program):
    shutil.copy(ROOT / "requirements.txt", lab.root)
    done = subprocess.run([sys.executable, "-S", *program], cwd=lab.root, capture_output=True, text=True)
    assert done.returncode == 2 and "the package numpy is not installed here" in one_line(done.stderr)
    assert "requirements.txt" in done.stderr and ".venv/bin/activate" in done.stderr


def test_a_module_of_one_s_own_that_is_missing_is_shown_whole(capsys):
    runtime.say_what_is_missing(ModuleNotFoundError, ModuleNotFoundError("no mine", name="mine"), None)
    assert "ModuleNotFoundError: no mine" in capsys.readouterr().err


def test_an_old_python_is_one_line(capsys):
    runtime.require_python((3, 10, 0))
    with pytest.raises(SystemExit) as end:
        runtime.require_python((3, 9, 18, "final", 0))
    assert end.value.code == 2 and "3.10 or newer is needed, not 3.9" in one_line(capsys.readouterr().err)


def test_a_terminal_of_few_characters_is_no_traceback(lab):
    command = [sys.executable, str(lab.root / "train.py"), *lab.arguments("caf\xe9", max_iters=2)]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "") and "out/caf\\xe9: val_loss" in done.stdout


# ---------------------------------------------------------------- token ids


def write_id(lab, split, place, number):
    path = lab.data / "tiny" / f"{split}.bin"
    ids = np.fromfile(path, dtype="<u2")
    ids[place] = number
    ids.tofile(path)


@pytest.mark.parametrize("split, place", [("train", 0), ("train", -1), ("val", 0), ("val", 10_000)])
@pytest.mark.parametrize("known", [False, True])               # whether an earlier run has looked
def test_an_id_above_the_vocabulary_is_found_before_step_1(lab, monkeypatch, split, place, known):
    V = corpus.load_meta("tiny")["vocab_size"]
    if known:
        lab.train("before", max_iters=2)
    write_id(lab, split, place, V)
    files = lab.files()
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "train_step", None)
        code, _, err = lab.command()
    assert code == 2 and f"{split}.bin has the token id {V}, and vocab_size is {V}" in one_line(err)
    assert lab.files() == files | {"out/run/lock": b""}
    assert f"set --vocab_size={V + 1}" in err
    assert lab.command(vocab_size=V + 1)[0] == 0               # what it says helps


def test_a_file_is_searched_once(lab, monkeypatch):
    lab.train("one", max_iters=2)
    found = json.loads((lab.data / "tiny" / "ids.json").read_text())
    meta = corpus.load_meta("tiny")
    for split in ("train", "val"):
        assert found[split]["sha256"] == meta[f"{split}_sha256"]
        assert found[split]["largest"] == np.fromfile(lab.data / "tiny" / f"{split}.bin", dtype="<u2").max()
    searched = []
    memmap = types.SimpleNamespace(
        uint16=np.uint16, memmap=lambda path, **how: (searched.append(path.name), np.memmap(path, **how))[1])
    monkeypatch.setattr(text, "np", memmap)
    lab.train("two", max_iters=2)
    assert searched == []
    edit_meta(lab, train_sha256="another")
    lab.train("three", max_iters=2)
    os.utime(lab.data / "tiny" / "val.bin", (1, 1))
    lab.train("four", max_iters=2)
    assert searched == ["train.bin", "val.bin"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"train": 1, "val": {}}', '{"train": {"largest": 0}}'])
def test_a_damaged_ids_json_is_written_again(lab, content):
    path = lab.data / "tiny" / "ids.json"
    path.write_text(content)
    assert lab.command(max_iters=2)[::2] == (0, "")
    assert json.loads(path.read_text())["val"]["largest"] > 0


def test_data_that_may_only_be_read(lab, monkeypatch):
    """As of another user: ids.json is not written, and nothing is said."""
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if b.name != "ids.json" else full())
    assert lab.command(max_iters=2)[::2] == (0, "")
    assert sorted(p.name for p in (lab.data / "tiny").iterdir()) == ["meta.json", "train.bin", "val.bin"]


# ---------------------------------------------------------------- signals

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
           if hasattr(signal, name)]


@pytest.fixture
def handlers():
    """The system's own handlers, which nohup changes, during a test."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS[2:]}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_checkpoints_and_exits_with_3(lab, number, handlers):
    before = [signal.getsignal(s) for s in NUMBERS]
    code, out, err = interrupt(lab, at=7, number=number)
    assert code == 3 and "interrupted at step 7; the same command goes on from there" in out and err == ""
    assert lab.checkpoint()["step"] == 7 and not (lab.out("run") / "result.json").exists()
    assert [signal.getsignal(s) for s in NUMBERS] == before
    assert lab.command()[0] == 0
    assert [signal.getsignal(s) for s in NUMBERS] == before
    out = interrupt(lab, at=3, number=number, resume="never")[1]
    assert "the same command less --resume=never goes on" in out


def test_a_signal_before_the_first_step_is_not_lost(lab, monkeypatch):
    start_files = rundir.start_files
    monkeypatch.setattr(rundir, "start_files",
                        lambda *args: (start_files(*args), os.kill(os.getpid(), signal.SIGINT)))
    assert lab.command()[0] == 3 and lab.checkpoint()["step"] == 1


def test_a_signal_at_the_last_step_leaves_its_evaluation_to_the_next_start(lab):
    assert interrupt(lab, at=20)[0] == 3 and lab.checkpoint()["step"] == 20
    assert lab.command()[0] == 0 and (lab.out("run") / "result.json").exists()


def test_a_signal_after_the_last_evaluation_does_not_spoil_the_result(lab, monkeypatch):
    append = rundir.append_log
    monkeypatch.setattr(rundir, "append_log",
                        lambda out, record: (append(out, record), "val_loss" in record
                                             and os.kill(os.getpid(), signal.SIGTERM)))
    assert lab.command(eval_interval=0)[0] == 0 and (lab.out("run") / "result.json").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")
def test_nohup_and_blocked_signals_stay_what_they_are(lab, handlers, monkeypatch):
    """nohup ignores SIGHUP; scaling/launch/slurm.py blocks what SLURM sends to every process of a task.

    That is blocked in all threads of the new process; here only in this one, so it is sent to this one.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert interrupt(lab, at=7, number=signal.SIGHUP)[0] == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    monkeypatch.setattr(os, "kill", lambda pid, number: signal.pthread_kill(threading.get_ident(), number))
    try:
        assert interrupt(lab, at=7, number=signal.SIGUSR1, resume="never")[0] == 0
        assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def test_handlers_are_restored_after_an_error(lab):
    before = signal.getsignal(signal.SIGTERM)
    assert lab.command(learning_rate=1e30, grad_clip=0, warmup_iters=0)[0] == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_adamw_and_clip_are_torch_s_bit_for_bit():
    """FusedAdamW and clip leave out Python, not arithmetic; also after a state was loaded."""
    def run(adamw, clip):
        torch.manual_seed(0)
        model = GPT(Config(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=50))
        optimizer = adamw(model.optimizer_groups(0.1), lr=1e-2, betas=(0.9, 0.99), fused=True)
        norms, weights = [], list(model.parameters())
        for step in range(6):
            if step == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            x = torch.randint(50, (4, 8))
            (100 * model(x, x)[1] if step % 2 else model(x, x)[1]).backward()
            norms.append(clip(weights, 1.0))
            optimizer.step()
            optimizer.zero_grad()
        return [*norms, *weights, *(s["exp_avg_sq"] for s in optimizer.state.values())]
    ours, theirs = run(cpu.FusedAdamW, cpu.clip), run(torch.optim.AdamW, torch.nn.utils.clip_grad_norm_)
    assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_float16_leaves_out_a_step_that_overflows(lab):
    """The scaler begins at 2^16, where small batches overflow at once. torch's AdamW is told, ours is not."""
    result = lab.train(dtype="float16", batch_size=1, max_iters=60, block_size=8, eval_iters=32)
    assert math.isfinite(result["val_loss"])
    scaler = lab.checkpoint()["scaler"]
    assert scaler["scale"] < 2 ** 16                           # a step did overflow


def test_two_processes_do_not_share_a_directory(lab):
    lab.out("run").mkdir(parents=True)
    with system.lock(lab.out("run") / "lock", "this test"):
        files = lab.files()
        code, _, err = lab.command()
        assert code == 2 and "another process works in" in one_line(err) and lab.files() == files
    assert lab.command()[0] == 0


# ---------------------------------------------------------------- a quick look at a config


CONFIG = """
dataset, n_layer, n_head, n_embd, block_size, batch_size = "tiny", 1, 2, 16, 32, 8
epochs, warmup_iters, schedule, eval_iters, device = 1, 15, "constant", 20, "cpu"
"""                                                            # 156 steps


@pytest.fixture
def look(lab):
    """Run CONFIG with these arguments -> (the resolved config, what was printed)."""
    path = lab.root / "mine.py"
    path.write_text(CONFIG, encoding="utf-8")

    def run(*more):
        code, out, err = lab.main([str(path), f"--out_dir={lab.out('run')}", "--resume=never", *more])
        assert code == 0, err
        return json.loads((lab.out("run") / "config.json").read_text()), out
    return run


def test_another_horizon_takes_the_place_of_the_config_s(look):
    c, out = look("--max_iters=31")
    assert (c["max_iters"], c["epochs"], c["warmup_iters"]) == (31, -1, 3)
    assert out.startswith("31 steps instead of the config's 156; warmup_iters 15 -> 3\n")
    c, out = look("--target_tokens=2560", "--warmup_iters=2")      # what is given stays
    assert (c["max_iters"], c["warmup_iters"]) == (10, 2) and out.startswith("10 steps instead of")
    c, _ = look("--epochs=0.1")                                    # of the same name
    assert (c["max_iters"], c["warmup_iters"]) == (16, 2)
    c, _ = look("--epochs=-1", "--max_iters=20")                   # taken away as well
    assert (c["max_iters"], c["warmup_iters"]) == (20, 2)
    assert look("--seed=2")[0]["max_iters"] == 156


@pytest.mark.parametrize("dataset, says", [
    ("shakespeare_char", "data/shakespeare/prepare.py --tokenizer=char --out_dir=data/shakespeare_char"),
    ("shakespeare", "run: python data/shakespeare/prepare.py"),
    ("mine", "python data/text/prepare.py --name=mine --input FILES")])
def test_the_hint_for_a_missing_dataset_leads_on(lab, dataset, says, monkeypatch):
    monkeypatch.chdir(lab.root)
    for name in ("shakespeare", "wikitext2"):
        (lab.data / name).mkdir()
        (lab.data / name / "prepare.py").touch()
    code, _, err = lab.command(dataset=dataset)
    assert code == 2 and says in one_line(err)


def test_muon_in_float16_is_one_line(lab):
    """Where one of two optimizers sees an overflow, the scaler would let the other step."""
    code, _, err = lab.command(optimizer="muon", dtype="float16")
    assert code == 2 and "optimizer=muon has no float16" in err and err.count("\n") == 1
