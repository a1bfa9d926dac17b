"""Forecasts: what is sealed, what is refused, and whether a 95 % interval is right 95 % of the time."""
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from test_extrapolate import grid, hoffmann

from config import schema, settings
from config.settings import Config
from runtime import basics
from runtime.basics import UserError
from scaling import forecast
from scaling.laws import forms
from scaling.tables.csv import read_table, write_table

ROOT = Path(__file__).parents[1]
# What `settings.resolve` gives, as far as a forecast asks.
TARGET = settings.Resolved(config=Config(n_layer=3, device="cpu", out_dir="somewhere"), meta={}, params={},
                           flops={}, N=4_000_000, D=80_000_000, C=2e15)


def write_study(folder: Path, **kwargs) -> dict:
    """runs.csv as logs.py writes it; returns its fit as fit.json would hold it."""
    folder.mkdir(exist_ok=True)
    N, D, L = grid(**kwargs)
    rows = [dict(study=folder.name, run=f"r{i:02}", learning_rate=1e-3, params_non_embedding=int(n) - 100,
                 params_head=100, tokens=int(d), val_loss=l) for i, (n, d, l) in enumerate(zip(N, D, L))]
    write_table(folder / "runs.csv", rows, schema.RUN_COLUMNS)
    found = forms.fit_surface(*(np.array([int(v) for v in x]) for x in (N, D)), L, bootstrap=200)
    data = {"params": "non_embedding_plus_head", "loss_column": "val_loss"}
    return json.loads(json.dumps({"surface": found, "data": data}))


@pytest.fixture(scope="module")
def sealed_study(tmp_path_factory):
    """(folder, fit, seal) of one study, sealed once."""
    folder = tmp_path_factory.mktemp("out") / "lab"
    found = write_study(folder)
    return folder, found, forecast.seal(folder, found, "big", TARGET)


@pytest.fixture
def study(sealed_study, tmp_path):
    """A copy of the sealed study that a test may spoil."""
    folder, found, sealed = sealed_study
    (tmp_path / "lab" / "forecasts").mkdir(parents=True)
    for name in ("runs.csv", "forecasts/big.json"):
        (tmp_path / "lab" / name).write_bytes((folder / name).read_bytes())
    return tmp_path / "lab", found, sealed


def with_settings(**changes) -> settings.Resolved:
    """TARGET with other settings."""
    return TARGET._replace(config=dataclasses.replace(TARGET.config, **changes))


def finish(folder: Path, val_loss=3.0, tokens=TARGET.D, wall_s=0.0, **extra) -> Path:
    """A finished run directory for TARGET, with `extra` in its config.json."""
    run = folder / "big"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(TARGET.config) | extra))
    (run / "log.jsonl").write_text("{}\n")
    (run / "result.json").write_text(json.dumps({"val_loss": val_loss, "tokens": tokens, "wall_s": wall_s}))
    return run


# ---- Sealing. ----

def test_seal_says_what_was_predicted_and_from_what(sealed_study):
    folder, found, sealed = sealed_study
    assert sealed["lo95"] < sealed["lo50"] < sealed["predicted"] < sealed["hi50"] < sealed["hi95"]
    assert abs(sealed["predicted"] / hoffmann(4e6, 8e7) - 1) < 0.02    # its floor of .4 is below the prior's
    assert abs(sealed["forms"]["hoffmann"]["predicted"] / hoffmann(4e6, 8e7) - 1) < 0.01
    assert list(sealed["forms"]) == ["hoffmann", "one_exponent", "kaplan"]
    assert sealed["beyond"] == {"N": 1.0, "D": 1.0, "C": pytest.approx(3.0, rel=1e-4)}
    assert sealed["fit_sha256"] == hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    config = sealed["target"]["config"]
    assert config["n_layer"] == 3 and config.keys().isdisjoint(settings.FREE)   # neither a path nor a machine
    body = {k: v for k, v in sealed.items() if k != "sha256"}
    assert sealed["sha256"] == hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    assert abs(datetime.now(timezone.utc).timestamp() - forecast.seconds(sealed["sealed_at"])) < 3600
    assert [p.name for p in (folder / "forecasts").iterdir()] == ["big.json"]


def test_a_valid_seal_is_kept_even_once_the_run_is_done(study):
    folder, found, sealed = study
    finish(folder)
    before = (folder / "forecasts/big.json").read_bytes()
    elsewhere = with_settings(device="cuda", dtype="bfloat16", out_dir="elsewhere")
    assert forecast.seal(folder, {"surface": {}}, "big", elsewhere) == sealed
    assert (folder / "forecasts/big.json").read_bytes() == before


@pytest.mark.parametrize("other, named", [(TARGET._replace(D=1), "tokens"),
                                          (with_settings(n_layer=4), "n_layer")])
def test_another_target_under_a_sealed_name_is_refused(study, other, named):
    with pytest.raises(UserError, match=f"another target .{named} differ"):
        forecast.seal(study[0], study[1], "big", other)


@pytest.mark.parametrize("name", ["result.json", "log.jsonl", "ckpt.pt"])
def test_a_run_that_has_begun_cannot_be_sealed(study, name):
    folder, found, _ = study
    (folder / "late").mkdir()
    (folder / "late" / name).write_text("{}")
    with pytest.raises(UserError, match="has begun"):
        forecast.seal(folder, found, "late", TARGET)
    assert not (folder / "forecasts/late.json").exists()


def test_what_cannot_be_forecast_is_refused(study):
    folder, found, _ = study
    with pytest.raises(UserError, match="has seen"):
        forecast.seal(folder, found, "r03", TARGET)
    with pytest.raises(UserError, match="--params=non_embedding_plus_head"):
        forecast.seal(folder, found | {"data": {"params": "total"}}, "new", TARGET)
    with pytest.raises(UserError, match="no forecast of new: there is no law of N and D .too few"):
        bare = {"skipped": {"surface": "too few"}, "data": found["data"]}
        forecast.seal(folder, bare, "new", TARGET)


def undetermined(found: dict) -> dict:
    """The fit as one whose health finds fault: two sentences, of which one leaves the law open."""
    health = dict(lines=["E is not identified; a wider range would pin it", "one run moves alpha"], ok=False,
                  undetermined=["E is not identified; a wider range would pin it"])
    return found | {"surface": found["surface"] | {"health": found["surface"]["health"] | health}}


def test_an_undetermined_law_seals_nothing_unless_asked(study):
    """Then the seal repeats what the fit's health says, and its hash covers it."""
    folder, found, first = study
    found = undetermined(found)
    with pytest.raises(UserError, match="no forecast of new: E is not identified; a wider range would pin it;"
                                        " --anyway seals it all the same"):
        forecast.seal(folder, found, "new", TARGET)
    assert not (folder / "forecasts/new.json").exists()
    sealed = forecast.seal(folder, found, "new", TARGET, anyway=True)
    assert sealed["warnings"] == found["surface"]["health"]["lines"] and first["warnings"] == []
    assert "  warning: E is not identified; a wider range would pin it\n  warning: one run moves alpha\n" in (
        forecast.sealed_text(sealed))
    path = folder / "forecasts/new.json"
    path.write_text(path.read_text().replace("one run", "no run"))
    with pytest.raises(UserError, match="does not match its own sha256"):
        forecast.read_seal(path)
    old = {k: v for k, v in first.items() if k != "warnings"}
    assert "warning" not in forecast.sealed_text(reseal(folder, old))
    assert forecast.seal(folder, found, "big", TARGET) == forecast.read_seal(folder / "forecasts/big.json")


# ---- Seals and runs of other times. ----

def reseal(folder: Path, sealed: dict) -> dict:
    """Write `sealed` with the hash of what it holds."""
    body = {k: v for k, v in sealed.items() if k != "sha256"}
    sealed = body | {"sha256": forecast.digest(body)}
    (folder / "forecasts/big.json").write_text(json.dumps(sealed))
    return sealed


def test_a_younger_setting_breaks_no_old_seal(study, monkeypatch):
    """A setting that a later version adds had its default before: in seals, in config.json, in both."""
    folder, found, sealed = study
    finish(folder, val_loss=sealed["predicted"])

    @dataclasses.dataclass
    class Later(Config):
        qk_norm: bool = False
    monkeypatch.setattr(settings, "Config", Later)
    same = Later(**dataclasses.asdict(TARGET.config))
    assert forecast.seal(folder, found, "big", TARGET._replace(config=same)) == sealed
    assert forecast.score(folder)[0]["measured"] == sealed["predicted"]
    other = dataclasses.replace(same, qk_norm=True)
    with pytest.raises(UserError, match="qk_norm differ"):
        forecast.seal(folder, found, "big", TARGET._replace(config=other))
    reseal(folder, sealed | {"target": sealed["target"] | {"config": dataclasses.asdict(same)}})
    assert forecast.score(folder)[0]["measured"] == sealed["predicted"]       # a run of the time before
    reseal(folder, sealed | {"target": sealed["target"] | {"config": dataclasses.asdict(other)}})
    with pytest.raises(UserError, match="another qk_norm than was forecast"):
        forecast.score(folder)


def test_what_the_machine_decides_is_no_difference(study):
    """A run is sealed before its machine has chosen the dtype that "auto" becomes."""
    folder, _, sealed = study
    assert sealed["target"]["config"]["dtype"] == "auto"
    finish(folder, dtype="bfloat16", forecast=sealed["sha256"], log_interval=7)
    assert forecast.score(folder)[0]["measured"] == 3.0


def test_an_old_seal_with_a_learning_curve_still_scores(study):
    """Seals of before held a `curve` and no dtype; what they hold is what their hash covers."""
    folder, found, sealed = study
    config = {k: v for k, v in sealed["target"]["config"].items() if k != "dtype"} | {"log_interval": 39}
    target = sealed["target"] | {"config": config}
    old = reseal(folder, sealed | {"curve": {"of": "val_loss", "points": []}, "target": target})
    assert forecast.seal(folder, found, "big", TARGET) == old
    finish(folder, dtype="float32", log_interval=39)
    assert forecast.score(folder)[0]["measured"] == 3.0


def test_the_committed_seals_are_as_they_were_sealed():
    paths = list((ROOT / "scaling" / "results").glob("*/forecasts/*.json"))
    assert len(paths) >= 4
    for path in paths:
        assert forecast.read_seal(path)["run"] == path.stem


# ---- Scoring. ----

def test_score_writes_one_row_per_forecast(study):
    folder, _, sealed = study
    assert forecast.score(folder)[0]["measured"] is None
    table = read_table(folder / "forecasts.csv")
    assert list(table) == forecast.COLUMNS and np.isnan(table["measured"][0])
    finish(folder, val_loss=sealed["predicted"] * 1.01, device="cuda")
    row = forecast.score(folder)[0]
    assert row["error"] == pytest.approx(1 / 1.01 - 1)
    table = read_table(folder / "forecasts.csv")
    assert table["error"][0] == row["error"] and table["sha256"][0] == sealed["sha256"]
    assert table["inside"][0] == (sealed["lo95"] <= sealed["predicted"] * 1.01 <= sealed["hi95"])


def test_a_score_outlives_the_run_s_directory(study, tmp_path):
    """scaling/results keeps seals and scores without the runs: to score it again must not erase them."""
    folder, _, _ = study
    run = finish(folder)
    first = forecast.score(folder)
    written = (folder / "forecasts.csv").read_bytes()
    (run / "result.json").unlink()
    assert forecast.score(folder) == first and (folder / "forecasts.csv").read_bytes() == written
    kept = tmp_path / "laptop"
    shutil.copytree(ROOT / "scaling" / "results" / "laptop", kept)
    forecast.score(kept)
    committed = ROOT / "scaling" / "results" / "laptop" / "forecasts.csv"
    assert (kept / "forecasts.csv").read_bytes() == committed.read_bytes()
    (folder / "forecasts.csv").write_text("sha256,measured\na,b\n")
    with pytest.raises(UserError, match="not as it was written"):
        forecast.score(folder)


def test_score_tells_inside_from_outside(study):
    folder, _, sealed = study
    run = finish(folder, val_loss=sealed["hi95"] * 1.001)
    assert forecast.score(folder)[0]["inside"] == 0
    better = {"val_loss": sealed["hi95"] * 0.999, "tokens": TARGET.D}
    (run / "result.json").write_text(json.dumps(better))
    assert forecast.score(folder)[0]["inside"] == 1


def test_an_edited_seal_is_refused(study):
    path = study[0] / "forecasts/big.json"
    path.write_text(path.read_text().replace('"predicted": 3.04', '"predicted": 3.05', 1))
    with pytest.raises(UserError, match="does not match its own sha256"):
        forecast.score(study[0])


def test_a_run_older_than_its_forecast_is_refused(study):
    folder, _, sealed = study
    run, past = finish(folder), time.time() - 7200
    os.utime(run / "result.json", (past, past))
    with pytest.raises(UserError, match="trained before its forecast"):
        forecast.score(folder)


@pytest.mark.parametrize("facts", [{"wall_s": 7200}, {"started_at": "2020-01-01T00:00:00Z"}])
def test_a_run_that_began_before_its_forecast_is_refused(study, facts):
    finish(study[0], **facts)
    with pytest.raises(UserError, match="trained before its forecast"):
        forecast.score(study[0])


def test_a_branch_may_have_spent_its_trunks_time(study):
    finish(study[0], wall_s=7200, branch="out/lab/trunk/ckpt_100.pt")
    assert forecast.score(study[0])[0]["measured"] == 3.0


@pytest.mark.parametrize("other, named", [({"n_layer": 4}, "n_layer"), ({"tokens": 5}, "number of tokens")])
def test_another_run_than_was_forecast_is_refused(study, other, named):
    finish(study[0], **other)
    with pytest.raises(UserError, match=f"another {named} than was forecast"):
        forecast.score(study[0])


def test_a_run_on_other_text_than_was_forecast_is_refused(study):
    """By the sha256 of train.bin and val.bin, where both know them: old seals know none."""
    folder, _, sealed = study
    finish(folder, data_sha256="new", val_sha256="new")
    assert forecast.score(folder)[0]["measured"] == 3.0
    for text, named in (({"data_sha256": "old", "val_sha256": "new"}, "training text"),
                        ({"data_sha256": "new", "val_sha256": "old"}, "validation text")):
        reseal(folder, sealed | {"target": sealed["target"] | text})
        with pytest.raises(UserError, match=f"another {named} than was forecast"):
            forecast.score(folder)


def test_a_seal_holds_the_text_and_is_kept_for_no_other(study):
    folder, found, _ = study
    on = dict(train_sha256="a", val_sha256="b")
    sealed = forecast.seal(folder, found, "new", TARGET._replace(meta=on))
    assert sealed["target"]["data_sha256"] == "a" and sealed["target"]["val_sha256"] == "b"
    assert forecast.seal(folder, found, "new", TARGET._replace(meta=on)) == sealed
    with pytest.raises(UserError, match="another target .validation text differ"):
        forecast.seal(folder, found, "new", TARGET._replace(meta=on | dict(val_sha256="c")))


# ---- The board. ----

def test_board_counts_what_was_never_trained(study):
    folder, _, sealed = study
    forecast.score(folder)
    assert "not trained" in forecast.board([folder]) and "1 sealed, none trained" in forecast.board([folder])
    finish(folder, val_loss=sealed["predicted"])
    forecast.score(folder)
    assert "1 of 1 inside" in forecast.board([folder])


def test_a_board_without_forecasts_names_the_studies(tmp_path):
    for folder in (tmp_path / "none", tmp_path / "empty"):
        folder.mkdir()
    forecast.score(tmp_path / "empty")
    with pytest.raises(UserError, match="no forecast in .*none, .*empty; give a study"):
        forecast.board([tmp_path / "none", tmp_path / "empty"])


@pytest.mark.parametrize("inside, done, share",
                         [(19, 20, "75% to 100%"), (0, 5, "0% to 52%"), (8, 8, "63% to 100%")])
def test_coverage_has_the_exact_binomial_interval(inside, done, share):
    assert share in forecast.coverage(inside, done, done + 2)
    assert "2 sealed but not trained" in forecast.coverage(inside, done, done + 2)


# ---- The command line. ----

def test_command_line(study, capsys, lab, monkeypatch):
    folder, found, sealed = study
    monkeypatch.setattr(basics, "ROOT", lab.root)
    for command in (["score", str(folder)], ["board", str(folder)]):
        forecast.main(command)
        out = capsys.readouterr().out
        assert "lab/big" in out
        assert out.endswith(f"\nnext: python -m scaling.plan {folder}/fit.json --flops=2e+16\n")
    forecast.main(["rollout", str(folder / "runs.csv")])
    out = capsys.readouterr().out
    assert out.count("100%") == 2 and out.endswith(f"scaling.plan {folder}/fit.json --flops=6e+15\n")
    arguments = [f"--{k}={v}" for k, v in lab.settings().items() if k != "out_dir"]
    with pytest.raises(UserError, match="run: python -m scaling.fit .*runs.csv --json=.*fit.json"):
        forecast.main(["seal", str(folder), *arguments, f"--out_dir={folder}/small"])
    (folder / "fit.json").write_text(json.dumps(undetermined(found)))
    with pytest.raises(UserError, match="outside the study"):
        forecast.main(["seal", str(folder), *arguments])
    with pytest.raises(UserError, match="--anyway"):
        forecast.main(["seal", str(folder), *arguments, f"--out_dir={folder}/small"])
    forecast.main(["seal", str(folder), "--anyway", *arguments, f"--out_dir={folder}/small"])
    assert "lab/small: loss" in capsys.readouterr().out and (folder / "forecasts/small.json").exists()


def test_what_the_seal_says_to_run_is_what_was_forecast(study, lab, capsys):
    folder, found, _ = study
    folder = folder.rename(folder.with_name("my lab"))
    (folder / "fit.json").write_text(json.dumps(found))
    arguments = [f"--{k}={v}" for k, v in lab.settings().items() if k != "out_dir"]
    forecast.main(["seal", str(folder), *arguments, f"--out_dir={folder}/small"])
    *_, line = capsys.readouterr().out.splitlines()
    python, train, *command = shlex.split(line.removeprefix("next: "))
    assert (python, train) == ("python", "train.py") and lab.main(command)[0] == 0
    sealed = forecast.read_seal(folder / "forecasts/small.json")
    assert json.loads((folder / "small/config.json").read_text())["forecast"] == sealed["sha256"]
    (folder / "late").mkdir()
    (folder / "late" / "result.json").write_text("{}")
    forecast.main(["score", str(folder)])
    out = capsys.readouterr().out
    assert f"{folder}: not scored, for no forecast was sealed: late\n" in out
    assert "1 sealed but not trained" in out and f"plan '{folder}/fit.json' --flops=" in out


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"], ["seal", "--help"]])
def test_help(args, capsys):
    forecast.main(args)
    assert "rollout out/STUDY/runs.csv" in capsys.readouterr().out


@pytest.mark.parametrize("args, words", [
    (["sael", "out"], "did you mean 'seal'?"), (["seal"], "give a command and a path: .* seal.score.board")])
def test_a_slip_gets_one_line(args, words):
    with pytest.raises(UserError, match=words):
        forecast.main(args)


# ---- One model, from a table. ----

def test_predict_prints_a_forecast_of_one_model_and_seals_nothing(tmp_path, capsys):
    N, D, L = grid()
    write_table(tmp_path / "t.csv", [dict(params=n, tokens=d, loss=l) for n, d, l in zip(N, D, L)],
                ["params", "tokens", "loss"])
    args = ["predict", str(tmp_path / "t.csv"), "--params=8e6", "--tokens=1.6e8"]
    forecast.main([*args, "--json=-"])
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= {"predicted", "lo50", "hi50", "lo95", "hi95", "forms", "beyond", "warnings"}
    assert found["lo95"] < hoffmann(8e6, 1.6e8) < found["hi95"] and found["beyond"]["C"] == pytest.approx(12)
    forecast.main([*args, f"--json={tmp_path / 'f.json'}"])
    said = capsys.readouterr().out
    assert f"loss {found['predicted']:.4f}, 95 % {found['lo95']:.4f}" in said and "backtest: " in said
    assert json.loads((tmp_path / "f.json").read_text()) == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.json", "t.csv"]


def test_predict_says_what_is_wrong_in_a_line(tmp_path):
    N, D, L = grid()
    write_table(tmp_path / "t.csv", [dict(params=n, tokens=20 * n, loss=l) for n, l in zip(N, L)],
                ["params", "tokens", "loss"])
    args = ["predict", str(tmp_path / "t.csv"), "--params=8e6", "--tokens=1.6e8"]
    with pytest.raises(UserError, match="no forecast: .*--anyway"):
        forecast.main(args)
    with pytest.raises(UserError, match="must be positive"):
        forecast.main([*args[:2], "--params=-1", "--tokens=5"])
    with pytest.raises(UserError, match="--tokens"):
        forecast.main(args[:3])


# ---- Witnesses. ----

@pytest.fixture
def repository(study, monkeypatch):
    """(folder, seal, commit): the sealed study within a git repository, and how to commit in it at a time."""
    folder, _, sealed = study
    for name in ("NAME", "EMAIL"):
        for who in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{who}_{name}", "somebody")

    def git(*args):
        subprocess.run(["git", "-C", str(folder), *args], check=True, capture_output=True)

    def commit(message, when, *paths):
        monkeypatch.setenv("GIT_COMMITTER_DATE", when)
        git("add", *paths) if paths else None
        git("commit", "--allow-empty", "-m", message)
    git("init")
    commit("begin", "2026-01-01T00:00:00Z", "runs.csv")
    return folder, sealed, commit


@pytest.mark.parametrize("how", ["file", "message"])
def test_git_is_a_witness_of_a_seal_that_is_older_than_its_run(repository, how, capsys):
    folder, sealed, commit = repository
    finish(folder, forecast=sealed["sha256"], started_at="2026-02-02T00:00:00Z")
    assert forecast.witnesses(folder) == ["lab/big: no commit holds this seal"]
    if how == "file":
        commit("seal", "2026-02-01T00:00:00Z", "forecasts")
    else:
        commit(forecast.seal_line(sealed), "2026-02-01T00:00:00Z")
    commit("later", "2026-02-03T00:00:00Z")
    forecast.score(folder)
    forecast.main(["board", str(folder), "--git"])
    assert capsys.readouterr().out.endswith("lab/big: committed 2026-02-01T00:00:00Z, before its run began "
                                            "(2026-02-02T00:00:00Z)\n")


def test_git_denies_a_seal_that_is_younger_than_its_run(repository):
    folder, sealed, commit = repository
    commit("seal", "2026-02-03T00:00:00Z", "forecasts")
    line, = forecast.witnesses(folder)
    assert "its run is not here" in line
    finish(folder, forecast=sealed["sha256"], started_at="2026-02-02T00:00:00Z")
    line, = forecast.witnesses(folder)
    assert "committed 2026-02-03T00:00:00Z, AFTER its run began (2026-02-02T00:00:00Z): no witness" in line


def test_without_a_repository_git_is_no_witness(study, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(study[0].parent))
    with pytest.raises(UserError, match="is in no git repository that can be read"):
        forecast.witnesses(study[0])


def test_a_seal_is_one_line_to_paste(study):
    line = forecast.seal_line(study[2])
    assert "\n" not in line and study[2]["sha256"] in line and "forecast lab/big: loss " in line
