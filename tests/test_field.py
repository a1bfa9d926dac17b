"""Tables and logs as people have them (../shared/field): what is right for each is in its README.md."""
import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from runtime.basics import exit_cleanly
from scaling import logs
from scaling.tables.csv import read_table

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
