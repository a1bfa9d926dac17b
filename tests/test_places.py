"""What README says of changing the lab: how many places a new thing takes. A test makes the change and runs.

The changes go into a copy of the code, as an edit of the source that a user would make.
"""
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import copy_code, write_dataset

from config import corpus, schema
from config.settings import Config
from scaling import fit
from scaling.laws import forms, models


class House:
    """A copy of the code under `root`, to be changed and run."""

    def __init__(self, root):
        self.root = root
        copy_code(root, "scaling")
        write_dataset(root / "data" / "tiny")

    def edit(self, path: str, old: str, new: str) -> None:
        file = self.root / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} has {text.count(old)} times {old!r}"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def run(self, *command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=self.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def train(self, *more: str) -> dict:
        self.run("train.py", "--dataset=tiny", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32",
                 "--max_iters=10", "--eval_iters=20", "--device=cpu", "--out_dir=out/study/run", *more)
        return json.loads((self.root / "out" / "study" / "run" / "result.json").read_text(encoding="utf-8"))


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_each_new_thing_takes_as_many_places_as_readme_says(house):
    """One, two and two: a schedule, a model option and a recorded number reach the run and its table."""
    house.edit("config/settings.py", '    "constant": lambda',
               '    "half": lambda done, cool: 0.5,\n    "constant": lambda')
    house.edit("config/settings.py", "    vocab_size: int = -1  ",
               "    squash: bool = False                   # tanh for GELU\n    vocab_size: int = -1  ")
    house.edit("model.py", "cpu.gelu(x)  ", "self.activation(x)  ")
    house.edit("model.py", "        self.c_fc = cpu.Linear",
               "        self.activation = torch.tanh if c.squash else F.gelu\n        self.c_fc = cpu.Linear")
    house.edit("config/schema.py", '"flops_exact train_loss', '"flops_exact steps train_loss')
    house.edit("runtime/rundir.py", 'flops_exact=record["flops"],',
               'flops_exact=record["flops"], steps=record["step"],')
    plain = house.train("--schedule=half", "--warmup_iters=0", "--learning_rate=0.01")
    log = (house.root / "out" / "study" / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["lr"] for line in log} == {0.005}
    squashed = house.train("--squash=True", "--resume=never")
    assert plain["squash"] == 0 and squashed["squash"] == 1 and plain["val_loss"] != squashed["val_loss"]
    house.run("-m", "scaling.logs", "out/study", "--out=runs.csv")
    header, row = (house.root / "runs.csv").read_text(encoding="utf-8").splitlines()
    found = dict(zip(header.split(","), row.split(",")))
    assert found["squash"] == "1" and found["steps"] == "10"


def log_law(theta, X):
    """L = e - a x, x = log N: log-loss (B, n) and its gradient; theta is (B, 2), X (1, n) or (B, 1, n)."""
    e, a = theta.T[..., None]
    x = X[..., 0, :]
    loss = e - a * x
    return np.log(loss), np.stack([1 / loss, -x / loss], axis=1)


def test_a_law_is_a_form_and_a_row_of_each_table(monkeypatch):
    """The model and its two conversions; a row of FORMS; a row of LAWS. It is fitted, printed, evaluated."""
    def natural(theta, n):
        return {"e": theta[:, 0] + theta[:, 1] * n, "a": theta[:, 1]}

    def theta_of(e, a, **_):
        return e, a

    def fit_log_law(data, bootstrap):
        bounds = np.array([[3.0], [0.1]]), [0.1, 1e-3], [20.0, 5.0]
        return forms.fit_form("log_law", {"N": data["N"]}, data["L"], bounds, None, bootstrap)
    monkeypatch.setitem(models.FORMS, "log_law", models.Form(log_law, "N", "e a", natural, theta_of))
    monkeypatch.setitem(fit.LAWS, "log_law", fit.Law("L = e - a log N", "e a", fit_log_law))
    N = np.geomspace(1e4, 1e7, 12)
    result = fit.fit_all({"params": N, "tokens": 20 * N, "loss": 9 - 0.4 * np.log(N)}, bootstrap=20)
    law = result["log_law"]
    assert (law["e"], law["a"]) == (pytest.approx(9, rel=1e-4), pytest.approx(0.4, rel=1e-4))
    assert forms.loss_of(law, {"N": 1e5}) == pytest.approx(9 - 0.4 * np.log(1e5), rel=1e-4)
    assert "log_law: L = e - a log N" in fit.text(result)


def test_a_dataset_is_a_directory(lab):
    """Two .bin files and META's keys, nothing else: that is all that a run asks of one."""
    meta = write_dataset(lab.data / "mine")
    path = lab.data / "mine" / "meta.json"
    path.write_text(json.dumps({key: meta[key] for key in corpus.META}), encoding="utf-8")
    assert lab.train(dataset="mine")["dataset"] == "mine"


def test_a_younger_setting_breaks_no_old_run(lab, monkeypatch):
    """A run that knew nothing of a setting had its default: it is found done, and goes on."""
    result = lab.train("old")
    for name in ("config.json", "ckpt.pt"):
        forget(lab.out("old") / name, "bias")
    assert lab.train("old") == result
    (lab.out("old") / "result.json").unlink()
    assert lab.train("old")["tokens"] > 0                       # from its checkpoint, at its last step
    assert schema.differences({"n_layer": 4}, {"n_layer": 4, "dropout": Config.dropout}) == []
    assert schema.differences({"n_layer": 4}, {"n_layer": 4, "dropout": 0.1}) == ["dropout"]
    (lab.out("old") / "result.json").unlink()
    code, _, err = lab.command("old", bias=True)
    assert code == 2 and "bias=None, not True" in err


def forget(path, name: str) -> None:
    """Take the setting `name` out of a config.json or a checkpoint, as if it had been written before."""
    import torch

    if path.suffix == ".json":
        config = json.loads(path.read_text())
        del config[name]
        path.write_text(json.dumps(config))
    else:
        state = torch.load(path, weights_only=True)
        del state["config"][name]
        torch.save(state, path)
