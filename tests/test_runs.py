"""scaling/tables/runs.py: which rows a fit may use; what goes is said; what counts as a repeated seed."""
import re
from pathlib import Path

import numpy as np
import pytest

from runtime.basics import UserError
from scaling.tables.columns import HYPER
from scaling.tables.csv import number, read_table
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

@pytest.mark.parametrize("cell, value", [
    ("10,881,692", 10881692), ("331,776", 331776), ("1,234,567.5", 1234567.5), ("10.88M", 10.88e6),
    ("124M", 124e6), ("1.2B", 1.2e9), ("350 K", 350e3), ("3T", 3e12), (" 3e9 ", 3e9),
    ("10 881 692", 10881692), ("3\u202f741.5", 3741.5), ("1'500'000", 1.5e6)])
def test_numbers_as_people_write_them(cell, value):
    assert number(cell) == value


@pytest.mark.parametrize("cell", ["3,741", "3,74", "1,23,456", "12M4", "M", "0,123", "1_000", "5 m",
                                  "1.234.567", "3 5"])
def test_what_may_be_another_number_is_none(cell):
    """'3,741' is 3.741 to half of the world."""
    with pytest.raises(ValueError):
        number(cell)


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
    steps = table["tokens"] / table["batch_tokens"].min()     # the horizon's alone
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


# ---- Tables of others: whose columns, in what units. ----

def isoflop(**columns):
    """Twenty runs on four budgets and five sizes: L = 1.6 + 180/N^.30 + 700/D^.29, and other columns."""
    C = np.repeat(np.geomspace(1e17, 1e20, 4), 5)
    N = 0.1 * np.sqrt(C / 6) * np.tile([0.2, 0.5, 1, 2, 5], 4)
    D = C / (6 * N)
    return {"params": N, "tokens": D, "loss": 1.6 + 180 / N ** 0.30 + 700 / D ** 0.29} | columns


def tiled(times, **columns):
    """`isoflop` so many times over, and other columns."""
    return {name: np.tile(values, times) for name, values in isoflop().items()} | columns


def with_flops(change):
    t = isoflop()
    return t | {"flops": change(6 * t["params"] * t["tokens"], t["params"])}


def words(text, each=20):
    return np.repeat(np.array(text.split(), object), each)


@pytest.mark.parametrize("change, message", [
    (lambda C, N: C / 8.64e19, "flops are 1.16e-20 times 6 N D in every row (in PF-days): they are no"),
    (lambda C, N: C / 3e15, "in every row (the forward pass alone, 2 N D, in PFLOPs): they are no training"),
    (lambda C, N: np.log10(1.2 * C), "flops holds log10 of the FLOPs, not FLOPs"),
    (lambda C, N: np.log(C), "flops holds ln of the FLOPs, not FLOPs"),
    (lambda C, N: 6.1 * N, "flops are those of one token, 6.1 N"),
    (lambda C, N: C / 1e9 * (1 + 4e3 / N ** 0.5), "times 6 N D: they are no training FLOPs")])
def test_flops_that_are_none_are_refused_with_the_factor(change, message):
    with pytest.raises(UserError) as e:
        select(with_flops(change))
    assert message in str(e.value) and str(e.value).endswith("; pass --flops=6nd, and budgets in FLOPs")
    C = select(with_flops(change), flops="6nd")["C"]
    assert C == pytest.approx(np.repeat(np.geomspace(1e17, 1e20, 4), 5))


@pytest.mark.parametrize("factor, message", [
    (1 / 3, "are 0.333 times 6 N D in every row (the forward pass alone, 2 N D): they, or params, count"),
    (1.34, "are 1.34 times 6 N D in every row (activations computed twice, 8 N D): they, or params,"),
    (7.7, "are 7.7 times 6 N D in every row: they, or params, count something else, and budgets with t")])
def test_flops_that_are_other_by_one_factor_are_used_and_doubted(factor, message):
    data = select(with_flops(lambda C, N: factor * C))
    assert data["warnings"][0].startswith(f"flops {message}") and data["flops"] == "as given"
    assert data["C"][0] == pytest.approx(factor * 1e17)
    assert select(with_flops(lambda C, N: factor * C), flops="6nd")["warnings"] == []


def test_flops_of_head_and_attention_are_used_and_said():
    data = select(with_flops(lambda C, N: C * (1 + 800 / N ** 0.5)))
    low, high = (data["C"] / (6 * data["N"] * data["D"]))[[19, 0]]
    assert data["notes"] == [f"flops are {low:.3g} to {high:.3g} times 6 N D"] and data["warnings"] == []
    assert select(with_flops(lambda C, N: 1.01 * C))["notes"] == []
    data = select(with_flops(lambda C, N: C * np.where(np.arange(20) == 7, 10, 1)))
    assert data["warnings"] == ["flops are 10 times 6 N D in row 8, unlike those of their size"]
    one = {name: values[[0, 0, 0]] * [1, 2, 4] if name == "tokens" else values[[0, 0, 0]]
           for name, values in isoflop().items()}
    data = select(one | {"flops": 6.6 * one["params"] * one["tokens"]})         # one size: no constant factor
    assert data["notes"] == ["flops are 1.1 to 1.1 times 6 N D"]
    data = select(with_flops(lambda C, N: C / 3 * (1 + 800 / N ** 0.5)))
    assert "least for the largest: is the backward pass in them?" in data["warnings"][0]


@pytest.mark.parametrize("changes, message", [
    ({"params": 1e-6}, "params is "), ({"params": 1e-9}, "params is "), ({"tokens": 1e-9}, "tokens is "),
    ({"params": 1e-6, "tokens": 1e-9}, "params is "), ({"tokens": 1e-6}, "tokens is ")])
def test_counts_in_millions_or_billions_are_refused(changes, message):
    t = isoflop()
    with pytest.raises(UserError, match=f"{message}.* to .*: no study has so few; .* write them out, as 12"):
        select(t | {name: t[name] * factor for name, factor in changes.items()})


def test_a_quick_look_at_a_study_of_ours_is_no_mistake():
    row = {"study": "s", "run": "a", "commit": "0", "params_non_embedding": 900.0, "params_head": 96.0,
           "tokens": 192.0, "val_loss": 5.9, "vocab_size": 84.0}
    assert len(select(table_of(**{name: [value] for name, value in row.items()}))["L"]) == 1


@pytest.mark.parametrize("name, values, message", [
    ("loss", lambda L: np.exp(L), "if these are perplexities take their logarithm, if sums divide"),
    ("val_ppl", lambda L: np.exp(L), "column 'val_ppl' holds perplexities: take its logarithm, which is the"),
    ("train_loss", lambda L: L, "no column 'loss' or 'val_loss'; pass --loss=COLUMN, one of train_loss"),
    ("cost", lambda L: L, "; there are params, tokens, cost: rename them, or python -m scaling.logs FILE")])
def test_losses_that_are_none(name, values, message):
    t = isoflop()
    with pytest.raises(UserError) as e:
        select({"params": t["params"], "tokens": t["tokens"], name: values(t["loss"])})
    assert message in str(e.value)


def test_a_run_that_is_worse_than_a_guess_has_diverged():
    t = isoflop()
    t["loss"][[4, 9]] = 14, 80
    data = select(t)
    assert data["notes"] == ["dropped 2 of 20 rows: loss is worse than a guess (diverged) (rows 5, 10)"]
    t["loss"][[4, 9]] = 4.8, 5.2                       # of 84 characters a guess costs 4.4 nats
    assert len(select(t)["L"]) == 20 and len(select(t | {"vocab_size": np.full(20, 84.0)})["L"]) == 19


@pytest.mark.parametrize("names, notes", [
    ("N D L", ["params is the column 'N'", "tokens is the column 'D'"]),
    ("Model_Size train-tokens val/loss", ["params is the column 'Model_Size'",
                                          "tokens is the column 'train-tokens'"]),
    ("num_params tokens bpb", ["params is the column 'num_params'",
                               "bpb is in bits per byte: so are the floor of a law and losses at a budget"])])
def test_obvious_names_of_columns_are_known_and_said(names, notes):
    data = select(dict(zip(names.split(), isoflop().values())))
    assert data["notes"] == notes and data["loss_column"] == names.split()[2]
    assert data["L"].tolist() == isoflop()["loss"].tolist()


def test_a_validation_loss_goes_first_unless_another_is_asked_for():
    t = isoflop(val_loss=isoflop()["loss"] + 0.1)
    data = select(t)
    assert data["L"].tolist() == t["val_loss"].tolist()
    assert data["notes"] == ["loss is the column 'val_loss'; --loss=loss takes the other"]
    assert select(t, loss="loss")["L"].tolist() == t["loss"].tolist()
    with pytest.raises(UserError, match="no column 'eval', which the fit needs"):
        select(t, loss="eval")


# ---- What makes a setting, and what a seed. ----

UNTOLD = {"wall_s": np.arange(40) / 7, "tokens_per_sec": np.arange(40) % 7 / 3, "commit": words("a b"),
          "grad_norm": np.arange(40) / 9, "hellaswag_acc": np.arange(40) / 11, "Unnamed: 0": np.arange(40),
          "name": np.array([f"r{i}" for i in range(40)], object), "GPU": words("a100 h100"),
          "n_blocks": np.round(tiled(2)["params"] ** 0.3), "trial": np.repeat([1.0, 2], 20)}


def seeds(**columns):
    t = tiled(2, **columns)
    return t | {"loss": t["loss"] * np.repeat([1.002, 0.998], 20)}


def test_results_names_and_what_follows_from_size_and_tokens_part_no_seeds():
    data = select(seeds(**UNTOLD))
    assert data["seed_df"] == 20 and data["separate"] == [] and data["warnings"] == []
    assert data["seed_noise"] == pytest.approx(0.002 * 2 ** 0.5, rel=1e-3)


def test_any_other_number_makes_a_setting_and_says_how_to_keep_one():
    data = select(seeds(quality=np.repeat([10.0, 80], 20)))
    assert data["seed_df"] == 0 and data["separate"] == ["quality"] and len(data["L"]) == 40
    assert data["warnings"] == ["rows of the same size and tokens differ in 'quality', which holds 2 values "
                                "(10, 80): a law through all is none of theirs; --where=quality=80 keeps "
                                "one, --best_of=quality the best; if it only numbers seeds, call it seed"]
    data = select(seeds(quality=np.repeat([10.0, 80], 20)), where=["quality=80"])
    assert data["rows"].tolist() == list(range(20, 40)) and data["warnings"] == []
    assert data["notes"] == ["dropped 20 of 40 rows: --where=quality=80 keeps the others (rows 1, 2, 3, 4, 5 "
                             "and 15 more)"]
    assert "take the column out" in select(seeds(arc=np.arange(40) / 7.0))["warnings"][0]


@pytest.mark.parametrize("columns, message", [
    ({"optimizer": words("adamw muon")}, "column 'optimizer' holds 2 values (adamw, muon): their losses do "
                                         "not compare; keep one, with --where=optimizer=adamw"),
    ({"init": words("mup sp")}, "differ in 'init', which holds 2 values (mup, sp): no law goes through all; "
                                "keep one, with --where=init=mup")])
def test_words_that_part_the_runs_are_refused(columns, message):
    with pytest.raises(UserError, match=re.escape(message)):
        select(seeds(**columns))
    name, values = next(iter(columns.items()))
    assert len(select(seeds(**columns), where=[f"{name}={values[-1]}"])["L"]) == 20
    assert len(select(seeds(arm=words("x y"), **columns))["L"]) == 40          # a study that compares them


def test_words_among_sizes_are_doubted_unless_they_are_names_of_the_sizes():
    t = isoflop()
    assert select(t | {"size": np.array([f"{n:.1g}" for n in t["params"]], object)})["warnings"] == []
    data = select(t | {"attention": np.tile(np.array("full local sparse full".split(), object), 5)})
    assert data["warnings"] == ["'attention' holds 3 values (full, local, sparse) among these runs: if their "
                                "losses make no one law, keep one with --where=attention=full"]


@pytest.mark.parametrize("pairs, message", [
    (["loss"], "--where=loss: COLUMN=VALUE is needed"), (["los=3"], "of the table (did you mean 'loss'?)"),
    (["loss="], "--where=loss=: no row has that; loss holds 20 values (2.6"),
    (["quality=b"], "no row has that; quality holds 2 values (a, c)"),
    (["quality=a", "kind=y"], "--where=quality=a --where=kind=y: no row has all of these")])
def test_where_names_what_is_there(pairs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        select(isoflop(quality=words("a c", 10), kind=words("x y", 10)), where=pairs)


def test_of_a_grid_of_hyper_parameters_the_best_of_each_size_counts():
    """Though the steps of a batch are rounded, so that tokens differ a little."""
    t = {name: np.repeat(values, 8) for name, values in isoflop().items()}
    rate = np.tile([1e-3, 2e-3, 4e-3, 8e-3], 40)
    batch = np.tile(np.repeat([2 ** 15, 2 ** 16], 4), 20)
    t["loss"] = t["loss"] * (1 + 0.02 * np.log2(rate / 2e-3) ** 2 + 0.01 * (batch == 2 ** 16))
    data = select(t | {"peak_lr": rate, "batch_size": batch, "tokens": np.round(t["tokens"] / batch) * batch})
    assert data["rows"].tolist() == list(range(1, 160, 8)) and data["seed_df"] == 0
    assert data["separate"] == ["peak_lr", "batch_size"] and data["warnings"] == []
    assert data["notes"] == ["dropped 140 of 160 rows: another choice of peak_lr and batch_size was better "
                             "at the same size and tokens (rows 1, 3, 4, 5, 6 and 135 more)"]
    other = {name: values[batch == 2 ** 15] for name, values in (t | {"shape": rate}).items()}
    assert len(select(other)["L"]) == 80
    note, = select(other, tuned=["shape"])["notes"]
    assert note.startswith("dropped 60 of 80 rows: another choice of shape was better at the same size")


def test_the_same_row_under_another_name_or_index_is_one_run():
    names = np.array([f"r{i}" for i in range(40)], object)
    for name, values in (("", np.arange(40.0)), ("Unnamed: 0", np.tile(np.arange(20.0), 2)),
                         ("nr", np.arange(40.0) + 1), ("run", names), ("model_name", names),
                         ("created_at", names), ("exported_at", np.repeat(names[:2], 20))):
        data = select(tiled(2, **{name: values}))
        assert data["rows"].tolist() == list(range(20)) and data["seed_df"] == 0, name


# ---- Rows halfway along a run. ----

def curves(**columns):
    """Three sizes and two horizons of ten rows each, halfway above the law as under a cosine."""
    N, ratio, part = (v.ravel() for v in np.meshgrid([1e7, 3e7, 9e7], [20, 80], np.arange(1, 11) / 10,
                                                     indexing="ij"))
    D = N * ratio * part
    L = (1.6 + 180 / N ** 0.30 + 700 / D ** 0.29) * (1 + 0.1 * (1 - part))
    return {"run": np.array([f"{n:g}_{r:g}" for n, r in zip(N, ratio)], object), "params": N, "tokens": D,
            "step": 1000 * part, "loss": L} | columns


@pytest.mark.parametrize("columns, last", [
    ({}, True), ({"schedule": words("cosine", 60)}, True), ({"lr_scheduler": words("linear", 60)}, True),
    ({"schedule": words("constant", 60)}, False), ({"lr_schedule": words("WSD", 60)}, False)])
@pytest.mark.parametrize("named", [True, False])
def test_only_the_last_row_of_a_run_whose_rate_falls_is_one(columns, last, named):
    table = curves(**columns)
    if not named:
        del table["run"]
    data = select(table)
    assert len(data["last"]) == 6 and data["seed_df"] == 0 and data["curves"] == (not last)
    assert data["rows"].tolist() == (list(range(9, 60, 10)) if last else list(range(60)))
    assert any("halfway along a run is no finished run" in note for note in data["notes"]) == last


def test_runs_without_names_begin_where_the_steps_start_over():
    """Steps of evaluations are rounded, so the gaps between them differ by one."""
    table = curves(step=np.round(np.tile(np.arange(1, 11), 6) * np.repeat([47.3, 189.2] * 3, 10)))
    del table["run"]
    data = select(table)
    assert data["rows"].tolist() == list(range(9, 60, 10)) and data["seed_df"] == 0


def test_curves_of_one_horizon_are_used_where_no_schedule_is_told_and_doubted():
    table = {name: values[np.arange(60) % 20 < 10] for name, values in curves().items()}
    table["tokens"] = table["tokens"] / table["params"] * 1e7
    data = select(table)
    assert len(data["L"]) == 30 and data["curves"] and "as if the rate never fell" in data["warnings"][0]
    assert select(table | {"schedule": words("constant", 30)})["warnings"] == []
    assert len(select(table | {"schedule": words("cosine", 30)})["L"]) == 3


def test_finished_runs_that_tell_their_steps_are_no_curves():
    t = isoflop()
    assert len(select(t | {"step": np.round(t["tokens"] / 1e5)})["L"]) == 20
    data = select(seeds(run=np.repeat([1.0, 2.0], 20)))                # a run of many sizes counts seeds
    assert data["seed_df"] == 20 and data["run"] is None
    sizes = np.array([f"{n:.3g}" for n in tiled(2)["params"]], object)
    data = select(seeds(run=sizes, seed=np.repeat([1.0, 2.0], 20)))    # and here they name the models
    assert data["seed_df"] == 20 and data["run"] is None


# ---- What to doubt. ----

def test_sizes_that_do_worse_for_good_are_doubted_and_named():
    table = table_of(params=[1e6, 3e6, 1e7, 3e7], tokens=1e9, loss=[3.5, 3.2, 3.3, 3.4], name=list("abcd"))
    assert select(table)["warnings"] == ["loss rises with N at equal D in rows 3 (c), 4 (d): larger models "
                                         "are untuned, diverged or overfitted"]
    table["loss"][3] = 3.1                             # one of another shape
    assert select(table)["warnings"] == []
    longer = table_of(params=1e7, tokens=[1e8, 2e8, 4e8], loss=[3.5, 3.3, 4.9])
    assert select(longer)["warnings"] == ["loss rises with D at equal N in row 3: longer runs are untuned, "
                                          "diverged or overfitted"]


def test_a_best_rate_at_the_edge_of_its_grid_is_doubted():
    table = table_of(params=[1e6] * 3 + [1e7] * 3, tokens=1e9, lr=[1e-3, 2e-3, 4e-3] * 2,
                     loss=[3.5, 3.4, 3.6, 3.0, 3.1, 3.2])
    assert select(table)["warnings"] == ["the best lr is the lowest or highest tried in row 4: a wider grid "
                                         "may find a better one"]
    assert select({name: values[[0, 1, 3, 4]] for name, values in table.items()})["warnings"] == []


@pytest.mark.parametrize("columns, text", [
    ({"step": [10, 10, 7], "max_iters": 10}, "step is less than max_iters in row 3: they ended early"),
    ({"step": 1000, "batch_tokens": 1000}, "tokens are 100 to 100 times step x batch_tokens: one of these "
                                           "counts something else"),
    ({"target_tokens": [1e8, 3e8, 3e8]}, "tokens is less than target_tokens in rows 2, 3: they ended early"),
    ({"State": ["finished", "crashed", "finished"]},
     "state is crashed in row 2; --where=State=finished leaves them out"),
    ({"state": ["FINISHED", "Crashed", "FINISHED"]},
     "state is crashed in row 2; --where=state=FINISHED leaves them out"),
    ({"train_loss": [3.0, np.nan, 3.1]}, "train_loss is no number in row 2: did these diverge?")])
def test_runs_that_did_not_end_well_are_doubted(columns, text):
    table = table_of(params=[1e6, 2e6, 4e6], tokens=1e8, loss=[3.3, 3.2, 3.1], **columns)
    assert select(table)["warnings"] == [text]


# ---- Tables that were fitted without a word, though something was wrong. ----

@pytest.mark.parametrize("rows, text", [
    ([0], "row 1"),                                    # nothing is smaller, but another seed did better
    ([7, 13], "rows 8, 14")])
def test_a_seed_or_a_run_that_does_far_worse_than_a_smaller_one_is_named(rows, text):
    t = seeds()
    t["loss"][rows] *= 1.3
    warned = select(t)["warnings"]
    assert warned[0] == (f"loss is far above that of a run with no more parameters and tokens in {text}: "
                         "diverged, untuned or overfitted")
    repeated = select(t | {"unique_tokens": t["tokens"] / 9})["warnings"]
    assert repeated == warned[1:]                      # who repeats data may do worse


def test_runs_that_stand_twice_with_another_rounding_are_doubted():
    t = seeds()
    t["loss"] = np.concatenate([t["loss"][:20], np.round(t["loss"][:20], 3)])
    assert any("are the same runs twice, keep one" in text for text in select(t)["warnings"])


def test_rows_that_nothing_tells_apart_and_that_differ_by_more_than_seeds_do():
    t = seeds()
    t["loss"] *= np.repeat([1.03, 1], 20)
    said = "rows that are equal in all that the table tells differ by 2.4% (standard deviation): more than"
    assert select(t)["warnings"][0].startswith(said)
    assert select(t | {"seed": np.zeros(40)})["warnings"][0].startswith(said)
    assert select(t | {"seed": np.repeat([1.0, 2], 20)})["warnings"] == []


@pytest.mark.parametrize("name", ["dataset_name", "Optimizer-Name", "train_set", "eval_dataset"])
def test_data_and_optimizers_under_other_names_are_not_mixed(name):
    with pytest.raises(UserError, match=f"column '{name}' holds 2 values .* keep one, with --where={name}=a"):
        select(tiled(2, **{name: words("a b")}))


@pytest.mark.parametrize("name", ["n_warmup_steps", "max_grad_norm", "bsz", "z_loss_weight", "gbs", "gbsz"])
def test_of_what_is_tuned_under_other_names_the_best_counts(name):
    t = tiled(2, **{name: np.repeat([1.0, 2], 20)})
    data = select(t | {"loss": t["loss"] * np.repeat([1.02, 1], 20)})
    assert data["separate"] == [name] and data["rows"].tolist() == list(range(20, 40))


@pytest.mark.parametrize("name", ["replica", "repetition", "attempt", "fold"])
def test_seeds_under_other_names(name):
    data = select(seeds(**{name: np.repeat([1.0, 2], 20)}))
    assert data["seed_df"] == 20 and data["warnings"] == []


def along_runs(rows=10):
    """Six runs, two horizons of three sizes, with `rows` rows each."""
    N = np.repeat([1e7, 1e7, 3e7, 3e7, 1e8, 1e8], rows)
    D = (np.array([1e9, 4e9] * 3)[:, None] * np.arange(1, rows + 1) / rows).ravel()
    seed = np.repeat([1, 1.001], rows)                 # no two runs have a row in common
    return {"params": N, "tokens": D,
            "loss": (1.6 + 180 / N ** 0.30 + 700 / D ** 0.29) * np.tile(seed, 3)}


@pytest.mark.parametrize("name", ["name", "Experiment", "model"])
def test_curves_under_another_name_than_run(name):
    t = along_runs()
    t[name] = words("a b c d e f", 10)
    data = select(t)
    assert data["rows"].tolist() == [9, 19, 29, 39, 49, 59] and "no finished run" in data["notes"][-1]
    few = along_runs(4)
    few[name] = words("s s m m l l", 4)                # sizes, not runs: the rows of one are many
    assert len(select(few)["L"]) == 24


def log_spaced_curves():
    """Three cosine runs of eight rows at each of two sizes, of 20, 60 and 200 tokens a parameter."""
    N, ratio = (v.ravel() for v in np.meshgrid([1e7, 1e8], [20, 60, 200], indexing="ij"))
    share = np.geomspace(0.01, 1, 8)
    D = np.outer(N * ratio, share)
    L = 1.6 + 180 / N[:, None] ** 0.30 + 700 / D ** 0.29 + 0.2 * np.sqrt(1 - share)
    return {"params": np.repeat(N, 8), "tokens": D.ravel(), "loss": L.ravel()}, np.repeat(N * ratio, 8)


@pytest.mark.parametrize("name", ["job", "exp_name", "W&B ID", "trial", "target_tokens", "tokens_per_param"])
def test_any_column_that_tells_curves_apart_names_the_runs(name):
    t, horizon = log_spaced_curves()
    names = words("a b c d e f", 8)
    t[name] = {"target_tokens": horizon, "tokens_per_param": horizon / t["params"]}.get(name, names)
    for order in (slice(None), np.random.default_rng(1).permutation(48)):
        data = select({key: values[order] for key, values in t.items()})
        assert sorted(data["D"]) == [2e8, 6e8, 2e9, 2e9, 6e9, 2e10] and not data["curves"]
        assert f"run is the column {name!r}, which tells curves apart" in data["notes"]


def test_names_in_a_grid_of_finished_runs_are_no_curves():
    t, _ = log_spaced_curves()
    t["tokens"] = np.tile(np.geomspace(1e8, 1e10, 8), 6)           # three recipes at each size
    t["job"] = words("a b c d e f", 8)
    with pytest.raises(UserError, match="of the same size and tokens differ in 'job'"):
        select(t)


def test_tokens_that_start_over_at_each_size_look_like_curves():
    t, _ = log_spaced_curves()
    assert "as along a run: if these rows are curves" in select(t)["warnings"][-1]
    finished = {name: values[np.argsort(t["tokens"])] for name, values in t.items()}
    assert not any("as along a run" in text for text in select(finished)["warnings"])


def test_tokens_in_even_steps_look_like_curves():
    said = "tokens rise at each size as along a run"
    assert select(along_runs())["warnings"][-1].startswith(said)
    assert not any(said in text for text in select(along_runs(4))["warnings"])


def test_a_rate_that_falls_says_that_rows_halfway_are_no_runs():
    one_horizon = np.repeat([True, False] * 3, 10)
    t = {name: values[one_horizon] for name, values in along_runs().items()}
    t["run"] = words("a b c", 10)
    assert len(select(t)["L"]) == 30                   # nothing tells
    assert len(select(t | {"lr": np.full(30, 1e-3)})["L"]) == 30
    data = select(t | {"lr": np.tile(np.linspace(1e-3, 1e-4, 10), 3)})
    assert data["rows"].tolist() == [9, 19, 29]


def test_of_a_rate_that_falls_the_peak_is_what_was_tried():
    """At its end each of these is nearly 0."""
    t = {name: np.tile(values[:20], 2) for name, values in along_runs().items()}
    t["run"] = words("a b c d", 10)
    t["loss"][20:] *= 1.02
    data = select(t | {"lr": np.repeat([1e-3, 3e-3], 20) * np.tile(np.linspace(1, 1e-4, 10), 4)})
    assert data["rows"].tolist() == [9, 19] and data["separate"] == ["lr"]
    assert data["table"]["lr"].tolist() == [1e-3, 1e-3]


def test_a_perplexity_of_held_out_text_beside_another_loss_is_said():
    t = isoflop()
    note = "loss is the column 'loss'; the logarithm of 'val_ppl' is that of held-out text"
    assert select(t | {"val_ppl": np.exp(t["loss"])})["notes"] == [note]
    assert select({"val_loss": t.pop("loss"), "val_ppl": np.exp(2 * t["tokens"] ** 0), **t})["notes"] == []


def test_several_eval_sets_beside_a_loss_are_a_question():
    t = isoflop()
    one = t | {"loss": t["loss"] - 0.1, "c4/val_loss": t["loss"]}
    assert select(one)["loss_column"] == "c4/val_loss"
    assert select(one)["notes"] == ["loss is the column 'c4/val_loss'; --loss=loss takes the other"]
    with pytest.raises(UserError, match="which loss.*--loss=COLUMN, one of c4/val_loss, wiki/val_loss, loss"):
        select(one | {"wiki/val_loss": t["loss"]})
    assert select(one | {"best_val_loss": t["loss"], "val_loss": t["loss"]})["loss_column"] == "val_loss"


@pytest.mark.parametrize("name, good, bad", [
    ("status", "done", "in progress"), ("state", "completed", "preempted"), ("finished", "True", "False")])
def test_runs_that_are_not_finished_in_other_words(name, good, bad):
    t = isoflop(**{name: np.array([good] * 19 + [bad], object)})
    said = f"{name} is {bad.lower()} in row 20; --where={name}={good} leaves them out"
    assert said in select(t)["warnings"]
    assert select(isoflop(**{name: words(good)}))["warnings"] == []


def test_flops_in_other_units_make_no_tokens():
    t = isoflop()
    C = 6 * t["params"] * t["tokens"]
    for flops in (C / 8.64e19, np.log10(C), C / 1e12):
        with pytest.raises(UserError, match="^flops are .* no tokens: write them out"):
            select({"N": t["params"], "C": flops, "loss": t["loss"]})
    assert select({"N": t["params"], "C": C, "loss": t["loss"]})["D"] == pytest.approx(t["tokens"])


@pytest.mark.parametrize("cell", ["NA", "n/a", "#N/A", "null", "-", " ", "None", "diverged", "OOM"])
def test_cells_that_say_that_nothing_is_there(cell):
    assert np.isnan(number(cell))


@pytest.mark.parametrize("step", [True, False])
def test_curves_sorted_by_step_are_curves(step):
    """Rows of all runs at one step, then of all at the next, as a pivot table has them."""
    t = {name: values[np.repeat([True, False] * 3, 10)] for name, values in along_runs().items()}
    t["tokens"] = np.tile(t["tokens"][:10], 3)
    t |= {"step": t["tokens"] / 1e6} if step else {}
    data = select({name: values.reshape(3, 10).T.ravel() for name, values in t.items()})
    said = "as if the rate never fell" if step else "tokens rise at each size as along a run"
    assert said in data["warnings"][-1] and len(data["last"]) == (3 if step else 30)


def test_several_counts_of_tokens_are_a_question():
    t = isoflop()
    with pytest.raises(UserError, match="which tokens are D. There are tokens_seen, train_tokens: call one "):
        select({"tokens_seen": t["tokens"], "train_tokens": t.pop("tokens") / 4, **t})
    t = isoflop(tokens_seen=4 * isoflop()["tokens"], active_params=isoflop()["params"] / 8)
    assert select(t)["notes"] == ["params is the column of that name, and not 'active_params'",
                                  "tokens is the column of that name, and not 'tokens_seen'"]


def by_lines(values, n=20):
    return np.repeat(np.array(values), n // len(values))


@pytest.mark.parametrize("name, pair", [("lr", [1e-3, 3e-3]), ("split", words("train val", 1)),
                                        ("optimizer_kind", words("adam muon", 1))])
def test_a_run_column_that_names_models_makes_no_curves(name, pair):
    """Two rows of one name and as many tokens that were trained or measured in two ways are no curve."""
    t = tiled(2, run=np.tile([f"r{i}" for i in range(20)], 2), **{name: np.repeat(pair, 20)})
    t["loss"] = t["loss"] * np.repeat([1.02, 1], 20)
    if name != "lr":
        with pytest.raises(UserError, match=f"differ in '{name}'.*keep one, with --where={name}="):
            select(t)
        return
    data = select(t)
    assert data["rows"].tolist() == list(range(20, 40)) and not data["curves"]
    assert "another choice of lr was better" in data["notes"][0]


def test_a_run_that_stands_twice_with_two_losses_is_two_seeds():
    t = seeds(run=np.tile([f"r{i}" for i in range(20)], 2))
    data = select(t)
    assert data["seed_df"] == 20 and len(data["L"]) == 40 and data["notes"] == []


@pytest.mark.parametrize("names", ["total_params active_params", "Total-Parameters non_embedding_parameters",
                                   "N n_params_active"])
def test_several_counts_of_parameters_are_a_question(names):
    t = isoflop()
    first, second = names.split()
    table = {first: 8 * t.pop("params"), **t}
    asked = re.escape(f"which parameters are N? There are {first}, {second}: call one of them params")
    with pytest.raises(UserError, match=asked):
        select(table | {second: table[first] / 8})
    assert len(select(table | {second: table[first]})["L"]) == 20
    assert select(table | {second: table[first] / 8, "params": table[first] / 8})["params"] == "as given"


@pytest.mark.parametrize("name, values", [("vocab_size", np.tile([32000, 32000, 50257, 50257, 50257], 4)),
                                          ("n_vocab", by_lines([4096, 32768])),
                                          ("num_experts", np.tile([1, 8], 10)),
                                          ("seq_len", np.tile([512, 1024, 2048, 512, 1024], 4)),
                                          ("precision", np.tile([16, 8, 4, 4], 5))])
def test_numbers_that_part_losses_are_doubted(name, values):
    told = select(isoflop(**{name: values.astype(float)}))["warnings"]
    assert len(told) == 1 and told[0].startswith(f"{name!r} holds ") and f"--where={name}=" in told[0]
    assert select(isoflop(**{name: np.full(20, 32000.0)}))["warnings"] == []
    assert select(isoflop(vocab_size=np.tile([50257.0, 50304], 10)))["warnings"] == []     # padded


def test_epochs_without_unique_tokens_are_doubted():
    t = isoflop(epochs=np.full(20, 4.0))
    assert select(t)["warnings"] == ["epochs is 4 to 4, and no column unique_tokens says what was repeated: "
                                     "tokens count all epochs, and unique_tokens one"]
    assert select(t | {"unique_tokens": t["tokens"] / 4})["warnings"] == []
    assert select(t | {"epochs": np.full(20, 0.3)})["warnings"] == []


def test_a_flag_of_the_last_row_says_which_value_to_keep():
    told = select(tiled(2, is_final=words("False True")) | {"tokens": np.geomspace(1e8, 1e11, 40)})
    assert [text for text in told["warnings"] if "is_final" in text] == [
        "is_final is false in rows 1, 2, 3, 4, 5 and 15 more; --where=is_final=True leaves them out"]


def test_a_count_of_layers_is_no_loss():
    t = isoflop()
    loss = t.pop("loss")
    table = {"N": t["params"], "D": t["tokens"], "L": np.round(t["params"] ** 0.1)}
    with pytest.raises(UserError, match="no column 'loss' or 'val_loss'"):
        select(table)
    for name in ("cross_entropy", "test/CrossEntropyLoss", "final_ce"):
        with pytest.raises(UserError, match=f"pass --loss=COLUMN, one of {name}$"):
            select(table | {name: loss})
    assert select(table | {"L": loss})["loss_column"] == "L"


def test_what_lacks_says_what_would_do():
    t = isoflop()
    data = select({"N": t["params"], "compute": 6 * t["params"] * t["tokens"], "loss": t["loss"]})
    assert data["D"] == pytest.approx(t["tokens"])
    with pytest.raises(UserError, match="no column 'tokens'.*; or a column flops; tokens are steps x batch"):
        select({"N": t["params"], "steps": t["tokens"] / 5e5, "loss": t["loss"]})
    with pytest.raises(UserError, match=r"no column 'loss' or 'val_loss'; pass --loss=COLUMN, one of loss_m"):
        select({"N": t["params"], "tokens": t["tokens"], "loss_mean": t["loss"], "loss_std": t["loss"]})


def test_curves_of_several_kinds_are_refused_or_doubted():
    t = along_runs() | {"run": words("a b c d e f", 10), "schedule": words("constant", 60)}
    two = {name: np.tile(values, 2) for name, values in t.items()}
    two |= {"run": np.repeat([f"{kind}{i}" for kind in "xy" for i in range(6)], 10).astype(object),
            "loss": two["loss"] * np.repeat([1, 1.02], 60), "init": words("mup sp", 60)}
    with pytest.raises(UserError, match="differ in 'init', which holds 2 values .mup, sp."):
        select(two)
    assert select(t)["warnings"] == []
    attention = words("full full local local full full", 10)       # by size
    assert select(t | {"attention": attention})["warnings"][0].startswith("'attention' holds 2 values")
