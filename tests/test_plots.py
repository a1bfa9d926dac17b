"""Figures: what each shows is checked on a simulated study of a known law; each must be whole and small."""
import csv
import json
import re
import shutil
import struct

import numpy as np
import pytest

from runtime.basics import UserError
from scaling import fit as fitting
from scaling import plots
from scaling.laws import forms as laws
from scaling.laws import frontiers

TRUE = {"E": 1.0, "A": 30.0, "B": 300.0, "alpha": 0.33, "beta": 0.40}
BUDGETS = np.geomspace(1e12, 1e14, 4)
ALL = {"curves", "isoflop", "frontier", "surface", "residuals", "bootstrap", "profile_E", "loss_vs_params",
       "loss_vs_tokens", "loss_vs_compute"}


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_study(folder):
    """20 runs on four budgets, their curves, the fit, one forecast that came and one that has not."""
    rng, runs, curves = np.random.default_rng(1), [], []
    for b, C in enumerate(BUDGETS):
        for k, N in enumerate(laws.surface_optimum(TRUE, C)[0] * np.geomspace(1 / 4, 4, 5)):
            D, name = C / (6 * N), f"b{b}_{k}"
            loss = laws.surface_loss(TRUE, N, D) * np.exp(0.003 * rng.standard_normal())
            runs.append({"run": name, "params": N, "tokens": D, "loss": loss})
            for part in (0.01, 0.03, 0.1, 0.3, 1.0):
                early = loss * part ** -0.1
                curves.append({"run": name, "step": int(100 * part), "tokens": D * part, "flops": C * part,
                               "train_loss": early, "val_loss": early})
    curves.append(curves[0] | {"run": "stranger"})
    forecast = {"study": folder.name, "params": 2e6, "tokens": 8e7, "flops": 1e15, "predicted": 1.5,
                "lo95": 1.45, "hi95": 1.55}
    forecasts = [forecast | {"run": "held0", "measured": 1.48}, forecast | {"run": "held1", "measured": ""}]
    folder.mkdir(parents=True)
    write_csv(folder / "runs.csv", runs)
    write_csv(folder / "curves.csv", curves)
    write_csv(folder / "forecasts.csv", forecasts)
    table = {k: np.array([r[k] for r in runs], object if k == "run" else float) for k in runs[0]}
    fit = fitting.finite(fitting.fit_all(table, bootstrap=50))
    (folder / "fit.json").write_text(json.dumps(fit), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("results") / "toy")


@pytest.fixture(scope="module")
def study(folder):
    return plots.read_study(folder)


@pytest.fixture(scope="module")
def finals(study):
    return [study["data"][k] for k in "NDL"]


@pytest.fixture(scope="module")
def drawn(study, folder):
    """{name: (figure, its PNG)}: every figure of the study, drawn once."""
    figures = plots.study_figures(study)
    return {name: (figure, plots.save(figure, folder / f"{name}.png")) for name, figure in figures.items()}


def line(figure, label):
    """The line with this label. Fails when there is none."""
    return next(one for one in figure.axes[0].lines if one.get_label().startswith(label))


# ---------------------------------------------------------------- the command


def test_every_figure_of_a_study_goes_beside_it(folder, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: path)
    drawn = plots.draw_study(folder)
    assert {p.stem for p in drawn} >= ALL and all(p.parent == folder / "figures" for p in drawn)


def test_figures_are_small_and_one_column_wide(drawn):
    for name, (_, path) in drawn.items():
        raw = path.read_bytes()
        width, = struct.unpack(">I", raw[16:20])
        assert len(raw) < 100_000 and width == plots.WIDTH * 160, name


def test_nothing_is_cut_off(drawn):
    """All that a figure shows, long labels too, fits its fixed size."""
    for name, (figure, _) in drawn.items():
        (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()                       # inches
        width, height = figure.get_size_inches()
        assert min(x0, y0) > -0.01 and x1 < width + 0.01 and y1 < height + 0.01, name


def test_figures_need_only_the_files_that_they_show(folder, tmp_path):
    (tmp_path / "runs.csv").write_bytes((folder / "runs.csv").read_bytes())
    assert plots.draw_study(tmp_path) == []
    (tmp_path / "fit.json").write_bytes((folder / "fit.json").read_bytes())
    names = set(plots.study_figures(plots.read_study(tmp_path)))
    assert ALL - {"curves"} <= names and "curves" not in names


def test_a_directory_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="no runs.csv"):
        plots.main([str(tmp_path)])


def test_no_argument_draws_all_results_with_the_same_bytes(folder, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "ROOT", tmp_path)
    (tmp_path / "scaling").mkdir()
    shutil.copytree(folder, tmp_path / "scaling" / "results" / "toy")
    plots.main([])
    assert capsys.readouterr().out.count("toy_") == len(drawn)
    for name, (_, path) in drawn.items():
        assert (tmp_path / "assets" / f"toy_{name}.png").read_bytes() == path.read_bytes(), name


def test_no_results_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "ROOT", tmp_path)
    (tmp_path / "scaling" / "results").mkdir(parents=True)
    with pytest.raises(UserError, match="no study"):
        plots.main([])


# ---------------------------------------------------------------- what the figures show


def test_curves_of_unknown_runs_are_left_out(study):
    assert "stranger" not in study["curves"]["run"]
    assert len(plots.loss_curves(study["curves"]).axes[0].lines) == len(study["data"]["L"])


def test_curves_fall_back_to_train_loss(study):
    curves = study["curves"] | {"val_loss": np.full(len(study["curves"]["run"]), np.nan)}
    assert plots.loss_curves(curves).axes[0].get_ylabel().startswith("train loss")
    assert plots.loss_curves(study["curves"]).axes[0].get_ylabel().startswith("validation loss")


def test_laws_are_solid_inside_their_range_and_dashed_outside(study, finals):
    figure = plots.frontier(*finals, study["fit"]["surface"])
    law = line(figure, "compute-optimal")
    x, y = law.get_data()
    low, high = study["fit"]["surface"]["range"]["C"]
    assert law.get_linestyle() == "-"
    assert ((x >= low * 0.999) & (x <= high * 1.001))[np.isfinite(y)].all() and np.isnan(y).any()
    dashed = [one for one in figure.axes[0].lines if one.is_dashed()]
    assert len(dashed) == 1 and np.isfinite(dashed[0].get_ydata()).all()


def test_frontier_is_the_optimum_of_the_surface(study, finals):
    surface = study["fit"]["surface"]
    x, y = line(plots.frontier(*finals, surface), "compute-optimal").get_data()
    k = np.flatnonzero(np.isfinite(y))[10]
    N = np.geomspace(1e3, 1e8, 20_000)
    assert y[k] == pytest.approx(laws.predict_surface(surface, N, x[k] / (6 * N)).min(), rel=1e-6)


def test_bands_are_the_intervals_of_the_draws():
    figure, ax = plots.axes("x", "y")
    draws = np.random.default_rng(0).normal(size=(4000, 3)) + [0, 10, 20]
    plots.band(ax, np.arange(3.0), draws)
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(np.sort(draws[:, 0])[100], abs=0.02)
    assert corners.max() == pytest.approx(np.sort(draws[:, 2])[-100], abs=0.02)


def test_forecasts_and_what_came_are_shown(study, finals):
    figure = plots.frontier(*finals, study["fit"]["surface"], study["curves"], study["forecasts"])
    x, y = line(figure, "forecasts").get_data()
    assert np.allclose(x, 6 * 2e6 * 8e7) and np.allclose(y, 1.5)
    assert line(figure, "measured").get_ydata()[0] == 1.48
    low, high = figure.axes[0].get_xlim()
    assert low < x.min() and x.max() < high


def test_one_forecast_is_spelt_out(study, finals):
    one = {k: v[:1] for k, v in study["forecasts"].items()}
    line(plots.frontier(*finals, study["fit"]["surface"], None, one), "sealed forecast 1.500 [1.450, 1.550]")


def test_isoflop_marks_each_optimum_and_refuses_openly(study):
    N, D, L = (study["data"][k].copy() for k in "NDL")
    level = frontiers.group_budgets(6 * N * D)
    largest = level == level.max()
    L[largest] = 2 * np.median(L[largest]) - L[largest]            # upside down: no minimum inside
    fit = frontiers.fit_isoflop(N, 6 * N * D, L, bootstrap=50)
    ax = plots.isoflop(N, L, level, fit).axes[0]
    marks = [one.get_xdata()[0] for one in ax.lines if one.get_marker() == "D" and len(one.get_xdata())]
    assert np.allclose(marks, [p["N_opt"] for p in fit["points"] if not p["refused"]]) and len(marks) == 3
    hollow = [one for one in ax.lines if one.get_markerfacecolor() == "none" and len(one.get_xdata())]
    assert len(hollow) == 1 and set(hollow[0].get_xdata()) == set(N[largest])


def test_isoflop_parabola_touches_its_vertex(study):
    fit, data = study["fit"]["isoflop"], study["data"]
    ax = plots.isoflop(data["N"], data["L"], frontiers.group_budgets(data["C"]), fit).axes[0]
    curves = [one for one in ax.lines if len(one.get_xdata()) == 100]
    assert len(curves) == len(BUDGETS)
    for curve, point in zip(curves, fit["points"]):
        assert curve.get_ydata().min() == pytest.approx(point["loss"], rel=1e-4)


def test_power_law_fills_the_points_that_it_used(study):
    N, L, law = study["data"]["N"], study["data"]["L"], study["fit"]["loss_vs_params"]
    used = frontiers.pareto(N, L)
    figure = plots.power_law(N, L, law, "N", "parameters")
    assert set(line(figure, "best").get_xdata()) == set(N[used]) and len(used) == law["n"]


def test_residuals_are_percentages_of_the_fit(study, finals):
    N, D, L = finals
    surface = study["fit"]["surface"]
    shown = plots.residuals(N, D, L, surface).axes[0].collections[-1].get_offsets()
    assert np.allclose(shown[:, 1], 100 * (L / laws.surface_loss(surface, N, D) - 1))
    assert np.abs(shown[:, 1]).max() < 2


def test_cloud_holds_every_resample(study):
    figure = plots.bootstrap_cloud(study["fit"]["surface"])
    assert len(figure.axes[0].lines[0].get_xdata()) == 50
    with pytest.raises(UserError, match="bootstrap"):
        plots.bootstrap_cloud(study["fit"]["surface"] | {"boot": {}})


def test_default_tolerances_stop_early_and_say_success(finals):
    figure = plots.early_stop(*finals, dict(E=1.0, A=np.exp(5), B=np.exp(5), alpha=0.5, beta=0.5))
    loose, tight = (line(figure, name) for name in ("default", "tight"))
    assert "success" in loose.get_label()
    assert loose.get_ydata()[-1] > 0.01 and tight.get_ydata()[-1] < 1e-5


def test_board_has_room_for_long_names(study):
    long = study["forecasts"] | {"study": np.array(["nano_to_small_cpu"] * len(study["forecasts"]["run"]))}
    figure = plots.forecast_board(long)
    figure.draw_without_rendering()                    # lays it out
    (x0, _), (x1, _) = figure.get_tightbbox().get_points()
    assert x0 > -0.01 and x1 < figure.get_size_inches()[0] + 0.01


def test_board_leaves_out_what_is_not_measured(study):
    ax = plots.forecast_board(study["forecasts"]).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["toy: held0"]
    assert ax.lines[1].get_xdata()[0] == pytest.approx(100 * (1.5 / 1.48 - 1))


def test_envelope_marks_where_each_size_is_best():
    N, part = np.geomspace(1e4, 1e6, 6), np.geomspace(0.01, 1, 60)
    D = np.outer(40 * N, part)
    curves = {"run": np.repeat([f"{n:.0f}" for n in N], 60), "params": np.repeat(N, 60), "tokens": D.ravel(),
              "val_loss": laws.surface_loss(TRUE, N[:, None], D).ravel()}
    C = 6 * curves["params"] * curves["tokens"]
    fit = frontiers.fit_envelope(curves["params"], C, curves["val_loss"], curves["run"], bootstrap=20)
    rows = {"N": curves["params"], "C": C, "L": curves["val_loss"], "run": curves["run"]}
    figure = plots.envelope(rows, fit)
    assert np.allclose(line(figure, "best size").get_xdata(), [p["C"] for p in fit["points"]])
    assert len(figure.axes[0].lines) == len(N) + 1


def test_kink_is_shaded_and_the_law_dashed_before_it():
    C = np.geomspace(1e12, 1e16, 25)
    L = np.where(C < 1e14, 4 * (C / 1e14) ** -0.12, 4 * (C / 1e14) ** -0.05)
    law = frontiers.fit_loss_vs_compute(C, L, bootstrap=20)
    figure = plots.loss_vs_compute(C, L, law)
    shaded = [one for one in figure.axes[0].patches if one.get_label().startswith("kink")]
    assert len(shaded) == 1 and 1e13 < shaded[0].get_x() < 1e15
    x, y = line(figure, "law").get_data()
    assert x[np.isfinite(y)].min() >= shaded[0].get_x()


def test_profile_shades_what_it_allows(study):
    surface = study["fit"]["surface"]
    figure = plots.profile_of_E(surface)
    allowed, = figure.axes[0].patches
    assert allowed.get_x() == pytest.approx(surface["profile_E"]["lo"])
    assert allowed.get_x() + allowed.get_width() == pytest.approx(surface["profile_E"]["hi"])
    free = plots.profile_of_E(surface | {"profile_E": surface["profile_E"] | {"lo": None}})
    assert "not bounded below" in free.axes[0].patches[0].get_label()


def test_accounting_prints_every_cell():
    matrix = {"total": {"6nd": {"a": 0.5, "ci": [0.4, 0.6]}, "exact": {"refused": "no column"}},
              "non_embedding": {"6nd": {"a": 0.7, "ci": None}, "exact": {"a": 0.65, "ci": [0.6, 0.7]}}}
    ax = plots.accounting(matrix).axes[0]
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.500\n[0.40, 0.60]", "refused", "0.700", "0.650\n[0.60, 0.70]"]


def test_a_draw_that_failed_is_left_out_of_the_band(study, folder, tmp_path):
    """fit.json writes it as null."""
    fit = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    fit["surface"]["boot"] = {k: [None, *draws[1:]] for k, draws in fit["surface"]["boot"].items()}
    (tmp_path / "fit.json").write_text(json.dumps(fit), encoding="utf-8")
    (tmp_path / "runs.csv").write_bytes((folder / "runs.csv").read_bytes())
    figure = plots.study_figures(plots.read_study(tmp_path))["frontier"]
    shaded = figure.axes[0].collections[-1].get_paths()[0].vertices
    assert np.isfinite(shaded).all()


def test_walk_goes_downward_in_order():
    steps = [dict(label="from", a=0.8, lo=0.7, hi=0.9), dict(label="to", a=0.5, lo=0.4, hi=0.6)]
    ax = plots.walk(steps, {"paper": 0.5}).axes[0]
    assert list(ax.lines[0].get_xdata()) == [0.8, 0.5] and list(ax.lines[0].get_ydata()) == [0, -1]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["from", "to"]


def test_ordered_colours_darken_in_grey():
    """Viridis as used: lightness rises all the way, so the order survives a grey printer."""
    lightness = plots.VIRIDIS(np.linspace(0, 1, 50))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > 0).all() and lightness[-1] < 0.8


def test_assets_are_what_the_committed_results_give(tmp_path):
    """`python -m scaling.plots` makes every file of assets/ and no other; README shows none but those."""
    plots.main([f"--out={tmp_path}"])
    made = {path.name for path in tmp_path.glob("*.png")}
    assert made == {path.name for path in (plots.ROOT / "assets").iterdir()}
    shown = re.findall(r"\(assets/([^)]+)\)", (plots.ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(shown) >= 3 and set(shown) <= made
