"""scaling/tables/runs.py: which rows a fit may use; what goes is said; what counts as a repeated seed."""
import re
from pathlib import Path

import numpy as np
import pytest

from runtime.basics import UserError
from scaling.tables.columns import HYPER
from scaling.tables.csv import read_table
from scaling.tables.runs import MAX_ROWS, SETTINGS, Kept, along, final_runs, groups, select

RESULTS = sorted((Path(__file__).resolve().parents[1] / "scaling" / "results").glob("*/runs.csv"))
# What train.py adds to a row of one recipe, in a study of several sizes and horizons.
RECIPE = {"dropout": 0.0, "bias": 0, "tie_weights": 1, "vocab_size": 84, "parametrization": "mup",
          "base_width": 32, "warmup_frac": 0.02, "warmup_iters": 100, "cooldown_frac": 0.2, "min_lr": 0.0,
          "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.99, "grad_clip": 1.0}


def table_of(**columns):
    """A table of as many rows as the longest column; what is given once holds for all rows."""
    n = max(len(column) for column in columns.values() if isinstance(column, list))
    lists = {name: column if isinstance(column, list) else [column] * n for name, column in columns.items()}
    return {name: np.array(column, object if isinstance(column[0], str) else float)
            for name, column in lists.items()}


def three_seeds(**columns):
    return table_of(params=[1e6, 1e6, 1e6], tokens=1e8, loss=[3.0, 3.1, 3.2], seed=[1, 2, 3], **columns)


# ---- Dropping and telling are one call. ----

def test_drop_tells_once_which_rows_went_and_why():
    kept = Kept(9)
    kept.drop(np.arange(9) == 3, "it is the fourth")
    kept.drop(np.arange(9) == 3, "it is the fourth again")
    kept.drop(np.arange(9) > 1, "it is late")
    assert kept.notes == ["dropped 1 of 9 rows: it is the fourth (row 4)",
                          "dropped 6 of 9 rows: it is late (rows 3, 5, 6, 7, 8 and 1 more)"]
    assert kept.mask.tolist() == [True, True] + [False] * 7


def told(notes):
    """How many rows the notes say were dropped."""
    return sum(int(re.match(r"dropped (\d+) of", note)[1]) for note in notes if note.startswith("dropped"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_no_row_of_a_committed_study_goes_without_a_word(path):
    table = read_table(path)
    data = select(table)
    assert told(data["notes"]) == len(table["tokens"]) - len(data["L"])
    curves = path.with_name("curves.csv")
    if curves.exists():
        table = read_table(curves)
        part = along(data, read_table(path)["schedule"], table)
        assert told(data["curve_notes"]) == len(table["tokens"]) - len(part.get("L", ()))


# ---- Which rows are one experiment. ----

def test_groups_are_rows_that_are_equal_in_every_column():
    number = np.array([1, np.nan, 1, np.nan, 2.0])
    text = np.array(["a", "b", "a", "b", "a"], object)
    assert groups([number, text]).tolist() == [0, 2, 0, 2, 1]
    assert groups([text, number]).tolist() == [0, 2, 0, 2, 1]
    assert len(groups([number[:0], text[:0]])) == 0


def test_repeated_seeds_need_equal_settings():
    assert select(three_seeds())["seed_df"] == 2
    assert select(three_seeds(**RECIPE))["seed_df"] == 2


@pytest.mark.parametrize("name", [*SETTINGS, "data_pct", "context", "epochs"])
def test_a_setting_that_somebody_chose_separates(name):
    """Known or not; where it is one that is tuned at each size, the best counts."""
    data = select(three_seeds(**RECIPE | {name: [100, 100, 200]}))
    assert data["separate"] == [name] and data["seed_df"] == 1
    if HYPER.fullmatch(name):
        assert data["rows"].tolist() == [0, 1]
        assert data["notes"] == [f"dropped 1 of 3 rows: another choice of {name} was better at the same "
                                 "size and tokens (row 3)"]
    else:
        assert len(set(data["setting"])) == 2 and data["notes"] == []


@pytest.mark.parametrize("name", ["max_iters", "target_tokens", "target_flops", "tokens_per_param",
                                  "eval_iters", "eval_interval", "log_interval", "wall_s"])
def test_how_a_horizon_was_said_and_what_was_logged_does_not(name):
    assert select(three_seeds(**RECIPE | {name: [-1, -1, 2]}))["seed_df"] == 2


@pytest.mark.parametrize("min_lr", [0.0, 1e-5, [1e-4, 1e-4, 2e-4, 2e-4]])
def test_the_best_pair_of_peak_and_final_rate_is_kept(min_lr):
    """Whether the final rate is fixed or a share of the peak, a sweep of rates gives one run for a size."""
    table = table_of(params=[1e6] * 4, tokens=1e8, loss=[3.0, 3.2, 3.05, 3.05], seed=[1, 2, 1, 2],
                     learning_rate=[1e-3, 1e-3, 2e-3, 2e-3], min_lr=min_lr)
    data = select(table)
    assert data["rows"].tolist() == [2, 3] and data["seed_df"] == 1
    assert data["notes"] == ["dropped 2 of 4 rows: another learning rate was better at the same size and "
                             "tokens (rows 1, 2)"]


def test_rows_that_lack_a_learning_rate_are_one_rate():
    data = select(three_seeds(learning_rate=[np.nan, np.nan, 1e-3]))
    assert data["rows"].tolist() == [0, 1] and data["seed_df"] == 1
    with pytest.raises(UserError, match="column 'learning_rate' must hold numbers; data row 1 holds 'auto'"):
        select(three_seeds(learning_rate=["auto", "1", "2"]))


def test_of_equally_good_rates_the_first_is_kept():
    assert select(three_seeds(learning_rate=[2e-3, 1e-3, 1e-3]) | {"loss": np.full(3, 3.0)})["rows"] == [0]


def test_a_row_that_stands_twice_makes_no_curve_of_its_run():
    table = table_of(run=["a", "a", "b"], params=1e6, tokens=1e8, loss=[3.0, 3.0, 3.1],
                     learning_rate=[1e-3, 1e-3, 2e-3])
    data = select(table)
    assert data["rows"].tolist() == [0] and not data["curves"]
    assert data["notes"] == [
        "dropped 1 of 3 rows: the same row stands earlier in the table (row 2)",
        "dropped 1 of 3 rows: another learning rate was better at the same size and tokens (row 3)"]


def test_curves_have_no_best_rate():
    table = table_of(run=["a", "a", "b"], params=1e6, tokens=[1e7, 1e8, 1e8], loss=[4.0, 3.0, 3.1],
                     learning_rate=[1e-3, 1e-3, 2e-3], schedule="constant")
    assert len(select(table)["L"]) == 3 and select(table)["last"].tolist() == [1, 2]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_studies_keep_their_rows_with_a_recipe_beside_them(path):
    """The recipe of one study is the same in all of its rows, but for what follows from the horizon."""
    table = {name: values for name, values in read_table(path).items()
             if name not in RECIPE or name == "vocab_size"}
    steps = table["tokens"] / table["batch_tokens"]
    recipe = {name: np.array([value] * len(steps)) for name, value in RECIPE.items() if name not in table}
    recipe |= {"max_iters": steps, "lr_decay_iters": steps, "warmup_iters": np.round(0.02 * steps),
               "eval_interval": steps // 10, "target_flops": table["flops_6nd"]}
    plain, full = select(table), select(table | recipe)
    assert set(plain) == set(full) and plain["notes"] == full["notes"]
    for key in ("rows", "N", "D", "C", "L", "setting", "last", "some"):
        np.testing.assert_array_equal(plain[key], full[key])
    np.testing.assert_equal(plain["seed_noise"], full["seed_noise"])


# ---- Finished runs, and large tables. ----

def test_final_runs_are_the_last_rows_of_the_runs():
    table = table_of(run=["a", "b", "a"], params=1e6, tokens=[1e8, 1e8, 1e7], loss=[3.0, 3.1, 4.0])
    found = final_runs(table, "as given")
    assert set(found) == {"N", "D", "C", "L", "run"} and list(found["run"]) == ["a", "b"]
    assert found["L"].tolist() == [3.0, 3.1] and found["C"].tolist() == [6e14, 6e14]
    del table["run"]
    assert final_runs(table)["run"] is None and len(final_runs(table)["L"]) == 3
    with pytest.raises(UserError, match="params_total"):
        final_runs(table, "total")


@pytest.mark.parametrize("runs", [1, 30, 20_000])
def test_a_large_table_is_thinned_and_says_so(runs):
    n = 20_000
    table = {"run": np.arange(n) % runs, "params": np.full(n, 1e6), "tokens": 1e6 + np.arange(n),
             "loss": 3 + np.arange(n) / n}
    data = select(table)
    assert 0.1 * MAX_ROWS < len(data["some"]) <= MAX_ROWS
    assert f"of {n} rows, evenly spread" in data["notes"][-1]
    if data["curves"]:
        assert set(data["last"]) <= set(data["some"])
