"""Tables and logs as people have them (../shared/field): what is right for each is in its README.md."""
import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from runtime.basics import UserError, exit_cleanly
from scaling import fit, logs
from scaling.laws import forms
from scaling.tables.csv import read_table
from scaling.tables.runs import select

FIELD = Path(__file__).resolve().parents[2] / "shared" / "field"
pytestmark = pytest.mark.skipif(not FIELD.exists(), reason="needs ../shared/field")


# ---------------------------------------------------------------- logs


def points(out: Path, *args) -> tuple[dict, str]:
    """(the table that `scaling.logs ARGS` writes, or {}; what it says)."""
    said = io.StringIO()
    quiet = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
    with quiet[0], quiet[1], pytest.raises(SystemExit) as stop:
        exit_cleanly(lambda: logs.main([*map(str, args), f"--out={out / 'points.csv'}"]))
    return read_table(out / "points.csv") if not stop.value.code else {}, said.getvalue()


def test_two_models_in_one_log(tmp_path):
    table, said = points(tmp_path, FIELD / "two_models.log")
    runs = {run: table["run"] == run for run in dict.fromkeys(table["run"])}
    last = [[table[name][rows][-1] for name in ("params", "tokens", "loss")] for rows in runs.values()]
    assert last == [[10.65e6, 4000 * 16_384, 1.5512], [0.80e6, 2000 * 8_192, 2.3012]]
    assert "two_models.log: nanoGPT console log, 2 runs; loss is val_loss" in said


def test_a_log_that_diverges(tmp_path):
    table, said = points(tmp_path, FIELD / "diverged.log")
    assert table == {} and "diverged at step 1030: what came before is no result" in said


def test_llmc_and_two_sets_of_evaluation(tmp_path):
    table, _ = points(tmp_path, FIELD / "llmc_main.log", "--params=1e8", "--batch_tokens=1000")
    assert (table["step"][-1], table["loss"][-1], table["tokens"][-1]) == (500, 4.90, 500_000)
    two = [FIELD / "two_eval_sets.json", "--params=1e8", "--batch_tokens=1000"]
    table, said = points(tmp_path / "no", *two)
    assert table == {} and "choose with --loss= one of eval_c4_loss, eval_wiki_loss" in said
    for name, losses in (("wiki", [3.9, 3.4]), ("c4", [4.1, 3.6])):
        assert list(points(tmp_path, *two, f"--loss=eval_{name}_loss")[0]["loss"]) == losses


def test_curves_need_no_joining_by_hand(tmp_path):
    sizes = {"s": 5e7, "m": 1e8, "l": 2e8, "x": 4e8}
    table, said = points(tmp_path, *(f"{FIELD}/curves/{name}_*.csv={size}" for name, size in sizes.items()))
    assert len(table["loss"]) == 300 and len(set(table["run"])) == 12 and "12 logs: table, 1 run" in said
    for name, size in sizes.items():
        for horizon in (20, 60, 200):
            rows = table["run"] == f"{FIELD.as_posix()}/curves/{name}_{horizon}x"
            assert rows.sum() == 25 and set(table["params"][rows]) == {size}
            assert table["tokens"][rows][-1] == pytest.approx(horizon * size, rel=.01)


def test_a_table_of_nanochat_keeps_its_unit(tmp_path):
    names = ["params=params_total", "tokens=tokens_trained", "loss=val_bpb", "flops=flops_budget", "run=run"]
    table, said = points(tmp_path, FIELD / "nanochat_like.csv", "--map", *names)
    theirs = read_table(FIELD / "nanochat_like.csv")
    assert "loss is val_bpb, in bits per byte, not nats" in said
    assert set(table["loss_unit"]) == {"bits per byte"}
    for ours, name in (pair.split("=") for pair in names):
        np.testing.assert_array_equal(table[ours], theirs[name])


def test_what_was_tried_of_each_run_stays_in_the_table(tmp_path):
    table, _ = points(tmp_path, FIELD / "hp_grid.csv", "--map", "params=N", "tokens=D", "loss=loss")
    theirs = read_table(FIELD / "hp_grid.csv")
    assert len(table["loss"]) == 240
    for ours, name in (("params", "N"), ("tokens", "D"), ("loss", "loss"), ("lr", "lr"), ("bs", "bs")):
        np.testing.assert_array_equal(table[ours], theirs[name])


@pytest.mark.parametrize("name", ["semicolon.csv", "trailing_commas.csv", "dup_index.csv"])
def test_tables_as_programs_write_them(name):
    table = read_table(FIELD / name)
    assert [column for column in table if column != "index"] == ["params", "tokens", "loss"]
    assert (table["params"][0], table["tokens"][0], table["loss"][0]) == (10881692, 15316245852, 3.74404)
    assert len(table["loss"]) == (40 if name == "dup_index.csv" else 20)


# ---------------------------------------------------------------- which rows a fit may use, in what units

def chosen(name, **asked):
    return select(read_table(FIELD / name), **asked)


def surface(data):
    return forms.fit_surface(*fit.rows(data))


def test_flops_of_the_forward_pass():
    told, = chosen("flops_forward.csv")["warnings"]
    assert told.startswith("flops are 0.333 times 6 N D in every row (the forward pass alone, 2 N D): ")
    data = chosen("flops_forward.csv", flops="6nd")
    for found in (surface(data), fit.isoflop(data, 100)):
        best = forms.optimum(found, 1e21)
        assert (best["N_opt"], best["D_opt"]) == pytest.approx((1.24e9, 1.35e11), rel=0.01)
        assert best["loss"] == pytest.approx(2.316, abs=0.001)


def test_shares_of_the_data_are_no_seeds():
    data = chosen("data_pct.csv")
    assert data["seed_df"] == 0 and data["separate"] == ["data_pct"] and len(set(data["N"])) == 4
    assert "--where=data_pct=100 keeps one" in data["warnings"][0]
    for part in (data, chosen("data_pct.csv", where=["data_pct=100"])):
        law = fit.power("N", part, 0)
        assert (law["n"], law["L_inf"]) == (4, pytest.approx(1.2, abs=2e-3))
        assert law["N_c"] ** law["alpha"] == pytest.approx(3.4, abs=0.01)
        assert law["alpha"] == pytest.approx(0.14, abs=1e-3)


def test_a_grid_of_hyper_parameters_gives_its_best():
    data = chosen("hp_grid.csv")
    assert data["seed_df"] == 0 and data["separate"] == ["lr", "bs"] and len(data["L"]) == 20
    best = forms.optimum(surface(data), 1e20)
    assert best["loss"] == pytest.approx(2.602, abs=1e-3)
    assert best["ci"]["loss"] == pytest.approx([2.589, 2.614], abs=2e-3)


def test_an_index_tells_no_rows_apart():
    data = chosen("dup_index.csv")
    assert len(data["L"]) == 20 and data["seed_df"] == 0
    law = surface(data)
    assert law["a"] == pytest.approx(0.4837, abs=1e-4)
    assert law["ci"]["a"] == pytest.approx([0.4757, 0.4906], abs=1e-3)


def test_perplexities_are_no_nats():
    with pytest.raises(UserError, match=r"loss is 10\.13 to 42\.52, .* take their logarithm"):
        chosen("loss_ppl.csv")


def test_a_family_with_one_rate_for_all_sizes():
    data = chosen("family_untuned.csv")
    assert data["warnings"] == ["loss rises with N at equal D in rows 4 (large), 5 (xl): larger models are "
                                "untuned, diverged or overfitted"]
    law = fit.power("N", data, 0)
    assert law["n"] == 3
    assert law["note"].endswith("2 of 5 values of N are left out, as less N did better: 3.5e+07, 9e+07")


@pytest.mark.parametrize("named", [True, False])
def test_rows_halfway_along_a_cosine_are_no_runs(named):
    sizes = {"s": 5e7, "m": 1e8, "l": 2e8, "x": 4e8}
    parts = []
    for path in sorted((FIELD / "curves").glob("*.csv")):
        t = read_table(path)
        parts.append({"run": np.full(len(t["_step"]), path.stem, object), "step": t["_step"],
                      "params": np.full(len(t["_step"]), sizes[path.stem[0]]),
                      "tokens": t["throughput/total_tokens"], "loss": t["eval/loss"]})
    table = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if named or key != "run"}
    data = select(table)
    assert len(data["L"]) == len(data["last"]) == 12 and data["seed_df"] == 0 and not data["curves"]
    assert "dropped 288 of 300 rows: halfway along a run is no finished run" in data["notes"][0]
    law = surface(data)
    assert (law["beta"], law["a"]) == pytest.approx((0.357, 0.517), abs=1e-3)
    assert law["ci"]["beta"] == pytest.approx([0.315, 0.401], abs=0.01)
    assert law["ci"]["a"] == pytest.approx([0.390, 0.723], abs=0.02)
    assert forms.loss_of(law, {"N": 3.2e9, "D": 6.4e11}) == pytest.approx(2.141, abs=1e-3)


# ---------------------------------------------------------------- laws: own tokens; what runs cannot tell

@pytest.mark.parametrize("counted, a, b", [("total", 0.453, 0.485), ("matmul", 0.541, 0.490),
                                           ("transformer", 0.634, 0.478)])
def test_tokens_are_the_rows_own_however_n_is_counted(counted, a, b):
    t = read_table(FIELD / "nanochat_like.csv")
    table = {"params": t[f"params_{counted}"], "tokens": t["tokens_trained"], "loss": t["val_bpb"],
             "flops": t["flops_budget"], "run": t["run"]}
    result = fit.fit_all(table, bootstrap=0, at=[1e18, 1e19])
    lines = result["isoflop"]
    assert (lines["a"], lines["b"]) == pytest.approx((a, b), abs=1e-3)
    tokens = [p["D_opt"] for p in lines["points"]]
    assert 1.38e9 < tokens[0] < 1.435e9 and 4.38e9 < tokens[-1] < 4.42e9
    for row in result["verdict"]["approaches"].values():
        assert [best["loss"] for best in row["at"]] == pytest.approx([1.267, 1.061], abs=0.0025)
        assert [best["D_opt"] for best in row["at"]] == pytest.approx([1.45e9, 4.45e9], rel=0.03)


def test_forward_flops_are_another_count_of_compute():
    result = fit.fit_all(read_table(FIELD / "flops_forward.csv"), bootstrap=0, at=[1e21 / 3])
    assert "0.333 to 0.333 times 6 N D" in result["surface"]["note"]
    for row in result["verdict"]["approaches"].values():
        best = row["at"][0]
        assert (best["N_opt"], best["D_opt"]) == pytest.approx((1.24e9, 1.35e11), rel=0.01)
        assert best["loss"] == pytest.approx(2.316, abs=2e-3)


def test_twenty_tokens_per_parameter_leave_a_compute_law():
    result = fit.fit_all(read_table(FIELD / "twenty_tokens.csv"), bootstrap=100)
    said = result["surface"]["health"]["undetermined"][0]
    assert said.startswith("N_opt is not identified: D = 20 N") and result["verdict"]["agree"] is None
    law = result["loss_at_ratio"]
    assert law["ci"]["L_inf"][0] < 1.70 < law["ci"]["L_inf"][1]
    N = 3e9
    true = 1.7 + 300 / N ** 0.33 + 900 / (20 * N) ** 0.31
    assert forms.loss_of(law, {"C": 120 * N ** 2}) == pytest.approx(true, rel=0.004)


def test_three_sizes_a_budget_give_a_line_without_intervals():
    result = fit.fit_all(read_table(FIELD / "three_sizes.csv"), bootstrap=100)
    lines = result["isoflop"]
    assert lines["a"] == pytest.approx(0.4844, abs=1e-4) and lines["ci"] == {}
    assert [p["N_opt"] for p in lines["points"]] == pytest.approx(
        [4.36e7, 1.331e8, 4.062e8, 1.239e9], rel=2e-3)
    assert result["verdict"]["agree"] is None and "nan" not in fit.text(result)
    assert result["surface"]["health"]["lines"] == []


def test_a_sharp_break_is_within_the_bounds():
    law = fit.fit_all(read_table(FIELD / "sharp_break.csv"), bootstrap=50)["loss_vs_tokens"]["broken"]
    found = [law[k] for k in ("c1", "L_inf", "D_break", "f")]
    assert found == pytest.approx([5.0, 0.40, 1e9, 0.061], rel=0.01)
    assert law["objective"] == pytest.approx(2.17e-5, rel=2e-3) and law["health"]["lines"] == []
    assert np.isfinite(law["ci"]["c1"]).all()
