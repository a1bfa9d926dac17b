"""The sweep: planning, running what is missing, branches, failures, the lock, and the study's files."""
import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest
import torch

import train
from runtime.basics import UserError
from scaling import logs, sweep
from scaling.tables.csv import read_table, write_table

BASE = ("base = dict(dataset='tiny', n_layer=1, n_head=1, block_size=32, batch_size=4, device='cpu', "
        "learning_rate=5e-3)\n")


@pytest.fixture
def study(lab, monkeypatch):
    """Write a sweep file of the lab and return its path; out/ is the lab's."""
    monkeypatch.setattr(sweep, "OUT", lab.root / "out")

    def write(text, name="tiny_study"):
        path = lab.root / f"{name}.py"
        path.write_text(BASE + text, encoding="utf-8")
        return str(path)
    return write


def plan(path):
    name, runs, held = sweep.read_sweep(path)
    return [p for run in runs + held for p in sweep.plan_run(name, run, path)]


def rows(folder):
    with open(folder / "runs.csv", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_plan_counts_what_train_will_do(study):
    """Budgets are 6 N D with N non-embedding plus head; FLOPs are the exact count; D is whole batches."""
    p, = plan(study("runs = [dict(name='a', n_embd=16, budget=3e9)]"))
    params, flops = train.shape_counts(p.config)
    assert p.params == params["non_embedding"] + params["head"]
    assert abs(6 * p.params * p.tokens / 3e9 - 1) < 0.01 and p.tokens % 128 == 0
    assert p.flops == p.tokens * flops["total"] and p.spent == 1


def test_budgets_make_a_trunk_and_branches(study):
    """The longest run trains whole and keeps a checkpoint where each shorter one starts its cooldown."""
    trunk, *branches = plan(study("runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, "
                                  "budgets=[1e9, 2e9, 4e9])]"))
    assert trunk.name == "a_4e09" and [b.name for b in branches] == ["a_1e09", "a_2e09"]
    for b, step in zip(branches, trunk.config.keep_steps.split(",")):
        assert b.config.branch.endswith(f"a_4e09/ckpt_{step}.pt") and not b.ready()
        assert int(step) == b.config.max_iters - round(0.2 * b.config.max_iters)
        assert b.spent == pytest.approx(0.2, abs=0.01)


def test_six_branches_cost_at_most_sixty_percent(study):
    """A grid of six D from one trunk against six runs of their own."""
    runs = plan(study("runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, "
                      "budgets=[1e9 * k for k in (1, 2, 3, 4, 5, 6)])]"))
    assert sum(p.spent * p.flops for p in runs) <= 0.6 * sum(p.flops for p in runs)


@pytest.mark.parametrize("text, words", [
    ("runs = []", "missing or empty"),
    ("rnus = [dict(name='a')]", "did you mean 'runs'"),
    ("runs = [dict(n_embd=16, max_iters=3)]", "needs a `name`"),
    ("runs = [dict(name='../a', n_embd=16, max_iters=3)]", "plain file name"),
    ("runs = [dict(name='a', max_iters=3), dict(name='a', max_iters=4)]", "two runs are named 'a'"),
    ("runs = [dict(name='a', n_embdd=16, max_iters=3)]", "run a: unknown key 'n_embdd'"),
    ("runs = [dict(name='a', n_embd=16)]", "run a: set exactly one horizon"),
    ("runs = [dict(name='a', n_embd=16, max_iters=3, budget=1e9)]", "run a: set exactly one horizon"),
    ("runs = [dict(name='a', n_embd=16, budgets=[1e9, 2e9])]", "needs schedule='wsd'"),
    ("runs = [dict(name='a', n_embd=16, budget=-1e9)]", "run a: target_tokens must be positive"),
    ("runs = [dict(name='a', n_embd='16', max_iters=3)]", "run a: n_embd must be int"),
    ("runs = 3", "`runs` must be a list of dicts"),
    ("runs = ['a']", "`runs` must be a list of dicts"),
    ("runs = [dict(name='a', n_embd=16, budgets=['x'])]", "run a: `budgets` must list numbers"),
])
def test_bad_sweep_file_is_one_line(study, text, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace("`", "`")) as error:
        plan(study(text))
    assert "\n" not in str(error.value)


def test_a_branch_equals_a_run_of_its_own(study, lab, capsys):
    """Bit for bit on CPU: parameters, optimizer and every logged number but times."""
    path = study("runs = [dict(name='a', n_embd=16, schedule='wsd', warmup_iters=5, eval_interval=0, "
                 "log_interval=5, budgets=[2e8, 4e8])]")
    trunk, branch = plan(path)
    assert sweep.run_all([trunk, branch], 2) == []
    alone = branch.overrides | {"out_dir": str(lab.root / "out" / "alone")}
    del alone["branch"]
    train.train(train.Config(**alone))
    both = (branch.out, lab.root / "out" / "alone")
    mine, other = (torch.load(d / "ckpt.pt", weights_only=True) for d in both)
    assert all(torch.equal(v, other["model"][k]) for k, v in mine["model"].items())
    for k, state in mine["optimizer"]["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other["optimizer"]["state"][k][n]))
                   for n, v in state.items())
    logs = [[{k: v for k, v in json.loads(line).items() if k not in ("elapsed_s", "tok_per_s")}
             for line in (d / "log.jsonl").read_text().splitlines()] for d in both]
    assert logs[0] == logs[1]


GRID = """runs = [dict(name=f'd{d}', n_embd=d, schedule='wsd', warmup_iters=2, eval_interval=0,
              budgets=[c for c in (2e8, 4e8, 8e8)]) for d in (8, 12, 16)]
held_out = [dict(name='big', n_embd=20, schedule='wsd', warmup_iters=2, budget=2.4e9)]"""


def test_study_from_text_to_scored_forecast(study, lab, capsys):
    """The whole path on a tiny grid: runs.csv, fit.json, a seal older than its run, a score, figures."""
    assert sweep.main([study(GRID), "--jobs=2"]) == 0
    folder = lab.root / "out" / "tiny_study"
    table = rows(folder)
    assert len(table) == 9 and all(float(r["val_loss"]) > 0 for r in table)
    assert {r["study"] for r in table} == {"tiny_study"}
    assert "surface" in json.loads((folder / "fit.json").read_text())
    with open(folder / "forecasts.csv", encoding="utf-8") as f:
        forecast, = csv.DictReader(f)
    measured = json.loads((folder / "big" / "result.json").read_text())["val_loss"]
    assert float(forecast["measured"]) == measured
    assert float(forecast["error"]) == pytest.approx(float(forecast["predicted"]) / measured - 1)
    assert list((folder / "figures").glob("*.png"))
    before = (folder / "runs.csv").read_bytes()
    assert sweep.main([study(GRID), "--jobs=2"]) == 0              # nothing left to do, nothing changes
    assert (folder / "runs.csv").read_bytes() == before


def test_failed_run_is_named_and_the_rest_goes_on(study, lab, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "fit_study", lambda folder: {})
    monkeypatch.setattr(sweep.plots, "draw_study", lambda folder: None)
    path = study("runs = [dict(name='good', n_embd=8, max_iters=3), dict(name='bad', n_embd=8, max_iters=30, "
                 "grad_clip=0.0, learning_rate=1e30, log_interval=1)]")
    assert sweep.main([path, "--jobs=1"]) == 1
    assert [r["run"] for r in rows(lab.root / "out" / "tiny_study")] == ["good"]
    assert "failed: bad: exit code 2" in capsys.readouterr().err


def test_killed_sweep_goes_on_where_it_was(study, lab):
    """SIGINT: the running model checkpoints and the sweep exits with 3; the next call resumes it."""
    path = study("runs = [dict(name='long', n_embd=16, max_iters=3000, eval_iters=5)]")
    code = f"""
import sys
sys.path.insert(0, {str(sweep.Path(__file__).parents[1])!r})
import train
from pathlib import Path
train.ROOT = Path({str(lab.root)!r})
from scaling import sweep
sweep.OUT = train.ROOT / 'out'
p, = [p for r in sweep.read_sweep({path!r})[1] for p in sweep.plan_run('tiny_study', r, {path!r})]
sweep.run_all([p], 1)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    log = lab.root / "out" / "tiny_study" / "long" / "log.jsonl"
    for _ in range(600):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert (log.parent / "ckpt.pt").exists() and not (log.parent / "result.json").exists()
    p, = plan(path)
    assert sweep.run_all([p], 1) == [] and p.done()
    assert "goes on from step" in (log.parent / "train.txt").read_text()


def test_two_sweeps_of_one_study_exclude_each_other(lab):
    with sweep.locked(lab.root / "out" / "s"):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), sweep.locked(lab.root / "out" / "s"):
            pass
    with sweep.locked(lab.root / "out" / "s"):
        pass


def test_dry_run_trains_nothing(study, lab, capsys):
    assert sweep.main([study(GRID), "--dry_run"]) == 0
    assert "held out" in capsys.readouterr().out and not (lab.root / "out").exists()


def test_prepare_says_how_a_dataset_is_made(study, lab, monkeypatch, capfd):
    """NAME and options go to data/NAME/prepare.py with an --out_dir; what is there is not made again."""
    monkeypatch.setattr(train, "ROOT", lab.root)
    (lab.data / "maker").mkdir()
    (lab.data / "maker" / "prepare.py").write_text(
        "import shutil, sys\nprint(sys.argv[1:])\n"
        "shutil.copytree(sys.argv[0].replace('maker/prepare.py', 'tiny'), sys.argv[-1].split('=')[1])\n")
    path = study("prepare = {'tiny_half': 'maker --max_tokens=5'}\n"
                 "runs = [dict(name='a', dataset='tiny_half')]")
    for expected in (1, 0):
        sweep.prepare_data(sweep.read_sweep(path)[1], path)
        assert capfd.readouterr().out.count("'--max_tokens=5'") == expected
    assert (lab.data / "tiny_half" / "meta.json").exists()
    for bad in ("['tiny']", "{'tiny_half': 1}", "{'tiny_half': ''}"):
        path = study(f"prepare = {bad}\nruns = [dict(name='a')]")
        with pytest.raises(UserError, match="must be a dict such as"):
            sweep.prepare_data(sweep.read_sweep(path)[1], path)
    path = study("prepare = {'gone': '../tiny'}\nruns = [dict(name='a', dataset='gone')]")
    with pytest.raises(UserError, match="is not prepared"):
        sweep.prepare_data(sweep.read_sweep(path)[1], path)


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
        c = train.Config(n_layer=L, n_embd=d, n_head=2, bias=bias, tie_weights=tied, vocab_size=V)
        model = train.GPT(train.model_config(c))
        assert train.shape_counts(c) == (model.count_params(), model.flops_per_token())


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
    write_table(tmp_path / "runs.csv", logs.parse_study(tmp_path / "study")[0], logs.RUN_COLUMNS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6 < 300 * len(text)
    assert len(read_table(tmp_path / "study" / "curves.csv")["run"]) >= 300 * 50
