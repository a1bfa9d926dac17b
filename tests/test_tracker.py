"""wandb_log: what a run logs reaches wandb or trackio, and nothing that they do reaches the run."""
import dataclasses
import sys
import time
from importlib.util import find_spec

import pytest

from config import schema, settings
from config.settings import Config
from runtime import tracker
from scaling.tables.readers import read_trackio, read_wandb

# What a fake wandb.py is: it writes down what it is told, and fails where a test wants it to.
FAKE = """
calls = []
def init(**what):
    calls.append(what)
    {init}
def log(record, step):
    calls.append((step, record))
    {log}
"""


@pytest.fixture
def fake(lab, monkeypatch):
    """A function that puts a fake wandb in place, and returns a function that gives the module once used."""
    def place(init="", log=""):
        source = FAKE.format(init=init or "pass", log=log or "pass")
        (lab.root / "wandb.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        monkeypatch.syspath_prepend(lab.root)
        return lambda: sys.modules["wandb"]
    yield place
    sys.modules.pop("wandb", None)


def test_it_is_told_what_the_log_holds(lab, fake):
    wandb = fake()
    lab.train(wandb_log=True, wandb_project="laws", eval_interval=10)
    begin, *lines = wandb().calls
    assert begin["project"] == "laws" and begin["name"] == str(lab.out("run"))
    assert begin["config"]["n_embd"] == 16 and begin["config"]["max_iters"] == 20
    assert lines == [(record.pop("step"), record) for record in lab.log()] and len(lines) == 20
    lab.train("named", wandb_log=True, wandb_run_name="first")
    assert wandb().calls[21]["name"] == "first"


def test_it_is_not_imported_unless_asked_for(lab, fake):
    fake(init="raise RuntimeError")
    lab.train()
    assert "wandb" not in sys.modules


@pytest.mark.parametrize("where", ["init", "log"])
def test_its_failure_is_one_line_and_the_run_is_the_same(lab, fake, where):
    wandb = fake(**{where: "raise OSError('no\\nnetwork')"})
    code, out, err = lab.command("failing", wandb_log=True)
    assert code == 0 and err == ""
    assert out.count("warning: wandb_log: OSError: no network; the run goes on") == 1
    assert len(wandb().calls) == (1 if where == "init" else 2)
    lab.train("plain")
    assert [r["train_loss"] for r in lab.log("failing")] == [r["train_loss"] for r in lab.log("plain")]


class Clock:
    """A perf_counter that goes on by a millisecond whenever it is asked, and by what a test adds to it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.mark.parametrize("end", ["pass", "raise OSError('no network')"])
def test_the_time_that_its_start_takes_is_not_the_runs(lab, fake, monkeypatch, end):
    fake(init=f"import time; time.perf_counter.now += 1000; {end}")
    monkeypatch.setattr(time, "perf_counter", clock := Clock())
    wall_s = lab.train(wandb_log=True)["wall_s"]
    assert 0 < wall_s < 1000 < clock.now
    assert all(record["elapsed_s"] < 1000 and record["tok_per_s"] > 1 for record in lab.log())


def test_without_either_package_the_run_says_so_and_goes_on(lab, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "trackio", None)      # importing it fails
    code, out, _ = lab.command(wandb_log=True)
    assert code == 0 and "warning: wandb_log: ModuleNotFoundError: " in out


def test_none_of_the_three_tells_runs_apart(lab, fake):
    """A run is done, and may go on, with other values of them; no table and no seal has them."""
    fake()
    names = {f.name for f in dataclasses.fields(Config) if f.name.startswith("wandb_")}
    assert len(names) == 3 and names <= settings.FREE and names.isdisjoint(schema.RUN_COLUMNS)
    first = lab.train()
    again = lab.train(wandb_log=True, wandb_project="other", wandb_run_name="other")
    assert again == first


@pytest.mark.parametrize("name, read, files", [("wandb", read_wandb, "wandb/offline-run-*/*.wandb"),
                                               ("trackio", read_trackio, "tracked/**/*.db")])
def test_the_packages_themselves_without_a_network(lab, monkeypatch, name, read, files):
    """Where one is installed: what it kept, scaling.logs reads again."""
    if not find_spec(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(tracker, "find_spec", lambda asked: asked == name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(lab.root / "tracked"))
    monkeypatch.chdir(lab.root)
    lab.train(wandb_log=True, wandb_project="laws", wandb_run_name="first")
    sys.modules[name].finish()
    kept, = lab.root.glob(files)
    rows = []
    until = time.monotonic() + 30
    while len(rows) < 20 and time.monotonic() < until:     # another process of wandb's writes them
        rows = [row for _, row in read(kept, print) if "train_loss" in row]
    assert rows[0]["n_embd"] == 16 and rows[0]["run"] == "first"
    for row, record in zip(rows, lab.log(), strict=True):
        assert record.pop("step") == row["step" if name == "trackio" else "_step"]
        assert record.items() <= row.items()
