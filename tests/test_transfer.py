"""muP and CompleteP: the coordinate check, and the tables of scaling/recipe/transfer.py."""
import csv
import json

import pytest

from runtime.basics import UserError
from scaling import plots
from scaling.recipe import transfer
from scaling.tables.csv import write_table

KINDS = ("mup", "gpt2")
NAMES = ("attention", "mlp", "residual stream", "logits")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [row for kind in KINDS for width in (32, 64, 128) for seed in range(2)
            for row in transfer.coordinate_check(kind, "n_embd", width, seed)]


@pytest.mark.parametrize("name", NAMES)
def test_activations_move_alike_at_every_width_under_mup_and_more_the_wider_under_gpt2(rows, name):
    assert abs(transfer.growth(rows, "n_embd", "mup", name)) < (0.4 if name == "logits" else 0.15)
    assert transfer.growth(rows, "n_embd", "gpt2", name) > 0.5


def test_every_activation_is_measured_at_every_step(rows):
    assert len(rows) == 2 * 3 * 2 * transfer.STEPS * len(NAMES) and all(r["moved"] > 0 for r in rows)


@pytest.mark.parametrize("spoilt", ["lr_scale", "width_ratio"])
def test_the_check_notices_each_rule_that_is_left_out(monkeypatch, spoilt):
    """Hidden rates not divided, logits not divided: each makes something grow."""
    build = transfer.GPT

    def broken(c):
        model = build(c)
        scales = {} if spoilt == "width_ratio" else {"lr_scale": 1.0}
        groups = [g | scales for g in model.optimizer_groups(0.0)]
        model.optimizer_groups = lambda weight_decay: groups
        if spoilt == "width_ratio":
            model.width_ratio = 1.0
        return model

    def growths():
        rows = [row for width in (32, 128) for seed in range(2)
                for row in transfer.coordinate_check("mup", "n_embd", width, seed)]
        return {name: transfer.growth(rows, "n_embd", "mup", name) for name in NAMES}
    sound = growths()
    monkeypatch.setattr(transfer, "GPT", broken)
    assert max(growth - sound[name] for name, growth in growths().items()) > 0.25


def test_transfer_table_of_a_study(lab, capsys):
    """Two widths at two rates of each parametrization, from the runs to the tables."""
    for kind in KINDS:
        for width in (16, 32):
            for rate in (1e-3, 1e-2):
                lab.train(f"{kind}_d{width}_lr{rate:g}", parametrization=kind, n_embd=width,
                          learning_rate=rate, eval_iters=20)
    folder = lab.root / "out"
    axis, table = transfer.transfer_table(folder)
    assert axis == "n_embd"
    assert [(r["parametrization"], r["n_embd"], r["learning_rate"]) for r in table] == [
        (kind, width, rate) for kind in KINDS for width in (16, 32) for rate in (1e-3, 1e-2)]
    assert transfer.best_rates(table, "n_embd", "mup") == {16: 1e-2, 32: 1e-2}   # in twenty steps
    assert transfer.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "the best learning rate moves by a factor 1 over widths 16 to 32" in out
    assert f"\n{folder}: 8 runs of 2 widths\n" in out
    assert out.endswith(f"\nnext: python -m scaling.plots {folder}\n")
    with open(folder / "coordinates.csv", encoding="utf-8") as f:
        assert len(list(csv.DictReader(f))) == 2 * 4 * 3 * transfer.STEPS * len(NAMES)


def test_results_that_do_not_tell_their_parametrization_are_one_line(lab):
    lab.train("old")
    path = lab.out("old") / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    del result["parametrization"]
    path.write_text(json.dumps(result), encoding="utf-8")
    path.with_name("config.json").unlink()             # from which it would be taken else
    with pytest.raises(UserError, match="old: its result.json does not tell its parametrization"):
        transfer.main([str(lab.root / "out")])


def test_a_study_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no finished runs of two"):
        transfer.main([str(tmp_path)])


def test_the_figures_show_what_the_tables_say(rows, tmp_path):
    """The best rate of each width is marked, and every activation has its line."""
    table = [dict(parametrization=kind, n_embd=width, learning_rate=rate, seed=1,
                  val_loss=2 + abs(rate - 0.002))
             for kind in KINDS for width in (32, 64) for rate in (0.001, 0.002, 0.004)]
    write_table(tmp_path / "transfer.csv", table, list(table[0]))
    write_table(tmp_path / "coordinates.csv", rows, list(rows[0]))
    figures = plots.recipe_figures(tmp_path)
    assert set(figures) == {"transfer", "coordinates"}
    edge = [row | dict(val_loss=2 + row["learning_rate"]) for row in table]
    said = "at d 32, d 64 the best is at an edge of what was tried"
    assert said in transfer.table_text(edge, "n_embd", "gpt2")
    assert said not in transfer.table_text(table, "n_embd", "gpt2")
    write_table(tmp_path / "transfer.csv", edge, list(table[0]))
    stars = [line.get_markerfacecolor() for ax in plots.recipe_figures(tmp_path)["transfer"].axes
             for line in ax.lines if line.get_marker() == "*"]
    assert stars == ["white"] * 4
    for ax in figures["transfer"].axes:
        assert [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "*"] == [[0.002]] * 2
    for ax in figures["coordinates"].axes:
        assert [line.get_label() for line in ax.lines] == list(NAMES)


def test_in_depth_completep_is_flat_where_mup_grows(lab, capsys):
    """The coordinate check over 2 to 16 layers, and the table and figure of a study of depths."""
    rows = [row for kind in ("mup", "completep") for depth in (2, 4, 16)
            for row in transfer.coordinate_check(kind, "n_layer", depth, 1)]
    assert abs(transfer.growth(rows, "n_layer", "completep", "residual stream")) < 0.2
    assert transfer.growth(rows, "n_layer", "mup", "residual stream") > 0.6
    for kind in ("mup", "completep"):
        for depth in (1, 2):
            lab.train(f"{kind}_L{depth}", parametrization=kind, n_layer=depth, eval_iters=20)
    folder = lab.root / "out"
    axis, table = transfer.transfer_table(folder)
    assert axis == "n_layer" and transfer.best_rates(table, axis, "completep") == {1: 1e-3, 2: 1e-3}
    write_table(folder / "transfer.csv", table, list(table[0]))
    write_table(folder / "coordinates.csv", rows, list(rows[0]))
    titles = [[ax.get_title(loc="left") for ax in figure.axes]
              for figure in plots.recipe_figures(folder).values()]
    assert titles == [["muP", "CompleteP"]] * 2
    assert "over depths 1 to 2" in transfer.table_text(table, axis, "mup")
