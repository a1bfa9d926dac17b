"""The recipe's instruments: the gradient noise scale, the critical batch size, seeds in a sweep."""
import pytest
import torch

import train
from configurator import UserError
from scaling import sweep


# ---------------------------------------------------------------- gradient noise scale


@pytest.fixture(scope="module")
def by_hand(module_lab, rows: int = 600) -> float:
    """tr(Sigma)/|G|^2 in tokens of the untrained model, from the gradients of single sequences."""
    run = train.Run(module_lab.derived(), train.load_meta("tiny"), 0, 1)
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
    settings = dict(max_iters=20, log_interval=7, gradient_accumulation_steps=2, eval_interval=0)
    lab.train("whole", **settings)
    step = train.Run.train_step

    def stop_at_10(run):
        if run.step == 10:
            run.save()
            raise KeyboardInterrupt
        step(run)
    monkeypatch.setattr(train.Run, "train_step", stop_at_10)
    with pytest.raises(KeyboardInterrupt):
        lab.train("halves", **settings)
    monkeypatch.setattr(train.Run, "train_step", step)
    lab.train("halves", **settings)
    assert [r["noise_scale"] for r in lab.log("halves")] == [r["noise_scale"] for r in lab.log("whole")]


# ---------------------------------------------------------------- seeds


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        path = tmp_path / "study.py"
        path.write_text(text, encoding="utf-8")
        return sweep.read_sweep(str(path))[1:]
    return read_text


def test_seeds_repeat_a_run(read):
    runs, held = read("base = dict(seed=5)\nruns = [dict(name='a', seeds=3), dict(name='b')]\nheld_out = [dict(name='c', seeds=1)]")
    assert runs == [dict(name=f"a_s{i}", seed=4 + i) for i in (1, 2, 3)] + [dict(name="b", seed=5)]
    assert held == [dict(name="c_s1", seed=5)]


def test_seeds_in_base_repeat_every_run_from_the_default_seed(read):
    runs, _ = read("base = dict(seeds=2)\nruns = [dict(name='a'), dict(name='b', seeds=1)]")
    first = train.Config.seed
    assert [(r["name"], r["seed"]) for r in runs] == [("a_s1", first), ("a_s2", first + 1), ("b_s1", first)]


@pytest.mark.parametrize("seeds", ["0", "-1", "2.0", "'2'", "True", "[1, 2]"])
def test_seeds_that_are_no_count_are_refused(read, seeds):
    with pytest.raises(UserError, match="run a: `seeds` must say how many"):
        read(f"runs = [dict(name='a', seeds={seeds})]")


def test_a_run_without_a_name_is_refused_with_seeds_too(read):
    with pytest.raises(UserError, match="needs a `name`"):
        read("runs = [dict(seeds=2)]")
