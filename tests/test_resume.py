"""A run interrupted or killed anywhere ends as if nothing had happened, bit for bit (CPU, float32)."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import train
from runtime import rundir

RUN = dict(max_iters=30, log_interval=7, eval_interval=12, n_layer=2, learning_rate=1e-2)
FREE = ("wall_s", "tok_per_s", "elapsed_s", "elapsed", "out_dir", "ckpt_minutes")      # may differ


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, so nothing is tidied up."""


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in FREE)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def assert_same_run(lab, a: str, b: str) -> None:
    """Parameters, optimizer, random state, log and result of two runs are equal, but for times and names."""
    one, other = lab.checkpoint(a), lab.checkpoint(b)
    for key in one.keys() | other.keys():
        assert key in FREE or same(one[key], other[key]), key
    assert same(lab.log(a), lab.log(b))
    result = [json.loads((lab.out(name) / "result.json").read_text()) for name in (a, b)]
    assert same(*result) and list(result[0]) == list(result[1])
    files = [sorted(p.name for p in lab.out(name).iterdir()) for name in (a, b)]
    assert files[0] == files[1] == ["ckpt.pt", "config.json", "lock", "log.jsonl", "result.json"]


@pytest.fixture(scope="module")
def straight(module_lab):
    """The lab with the undisturbed runs `dropout0.0`, `dropout0.2` and `accumulated`."""
    for dropout in (0.0, 0.2):
        module_lab.train(f"dropout{dropout}", dropout=dropout, **RUN)
    module_lab.train("accumulated", gradient_accumulation_steps=3, **RUN)
    return module_lab


@pytest.fixture
def name(request):
    """A run directory of the test's own, in the shared lab."""
    return "".join(ch if ch.isalnum() else "-" for ch in request.node.name)


def die(*args, **kwargs):
    raise Killed


def cut_off(patch, where: str, at: int) -> None:
    """Patch train.py to send itself SIGTERM, or to die, at place `where` of step `at` (or soon after it)."""
    train_step, evaluate, log = train.Run.train_step, train.Run.evaluate, rundir.append_log
    save, replace, get = torch.save, os.replace, train.Batches.get
    now = []                                                   # the step done last
    rounds = []                                                # batches of the evaluation in progress

    def step(run):
        train_step(run)
        now[:] = [run.step]
        if run.step == at and where == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        if run.step == at and where == "step":
            die()

    def late():
        return bool(now) and now[0] >= at

    def watched_evaluate(run):
        if where == "evaluate" and late():
            die()
        rounds.append(0)
        try:
            return evaluate(run)
        finally:
            rounds.clear()

    def batch(data, ids):
        if not rounds and where == "SIGTERM amid" and now == [at]:
            os.kill(os.getpid(), signal.SIGTERM)
        if rounds:
            rounds[0] += 1
            here = now == [RUN["max_iters"]] if where == "last evaluation" else late()
            if where == "SIGTERM evaluating" and here and rounds[0] == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if where in ("evaluating", "last evaluation") and here and rounds[0] == 2:
                die()
        return get(data, ids)

    def save_with_signal(state, f):
        if late():
            os.kill(os.getpid(), signal.SIGTERM)
        save(state, f)

    def half_a_line(out, record):
        if not late():
            return log(out, record)
        with open(out / "log.jsonl", "a") as f:
            f.write(json.dumps(record)[:20 + at])
        die()

    def half_a_checkpoint(state, f):
        if not late():
            return save(state, f)
        f.write(b"half a checkpoint")
        f.flush()
        die()

    def rename(part, path):
        if where == "result" and path.name == "result.json":
            die()
        replace(part, path)
        if where == "renamed" and path.name == "ckpt.pt" and late():
            die()

    patch.setattr(train.Run, "train_step", step)
    patch.setattr(train.Run, "evaluate", watched_evaluate)
    patch.setattr(train.Batches, "get", batch)
    if where == "log":
        patch.setattr(rundir, "append_log", half_a_line)
    if where == "logged":
        patch.setattr(rundir, "append_log", lambda out, record: (log(out, record), late() and die()))
    if where == "checkpoint":
        patch.setattr(torch, "save", half_a_checkpoint)
    if where == "SIGTERM saving":
        patch.setattr(torch, "save", save_with_signal)
    patch.setattr(os, "replace", rename)


PLACES = ["SIGTERM", "step", "evaluate", "evaluating", "last evaluation", "SIGTERM evaluating", "log",
          "logged", "checkpoint", "SIGTERM saving", "renamed", "result", "SIGTERM amid"]


def run_into(lab, name, where, at, **settings) -> None:
    """Train until the cut that `cut_off` describes, if it is not past."""
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, where, at)
        try:
            lab.train(name, **settings)
        except (Killed, train.Interrupted):
            pass


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("at", [1, 14, 15, 24, 29])        # 14: a log line; 15: between; 24: an evaluation
def test_half_and_half_equals_the_whole(straight, name, at, dropout):
    settings = RUN | dict(dropout=dropout)
    with pytest.raises(train.Interrupted, match=f"step {at};"), pytest.MonkeyPatch.context() as patch:
        cut_off(patch, "SIGTERM", at)
        straight.train(name, **settings)
    assert straight.checkpoint(name)["step"] == at
    straight.train(name, **settings)
    assert_same_run(straight, name, f"dropout{dropout}")


def no_steps(patch) -> None:
    """From now on nothing may be left to train."""
    patch.setattr(train.Run, "train_step", die)


def test_a_signal_amid_an_evaluation_saves_its_step(straight, name):
    """The session after it begins with that evaluation, and may be cut off in it again."""
    settings = RUN | dict(dropout=0.2)
    evaluate = train.Run.evaluate
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, "SIGTERM evaluating", 12)
        with pytest.raises(train.Interrupted, match="interrupted at step 12; the same command goes on"):
            straight.train(name, **settings)
    with pytest.MonkeyPatch.context() as patch:
        no_steps(patch)
        patch.setattr(train.Run, "evaluate",
                      lambda run: (os.kill(os.getpid(), signal.SIGTERM), evaluate(run))[1])
        patch.setattr(train.Batches, "get", die)
        with pytest.raises(train.Interrupted, match="at step 12"):
            straight.train(name, **settings)
    assert straight.checkpoint(name)["step"] == 12 and [r["step"] for r in straight.log(name)] == [7]
    straight.train(name, **settings)
    assert_same_run(straight, name, "dropout0.2")


@pytest.mark.parametrize("error", [IndexError, KeyboardInterrupt, Killed])
def test_a_last_evaluation_that_fails_loses_nothing(straight, name, error):
    """Its step has a checkpoint, and the next start evaluates only."""
    def fail(run):
        if run.step == 30:
            raise error
        return evaluate(run)

    settings, evaluate = RUN | dict(dropout=0.2), train.Run.evaluate
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr(train.Run, "evaluate", fail)
        straight.train(name, **settings)
    assert straight.checkpoint(name)["step"] == 30 and not (straight.out(name) / "result.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        no_steps(patch)
        straight.train(name, **settings)
    assert_same_run(straight, name, "dropout0.2")


def test_a_kept_step_whose_evaluation_was_cut_off_is_kept(lab):
    run_into(lab, "run", "SIGTERM evaluating", 12, keep_steps="12", **RUN)
    assert lab.checkpoint()["step"] == 12 and not (lab.out("run") / "ckpt_12.pt").exists()
    lab.train(keep_steps="12", **RUN)
    assert (lab.out("run") / "ckpt_12.pt").exists()


@pytest.mark.parametrize("where, at", [("SIGTERM", 15), *[("SIGTERM amid", at) for at in (1, 14, 15, 29)]])
def test_accumulation_goes_on_as_well(straight, name, where, at):
    """Also where a signal comes between two micro-batches: the step before has the checkpoint."""
    settings = RUN | dict(gradient_accumulation_steps=3)
    run_into(straight, name, where, at, **settings)
    assert straight.checkpoint(name)["step"] == at
    straight.train(name, **settings)
    assert_same_run(straight, name, "accumulated")


@pytest.mark.parametrize("where", PLACES[1:])
@pytest.mark.parametrize("ckpt_minutes", [0, 5])               # at every step, or only at the end
def test_killed_anywhere_after_a_checkpoint(straight, name, where, ckpt_minutes):
    settings = RUN | dict(dropout=0.2, ckpt_minutes=ckpt_minutes)
    run_into(straight, name, "SIGTERM", 10, **settings)        # a checkpoint amid the interval
    run_into(straight, name, where, 17, **settings)
    assert not (straight.out(name) / "result.json").exists()
    straight.train(name, **settings)
    assert_same_run(straight, name, "dropout0.2")


@pytest.mark.parametrize("seed", range(6))
def test_many_kills(straight, name, seed):
    """Up to 12 cuts at random places, some before the first checkpoint, some while going on from the last."""
    rng = random.Random(seed)
    settings = RUN | (dict(gradient_accumulation_steps=3) if seed % 2 else dict(dropout=0.2))
    for _ in range(12):
        run_into(straight, name, rng.choice(PLACES), rng.randint(1, 30),
                 ckpt_minutes=rng.choice([0, 5]), **settings)
    straight.train(name, **settings)
    assert_same_run(straight, name, "accumulated" if seed % 2 else "dropout0.2")


def test_a_signal_amid_the_first_step_leaves_nothing_to_go_on_from(straight, name, monkeypatch):
    settings, get = RUN | dict(gradient_accumulation_steps=3), train.Batches.get
    with monkeypatch.context() as patch:
        patch.setattr(train.Batches, "get",
                      lambda *args: (os.kill(os.getpid(), signal.SIGTERM), get(*args))[1])
        assert straight.command(name, **settings)[0] == 3
    assert not list(straight.out(name).glob("ckpt*"))
    straight.train(name, **settings)
    assert_same_run(straight, name, "accumulated")


def test_a_checkpoint_does_not_disturb_the_run(straight, name):
    straight.train(name, dropout=0.2, ckpt_minutes=0, **RUN)
    assert_same_run(straight, name, "dropout0.2")


def test_killed_between_the_last_checkpoint_and_the_result(straight, name, monkeypatch):
    run_into(straight, name, "result", 30, dropout=0.2, **RUN)
    assert straight.checkpoint(name)["step"] == 30 and not (straight.out(name) / "result.json").exists()
    with monkeypatch.context() as patch:
        no_steps(patch)
        straight.train(name, dropout=0.2, **RUN)
    assert_same_run(straight, name, "dropout0.2")


def test_start_over_forgets_the_old_checkpoint(straight, name):
    straight.train(name, dropout=0.2, **RUN)
    run_into(straight, name, "step", 9, dropout=0.2, resume="never", **RUN)
    assert not (straight.out(name) / "ckpt.pt").exists()       # or the next command would go on from it
    straight.train(name, dropout=0.2, **RUN)
    assert_same_run(straight, name, "dropout0.2")


@pytest.mark.parametrize("tail", ['{"step": 14, "tok', '{"step": 14}', "{}\n", "null\n", "\0\0\0", '"step"'])
def test_a_corrupt_last_line_of_the_log_is_dropped(straight, name, tail):
    settings = RUN | dict(dropout=0.0)
    run_into(straight, name, "SIGTERM", 13, **settings)
    with open(straight.out(name) / "log.jsonl", "a") as f:
        f.write(tail)
    straight.train(name, **settings)
    assert_same_run(straight, name, "dropout0.0")


def test_a_log_damaged_before_its_end_is_refused(straight, name):
    run_into(straight, name, "SIGTERM", 22, dropout=0.0, **RUN)
    path = straight.out(name) / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:30] + "\n" + lines[2] + lines[3])
    before = straight.files()
    code, _, err = straight.command(name, dropout=0.0, **RUN)
    assert code == 2 and err.count("\n") == 1 and "log.jsonl: line 2" in err and "--resume=never" in err
    assert straight.files() == before


def test_elapsed_time_adds_up_over_sessions(lab):
    run_into(lab, "run", "SIGTERM", 15, **RUN)
    before = lab.checkpoint()["elapsed"]
    result = lab.train(**RUN)
    times = [r["elapsed_s"] for r in lab.log()]
    assert times == sorted(times) and result["wall_s"] == times[-1] > before > 0


def wait_for_lines(path, count: int, process) -> None:
    deadline = time.monotonic() + 180
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


def test_real_signals_to_a_real_process(lab):
    """SIGTERM, SIGKILL and SIGINT, each as soon as the log has a few lines more."""
    settings = dict(max_iters=400, log_interval=3, eval_interval=50, dropout=0.1)
    lab.train("straight", **settings)
    path, codes = lab.out("run") / "log.jsonl", []
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        process = lab.start(ckpt_minutes=0, **settings)
        wait_for_lines(path, lines + 4, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=180)
        codes.append(process.returncode)
        assert err == "" and (number == signal.SIGKILL or "the same command goes on from there" in out)
    assert codes == [3, -signal.SIGKILL, 3]
    assert not (lab.out("run") / "result.json").exists()
    lab.train(**settings)
    assert_same_run(lab, "run", "straight")


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal as Linux makes it")
def test_a_terminal_that_is_closed_leaves_a_checkpoint(lab):
    """The system sends SIGHUP, and from then on what is printed fails."""
    import fcntl
    import pty
    import termios

    def take_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)           # under nohup it is ignored
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ours, theirs = pty.openpty()
    command = [sys.executable, str(lab.root / "train.py"), *lab.arguments(max_iters=20_000, log_interval=1)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=lab.root, start_new_session=True,
        preexec_fn=take_terminal)
    lab.processes.append(process)
    os.close(theirs)
    wait_for_lines(lab.out("run") / "log.jsonl", 4, process)
    os.close(ours)
    assert process.wait(timeout=60) == 3 and lab.checkpoint()["step"] >= 4


WSD = dict(schedule="wsd", warmup_iters=3, cooldown_frac=0.2, dropout=0.2, log_interval=7, eval_interval=10,
           optimizer="muon", position="rope")


@pytest.fixture(scope="module")
def trunk(module_lab):
    """A lab with the run `trunk` of 50 steps, which decays from step 40 and keeps steps 20 and 41."""
    module_lab.train("trunk", max_iters=50, keep_steps="20,41", **WSD)
    return module_lab


@pytest.mark.parametrize("cut", [None, 22, 28])
def test_a_branch_equals_the_run_that_it_shortens(trunk, name, cut):
    kept = trunk.out("trunk") / "ckpt_20.pt"
    before = kept.read_bytes()
    trunk.train(f"{name}-whole", max_iters=30, **WSD)
    if cut:
        run_into(trunk, name, "step" if cut == 22 else "SIGTERM", cut, max_iters=30, branch=str(kept), **WSD)
    trunk.train(name, max_iters=30, branch=str(kept), **WSD)
    whole, branch = trunk.checkpoint(f"{name}-whole"), trunk.checkpoint(name)
    assert same(whole["model"], branch["model"]) and same(whole["optimizers"], branch["optimizers"])
    assert same(trunk.log(f"{name}-whole"), trunk.log(name))
    assert kept.read_bytes() == before


@pytest.mark.parametrize("changes, says", [
    (dict(learning_rate=0.5), "learning_rate=0.001, not 0.5"), (dict(warmup_iters=4), "warmup_iters"),
    (dict(seed=2), "seed=1337, not 2"), (dict(max_iters=22), "the learning rates differ at step 19"),
    (dict(max_iters=20, schedule="constant"), "at step 20, and this run ends at 20"),
    (dict(step=41), "the learning rates differ at step 25"), (dict(step=40), "no checkpoint")])
def test_a_branch_that_does_not_fit_its_trunk_is_refused(trunk, name, changes, says):
    step = changes.get("step", 20)
    settings = WSD | dict(max_iters=30) | {k: v for k, v in changes.items() if k != "step"}
    code, _, err = trunk.command(name, branch=str(trunk.out("trunk") / f"ckpt_{step}.pt"), **settings)
    assert code == 2 and says in err and err.count("\n") == 1
    assert [path.name for path in trunk.out(name).iterdir()] == ["lock"]


def test_a_directory_is_no_branch(trunk, name):
    """Of those that the run in it has kept the last one that this branch can begin with is named."""
    code, _, err = trunk.command(name, branch=str(trunk.out("trunk")), max_iters=30, **WSD)
    assert code == 2 and "trunk is a directory, and --branch takes a checkpoint" in err
    assert err.endswith("/trunk/ckpt_20.pt\n")


def test_a_branch_whose_trunk_has_no_log_is_one_line(trunk, name):
    folder = trunk.out(f"{name}-trunk")
    folder.mkdir()
    kept = shutil.copy(trunk.out("trunk") / "ckpt_20.pt", folder)
    code, _, err = trunk.command(name, max_iters=30, branch=str(kept), **WSD)
    assert code == 2 and err.count("\n") == 1
    assert f"{folder / 'log.jsonl'}: No such file or directory; put it back" in err


# ---------------------------------------------------------------- a later end

STEADY = dict(schedule="constant", warmup_iters=3, dropout=0.2, log_interval=4, eval_interval=10)


@pytest.mark.parametrize("cut", [None, 21, 26])                # 21: before the longer run's first checkpoint
@pytest.mark.parametrize("later", [
    dict(max_iters=40), dict(max_iters=None, target_tokens=40 * 256),
    dict(max_iters=30, schedule="wsd")], ids=["steps", "tokens", "cooldown"])
def test_a_run_goes_on_past_its_end_as_one_of_that_length(module_lab, name, later, cut):
    lab, longer = module_lab, STEADY | later
    lab.train(f"{name}-whole", **longer)
    lab.train(name, max_iters=20, **STEADY)
    if cut:
        run_into(lab, name, "step", cut, ckpt_minutes=5 if cut == 21 else 0, **longer)
        assert not (lab.out(name) / "result.json").exists()
    lab.train(name, **longer)
    assert_same_run(lab, name, f"{name}-whole")
    config = json.loads((lab.out(name) / "config.json").read_text())
    assert config["max_iters"] == lab.derived(**longer).max_iters
    assert lab.command(name, max_iters=20, **STEADY)[0] == 2    # no way back


def test_a_wsd_run_gets_a_later_end_before_it_cools_down(trunk, name):
    run_into(trunk, name, "SIGTERM", 31, max_iters=50, **WSD)
    trunk.train(name, max_iters=70, **WSD)
    trunk.train(f"{name}-whole", max_iters=70, **WSD)
    assert_same_run(trunk, name, f"{name}-whole")


def copy_of(lab, trunk: str, name: str, *without: str) -> None:
    shutil.copytree(lab.out(trunk), lab.out(name), ignore=shutil.ignore_patterns(*without))


@pytest.mark.parametrize("changes, without, says", [
    (dict(max_iters=70), (), "at step 50, and the learning rates differ at step 41; branch from an earlier"),
    (dict(max_iters=70), ("ckpt_*",), "must keep a checkpoint before that (keep_steps)"),
    (dict(max_iters=70), ("ckpt.pt",), "max_iters=50, not 70"),
    (dict(max_iters=45), (), "max_iters=50, not 45"),
    (dict(max_iters=70, schedule="cosine"), (), "differ at step 4; a run that is to go on must keep"),
    (dict(max_iters=700, warmup_iters=-1), (), "give --warmup_iters=3 to keep the warmup"),
    (dict(max_iters=70, seed=2), (), "seed=1337, not 2")])
@pytest.mark.parametrize("finished", [True, False])
def test_an_end_that_cannot_be_moved_is_refused(trunk, name, finished, changes, without, says):
    copy_of(trunk, "trunk", name, *without, *[] if finished else ["result.json"])
    before = trunk.files()
    code, _, err = trunk.command(name, keep_steps="20,41", **WSD | changes)
    if "ckpt.pt" in without and not finished:
        assert code == 0                               # there is nothing to go on from
        return
    assert code == 2 and says in err and err.count("\n") == 1
    assert trunk.files() == before
    if "branch from" in says:                          # what it says helps
        kept = trunk.out(name) / "ckpt_41.pt"
        assert f"in another out_dir: --branch={kept}; or" in err
        assert trunk.command(f"{name}-branch", branch=str(kept), **WSD | changes)[0] == 0


@pytest.mark.parametrize("file", ["ckpt.pt", "ckpt_prev.pt"])
def test_a_branch_from_where_another_run_stands(module_lab, name, file):
    lab, trunk = module_lab, module_lab.out(f"{name}-trunk")
    run_into(lab, trunk.name, "step", 26, max_iters=30, ckpt_minutes=0, **STEADY)
    before = lab.files()
    lab.train(name, max_iters=40, branch=str(trunk / file), **STEADY)
    assert before.items() <= lab.files().items()
    lab.train(f"{name}-whole", max_iters=40, **STEADY)
    whole, branch = lab.checkpoint(f"{name}-whole"), lab.checkpoint(name)
    assert same(whole["model"], branch["model"]) and same(whole["optimizers"], branch["optimizers"])
    assert same(lab.log(f"{name}-whole"), lab.log(name))


def test_a_branch_into_the_directory_of_its_trunk_is_refused(trunk):
    """It would begin by removing the log that it needs."""
    before = trunk.files()
    kept = trunk.out("trunk") / "ckpt_20.pt"
    code, _, err = trunk.command("trunk", max_iters=30, branch=str(kept), resume="never", **WSD)
    assert code == 2 and "lies in out_dir" in err and err.count("\n") == 1
    assert trunk.files() == before


def test_what_is_logged_and_kept_may_change_when_a_run_goes_on(straight, name):
    run_into(straight, name, "SIGTERM", 10, dropout=0.2, **RUN)
    changed = RUN | dict(log_interval=4, keep_steps="11,16")
    straight.train(name, dropout=0.2, **changed)
    whole = straight.log("dropout0.2")
    records = {r["step"]: r for r in straight.log(name)}
    assert list(records) == [7, 12, 16, 20, 24, 28, 30]
    told = ("val_loss", "lr", "tokens", "grad_norm")
    for r in whole:
        if r["step"] in records:
            assert [r.get(k) for k in told] == [records[r["step"]].get(k) for k in told]
    assert same(straight.checkpoint(name)["model"], straight.checkpoint("dropout0.2")["model"])
    kept = sorted(path.name for path in straight.out(name).glob("ckpt_*"))
    assert kept == ["ckpt_11.pt", "ckpt_16.pt"]
