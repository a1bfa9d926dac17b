"""A run beside its forecast: how well the ending is told, and what people see of it."""
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.basics import UserError
from scaling import forecast, plots, report, watch
from scaling.laws import collapse, extrapolate
from scaling.laws.collapse import Guess
from scaling.tables.csv import read_table
from scaling.tables.runs import final_runs

RESULTS = Path(__file__).parents[1] / "scaling" / "results"
LIKE = dict(schedule="wsd", cooldown_frac=0.2, min_lr=0.0)


@pytest.fixture(scope="module")
def isoflop():
    folder = RESULTS / "isoflop"
    return watch.family(read_table(folder / "runs.csv"), read_table(folder / "curves.csv"), LIKE)


def left_out(known: watch.Family, x: float) -> list[tuple[float, Guess]]:
    """(log of the final loss, what the run's own curve and the law of the others say of it), of each run."""
    found = []
    law_rows = {key: v for key, v in final_runs(read_table(RESULTS / "isoflop" / "runs.csv")).items()}
    for i in range(len(known.N)):
        others = np.arange(len(known.N)) != i
        rest = watch.Family(known.run[others], known.N[others], known.D[others], known.loss[others],
                            [curve for k, curve in enumerate(known.curves) if k != i])
        own = watch.outlook(rest, known.curves[i], x, known.N[i], known.D[i])
        law = extrapolate.fit({key: law_rows[key][others] for key in "NDCL"}, few=0)
        (mean,), (sd,) = extrapolate.predict(law, *(law_rows[key][[i]] for key in "NDC"))
        found.append((known.loss[i], own, collapse.joined(own, Guess(mean, sd))))
    return found


def test_half_way_the_ending_is_known_to_a_percent(isoflop):
    """Each of isoflop's 70 runs left out in turn; by its own curve alone, and with the law of the others."""
    rows = left_out(isoflop, 0.5)
    truth = np.exp([row[0] for row in rows])
    for k, most in ((1, 0.009), (2, 0.0055)):
        guess = [row[k] for row in rows]
        error = np.exp([g.mean for g in guess]) / truth - 1
        low, high = np.array([g.interval() for g in guess]).T
        assert np.sqrt((error ** 2).mean()) < most and (abs(error) < 0.01).mean() > (0.85, 0.93)[k - 1]
        assert 0.88 <= ((low <= truth) & (truth <= high)).mean() <= 0.98


def without(known: watch.Family, name: str) -> watch.Family:
    """The family less the runs of that width and seed, which share a trunk."""
    kept = [i for i, run in enumerate(known.run) if not run.startswith(name)]
    return watch.Family(known.run[kept], known.N[kept], known.D[kept], known.loss[kept],
                        [known.curves[i] for i in kept])


def test_the_alarm_is_seldom_false_and_finds_a_few_percent(isoflop):
    """Every third run beside those that share no trunk with it: as it was, and 4 % higher."""
    found = {1.0: [], 1.04: []}
    for i in range(0, len(isoflop.N), 3):
        rest = without(isoflop, "_".join(isoflop.run[i].split("_")[:2]))
        done, loss = isoflop.curves[i]
        for factor, heights in found.items():
            heights += [watch.height(rest, (done, factor * loss), x, isoflop.N[i], isoflop.D[i])
                        for x in (0.3, 0.5)]
    usual, high = map(np.array, found.values())
    assert usual.max() < watch.ALARM and 0.9 <= (abs(usual) < extrapolate.Z95).mean()
    assert (high > watch.ALARM).mean() > 0.7


def test_the_interval_shrinks_along_the_run(isoflop):
    N, D = 39_776, 1.7e6
    errors = [isoflop.gap(x).error(N, D) for x in (0.1, 0.25, 0.5, 0.75)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2.5 * errors[-1]
    assert isoflop.gap(0.5).error(10 * N, 10 * D) > 4 * errors[2]        # and beyond the study it is wide


def write_run(folder: Path, known: watch.Family, x: float, factor: float = 1.0) -> Path:
    """A run in the study `folder` that stands at x, with the curve of a d 32 of the family times a factor."""
    i = np.flatnonzero((known.N == 39_776) & (abs(known.D - 1.67e6) < 1e4))[0]
    done, loss = known.curves[i]
    steps = int(known.D[i]) // 512
    config = dict(n_layer=3, n_head=2, n_embd=32, block_size=32, batch_size=16, max_iters=steps,
                  vocab_size=84, dataset="shakespeare", parametrization="mup", base_width=32, **LIKE)
    run = folder / "new"
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps(config))
    rows = [dict(step=round(at * steps), tokens=at * steps * 512, flops=1.0, train_loss=level * factor,
                 lr=8e-3, grad_norm=1.0, tok_per_s=1.0, elapsed_s=1.0)
            for at, level in zip(done, loss) if at <= x]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "isoflop"
    folder.mkdir()
    for name in ("runs.csv", "curves.csv", "fit.json"):
        shutil.copy(RESULTS / "isoflop" / name, folder / name)
    return folder


SEALED = dict(predicted=1.84, lo95=1.81, hi95=1.87)              # it came out at 1.838


def test_on_track_and_alarm(isoflop, study):
    run = write_run(study, isoflop, 0.4)
    s = watch.stand(run, isoflop, SEALED)
    assert s.x == pytest.approx(0.4, abs=0.03) and math.exp(s.own.mean) == pytest.approx(1.84, rel=0.015)
    assert " done, on track: 1.8" in watch.line(s)
    low, high = collapse.joined(s.own, s.sealed).interval()
    assert high - low < SEALED["hi95"] - SEALED["lo95"]          # it knows more than the seal
    write_run(study, isoflop, 0.4, factor=1.05)
    assert " done, ALARM: as it stands it ends at 1.9" in watch.line(watch.stand(run, isoflop, SEALED))


def test_what_cannot_be_said_is_said(isoflop, study):
    run = write_run(study, isoflop, 0.02)
    assert "% done, too early to say where it will end" in watch.line(watch.stand(run, isoflop, SEALED))
    run = write_run(study, isoflop, 0.5)
    assert watch.line(watch.stand(run, isoflop, None)).endswith("; no forecast was sealed")
    (run / "log.jsonl").unlink()
    with pytest.raises(UserError, match="log.jsonl: No such file"):
        watch.stand(run, isoflop, None)


def test_a_torn_log_and_one_that_went_back_are_read(isoflop, study):
    run = write_run(study, isoflop, 0.5)
    whole = watch.stand(run, isoflop, SEALED)
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:40] + lines[30:]) + lines[-1][:25])
    again = watch.stand(run, isoflop, SEALED)
    assert (again.x, again.own) == (whole.x, whole.own)


def test_another_schedule_is_no_family(isoflop, study):
    run = write_run(study, isoflop, 0.5)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | dict(schedule="cosine")))
    with pytest.raises(UserError, match=r"0 finished runs with curves have this schedule \(cosine\)"):
        watch.family_of(run)
    (study / "curves.csv").unlink()
    with pytest.raises(UserError, match="there is no .*curves.csv"):
        watch.family_of(run)


def test_a_tuned_study_collapses_and_a_run_of_its_own_is_named(study):
    """isoflop's runs are alike; one whose loss at half way is 4 % above where such a run stands is not."""
    table, curves = read_table(study / "runs.csv"), read_table(study / "curves.csv")
    found = watch.collapsed(table, curves)
    assert found["runs"] == 70 and found["sd"] < 0.01 and len(found["strays"]) <= 1
    name = "d32_s1_2e11"
    D = table["tokens"][table["run"] == name][0]
    early = (curves["run"] == name) & (curves["tokens"] < 0.6 * D)
    curves["train_loss"] = np.where(early, 1.04, 1) * curves["train_loss"]
    strays = watch.collapsed(table, curves)["strays"]
    worst = min(strays, key=lambda row: row["p"])
    assert worst["run"] == name and worst["off"] == pytest.approx(0.04, abs=0.01) and worst["p"] < 0.01
    assert watch.collapsed(table | {"schedule": np.array(["wsd", "cosine"] * 35)}, curves) == {}
    few = {key: column[:5] for key, column in table.items()}
    assert watch.collapsed(few, curves) == {}


def test_the_report_and_the_figure_of_a_study_name_strays(study):
    law = json.loads((study / "fit.json").read_text())
    stray = {"run": "d8_s2", "off": 0.021, "p": 0.003}
    law["collapse"] = {"x": 0.5, "runs": 70, "sd": 0.006, "strays": [stray]}
    (study / "fit.json").write_text(json.dumps(law))
    said = report.text(law)
    assert "curves: at 50% of a run its loss tells where it ends, to 0.60% (one sd, 70 runs)" in said
    assert "warning: d8_s2 is +2.1% off the curve of the others at 50% of it (p = 0.003)" in said
    figure = plots.study_figures(plots.read_study(study))["collapse"]
    ax = figure.axes[0]
    assert "d8_s2, off by +2.1%" in [line.get_label() for line in ax.lines]
    ends = np.array([line.get_ydata()[-1] for line in ax.lines if len(line.get_xdata()) > 10])
    assert len(ends) > 15 and (abs(ends - 1) < 0.06).all()


def test_follow_ends_with_the_run(isoflop, study, monkeypatch, capsys):
    run = write_run(study, isoflop, 0.3)
    steps = [lambda: write_run(study, isoflop, 0.6),
             lambda: (run / "result.json").write_text(json.dumps(dict(val_loss=1.86)))]
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: steps.pop(0)())
    forecast.main(["watch", str(run), "--follow"])
    first, second, last = capsys.readouterr().out.splitlines()
    assert " expected" in first and "no forecast was sealed" in second != first
    assert last == "new: done, loss 1.8600"


def test_the_picture_shows_the_log_in_its_band(isoflop, study):
    figure = watch.picture(write_run(study, isoflop, 0.5), isoflop, SEALED)
    ax, = figure.axes
    band = ax.collections[0].get_paths()[0].vertices
    x, y = ax.lines[0].get_data()
    around = [(b, band[:, 1][abs(band[:, 0] - a) < 0.02]) for a, b in zip(x, y) if a > 0.1]
    assert np.mean([near.min() <= b <= near.max() for b, near in around]) > 0.9


def test_no_run_directory_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        forecast.main(["watch", str(tmp_path / "nothing")])


def test_the_board_says_what_half_of_a_run_would_have_told(capsys):
    forecast.main(["board", str(RESULTS / "laptop"), str(RESULTS / "isoflop")])
    said = capsys.readouterr().out
    assert "half way along the runs: rms error 0." in said
    kept, places = map(int, re.search(r"along the runs: (\d+) of (\d+) train losses inside", said).groups())
    assert places == 15 and kept >= 12                 # five places of three runs


def test_curves_are_held_against_the_band_of_their_seal(isoflop):
    kept = {1.0: [], 1.1: []}
    for i in range(0, len(isoflop.N), 7):
        loss = np.exp(isoflop.loss[i])
        row = dict(params=isoflop.N[i], tokens=isoflop.D[i])
        row |= dict(predicted=loss, lo95=loss * 0.99, hi95=loss * 1.01)
        x, y = isoflop.curves[i]
        for factor, found in kept.items():
            found += watch.in_band(isoflop, (x, factor * y), row)
    assert np.mean(kept[1.0]) > 0.9 and np.mean(kept[1.1]) < 0.1
