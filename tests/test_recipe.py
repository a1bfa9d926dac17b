"""The recipe's instruments: the gradient noise scale, the critical batch size, seeds in a sweep."""
import json

import numpy as np
import pytest
import torch

import train
from config import corpus, settings
from config.settings import Config
from runtime import rundir
from runtime.basics import UserError
from scaling import plots, sweep
from scaling.recipe import batch
from scaling.tables.csv import write_table

# ---------------------------------------------------------------- gradient noise scale


@pytest.fixture(scope="module")
def by_hand(module_lab, rows: int = 600) -> float:
    """tr(Sigma)/|G|^2 in tokens of the untrained model, from the gradients of single sequences."""
    run = train.Run(module_lab.derived(), corpus.load_meta("tiny"), 0, 1)
    total, squares = 0.0, 0.0
    for ids in run.data.row_ids(0, rows)[:, None]:
        gradients = torch.autograd.grad(run.raw(*run.data.get(ids))[1], list(run.raw.parameters()))
        flat = torch.cat([g.flatten() for g in gradients]).double()
        total, squares = total + flat, squares + flat.square().sum()
    mean = (total / rows).square().sum()
    trace = (squares / rows - mean) * rows / (rows - 1)
    return (32 * trace / (mean - trace / rows)).item()


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_noise_scale_is_that_of_single_sequences(module_lab, by_hand, parts):
    """At a learning rate of nothing every step measures the same model; 16 = 6 + 5 + 5 is not even."""
    module_lab.train(f"parts{parts}", max_iters=200, log_interval=20, learning_rate=1e-12, eval_interval=0,
                     batch_size=16, gradient_accumulation_steps=parts)
    found = [r["noise_scale"] for r in module_lab.log(f"parts{parts}")[3:]]
    assert sum(found) / len(found) == pytest.approx(by_hand, rel=0.15)


def test_one_micro_batch_in_one_process_has_no_noise_scale(lab):
    lab.train(max_iters=2, log_interval=1)
    assert not any("noise_scale" in r for r in lab.log())


def test_noise_scale_survives_a_checkpoint(lab, monkeypatch):
    wanted = dict(max_iters=20, log_interval=7, gradient_accumulation_steps=2, eval_interval=0)
    lab.train("whole", **wanted)
    step = train.Run.train_step

    def stop_at_10(run):
        if run.step == 10:
            rundir.save(run)
            raise KeyboardInterrupt
        step(run)
    monkeypatch.setattr(train.Run, "train_step", stop_at_10)
    with pytest.raises(KeyboardInterrupt):
        lab.train("halves", **wanted)
    monkeypatch.setattr(train.Run, "train_step", step)
    lab.train("halves", **wanted)
    assert [r["noise_scale"] for r in lab.log("halves")] == [r["noise_scale"] for r in lab.log("whole")]


# ---------------------------------------------------------------- seeds


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        path = tmp_path / "study.py"
        path.write_text(text, encoding="utf-8")
        study = sweep.read_sweep(str(path))
        return study.runs, study.held_out
    return read_text


def test_seeds_repeat_a_run(read):
    runs, held = read("base = dict(seed=5)\nruns = [dict(name='a', seeds=3), dict(name='b')]\n"
                      "held_out = [dict(name='c', seeds=1)]")
    assert runs == [dict(name=f"a_s{i}", seed=4 + i) for i in (1, 2, 3)] + [dict(name="b", seed=5)]
    assert held == [dict(name="c_s1", seed=5)]


def test_seeds_in_base_repeat_every_run_from_the_default_seed(read):
    runs, _ = read("base = dict(seeds=2)\nruns = [dict(name='a'), dict(name='b', seeds=1)]")
    first = Config.seed
    assert [(r["name"], r["seed"]) for r in runs] == [("a_s1", first), ("a_s2", first + 1), ("b_s1", first)]


@pytest.mark.parametrize("seeds", ["0", "-1", "2.0", "'2'", "True", "[1, 2]"])
def test_seeds_that_are_no_count_are_refused(read, seeds):
    with pytest.raises(UserError, match="run a: `seeds` must say how many"):
        read(f"runs = [dict(name='a', seeds={seeds})]")


def test_a_run_without_a_name_is_refused_with_seeds_too(read):
    with pytest.raises(UserError, match="needs a `name`"):
        read("runs = [dict(seeds=2)]")


# ---------------------------------------------------------------- critical batch size


B_STAR, POWER = 9e4, 5.0


def steps(loss, B):
    """S_min (1 + B_crit/B), with S_min = 40 (3/L)^9."""
    return 40 * (3 / loss) ** 9 * (1 + B_STAR * loss ** -POWER / B)


def curve(B: int, rate: float, worse: float = 1.0) -> batch.Curve:
    """A curve whose steps to loss L are `worse` times those of the law, down to 2.1."""
    loss = np.linspace(3, 2.1, 60)
    step = worse * steps(loss, B)
    return batch.Curve(f"b{B}_{rate}", B, rate, step, loss, B_STAR * loss ** -POWER)


def made_points() -> list[dict]:
    """Six batch sizes at three rates each, of which the second is the best."""
    return list(batch.points([curve(B, rate, worse) for B in 128 * 2 ** np.arange(6)
                              for rate, worse in ((1, 1.3), (2, 1.0), (3, 1.1))]))


def test_points_are_at_the_best_rate():
    rows = made_points()
    assert len(rows) == 6 * batch.LEVELS and {r["learning_rate"] for r in rows} == {2}
    for r in rows:
        assert r["steps"] == pytest.approx(steps(r["loss"], r["batch_tokens"]), rel=1e-3)
        assert r["noise_scale"] == pytest.approx(B_STAR * r["loss"] ** -POWER, rel=0.1)


def test_critical_batch_is_recovered():
    rows = made_points()
    table = {k: np.array([r[k] for r in rows]) for k in batch.COLUMNS}
    fit = batch.critical(table)
    assert fit["p"] == pytest.approx(POWER, rel=0.01) and fit["B_star"] == pytest.approx(B_STAR, rel=0.03)
    for level in fit["levels"]:
        assert level["S_min"] == pytest.approx(40 * (3 / level["loss"]) ** 9, rel=0.01)
    noisy = table | {"steps": table["steps"] * np.exp(0.1 * np.random.default_rng(0).standard_normal(6))[
        np.unique(table["batch_tokens"], return_inverse=True)[1]]}
    low, high = batch.critical(noisy)["ci"]["B_crit"]
    middle = B_STAR * np.exp(-POWER * np.log(np.unique(table["loss"])).mean())
    assert low < middle < high and high / low > 1.1


def test_corrected_costs_are_far_above_and_below_the_critical_batch():
    """A batch at B_crit takes twice the least steps and twice the least compute (Kaplan et al. 2020, 5.1)."""
    fit = {"B_star": 1000 * 2.0 ** 5, "p": 5.0}
    runs = dict(run=np.array(["a", "b"], object), batch_tokens=np.array([1000.0, 1.0]),
                val_loss=np.array([2.0, 2.0]), flops_6nd=np.array([8e9, 8e9]), tokens=np.array([4e6, 4e3]))
    found = batch.corrected(fit, runs)
    assert found["C_min"] == pytest.approx([4e9, 8e9], rel=2e-3)      # a tiny batch wastes nothing
    assert found["S_min"] == pytest.approx([2000, 4000 / 1001], rel=1e-6)


def test_too_few_batch_sizes_are_refused(tmp_path):
    rows = [r for r in made_points() if r["batch_tokens"] < 600]
    write_table(tmp_path / "points.csv", rows, batch.COLUMNS)
    with pytest.raises(UserError, match="3 batch sizes at 5 losses cannot determine"):
        batch.main([str(tmp_path)])
    with pytest.raises(UserError, match="neither finished runs nor points.csv"):
        batch.main([str(tmp_path / "nothing")])


def test_a_batch_study_from_runs_to_its_fit(lab, capsys):
    for rows in (4, 8, 16, 32):
        lab.train(f"b{rows}", max_iters=1600 // rows, batch_size=rows, gradient_accumulation_steps=2,
                  eval_iters=20, schedule="constant", learning_rate=2e-3 * rows ** 0.5,
                  eval_interval=40 // rows, log_interval=40 // rows)
    assert batch.main([str(lab.root / "out")]) == 0
    out = capsys.readouterr().out
    assert f"\n{lab.root / 'out'}: 4 runs of 4 batch sizes\n" in out and "B_crit(L) =" in out
    assert out.endswith(f"\nnext: python -m scaling.plots {lab.root / 'out'}\n")
    fit = json.loads((lab.root / "out" / "batch.json").read_text())
    assert len(fit["levels"]) == batch.LEVELS and fit["range"]["B"] == [128, 1024]


def test_a_batch_study_without_curves_leaves_no_points(lab):
    lab.train("end", max_iters=2, eval_interval=0, eval_iters=20)
    with pytest.raises(UserError, match="no run was evaluated both before and after .* lower eval_interval"):
        batch.main([str(lab.root / "out")])
    assert not (lab.root / "out" / "points.csv").exists()


def test_what_is_to_be_corrected_is_read_first(tmp_path):
    write_table(tmp_path / "points.csv", made_points(), batch.COLUMNS)
    with pytest.raises(UserError, match="nothing/runs.csv: no such file"):
        batch.main([str(tmp_path), f"--correct={tmp_path / 'nothing'}"])
    assert not (tmp_path / "batch.json").exists()


# ---------------------------------------------------------------- batch and learning rate from compute


def test_batch_and_rate_follow_from_compute(lab):
    """Bi et al. 2024, eq. 1, worked by hand for C = 6 x N x D of the small model on a million tokens."""
    c = lab.derived(max_iters=None, target_tokens=1e6, batch_size=-1, learning_rate=-1)
    params = settings.count_params(c)
    C = 6 * (params["non_embedding"] + params["head"]) * 1e6
    assert 0.292 * C ** 0.3271 == pytest.approx(c.batch_size * 32, rel=2 ** 0.5 - 1)     # a power of 2
    assert c.batch_size == 32 and c.learning_rate == pytest.approx(0.3118 * C ** -0.125, rel=0.05)
    assert c.max_iters == round(1e6 / 32 / 32)


def test_the_rules_leave_alone_what_is_set(lab):
    c = lab.derived(max_iters=None, target_tokens=1e6, learning_rate=-1)
    assert c.batch_size == 8
    assert c.learning_rate == lab.derived(max_iters=3906, learning_rate=-1).learning_rate
    c = lab.derived(max_iters=None, target_tokens=1e6, batch_size=-1)
    assert c.learning_rate == Config.learning_rate


def test_a_short_run_keeps_a_hundred_steps(lab):
    assert lab.derived(max_iters=None, target_tokens=3200, batch_size=-1).max_iters == 100


def test_batch_from_compute_needs_a_horizon_that_gives_it(lab):
    with pytest.raises(UserError, match="batch_size=-1 follows from the run's compute, which max_iters"):
        lab.derived(batch_size=-1)


def test_the_figure_of_a_batch_study(tmp_path):
    write_table(tmp_path / "points.csv", made_points(), batch.COLUMNS)
    batch.main([str(tmp_path)])
    left, right = plots.recipe_figures(tmp_path)["critical"].axes
    assert len(left.lines) == 2 * batch.LEVELS
    law, interval, noise = (line.get_ydata() for line in right.lines)
    assert list(interval) == json.loads((tmp_path / "batch.json").read_text())["ci"]["B_crit"]
    assert law == pytest.approx(noise, rel=0.2)
