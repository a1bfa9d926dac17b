"""Figures: what each shows is checked on a simulated study of a known law; each must be whole and small."""
import csv
import json
import re
import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from runtime import basics
from runtime.basics import UserError
from scaling import fit as fitting
from scaling import plots
from scaling.laws import forms, frontiers, hull
from scaling.plots import colors, frame, recipes
from scaling.tables.csv import read_table

TRUE = {"E": 1.0, "A": 30.0, "B": 300.0, "alpha": 0.33, "beta": 0.40}
BUDGETS = np.geomspace(1e12, 1e14, 4)
ALL = {"curves", "isoflop", "frontier", "surface", "residuals", "bootstrap", "profile_E", "loss_vs_params",
       "loss_vs_tokens", "loss_vs_compute"}


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_fit(folder, fit):
    (folder / "fit.json").write_text(json.dumps(fit), encoding="utf-8")


def read_fit(folder):
    return json.loads((folder / "fit.json").read_text(encoding="utf-8"))


def write_study(folder):
    """20 runs on four budgets, their curves, the fit, one forecast that came and one that has not."""
    rng = np.random.default_rng(1)
    runs = []
    curves = []
    for b, C in enumerate(BUDGETS):
        for k, N in enumerate(forms.surface_optimum(TRUE, C)[0] * np.geomspace(1 / 4, 4, 5)):
            D = C / (6 * N)
            name = f"b{b}_{k}"
            loss = forms.surface_loss(TRUE, N, D) * np.exp(0.003 * rng.standard_normal())
            runs.append({"run": name, "params": N, "tokens": D, "loss": loss, "dataset": "help",
                         "tokenizer": "char"})
            for part in (0.01, 0.03, 0.1, 0.3, 1.0):
                early = loss * part ** -0.1
                curves.append({"run": name, "step": int(100 * part), "tokens": D * part, "flops": C * part,
                               "train_loss": early + 0.01, "val_loss": early})
    curves.append(curves[0] | {"run": "stranger"})
    forecast = {"study": folder.name, "params": 2e6, "tokens": 8e7, "flops": 1e15, "predicted": 1.5,
                "lo95": 1.45, "hi95": 1.55}
    forecasts = [forecast | {"run": "held0", "measured": 1.48}, forecast | {"run": "held1", "measured": ""}]
    folder.mkdir(parents=True)
    write_csv(folder / "runs.csv", runs)
    write_csv(folder / "curves.csv", curves)
    write_csv(folder / "forecasts.csv", forecasts)
    write_fit(folder, fitting.finite(fitting.fit_all(read_table(folder / "runs.csv"), bootstrap=50)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("results") / "toy")


@pytest.fixture
def copy(folder, tmp_path):
    """A directory with the study's runs and fit alone."""
    for name in ("runs.csv", "fit.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def study(folder):
    return plots.read_study(folder)


@pytest.fixture(scope="module")
def surface(study):
    return study.fit["surface"]


@pytest.fixture(scope="module")
def drawn(study, folder):
    """{name: (figure, its PNG)}: every figure of the study, drawn once."""
    figures = plots.study_figures(study)
    return {name: (figure, plots.save(figure, folder / f"{name}.png")) for name, figure in figures.items()}


def line(figure, label):
    """The line with this label. Fails when there is none."""
    return next(one for one in figure.axes[0].lines if one.get_label().startswith(label))


# ---- The command. ----

def test_every_figure_of_a_study_goes_beside_it(folder, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: path)
    drawn = plots.draw_study(folder)
    assert {p.stem for p in drawn} >= ALL
    assert all(p.parent == folder / "figures" for p in drawn)


def test_with_out_the_names_hold_the_study_and_the_bytes_are_the_same(folder, drawn, tmp_path, capsys):
    plots.main([str(folder), f"--out={tmp_path / 'new'}"])
    found, *paths, end = capsys.readouterr().out.splitlines()
    assert found == f"{folder}: 20 rows of toy, help" and len(paths) == len(drawn)
    assert end == f"next: python -m scaling.plan {folder}/fit.json --flops=1e+15"
    for name, (_, path) in drawn.items():
        assert (tmp_path / "new" / f"toy_{name}.png").read_bytes() == path.read_bytes(), name


def test_figures_are_small_and_one_column_wide(drawn):
    for name, (_, path) in drawn.items():
        raw = path.read_bytes()
        width, = struct.unpack(">I", raw[16:20])
        assert len(raw) < 100_000 and width == frame.WIDTH * 160, name


def test_nothing_is_cut_off(drawn):
    """All that a figure shows, long labels too, fits its fixed size."""
    for name, (figure, _) in drawn.items():
        (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()                       # inches
        width, height = figure.get_size_inches()
        assert min(x0, y0) > -0.01 and x1 < width + 0.01 and y1 < height + 0.01, name


def test_no_legend_covers_a_panel(drawn):
    seen = 0
    for name, (figure, _) in drawn.items():
        figure.draw_without_rendering()
        for legend in figure.legends:
            x0, y0, x1, y1 = legend.get_window_extent().extents
            seen += 1
            for ax in figure.axes:
                left, bottom, right, top = ax.get_window_extent().extents
                assert y1 <= bottom or x0 >= right, name
        assert all(ax.get_legend() is None for ax in figure.axes), name
    assert seen > 8


def test_figures_need_only_the_files_that_they_show(copy, capsys):
    names = set(plots.study_figures(plots.read_study(copy)))
    assert ALL - {"curves"} <= names and "curves" not in names
    (copy / "fit.json").unlink()
    assert plots.draw_study(copy) == []
    plots.main([str(copy)])
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{copy}: no law was drawn, for there is no fit.json",
        f"next: python -m scaling.fit {copy}/runs.csv --json={copy}/fit.json"]


def test_figures_name_their_study_and_what_its_loss_counts(study, drawn, copy):
    """Another tokenizer counts otherwise; a table that tells none counts tokens."""
    for name, law, _ in plots.FIGURES:
        if name in drawn:
            warned = law != "accounting" and not study.fit[law]["health"]["ok"]
            assert drawn[name][0].get_suptitle() == "toy, help" + ": a fit with warnings" * warned, name
    for name in ("isoflop", "loss_vs_params", "loss_vs_compute", "curves"):
        assert drawn[name][0].axes[0].get_ylabel() == "validation loss (nats per character)"
    runs = (copy / "runs.csv").read_text(encoding="utf-8")
    for new, unit in ((",byte", "byte"), (",gpt2", "token"), (",", "token")):
        (copy / "runs.csv").write_text(runs.replace(",char", new), encoding="utf-8")
        assert plots.read_study(copy).unit == f"nats per {unit}"


def write_run(folder):
    """A run directory as train.py leaves it when it is killed: its last log line is torn."""
    folder.mkdir(parents=True)
    told = {"dataset": "help", "tokenizer": "char", "seed": 1}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    text = ""
    for k in range(1, 9):
        record = dict(step=k, tokens=1000 * k, train_loss=4.0 - k / 10, lr=0.01 * k, grad_norm=1.0 + k)
        if k % 2 == 0:
            record["val_loss"] = 4.1 - k / 10
        text += json.dumps(record | dict(tok_per_s=5000.0)) + "\n"
    (folder / "log.jsonl").write_text(text + '{"step": 9, "tok', encoding="utf-8")
    return folder


def test_the_curves_of_one_run(tmp_path, capsys):
    run = write_run(tmp_path / "mine" / "d8")
    figure = plots.run_curves(run)
    loss, rate, norm, speed = figure.axes
    assert figure.get_suptitle() == "mine/d8, help" and loss.get_ylabel() == "loss (nats per character)"
    x, y = line(figure, "validation loss").get_data()
    assert list(x[np.isfinite(y)]) == [2000, 4000, 6000, 8000] and np.nanmin(y) == pytest.approx(3.3)
    assert list(line(figure, "train loss").get_ydata()) == pytest.approx([4.0 - k / 10 for k in range(1, 9)])
    assert list(rate.lines[0].get_ydata()) == pytest.approx([0.01 * k for k in range(1, 9)])
    assert norm.lines[0].get_ydata()[-1] == 9 and speed.lines[0].get_ydata()[0] == 5000
    plots.main([str(run)])
    assert capsys.readouterr().out == f"{run}/figures/run.png\n"
    (run / "log.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="its log holds no step yet"):
        plots.main([str(run)])


def test_svg_is_as_its_figure_alone(tmp_path, capsys):
    run = write_run(tmp_path / "mine" / "d8")
    for name in ("a", "b"):
        plots.main([str(run), f"--out={tmp_path / name}", "--format=svg"])
    first, second = ((tmp_path / name / "d8_run.svg").read_bytes() for name in ("a", "b"))
    assert first == second and b"<svg" in first and not (run / "figures").exists()


def test_a_new_law_is_one_row(study, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", (("mine", "my_law", plots.power_law),))
    assert "mine" not in plots.study_figures(study)
    mine = study._replace(fit={"my_law": study.fit["loss_vs_params"]})
    assert line(plots.study_figures(mine)["mine"], "law")


def test_a_directory_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="no runs.csv in it; python -m scaling.sweep .* makes one"):
        plots.main([str(tmp_path)])
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "result.json").touch()
    with pytest.raises(UserError, match=f"run: python -m scaling.logs {tmp_path} --out={tmp_path}/runs.csv"):
        plots.main([str(tmp_path)])


def test_nothing_is_made_where_the_place_for_figures_is_a_slip(folder, tmp_path):
    with pytest.raises(UserError, match="nope/x: there is no .*nope; make it first"):
        plots.main([str(folder), f"--out={tmp_path}/nope/x"])
    assert not list(tmp_path.iterdir())


def test_no_results_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(basics, "ROOT", tmp_path)
    with pytest.raises(UserError, match="no runs.csv"):
        plots.main([])


def test_assets_are_what_readme_shows_and_what_the_committed_results_give(tmp_path):
    """`python -m scaling.plots` makes every file of assets/ and no other; README shows each of them."""
    assets = basics.ROOT / "assets"
    plots.main([f"--out={tmp_path}"])
    made = {path.name for path in tmp_path.glob("*.png")}
    shown = re.findall(r"\(assets/([^)]+)\)", (basics.ROOT / "README.md").read_text(encoding="utf-8"))
    assert made == {path.name for path in assets.iterdir()} == set(shown)
    for name in made:
        new = np.asarray(Image.open(tmp_path / name), float)
        old = np.asarray(Image.open(assets / name), float)
        # The last bit of a number may differ on another CPU, and with it the shade of some pixels.
        assert new.shape == old.shape and np.abs(new - old).mean() < 0.5, name


# ---- What the figures show. ----

def test_curves_of_unknown_runs_are_left_out(study):
    assert "stranger" not in study.curves["run"]
    assert len(plots.loss_curves(study).axes[0].lines) == len(study.L)


def test_curves_that_belong_to_no_run_are_none(folder, copy):
    """Without a column `run` in runs.csv, or with curves of other runs alone."""
    stranger = (folder / "curves.csv").read_text(encoding="utf-8").splitlines()
    (copy / "curves.csv").write_text("\n".join([stranger[0], stranger[-1]]) + "\n", encoding="utf-8")
    assert plots.read_study(copy).curves == {}
    (copy / "curves.csv").write_bytes((folder / "curves.csv").read_bytes())
    runs = [row.partition(",")[2] for row in (folder / "runs.csv").read_text(encoding="utf-8").splitlines()]
    (copy / "runs.csv").write_text("\n".join(runs) + "\n", encoding="utf-8")
    assert plots.read_study(copy).curves == {}


def test_curves_fall_back_to_train_loss(folder, study, copy):
    assert plots.loss_curves(study).axes[0].get_ylabel().startswith("validation loss")
    with open(folder / "curves.csv", encoding="utf-8", newline="") as f:
        rows = [row | {"val_loss": ""} for row in csv.DictReader(f)]
    write_csv(copy / "curves.csv", rows)
    fallen = plots.read_study(copy)
    assert plots.loss_curves(fallen).axes[0].get_ylabel().startswith("train loss")
    assert fallen.curves["L"] == pytest.approx(study.curves["L"] + 0.01)


def test_laws_are_solid_inside_their_range_and_dashed_outside(study, surface):
    figure = plots.frontier(study, surface)
    law = line(figure, "loss at the best size")
    x, y = law.get_data()
    low, high = surface["range"]["C"]
    assert law.get_linestyle() == "-"
    assert ((x >= low * 0.999) & (x <= high * 1.001))[np.isfinite(y)].all() and np.isnan(y).any()
    dashed = [one for one in figure.axes[0].lines if one.is_dashed()]
    assert len(dashed) == 1 and np.isfinite(dashed[0].get_ydata()).all()


def test_frontier_is_the_optimum_of_the_surface(study, surface):
    x, y = line(plots.frontier(study, surface), "loss at the best size").get_data()
    k = np.flatnonzero(np.isfinite(y))[10]
    N = np.geomspace(1e3, 1e8, 20_000)
    assert y[k] == pytest.approx(forms.surface_loss(surface, N, x[k] / (6 * N)).min(), rel=1e-6)


def test_bands_are_the_intervals_of_the_draws():
    ax = plots.axes("x", "y")
    ax.set_ylim(-100, 100)
    draws = np.random.default_rng(0).normal(size=4000)
    x = np.arange(3.0)
    law = {"y": 0.0, "ci": {"y": [-2, 2]}, "boot": {"y": list(draws)}}
    frame.draw_law(ax, x, law, lambda p: p["y"] + 10 * x, (0, 2), "law")
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(np.sort(draws)[100], abs=0.02)
    assert corners.max() == pytest.approx(20 + np.sort(draws)[-100], abs=0.02)


def test_a_band_that_would_fill_the_panel_is_a_sentence(study):
    law = study.fit["loss_vs_params"]
    assert line(plots.power_law(study, law), "law").get_label() == "law (dashed: beyond the data), band: 95 %"
    spread = np.geomspace(0.3, 3, len(law["boot"]["alpha"]))
    wild = {name: list(np.array(draws, float) * spread) for name, draws in law["boot"].items()}
    figure = plots.power_law(study, law | {"boot": wild})
    assert line(figure, "law").get_label().endswith("its 95 % band would fill the panel: left out")
    assert not figure.axes[0].collections


def test_labels_of_equal_loss_keep_clear_of_runs_and_say_what_is_there(study, surface):
    ax = plots.surface_contours(study, surface).axes[0]
    to_panel = ax.transData + ax.transAxes.inverted()
    runs = to_panel.transform(np.column_stack([6 * study.N * study.D, study.N]))
    assert len(ax.texts) >= 4
    for text in ax.texts:
        C, N = text.get_position()
        away = np.abs(runs - to_panel.transform((C, N)))
        assert (away.max(axis=1) > 0.04).all()
        said = forms.surface_loss(surface, N, C / (6 * N))
        assert said == pytest.approx(float(text.get_text()), abs=0.02)


def test_an_optimum_at_an_edge_is_open_with_an_arrow_outward():
    rates = np.array([0.001, 0.002, 0.004])
    table = {"parametrization": np.array(["mup"] * 3 + ["gpt2"] * 3), "n_embd": np.array([32] * 6),
             "learning_rate": np.tile(rates, 2), "val_loss": np.array([2.1, 2.0, 2.2, 2.3, 2.2, 2.1])}
    inside, edge = recipes.transfer(table, "nats per token").axes
    assert not inside.texts and inside.lines[-1].get_markerfacecolor() == colors.RED
    arrow, = edge.texts
    assert arrow.xy == (0.004, 2.1) and arrow.xyann[0] > 0 and edge.lines[-1].get_markerfacecolor() == "white"


def test_a_fit_without_a_bootstrap_has_no_band(study, surface):
    bare = surface | {"ci": {}, "boot": {k: [] for k in surface["boot"]}}
    assert plots.bootstrap_cloud(study, bare) is None
    without, with_band = (plots.frontier(study, law).axes[0].collections for law in (bare, surface))
    assert len(without) == len(with_band) - 1


def test_a_draw_that_failed_is_left_out_of_the_band(copy):
    """fit.json writes it as null."""
    fit = read_fit(copy)
    fit["surface"]["boot"] = {k: [None, *draws[1:]] for k, draws in fit["surface"]["boot"].items()}
    write_fit(copy, fit)
    study = plots.read_study(copy)
    figure = plots.frontier(study, study.fit["surface"])
    shaded = figure.axes[0].collections[-1].get_paths()[0].vertices
    assert np.isfinite(shaded).all()


def test_forecasts_and_what_came_are_shown(study, surface):
    figure = plots.frontier(study, surface)
    x, y = line(figure, "forecasts").get_data()
    assert np.allclose(x, 6 * 2e6 * 8e7) and np.allclose(y, 1.5)
    assert line(figure, "measured").get_ydata()[0] == 1.48
    low, high = figure.axes[0].get_xlim()
    assert low < x.min() and x.max() < high


def test_one_forecast_is_spelt_out(study, surface):
    one = {k: v[:1] for k, v in study.forecasts.items()}
    figure = plots.frontier(study._replace(curves={}, forecasts=one), surface)
    line(figure, "sealed forecast 1.500 [1.450, 1.550]")


def test_isoflop_marks_each_optimum_and_refuses_openly(study):
    L = study.L.copy()
    level = frontiers.group_budgets(study.C)
    largest = level == level.max()
    L[largest] = 2 * np.median(L[largest]) - L[largest]            # upside down: no minimum inside
    fit = frontiers.fit_isoflop(study.N, study.C, L, bootstrap=50)
    ax = plots.isoflop(study._replace(L=L), fit).axes[0]
    marks = [one.get_xdata()[0] for one in ax.lines if one.get_marker() == "D" and len(one.get_xdata())]
    assert np.allclose(marks, [p["N_opt"] for p in fit["points"] if not p["refused"]]) and len(marks) == 3
    hollow = [one for one in ax.lines if one.get_markerfacecolor() == "none" and len(one.get_xdata())]
    assert len(hollow) == 1 and set(hollow[0].get_xdata()) == set(study.N[largest])


def test_isoflop_parabola_touches_its_vertex(study):
    ax = plots.isoflop(study, study.fit["isoflop"]).axes[0]
    curves = [one for one in ax.lines if len(one.get_xdata()) == 100]
    assert len(curves) == len(BUDGETS)
    for curve, point in zip(curves, study.fit["isoflop"]["points"]):
        assert curve.get_ydata().min() == pytest.approx(point["loss"], rel=1e-4)


def test_power_law_fills_the_points_that_it_used(study):
    used = hull.pareto(study.N, study.L)
    figure = plots.power_law(study, study.fit["loss_vs_params"])
    assert set(line(figure, "best").get_xdata()) == set(study.N[used])
    assert len(used) == study.fit["loss_vs_params"]["n"]


def test_residuals_are_percentages_of_the_fit(study, surface):
    shown = plots.residuals(study, surface).axes[0].collections[-1].get_offsets()
    assert np.allclose(shown[:, 1], 100 * (study.L / forms.surface_loss(surface, study.N, study.D) - 1))
    assert np.abs(shown[:, 1]).max() < 2


def test_cloud_holds_every_resample(study, surface):
    assert len(plots.bootstrap_cloud(study, surface).axes[0].lines[0].get_xdata()) == 50


def test_default_tolerances_stop_early_and_say_success(study):
    start = dict(E=1.0, A=np.exp(5), B=np.exp(5), alpha=0.5, beta=0.5)
    figure = plots.early_stop(study.N, study.D, study.L, start)
    loose = line(figure, "default")
    tight = line(figure, "tight")
    assert "success" in loose.get_label()
    assert loose.get_ydata()[-1] > 0.01 and tight.get_ydata()[-1] < 1e-5


def test_board_has_room_for_long_names(study):
    long = study.forecasts | {"study": np.array(["nano_to_small_cpu"] * len(study.forecasts["run"]))}
    figure = plots.forecast_board(long)
    figure.draw_without_rendering()                    # lays it out
    (x0, _), (x1, _) = figure.get_tightbbox().get_points()
    assert x0 > -0.01 and x1 < figure.get_size_inches()[0] + 0.01


def test_board_leaves_out_what_is_not_measured(study):
    ax = plots.forecast_board(study.forecasts).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["toy", "held0"]
    assert ax.lines[1].get_xdata()[0] == pytest.approx(100 * (1.5 / 1.48 - 1))
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["forecast and its 95 % interval"]
    missed = plots.forecast_board(study.forecasts | {"measured": np.array([1.6, np.nan])}).axes[0]
    assert missed.get_legend_handles_labels()[1][1] == "what came was outside"


def test_envelope_marks_where_each_size_is_best(study):
    sizes = np.geomspace(1e4, 1e6, 6)
    part = np.geomspace(0.01, 1, 60)
    N = np.repeat(sizes, 60)
    D = np.outer(40 * sizes, part).ravel()
    rows = {"N": N, "C": 6 * N * D, "L": forms.surface_loss(TRUE, N, D),
            "run": np.repeat([f"{n:.0f}" for n in sizes], 60)}
    fit = frontiers.fit_envelope(rows["N"], rows["C"], rows["L"], rows["run"], bootstrap=20)
    figure = plots.envelope(study._replace(data=study.data | {"along": rows}), fit)
    assert np.allclose(line(figure, "where no other size").get_xdata(), [p["C"] for p in fit["points"]])
    assert len(figure.axes[0].lines) == len(sizes) + 2             # and the line in the legend


def test_kink_is_shaded_and_the_law_dashed_before_it(study):
    C = np.geomspace(1e12, 1e16, 25)
    L = np.where(C < 1e14, 4 * (C / 1e14) ** -0.12, 4 * (C / 1e14) ** -0.05)
    law = frontiers.fit_loss_vs_compute(C, L, bootstrap=20)
    figure = plots.loss_vs_compute(study._replace(data={"C": C, "L": L, "along": {}}), law)
    shaded = [one for one in figure.axes[0].patches if one.get_label().startswith("kink")]
    assert len(shaded) == 1 and 1e13 < shaded[0].get_x() < 1e15
    x, y = line(figure, "law").get_data()
    assert x[np.isfinite(y)].min() >= shaded[0].get_x()


def test_profile_shades_what_it_allows(study, surface):
    allowed, = plots.profile_of_E(study, surface).axes[0].patches
    assert allowed.get_x() == pytest.approx(surface["profile_E"]["lo"])
    assert allowed.get_x() + allowed.get_width() == pytest.approx(surface["profile_E"]["hi"])
    free = surface | {"profile_E": surface["profile_E"] | {"lo": None}}
    assert "not bounded below" in plots.profile_of_E(study, free).axes[0].patches[0].get_label()


def test_accounting_prints_every_cell(study):
    matrix = {"total": {"6nd": {"a": 0.5, "ci": [0.4, 0.6]}, "exact": {"refused": "no column"}},
              "non_embedding": {"6nd": {"a": 0.7, "ci": None}, "exact": {"a": 0.65, "ci": [0.6, 0.7]}}}
    ax = plots.accounting(study, matrix).axes[0]
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.500\n[0.40, 0.60]", "refused", "0.700", "0.650\n[0.60, 0.70]"]


def test_walk_goes_downward_in_order():
    steps = [dict(label="from", a=0.8, lo=0.7, hi=0.9), dict(label="to", a=0.5, lo=0.4, hi=0.6)]
    ax = plots.walk(steps, {"paper": 0.5}).axes[0]
    assert list(ax.lines[0].get_xdata()) == [0.8, 0.5] and list(ax.lines[0].get_ydata()) == [0, -1]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["from", "to"]


def test_a_figure_shows_itself_in_a_notebook_in_few_bytes(study, surface, drawn):
    _, path = drawn["frontier"]
    full = Image.open(path).convert("RGB")
    raw = frame.named(plots.frontier(study, surface), "toy, help")._repr_png_()
    small = Image.open(BytesIO(raw))
    assert small.mode == "P" and small.size == full.size and len(raw) < path.stat().st_size / 2
    assert np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(full, float)).max() < 40


def test_ordered_colours_darken_in_grey():
    """Viridis as used: lightness rises all the way, so the order survives a grey printer."""
    lightness = colors.VIRIDIS(np.linspace(0, 1, 50))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > 0).all() and lightness[-1] < 0.8
