"""Tuning: the rule is recovered from a made study, edges are refused, and the config trains."""
from pathlib import Path

import numpy as np
import pytest

from config import schema, settings
from config.configurator import configure
from config.settings import Config
from runtime.basics import UserError, exit_cleanly
from scaling import sweep
from scaling.launch.study import make_plan
from scaling.recipe import tune
from scaling.tables.csv import write_table

TOKENS = {16: 5e4, 32: 2e5}                # D of each width: 4 times as many
BATCHES = {16: (64, 128, 256), 32: (128, 256, 512)}
P, Q = 0.5, -0.25                          # how the made study's batch and rate go with D
FACTORS = (0.5, 1, 2, 4)


def best(batch: float, D: float) -> float:
    return 0.014 * (batch / 100) ** 0.5 * (D / 5e4) ** (Q - P / 2)


def made_rows(batches: dict = BATCHES, factors: tuple = FACTORS) -> list[dict]:
    """Runs whose loss is a parabola in log rate, .8 % higher for each doubling of the smallest batch."""
    return [dict(study="tune", run=f"d{d}_b{B}_lr{k}", dataset="tiny", n_layer=1, n_head=2, block_size=32,
                 schedule="wsd", n_embd=d, batch_tokens=B, tokens=TOKENS[d], learning_rate=0.01 * k,
                 val_loss=2.5 * (1 + 0.008 * np.log2(B / min(batches[d])))
                 + 0.05 * np.log(0.01 * k / best(B, TOKENS[d])) ** 2)
            for d in batches for B in batches[d] for k in factors]


@pytest.fixture
def study(tmp_path):
    """Write a made study, less its run directories, and return its directory."""
    def write(rows):
        write_table(tmp_path / "runs.csv", rows, list(rows[0]))
        return tmp_path
    return write


def solve(folder: Path) -> tuple[list[dict], tune.Rule]:
    rows, chosen = tune.tune(*tune.read_grid(folder / "runs.csv"))
    return rows + chosen, tune.fit_rule(chosen)


def test_a_known_rule_is_recovered(study):
    """1 % lies 1.25 doublings above the smallest batch, which is twice as large at four times the tokens."""
    rows, law = solve(study(made_rows()))
    assert law.p == pytest.approx(P) and law.moved == pytest.approx(4 ** Q)
    assert law.D == 2e5 and law.batch == pytest.approx(128 * 2 ** 1.25)
    assert law.rate == pytest.approx(best(law.batch, 2e5))
    for row in rows:
        assert row["rate"] == pytest.approx(best(row["batch"], row["D"]))
    assert min(r["loss"] for r in rows if "loss" in r) == pytest.approx(2.5)


def test_the_command_says_what_it_found_and_what_is_next(study, capsys):
    folder = study(made_rows())
    assert tune.main([str(folder)]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"{folder}: 2 widths, 6 batches, 24 rates"
    assert last == f"next: python -m scaling.recipe.tune {folder} --write=config/tuned.py"


def test_seeds_count_as_their_mean(study):
    rows = made_rows()
    twice = [r | {"run": f"{r['run']}_s{i}", "val_loss": r["val_loss"] + i * 0.1}
             for r in rows for i in (1, -1)]
    once, mean = solve(study(rows))[1], solve(study(twice))[1]
    assert mean == pytest.approx(once)


def test_a_lopsided_curve_does_not_move_the_vertex(study):
    """The loss far above the best rate is no parabola: it must not count."""
    rows = made_rows(factors=(0.25, *FACTORS, 8))
    high = [r | {"val_loss": r["val_loss"] + 3 * (r["learning_rate"] == 0.08)} for r in rows]
    assert solve(study(high))[1] == pytest.approx(solve(study(rows))[1])


@pytest.mark.parametrize("factors, word", [((0.125, 0.25, 0.5), "largest"), ((4, 8, 16), "smallest"),
                                           ((1,), "smallest")])
def test_a_best_rate_at_the_edge_is_refused(study, factors, word):
    words = f"width 16, 64 tokens a step: the best rate, .*, is the {word} tried.*extend the grid"
    with pytest.raises(UserError, match=words) as error:
        solve(study(made_rows(factors=factors)))
    assert "width 32, 512 tokens" in str(error.value)      # it names them all
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batches, words", [
    ((64, 128), "width 16: the largest batch, 128 tokens, is within 1%"),
    ((64, 256), "width 16: no batch but the smallest, 64 tokens, is within 1%"),
    ((64,), "width 16: the largest batch, 64 tokens, is")])
def test_a_best_batch_at_the_edge_is_refused(study, batches, words):
    with pytest.raises(UserError, match=f"{words}.*extend the grid"):
        solve(study(made_rows(BATCHES | {16: batches})))


def change(rows: list[dict], **changes) -> list[dict]:
    return [rows[0] | changes, *rows[1:]]


@pytest.mark.parametrize("rows, words", [
    (made_rows({16: BATCHES[16]}), "two widths"),
    (change(made_rows(), tokens=6e4), "width 16 has runs of 50,000 to 60,000 tokens"),
    (change(made_rows(), dataset="other"), "'dataset' holds several values"),
    (change(made_rows(), val_loss=None), "val_loss must be a positive number: row 1 holds nan"),
    (change(made_rows(), learning_rate=0.0), "learning_rate must be a positive number: row 1 holds 0"),
    (change(made_rows(), n_embd="wide"), "'n_embd' must hold numbers"),
    ([{k: v for k, v in r.items() if k != "batch_tokens"} for r in made_rows()], "no column 'batch_tokens'"),
    ([dict(run="a")], "no column 'n_embd'"),
])
def test_bad_runs_are_one_line(study, rows, words, capsys):
    with pytest.raises(SystemExit) as end:
        exit_cleanly(lambda: tune.main([str(study(rows))]))
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error and error.count("\n") == 1


def test_no_study_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no runs.csv; run: python -m scaling.sweep"):
        tune.main([str(tmp_path / "nothing")])


# ---------------------------------------------------------------- the config


@pytest.fixture
def config(lab, study, capsys):
    """The config that the made study gives, in the lab; `changes` to its recipe."""
    def write(**changes) -> Path:
        asked = lab.config(schedule="wsd", parametrization="mup", base_width=16, warmup_frac=0.1, **changes)
        recipe = schema.recipe(asked, settings.resolve(asked).config)
        folder = study([row | recipe for row in made_rows()])
        assert tune.main([str(folder), f"--write={lab.root / 'tuned.py'}"]) == 0
        assert capsys.readouterr().out.endswith(f"\nnext: python train.py {lab.root / 'tuned.py'}\n")
        return lab.root / "tuned.py"
    return write


def accepted(path: Path) -> Config:
    """The configuration as train.py would use it."""
    return settings.resolve(configure(Config, [str(path)])).config


def test_train_accepts_the_config(config):
    c = accepted(config())
    assert (c.dataset, c.n_embd, c.n_layer, c.parametrization, c.base_width) == ("tiny", 32, 1, "mup", 16)
    assert c.schedule == "wsd" and c.warmup_iters == round(0.1 * c.max_iters) and c.out_dir == "out/tuned"
    assert c.batch_size == round(128 * 2 ** 1.25 / 32) and c.max_iters == round(2e5 / 32 / c.batch_size)
    assert c.learning_rate == pytest.approx(best(128 * 2 ** 1.25, 2e5), rel=1e-3)


def test_the_batch_follows_the_tokens_in_the_config(config):
    path = config()
    path.write_text(path.read_text().replace("target_tokens = 2e+05", "target_tokens = 3.2e6"))
    c = accepted(path)
    assert c.batch_size == round(4 * 128 * 2 ** 1.25 / 32)
    assert c.learning_rate == pytest.approx(best(128 * 2 ** 1.25, 2e5), rel=1e-3)


def test_a_warmup_in_steps_stays_one(config):
    assert accepted(config(warmup_iters=7)).warmup_iters == 7


def test_the_config_trains(config, lab):
    path, out = config(), lab.out("run")
    code, _, err = lab.main([str(path), "--target_tokens=2000", "--device=cpu", f"--out_dir={out}"])
    assert code == 0, err
    assert (out / "result.json").exists()


def test_a_config_needs_the_recipe_and_a_new_file(config, study, lab):
    path = config()
    with pytest.raises(UserError, match="tuned.py exists"):
        tune.main([str(study([row | dict(parametrization="mup") for row in made_rows()])), f"--write={path}"])
    with pytest.raises(UserError, match="runs.csv lacks the recipe of its runs"):
        tune.main([str(study(made_rows())), f"--write={lab.root / 'other.py'}"])


def test_what_a_table_lacks_or_leaves_empty_has_its_default(study):
    """An older table knows fewer settings; what is empty did not count in that run."""
    rows = [row | dict(parametrization="mup", warmup_iters=None, weight_decay=0.0, bias=1, vocab_size=84)
            for row in made_rows()]
    assert tune.recipe(study(rows) / "runs.csv") == dict(
        dataset="tiny", n_layer=1, n_head=2, block_size=32, schedule="wsd", n_embd=32, bias=True,
        parametrization="mup", weight_decay=0.0)


def test_the_sweep_is_a_grid_at_equal_tokens_per_parameter(lab):
    text = (Path(tune.__file__).parents[1] / "sweeps" / "tune.py").read_text(encoding="utf-8")
    path = lab.root / "tune.py"
    path.write_text(text.replace("shakespeare", "tiny"), encoding="utf-8")
    study = sweep.read_sweep(str(path))
    plan = make_plan(study, study.runs)
    assert study.name == "tune" and not study.held_out and len({p.config.n_embd for p in plan}) == 2
    for p in plan:
        assert p.resolved.D / p.resolved.N == pytest.approx(plan[0].resolved.D / plan[0].resolved.N, rel=0.01)
        assert p.config.parametrization == "mup" and p.config.dataset == "tiny"
    cells = {}
    for c in (p.config for p in plan):
        cells.setdefault((c.n_embd, c.batch_size), []).append(c.learning_rate)
    for rates in cells.values():
        assert len(rates) > 3 and np.diff(np.log2(sorted(rates))) == pytest.approx(1)
