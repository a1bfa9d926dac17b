"""The sweep: planning, running what is missing, branches, failures, the lock, and the study's files."""
import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import in_this_process

import train
from config import corpus, settings
from config.configurator import configure
from model import GPT
from runtime import basics
from runtime.basics import UserError
from runtime.devices import on_machine
from scaling import fit, forecast, logs, plots, sweep
from scaling.launch import local
from scaling.launch.planned import advance, progress_bar
from scaling.launch.study import dataset_of, make_plan
from scaling.tables.csv import read_table

CODE = Path(__file__).parents[1]
BASE = ("base = dict(dataset='tiny', n_layer=1, n_head=1, block_size=32, batch_size=4, device='cpu', "
        "learning_rate=5e-3)\n")


@pytest.fixture
def study(lab, monkeypatch):
    """Write a sweep file of the lab and return its path; out/ is the lab's."""
    monkeypatch.setattr(basics, "ROOT", lab.root)

    def write(text, name="tiny_study"):
        path = lab.root / f"{name}.py"
        path.write_text(BASE + text, encoding="utf-8")
        return str(path)
    return write


def plan(path):
    study = sweep.read_sweep(path)
    return make_plan(study, study.runs + study.held_out)


@pytest.fixture
def in_process(lab, monkeypatch):
    """All runs but `big` train in this process: to import torch for each would take longer than to train."""
    start = local.start

    def start_here(p):
        if p.name == "big":
            return start(p)
        code, _, _ = lab.main(p.command()[2:])
        p.process = SimpleNamespace(poll=lambda: code, returncode=code)
    monkeypatch.setattr(local, "start", start_here)


def finish(p, **result):
    """The files of a finished run, with the config.json that train.py would write of its command line."""
    c = settings.resolve(configure(settings.Config, p.command()[2:])).config
    p.out.mkdir(parents=True)
    facts = dataclasses.asdict(on_machine(c, "cpu", 1)) | dict(
        data_sha256=p.resolved.meta["train_sha256"], forecast=None)
    (p.out / "config.json").write_text(json.dumps(facts))
    result = dict(val_loss=3.0, tokens=p.resolved.D, wall_s=1.0) | result
    (p.out / "result.json").write_text(json.dumps(result))


def edit(path, **changes):
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(basics.load_json(path) | changes))


def val_loss(folder):
    return basics.load_json(folder / "result.json")["val_loss"]


def rows(folder):
    with open(folder / "runs.csv", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_plan_counts_what_train_will_do(study):
    """Budgets are 6 N D with N non-embedding plus head; FLOPs are the exact count; D is whole batches."""
    p, = plan(study("runs = [dict(name='a', n_embd=16, budget=3e9)]"))
    params = settings.count_params(p.config)
    assert p.resolved.N == params["non_embedding"] + params["head"]
    assert abs(6 * p.resolved.N * p.resolved.D / 3e9 - 1) < 0.01 and p.resolved.D % 128 == 0
    assert p.resolved.C == p.own_flops == p.resolved.D * settings.count_flops(p.config)["total"]


def test_budgets_make_a_trunk_and_branches(study):
    """The longest run trains whole and keeps a checkpoint where each shorter one starts its cooldown."""
    trunk, *branches = plan(study("runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, "
                                  "budgets=[1e9, 2e9, 4e9])]"))
    assert trunk.name == "a_4e09" and [b.name for b in branches] == ["a_1e09", "a_2e09"]
    for b, step in zip(branches, trunk.config.keep_steps.split(","), strict=True):
        assert b.config.branch.endswith(f"a_4e09/ckpt_{step}.pt") and not b.ready()
        assert int(step) == b.config.max_iters - round(0.2 * b.config.max_iters)
        assert b.own_flops / b.resolved.C == pytest.approx(0.2, abs=0.01)


def test_six_branches_cost_at_most_sixty_percent(study):
    """A grid of six D from one trunk against six runs of their own."""
    runs = plan(study("runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, "
                      "budgets=[1e9 * k for k in (1, 2, 3, 4, 5, 6)])]"))
    assert sum(p.own_flops for p in runs) <= 0.6 * sum(p.resolved.C for p in runs)


@pytest.mark.parametrize("text, words", [
    ("runs = []", "missing or empty"),
    ("rnus = [dict(name='a')]", "did you mean 'runs'"),
    ("runs = [dict(n_embd=16, max_iters=3)]", "needs a `name`"),
    ("runs = [dict(name='../a', n_embd=16, max_iters=3)]", "plain file name"),
    ("runs = [dict(name='a', n_embd=16, max_iters=3)] * 2", "two runs are named 'a'"),
    ("runs = [dict(name='a', n_embdd=16, max_iters=3)]", "run a: unknown key 'n_embdd'"),
    ("runs = [dict(name='a', n_embd=16)]", "run a: set exactly one horizon"),
    ("runs = [dict(name='a', n_embd=16, max_iters=3, budget=1e9)]", "horizon, not budget and max_iters"),
    ("runs = [dict(name='a', n_embd=16, budget=1e9, budgets=[1e9])]", "horizon, not budget and budgets"),
    ("runs = [dict(name='a', n_embd=16, budgets=[1e9, 2e9])]", "needs schedule='wsd'"),
    ("runs = [dict(name='a', n_embd=16, schedule='wsd', budgets=[1e9, 2e9])]",
     "one warmup_iters for all, and -1 gives each its own; set it (that of the shortest is 6)"),
    ("runs = [dict(name='a', n_embd=8, schedule='wsd', warmup_iters=0, learning_rate=-1, "
     "budgets=[1e9, 2e9])]", "one learning_rate"),
    ("runs = [dict(name='a', n_embd=0, budget=1e9)]", "run a: n_embd must be positive"),
    ("runs = [dict(name='a', n_embd=16, budget=-1e9)]", "run a: `budget` must be a number of FLOPs above 0"),
    ("runs = [dict(name='a', n_embd=16, budgets=[])]", "run a: `budgets` must list numbers of FLOPs above 0"),
    ("runs = [dict(name='a', n_embd='16', max_iters=3)]", "run a: n_embd must be int"),
    ("runs = 3", "`runs` must be a list of dicts"),
    ("runs = ['a']", "`runs` must be a list of dicts"),
    ("runs = [dict(name='a', n_embd=16, budgets=['x'])]", "run a: `budgets` must list numbers"),
])
@pytest.mark.parametrize("base", ["", "base = base | dict(dataset='other_gpt2')\n"], ids=["", "unprepared"])
def test_bad_sweep_file_is_one_line(study, lab, text, words, base):
    """Also before its text is prepared: what no text could mend is refused then, in a dry run or not."""
    (lab.data / "other").mkdir()
    (lab.data / "other" / "prepare.py").write_text("raise SystemExit('this must not run')\n")
    path = study(base + text)
    for args in ([], ["--dry_run"]):
        said = refused(path, *args)
        assert (words.partition(" (that of")[0] if base else words) in said


def test_a_sweep_is_named_by_its_file(lab, capsys):
    (lab.root / "scaling" / "sweeps").mkdir(parents=True)
    for name in ("tiny", "wide"):
        (lab.root / "scaling" / "sweeps" / f"{name}.py").touch()
    assert refused("tiny") == "no such sweep file: tiny; did you mean scaling/sweeps/tiny.py?"
    assert refused("out/x.py") == "no such sweep file: out/x.py; scaling/sweeps/NAME.py has tiny, wide"
    assert "--jobs: invalid int value: 'garbage'; --help" in refused("tiny", "--jobs=garbage")
    assert "--jobs=-1: give how many" in refused("tiny", "--jobs=-1")
    with pytest.raises(SystemExit):
        sweep.main(["--help"])
    printed = capsys.readouterr().out
    for name in ("runs ", "held_out ", "base ", "prepare ", "slurm ", "`budgets`", "`seeds=k`", "budgets=["):
        assert name in printed, name


def test_a_budget_that_is_added_later_trains_nothing_anew(study, in_process):
    """Its trunk kept no step where it leaves: it leaves earlier, or trains whole, and comes to the same."""
    text = ("runs = [dict(name='a', n_embd=8, schedule='wsd', warmup_iters=2, eval_interval=0, "
            "eval_iters=50, log_interval=10, budgets=[{}2e8])]")

    def losses(runs):
        assert local.run(runs, 1) == []
        return [val_loss(p.out) for p in runs]
    at_once = losses(plan(study(text.format("5e7, 1e8, 1.4e8, "), "at_once")))
    path = study(text.format("1e8, "))
    losses(plan(path))
    study(text.format("5e7, 1e8, 1.4e8, "))
    later = trunk, low, middle, high = plan(path)
    assert [p.done() for p in later] == [True, False, True, False]
    assert (low.leave, low.config.branch) == (0, "") and low.own_flops == low.resolved.C
    assert (high.leave, high.config.branch) == (middle.leave, str(trunk.out / f"ckpt_{middle.leave}.pt"))
    assert losses(later) == at_once


def test_a_branch_equals_a_run_of_its_own(study, lab, in_process):
    """Bit for bit on CPU: parameters, optimizer and every logged number but times."""
    path = study("runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, eval_interval=0, "
                 "log_interval=5, budgets=[2e8, 4e8])]")
    trunk, branch = plan(path)
    assert local.run([trunk, branch], 2) == []
    alone = branch.overrides | {"out_dir": str(lab.root / "out" / "alone")}
    del alone["branch"]
    train.train(settings.Config(**alone))
    both = (branch.out, lab.root / "out" / "alone")
    mine, other = (torch.load(d / "ckpt.pt", weights_only=True) for d in both)
    assert all(torch.equal(v, other["model"][k]) for k, v in mine["model"].items())
    for k, state in mine["optimizers"][0]["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other["optimizers"][0]["state"][k][n]))
                   for n, v in state.items())
    logs = [[{k: v for k, v in json.loads(line).items() if k not in ("elapsed_s", "tok_per_s")}
             for line in (d / "log.jsonl").read_text().splitlines()] for d in both]
    assert logs[0] == logs[1]


GRID = """runs = [dict(name=f'd{d}', n_embd=d, schedule='wsd', warmup_iters=2, eval_interval=0, eval_iters=50,
              budgets=[3e7, 6e7, 1.2e8]) for d in (8, 12, 16)]
held_out = [dict(name='big', n_embd=20, schedule='wsd', warmup_iters=2, eval_iters=50, budget=3e8)]"""


def test_a_study_of_one_length_says_why_nothing_was_forecast(study, lab, in_process, capsys):
    """Its figures are drawn, its end is told; held-out runs wait for a law of N and D."""
    path = study("runs = [dict(name=f'd{d}', n_embd=d, max_iters=10) for d in (4, 8, 12, 16, 20)]\n"
                 "held_out = [dict(name='more', n_embd=24, max_iters=10)]", "one_length")
    assert sweep.main([path, "--jobs=1"]) == 1
    out, err = capsys.readouterr()
    assert "failed: more: no forecast, since there is no law of N and D (all runs have the same value" in err
    assert "next:" in out and list((lab.root / "out" / "one_length" / "figures").glob("*.png"))
    assert f"\nin {lab.root}:\n" in out              # for it was run from elsewhere
    assert not (lab.root / "out" / "one_length" / "more").exists()


def test_study_from_text_to_scored_forecast(study, lab, in_process, capsys, monkeypatch):
    """The whole path on a tiny grid: runs.csv, fit.json, a seal older than its run, a score, figures."""
    monkeypatch.setattr(fit, "fit_study", partial(fit.fit_study, bootstrap=20))
    assert sweep.main([study(GRID), "--jobs=2", "--anyway"]) == 0      # so few runs determine no law
    folder = lab.root / "out" / "tiny_study"
    table = rows(folder)
    assert len(table) == 9 and all(float(r["val_loss"]) > 0 for r in table)
    assert {r["study"] for r in table} == {"tiny_study"}
    assert "surface" in basics.load_json(folder / "fit.json")
    with open(folder / "forecasts.csv", encoding="utf-8") as f:
        scored, = csv.DictReader(f)
    measured = val_loss(folder / "big")
    assert float(scored["measured"]) == measured
    assert float(scored["error"]) == pytest.approx(float(scored["predicted"]) / measured - 1)
    assert basics.load_json(folder / "big" / "config.json")["forecast"] == scored["sha256"]
    assert list((folder / "figures").glob("*.png"))
    assert_end_is_true(capsys.readouterr().out, lab.root, scored)
    before = (folder / "runs.csv").read_bytes()
    law = basics.load_json(folder / "fit.json")
    monkeypatch.setattr(fit, "fit_study", lambda folder: law)
    monkeypatch.setattr(plots, "draw_study", lambda folder: [])
    monkeypatch.setattr(local, "start", None)                      # nothing left to do, nothing changes
    assert sweep.main([study(GRID), "--jobs=2"]) == 0
    assert (folder / "runs.csv").read_bytes() == before


def assert_end_is_true(printed, root, scored):
    """What is on screen last is short, gives the forecast and its outcome, and every file it names exists."""
    *_, end = printed.partition("sha256")
    text, _, commands = end.partition("next:")
    lines = [line for line in text.splitlines()[1:] if not line.startswith(("rollout", " "))]
    assert len(lines) < 15 and "pictures: out/tiny_study/figures" in lines
    assert f"big: forecast {float(scored['predicted']):.4f}" in text
    assert f"measured {float(scored['measured']):.4f}" in text
    assert len(commands.splitlines()[1:]) == 4 and commands.endswith("STUDY=out/tiny_study make notebook\n")
    for word in (text + commands).replace("=", " ").replace(";", " ").split():
        if word.startswith("out/"):
            assert (root / word).exists(), word


def test_failed_run_is_named_and_the_rest_goes_on(study, lab, capsys, monkeypatch):
    monkeypatch.setattr(fit, "fit_study", lambda folder: {})
    monkeypatch.setattr(plots, "draw_study", lambda folder: [])
    monkeypatch.setattr(sweep, "print_end", lambda *args: None)
    path = study("runs = [dict(name='good', n_embd=8, max_iters=3), dict(name='bad', n_embd=8, max_iters=30, "
                 "grad_clip=0.0, learning_rate=1e30, log_interval=1)]")
    assert sweep.main([path, "--jobs=2"]) == 1
    assert [r["run"] for r in rows(lab.root / "out" / "tiny_study")] == ["good"]
    assert "failed: bad: exit code 2" in capsys.readouterr().err


def test_a_study_in_which_all_fails_says_only_that(study, lab, in_process, capsys):
    path = study("runs = [dict(name='bad', n_embd=8, max_iters=9, grad_clip=0.0, learning_rate=1e30)]")
    assert sweep.main([path, "--jobs=1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("failed: bad: exit code 2: ")


@pytest.mark.parametrize("now, shown", [("now a", "0/1 runs, now a: "), ("", "0/1 runs: ")])
def test_the_bar_says_what_is_at_work(study, now, shown):
    p, = plan(study("runs = [dict(name='a', n_embd=8, max_iters=3)]"))
    with progress_bar([p]) as bar:
        advance(bar, [p], now)
        assert bar.desc == shown


def test_runs_are_stopped_though_the_terminal_is_gone(study, monkeypatch):
    p, = plan(study("runs = [dict(name='a', n_embd=8, max_iters=3)]"))
    ended = []
    p.process = SimpleNamespace(terminate=lambda: ended.append("asked"), wait=lambda: ended.append("gone"))

    def gone(text):
        raise OSError(errno.EIO, "Input/output error")
    with open(os.devnull, "w") as null:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=gone, flush=null.flush, fileno=null.fileno))
        local.stop([p])
    assert ended == ["asked", "gone"]


def test_killed_sweep_goes_on_where_it_was(study, lab):
    """SIGINT: the running model checkpoints and the sweep exits with 3; the next call resumes it."""
    path = study("runs = [dict(name='long', n_embd=16, max_iters=1500, eval_iters=5, eval_interval=0)]")
    process = subprocess.Popen([sys.executable, "-c", in_the_lab(lab, path)], stderr=subprocess.PIPE)
    log = lab.root / "out" / "tiny_study" / "long" / "log.jsonl"
    for _ in range(600):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert (log.parent / "ckpt.pt").exists() and not (log.parent / "result.json").exists()
    p, = plan(path)
    assert local.run([p], 1) == [] and p.done()
    assert "goes on from step" in (log.parent / "train.txt").read_text()


# ---------------------------------------------------------------- processes


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each run imports torch for itself")
LONG = "dict(name='{}', n_embd=8, max_iters=100_000, log_interval=1, eval_interval=0)"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_of_a_sweep_is_that_of_train_py_alone(study, lab):
    """Bit for bit, though it is forked from a process that has imported torch."""
    p, = plan(study("runs = [dict(name='a', n_embd=16, max_iters=12, eval_interval=6, dropout=0.1)]"))
    local.start(p)
    assert p.process.wait() == 0 and p.done()
    lines = (p.out / "train.txt").read_text().splitlines()
    alone = lab.spawn(*p.command()[1:-1], f"--out_dir={lab.out('alone')}")
    out, err = alone.communicate(timeout=120)
    assert alone.returncode == 0 and not err and len(out.splitlines()) == len(lines)
    ours, other = (torch.load(d / "ckpt.pt", weights_only=True) for d in (p.out, lab.out("alone")))
    assert all(torch.equal(v, other["model"][k]) for k, v in ours["model"].items())
    assert val_loss(p.out) == val_loss(lab.out("alone"))


@on_linux
def test_what_becomes_of_a_run_touches_no_other(study):
    """One is killed, one refuses its data, one is asked to stop; the last starts with little CPU and ends."""
    text = ", ".join(LONG.format(name) for name in "abc")
    killed, stopped, refused = plan(study(f"runs = [{text}]"))
    refused.overrides["dataset"] = "nowhere"
    for p in (killed, stopped, refused):
        local.start(p)
    until(lambda: killed.log_tail() and stopped.log_tail())
    assert killed.at_work() and os.getsid(killed.process.pid) == killed.process.pid
    os.kill(killed.process.pid, signal.SIGKILL)
    stopped.process.terminate()
    assert killed.process.wait() == -signal.SIGKILL and not killed.at_work()
    assert stopped.process.wait() == 3 and (stopped.out / "ckpt.pt").exists()
    assert refused.process.wait() == 2 and "error: dataset 'nowhere'" in refused.last_line()
    p, = plan(study("runs = [dict(name='d', n_embd=8, max_iters=1, log_interval=1)]", "other"))
    local.start(p)
    assert p.process.wait() == 0 and p.done()
    assert p.log_tail()["elapsed_s"] < 2               # of which nothing went for imports


@on_linux
def test_runs_outlive_the_process_that_forked_them(study):
    """It is killed: the sweep waits for them as for what another sweep left, and starts the others anew."""
    first, second = plan(study(f"runs = [{LONG.format('a')}, dict(name='b', n_embd=8, max_iters=3)]"))
    local.start(first)
    until(first.log_tail)
    first.process.server.process.kill()
    first.process.server.process.wait()
    pid = first.process.pid
    assert first.process.wait() == -signal.SIGKILL and first.at_work()
    running, failed = [], []
    local.settle(first, [], running, failed)
    assert running == [first] and not failed and not first.ended()
    local.start(second)
    assert second.process.wait() == 0 and second.done() and first.at_work()
    os.kill(pid, signal.SIGTERM)
    until(first.ended)
    assert (first.out / "ckpt.pt").exists()


def in_the_lab(lab, *arguments):
    """A program: the sweep on the lab's files, in a process that must not import torch for it."""
    return f"""
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {str(Path(sweep.__file__).parents[1])!r})
from runtime import basics
basics.ROOT = Path({str(lab.root)!r})
from scaling import sweep
try:
    code = sweep.main({list(arguments)!r})
except KeyboardInterrupt:
    code = 3
sys.exit("torch was imported" if "torch" in sys.modules else code)
"""


def test_two_sweeps_of_one_study_exclude_each_other(lab):
    folder = lab.root / "out" / "s"
    with sweep.alone_in(folder):
        with pytest.raises(UserError, match="another sweep works in .*s; wait"), sweep.alone_in(folder):
            pass
    with sweep.alone_in(folder):
        pass


def held_lock(folder, then="pass"):
    """A process that holds the lock of a run, as one does that a killed sweep left; ends when stdin does."""
    folder.mkdir(parents=True, exist_ok=True)
    code = (f"import sys; sys.path.insert(0, {str(CODE)!r})\nfrom pathlib import Path\n"
            f"from runtime import system\nout = Path({str(folder)!r})\n"
            "with system.lock(out / 'lock', ''):\n"
            f"    print('has it', flush=True); sys.stdin.read()\n    {then}")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"has it\n"
    return process


def ends_in(process, seconds):
    timer = threading.Timer(seconds, process.stdin.close)
    timer.start()
    return timer


def test_a_run_that_a_killed_sweep_left_is_waited_for(study, lab, capsys, monkeypatch):
    """It is not started again; when it has its result, the sweep has it."""
    p, = plan(study("runs = [dict(name='a', n_embd=8, max_iters=3)]"))
    finish(p)
    (p.out / "result.json").rename(p.out / "later")
    monkeypatch.setattr(local, "start", None)
    with held_lock(p.out, "(out / 'later').rename(out / 'result.json')") as left:
        ends_in(left, 1)
        assert local.run([p], 1) == [] and p.done()
    assert "waits for what a sweep that was killed left at work: a\n" in capsys.readouterr().out


def test_a_run_that_was_left_and_stopped_goes_on(study, lab, in_process):
    """Beside it no more runs than --jobs says, and its branch waits for it."""
    trunk, branch = plan(study("runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, "
                               "budgets=[2e8, 4e8])]"))
    with held_lock(trunk.out) as left:
        ends_in(left, 1)
        assert local.run([trunk, branch], 1) == []
    assert trunk.process and trunk.done() and branch.done()


def test_a_run_that_a_killed_sweep_had_just_started_is_adopted(study, monkeypatch):
    """It takes its lock late: the second process refuses, and then the first is waited for."""
    p, = plan(study("runs = [dict(name='a', n_embd=8, max_iters=3)]"))
    finish(p)
    (p.out / "result.json").rename(p.out / "later")
    left = []

    def start(p):
        left.append(held_lock(p.out, "(out / 'later').rename(out / 'result.json')"))
        p.process = SimpleNamespace(poll=lambda: 2, returncode=2)
        ends_in(left[0], 1)
    monkeypatch.setattr(local, "start", start)
    assert local.run([p], 1) == [] and len(left) == 1
    left[0].wait()


def test_interrupted_while_it_waits_a_sweep_says_what_still_runs(study, capsys):
    p, = plan(study("runs = [dict(name='a', n_embd=8, max_iters=3)]"))
    with held_lock(p.out) as left:
        timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            local.run([p], 1)
        assert left.poll() is None and p.at_work()
    assert "still at work, for they are not this sweep's: a\n" in capsys.readouterr().out


# ---------------------------------------------------------------- whose result it is


TWO = "runs = [dict(name=name, n_embd=8, max_iters=9) for name in 'ab']\n"
HELD = TWO + "held_out = [dict(name='big', n_embd=16, max_iters=9)]\n"


@pytest.fixture
def trained(study, lab, monkeypatch):
    """Write a sweep file, and run directories as if it had been trained. Whatever trains, fails the test."""
    def train_now(*args):
        raise AssertionError("this must not train")
    monkeypatch.setattr(local, "start", train_now)
    monkeypatch.setattr(sweep, "parse", train_now)

    def write(text, base=BASE, **options):
        path = study(text, **options)
        for p in plan(path):
            finish(p)
        return path
    return write


def refused(path, *args) -> str:
    with pytest.raises(UserError) as error:
        sweep.main([path, *args])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("old, new, words", [
    ("max_iters=9", "max_iters=9, learning_rate=2e-3", "a, b (learning_rate 0.005, not 0.002)"),
    ("n_embd=8", "n_embd=16", "a, b (n_embd 8, not 16)"),
    ("max_iters=9", "max_iters=9, seed=5 if name == 'b' else 1337", "b (seed 1337, not 5)"),
    ("max_iters=9", "max_iters=9, schedule='linear'", "(schedule cosine, not linear)"),
    ("max_iters=9", "max_iters=9, eval_iters=7", "eval_iters"),
    ("max_iters=9", "max_iters=12", "(max_iters 9, not 12; lr_decay_iters 9, not 12)")])
def test_a_run_of_other_settings_is_refused(trained, study, lab, capsys, old, new, words):
    """Before anything trains, with what to do; a dry run shows it."""
    path = trained(TWO)
    study(TWO.replace(old, new))
    before = lab.files()
    said = refused(path, "--dry_run")
    printed = capsys.readouterr().out
    assert "  trained with other settings (" in printed and (words.partition("(")[2] or words) in printed
    assert sweep.main([path, "--dry_run", "--retrain"]) == 0
    assert "\nwould train anew: " in capsys.readouterr().out and lab.files() == before
    assert said == refused(path)
    assert words in said and "out/tiny_study holds runs that were trained with other settings" in said
    for way in ("other names", "restore the setting", "--retrain"):
        assert way in said
    assert lab.files() | {"out/tiny_study/lock": b""} == before | {"out/tiny_study/lock": b""}


def test_a_run_that_was_interrupted_belongs_to_its_config_too(trained, study):
    """What a run would go on from is compared as what is done; where there is neither, nothing is lost."""
    path = trained(TWO)
    for p in plan(path):
        (p.out / "result.json").unlink()
    first, second = plan(path)
    (first.out / "ckpt.pt").touch()
    study(TWO.replace("n_embd=8", "n_embd=16"))
    said = refused(path)
    assert "a (n_embd 8, not 16)" in said and "b" not in said.partition("settings: ")[2].partition(" (")[0]
    with held_lock(second.out):
        assert "a, b (n_embd 8, not 16)" in refused(path)
        said = refused(path, "--retrain")
        assert "b cannot be trained anew while a process that has other settings trains there" in said
    with pytest.raises(UserError, match="a cannot be trained anew .* scancel"):
        sweep.require_own(sweep.read_sweep(path), plan(path)[:1], [], True, {"a": "PENDING"})


def test_a_study_of_the_same_name_in_another_file_is_another_study(trained, lab):
    path = trained(TWO)
    other = lab.root / "elsewhere" / "tiny_study.py"
    other.parent.mkdir()
    other.write_text(BASE + TWO.replace("max_iters=9", "max_iters=9, weight_decay=0.5"))
    assert "a, b (weight_decay 0.1, not 0.5)" in refused(str(other))
    assert "(or the sweep file one, if it is another study" in refused(str(other))
    assert all(p.done() for p in plan(path))


@pytest.mark.parametrize("split, words", [("train", "training text"), ("val", "validation text")])
def test_a_run_on_other_text_is_refused(trained, lab, split, words):
    path = trained(TWO)
    for p in plan(path):                               # as train.py writes it that knows both
        edit(p.out / "config.json", **corpus.texts(p.resolved.meta))
    assert all(p.done() for p in plan(path))
    edit(lab.data / "tiny" / "meta.json", **{f"{split}_sha256": "0123456789"})
    said = refused(path)
    assert f"a, b ({words} " in said and ", not 01234567)" in said


def test_a_result_without_a_config_is_nobodys(trained):
    path = trained(TWO)
    for p, text in zip(plan(path), (None, "{")):
        (p.out / "config.json").unlink() if text is None else (p.out / "config.json").write_text(text)
    assert "a, b (no config.json that says which)" in refused(path)


def test_retrain_trains_anew_what_differs_and_nothing_else(study, lab, in_process, capsys, monkeypatch):
    """And a sweep that is killed then needs no --retrain to go on."""
    for name in ("fit_study", "draw_study", "print_end"):
        where = dict(fit_study=fit, draw_study=plots).get(name, sweep)
        monkeypatch.setattr(where, name, lambda *args: {})
    path = study(TWO)
    assert sweep.main([path]) == 0
    folder = lab.root / "out" / "tiny_study"
    first = {row["run"]: row for row in rows(folder)}
    (folder / "b" / "ckpt_5.pt").touch()               # what a branch would begin from
    study(TWO.replace("max_iters=9", "max_iters=9, learning_rate=5e-3 if name == 'a' else 2e-3"))
    assert "b (learning_rate 0.005, not 0.002)" in refused(path)
    monkeypatch.setattr(local, "run", lambda plan, jobs: [f"{p.name}: killed" for p in plan if not p.done()])
    assert sweep.main([path, "--retrain"]) == 1
    assert "trains anew: b\n" in capsys.readouterr().out
    assert not [p.name for p in (folder / "b").iterdir() if p.name not in ("train.txt", "lock")]
    monkeypatch.undo()
    in_this_process(monkeypatch, lab.root)
    b = plan(path)[1]
    assert lab.main(b.command()[2:])[0] == 0 and b.done()
    assert basics.load_json(folder / "b" / "result.json")["learning_rate"] == 0.002
    assert val_loss(folder / "b") != float(first["b"]["val_loss"])
    assert val_loss(folder / "a") == float(first["a"]["val_loss"])


def test_a_sealed_model_of_other_settings_needs_another_name(trained, study, lab):
    """Even where it is not trained yet, and whatever --retrain says."""
    path = trained(HELD)
    big = plan(path)[-1]
    seal(lab.root / "out" / "tiny_study", big)
    study(HELD.replace("n_embd=16", "n_embd=16, learning_rate=2e-3"))
    for args in ([], ["--retrain"]):
        said = refused(path, *args)
        assert "a forecast is sealed of big (learning_rate 0.005, not 0.002)" in said
        assert "give the model another name" in said
    shutil.rmtree(big.out)
    said = refused(path, "--retrain")
    assert "a forecast is sealed of big" in said and "holds runs" not in said


def test_a_seal_on_other_text_is_refused(trained, lab):
    path = trained(HELD)
    shutil.rmtree(plan(path)[-1].out)
    seal(lab.root / "out" / "tiny_study", plan(path)[-1])
    edit(lab.data / "tiny" / "meta.json", train_sha256="0123456789")
    assert "a forecast is sealed of big (training text " in refused(path, "--retrain")


def test_a_sealed_model_is_not_trained_a_second_time(trained, lab):
    """Its seal is of what is asked for, but it was trained on other text, of which old seals do not know."""
    path = trained(HELD)
    big = plan(path)[-1]
    seal(lab.root / "out" / "tiny_study", big, texts=False)
    edit(big.out / "config.json", data_sha256="0123456789")
    assert "a forecast is sealed of big (training text 01234567, not " in refused(path, "--retrain")


def test_what_took_the_place_of_a_sealed_model_is_trained_anew(trained, lab):
    """The seal tells of settings and text, and they are those asked for; the directory holds another run."""
    path = trained(HELD)
    big = plan(path)[-1]
    seal(lab.root / "out" / "tiny_study", big)
    edit(big.out / "config.json", seed=5)
    said = refused(path)
    assert "(seed 5, not 1337)" in said and said.endswith("train them anew: --retrain") and "seal" not in said
    again = sweep.require_own(sweep.read_sweep(path), plan(path), plan(path)[-1:], True)
    assert [p.name for p in again] == ["big"]


def test_a_model_that_has_begun_without_a_forecast_is_refused(trained):
    """Before the others train, not after them."""
    path = trained(HELD)
    a, _, big = plan(path)
    (a.out / "result.json").unlink()
    (big.out / "result.json").rename(big.out / "log.jsonl")
    said = refused(path)
    assert "big/log.jsonl exists: what has begun cannot be forecast" in said and "another name" in said


OPEN = {"surface": {"health": {"undetermined": ["E is not identified"]}}}


def test_a_law_that_is_undetermined_forecasts_nothing_unless_asked(trained, lab, monkeypatch, capsys):
    """The held-out model is not trained, and the study is told to its end; --anyway reaches the seal."""
    path = trained(HELD)
    folder = lab.root / "out" / "tiny_study"
    big = plan(path)[-1]
    shutil.rmtree(big.out)
    monkeypatch.setattr(sweep, "parse", lambda folder, fitted: (folder / "runs.csv").touch())
    monkeypatch.setattr(fit, "fit_study", lambda folder: OPEN)
    monkeypatch.setattr(plots, "draw_study", lambda folder: [])
    monkeypatch.setattr(sweep, "print_end", lambda *args: print("the end"))
    assert sweep.main([path]) == 1
    out, err = capsys.readouterr()
    assert "failed: big: no forecast, since E is not identified; --anyway seals it all the same\n" in err
    assert out.endswith("the end\n") and not big.out.exists() and not (folder / "forecasts").exists()

    def start_here(p):
        finish(p)
        p.process = SimpleNamespace(poll=lambda: 0, returncode=0)

    def sealed(folder, law, run, resolved, anyway):
        seal(folder, big)
        return dict(predicted=3.0, lo95=2.9, hi95=3.1, sha256=64 * "a", rollout=[]) if anyway else None
    monkeypatch.setattr(local, "start", start_here)
    monkeypatch.setattr(forecast, "seal", sealed)
    monkeypatch.setattr(forecast, "score", lambda folder: [])
    assert sweep.main([path, "--anyway"]) == 0 and big.out.exists()
    assert "forecast of big: 3.0000 (2.9000 to 3.1000)" in capsys.readouterr().out


def test_what_no_score_tells_of_a_held_out_run_is_said(trained, lab, capsys):
    """That its seal is of other runs than are there now, or that it was trained without one."""
    path = trained(TWO + "held_out = [dict(name=n, n_embd=16, max_iters=9) for n in ('big', 'late')]\n")
    folder = lab.root / "out" / "tiny_study"
    (folder / "runs.csv").write_text("run\n")
    *_, big, late = plan(path)
    seal(folder, big, runs_sha256=forecast.table_sha256(folder))
    sweep.seal_all(folder, [big, late], OPEN, False)
    said = "late: not scored, for no forecast was sealed before it was trained\n"
    assert capsys.readouterr().out == said
    (folder / "runs.csv").write_text("run\na\n")
    sweep.seal_all(folder, [big, late], OPEN, False)
    told = "big: its forecast was sealed from an earlier table than runs.csv now is\n"
    assert capsys.readouterr().out == told + said


def seal(folder, p, texts=True, **facts):
    """A seal of the run as forecast.seal makes it, without its numbers but for `facts`; old: no `texts`."""
    bearing = {k: v for k, v in dataclasses.asdict(p.config).items() if k not in settings.FREE}
    target = dict(run=p.name, config=bearing) | (corpus.texts(p.resolved.meta) if texts else {})
    body = dict(run=p.name, target=target, **facts)
    body["sha256"] = forecast.digest(body)
    (folder / "forecasts").mkdir()
    (folder / "forecasts" / f"{p.name}.json").write_text(json.dumps(body))


def test_what_the_sweep_file_does_not_name_is_named(trained, study, capsys):
    path = trained(TWO)
    study(TWO.replace("'ab'", "'b'"))
    assert sweep.main([path, "--dry_run"]) == 0
    assert f"not in {path}, and so not in runs.csv: a\n" in capsys.readouterr().out


def test_settings_without_bearing_leave_a_run_done(trained, study, capsys):
    """And those that an old config.json lacks, where they have their defaults."""
    path = trained(TWO)
    for p in plan(path):
        config = json.loads((p.out / "config.json").read_text())
        for name in ("tie_weights", "base_width", "keep_steps", "warmup_frac"):
            del config[name]
        (p.out / "config.json").write_text(json.dumps(config))
    study(TWO.replace("max_iters=9", "max_iters=9, log_interval=3, keep_steps='4', device='auto', "
                                     "ckpt_minutes=1.0, eval_interval=2, compile=False, dtype='auto'"))
    assert sweep.main([path, "--dry_run"]) == 0
    assert capsys.readouterr().out.count("  done\n") == 2


@pytest.mark.parametrize("path", sorted((CODE / "scaling/sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_every_study_finds_its_own_runs_done(path, lab, monkeypatch):
    """The committed sweep files, against directories as train.py leaves them, with text of the right size."""
    monkeypatch.setattr(basics, "ROOT", lab.root)
    study = sweep.read_sweep(str(path))
    for dataset in {dataset_of(run) for run in study.runs + study.held_out}:
        write_sizes(lab.data / dataset)
    for _ in range(2):
        runs = make_plan(study, study.runs + study.held_out)
        if not study.folder.exists():
            for p in runs:
                finish(p)
    assert len(runs) > 2 and {p.status() for p in runs} == {"done"}
    sweep.require_own(study, runs, [], False)


def write_sizes(folder):
    """A dataset whose .bin files have their size and nothing in them."""
    meta = dict(tokenizer="byte", vocab_size=256, train_tokens=10 ** 8, val_tokens=10 ** 7, val_bytes=10 ** 7,
                train_sha256="abc", val_sha256="def")
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(meta))
    for split in ("train", "val"):
        with open(folder / f"{split}.bin", "wb") as f:
            f.truncate(2 * meta[f"{split}_tokens"])


def test_dry_run_trains_nothing_and_imports_no_torch(study, lab):
    path = study(GRID)
    before = lab.files()
    done = subprocess.run([sys.executable, "-c", in_the_lab(lab, path, "--dry_run")], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "held out" in done.stdout and "10 runs" in done.stdout
    assert lab.files() == before


def test_dry_run_names_what_is_missing_and_does_not_make_it(study, lab, capsys):
    """Runs of such data are shown without numbers, which depend on its vocabulary."""
    (lab.data / "other").mkdir()
    (lab.data / "other" / "prepare.py").write_text("raise SystemExit('this must not run')\n")
    path = study("runs = [dict(name='a', n_embd=8, max_iters=300), dict(name='b', dataset='other_gpt2', "
                 "n_embd=8, schedule='wsd', warmup_iters=20, budgets=[1e9, 2e9]), dict(name='c', n_embd=8, "
                 "seeds=2, dataset='other_gpt2', tokens_per_param=3, warmup_iters=100)]")
    before = lab.files()
    assert sweep.main([path, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny_study: 5 runs on other_gpt2, tiny, 0 done, 5 to do\n"
                          "would prepare other_gpt2: data/other/prepare.py --tokenizer=gpt2 "
                          f"--out_dir={lab.data / 'other_gpt2'}\n")
    unknown = [line for line in out.splitlines() if line.endswith("  to do, once other_gpt2 is prepared")]
    assert [line.split()[0] for line in unknown] == ["b_2e09", "b_1e09", "c_s1", "c_s2"]
    assert "\none run, 4.57e+08 FLOPs; about one minute left on " in out
    assert out.endswith("\nnext: the same command without --dry_run\n")
    assert lab.files() == before


def test_a_plan_warns_as_train_does(study, capsys):
    """Once for all runs of which it is true: nobody reads what train.py prints into their train.txt."""
    path = study("runs = [dict(name=name, n_embd=8, max_iters=20, warmup_iters=11) for name in 'abcde']")
    assert sweep.main([path, "--dry_run"]) == 0
    assert ("\nwarning: the warmup takes 11 of the run's 20 steps; lower warmup_iters (or warmup_frac) "
            "(a, b, c, ...)\n") in capsys.readouterr().out


def test_a_plan_warns_of_what_will_come_of_it(study, capsys):
    """Text that is read again and again, and held-out models without a law to forecast them by."""
    assert sweep.main([study(HELD.replace("max_iters=9", "epochs=5")), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "\nwarning: the text is read many times, see epochs: is it all there? (a, b, big)\n" in out
    assert "\nwarning: big cannot be forecast: a law of N and D needs runs of three sizes" in out
    assert out.splitlines()[2].split()[:4] == ["a", "1,496", "199,808", "5"]
    with pytest.raises(UserError, match="run a: out_dir is out/STUDY/RUN for all runs of a study"):
        sweep.main([study("runs = [dict(name='a', max_iters=9, out_dir='out/x')]"), "--dry_run"])


def test_minutes_come_from_finished_runs_where_there_are_any(study):
    a, b = plan(study("runs = [dict(name='a', n_embd=8, max_iters=100), "
                      "dict(name='b', n_embd=8, max_iters=300)]"))
    sweep.estimate([a, b])
    first, second = (p.seconds - sweep.SECONDS_TO_START for p in (a, b))
    assert 0 < first < 60 and second == pytest.approx(3 * first)
    finish(a, wall_s=50.0)
    sweep.estimate([a, b])
    first, second = (p.seconds - sweep.SECONDS_TO_START for p in (a, b))
    assert (first, second) == (pytest.approx(50), pytest.approx(150))


def test_minutes_left_are_those_that_processes_can_share(study):
    """The longest first; a long run is no shorter for idle processes; a branch waits for its trunk."""
    def left(text, jobs, **seconds):
        runs = plan(study(text))
        for p in runs:
            p.seconds = seconds[p.name]
        return sweep.seconds_left(runs, jobs)
    three = "runs = [dict(name=name, n_embd=8, max_iters=9) for name in 'abc']"
    assert left(three, 2, a=100, b=50, c=40) == 100 and left(three, 1, a=100, b=50, c=40) == 190
    budgets = "runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, budgets=[1e9, 4e9])]"
    trunk, branch = plan(study(budgets))
    leaves = 100 * branch.leave / trunk.config.max_iters
    assert left(budgets, 2, a_4e09=100, a_1e09=90) == pytest.approx(leaves + 90)
    assert left(budgets, 1, a_4e09=100, a_1e09=90) == 190
    finish(trunk)
    (trunk.out / f"ckpt_{branch.leave}.pt").touch()
    assert left(budgets, 2, a_4e09=100, a_1e09=90) == 90


def test_prepare_says_how_a_dataset_is_made(study, lab, capfd):
    """NAME and options go to data/NAME/prepare.py with an --out_dir; what is there is not made again."""
    (lab.data / "maker").mkdir()
    (lab.data / "maker" / "prepare.py").write_text(
        "import shutil, sys\nprint(sys.argv[1:])\n"
        "shutil.copytree(sys.argv[0].replace('maker/prepare.py', 'tiny'), sys.argv[-1].split('=')[1])\n")

    def prepare(text):
        sweep.prepare_data(sweep.missing_data(sweep.read_sweep(study(text))))
    half = "prepare = {'tiny_half': 'maker --max_tokens=5'}\nruns = [dict(name='a', dataset='tiny_half')]"
    for expected in (1, 0):
        prepare(half)
        assert capfd.readouterr().out.count("'--max_tokens=5'") == expected
    assert (lab.data / "tiny_half" / "meta.json").exists()
    for bad in ("['tiny']", "{'tiny_half': 1}", "{'tiny_half': ' '}"):
        with pytest.raises(UserError, match="must be a dict such as"):
            prepare(f"prepare = {bad}\nruns = [dict(name='a')]")
    with pytest.raises(UserError, match="'maker_7' is not prepared; what can be prepared: maker_char, "):
        prepare("runs = [dict(name='a', dataset='maker_7')]")
    with pytest.raises(UserError, match="'mine' is not prepared; .*text/prepare.py --name=mine --input "):
        prepare("runs = [dict(name='a', dataset='mine')]")
    with pytest.raises(UserError, match="is not prepared"):
        prepare("prepare = {'gone': '../tiny'}\nruns = [dict(name='a', dataset='gone')]")


# ---------------------------------------------------------------- many runs


def test_a_study_of_many_runs_plans_at_once(study, capsys):
    """2,000 runs of 100 shapes take 1 s of planning on one core (2026); nothing is built to count it."""
    path = study("runs = [dict(name=f'd{d}_L{L}_{i}', n_embd=d, n_layer=L, budget=1e9 * i) "
                 "for d in (8, 16, 512) for L in (1, 8, 32) for i in range(1, 34)]")
    before = time.process_time()
    assert sweep.main([path, "--dry_run"]) == 0
    assert time.process_time() - before < 5 and "297 runs" in capsys.readouterr().out


def test_counts_of_a_plan_are_those_of_the_model():
    for L, d, bias, tied, V in ((1, 16, True, True, 50), (3, 24, False, False, 2000), (2, 8, True, False, 3)):
        c = settings.Config(n_layer=L, n_embd=d, n_head=2, bias=bias, tie_weights=tied, vocab_size=V)
        assert settings.count_params(c) == GPT(c).count_params()


def test_parsing_many_runs_takes_little_memory(tmp_path):
    """300 runs with 200 log lines each, 10 MB: what is held does not grow with the lines."""
    line = dict(step=0, tokens=0, flops=1.0, train_loss=3.0, lr=1e-3, grad_norm=1.0, tok_per_s=9.5)
    text = "".join(json.dumps(line | dict(step=i, tokens=64 * i)) + "\n" for i in range(1, 201))
    (tmp_path / "log.jsonl").write_text(text)
    for i in range(300):
        run = tmp_path / "study" / f"r{i}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(dict(tokens=12_800, val_loss=3.0)))
        os.link(tmp_path / "log.jsonl", run / "log.jsonl")
    tracemalloc.start()
    sweep.parse(tmp_path / "study", [])
    logs.write_runs(tmp_path / "runs.csv", logs.parse_study(tmp_path / "study")[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6 < 300 * len(text)
    assert len(read_table(tmp_path / "study" / "curves.csv")["run"]) >= 300 * 50


def test_a_study_ends_with_what_to_do_next():
    """The last command makes a page of it; where nothing was fitted there is none to explain."""
    run = SimpleNamespace(name="d8", done=lambda: True, resolved=SimpleNamespace(C=1e11))
    commands = sweep.next_commands(Path("out/my own"), {"surface": {}}, [{}], [run])
    assert commands == ["python sample.py --out_dir='out/my own/d8'",
                        "python -m scaling.plan 'out/my own'/fit.json --flops=1e+12",
                        "python -m scaling.forecast board 'out/my own'", "STUDY='out/my own' make notebook"]
    assert sweep.next_commands(Path("out/own"), {}, [], [run]) == ["python sample.py --out_dir=out/own/d8"]
