"""The planner against closed forms, published numbers, train.py's own counts, and slips of the hand."""
import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from config import configurator, schema, settings
from config.settings import Config
from runtime import basics
from runtime.basics import UserError
from scaling import ground, plan
from scaling.fit import fit_all
from scaling.laws import counts, design, forms, goals
from scaling.tables.csv import read_table, write_table

ROOT = Path(__file__).parents[1]
HOFFMANN, BESIROGLU, KAPLAN = (goals.PUBLISHED[k] for k in ("hoffmann", "besiroglu", "kaplan"))
# As a table may count compute: C is no 6 N D, and a frontier has a line of its own for tokens.
COUNTED = HOFFMANN | {"cost": {"f": [0.02, -0.1, 0.2], "by_D": 0.0, "center": 22.0, "sizes": [-3.0, 3.0]}}
OWN_TOKENS = KAPLAN | {"log_m": -5.0, "b": 0.3}
MUENNIGHOFF = goals.PUBLISHED["muennighoff"]


def model(n_layer: int, n_embd: int, **changes) -> Config:
    """A model of the studies in this file: 80 words, 32 of context."""
    return Config(n_layer=n_layer, n_head=2, n_embd=n_embd, vocab_size=80, block_size=32, **changes)


REPEATED = MUENNIGHOFF | {"unique": 25e9}


def goal(law, C=0.0, N=0.0, D=0.0, L=0.0):
    return goals.solve_goal(law, C, N, D, L)


# ---- Published laws. ----

@pytest.mark.parametrize("law, C, N, D", [
    (HOFFMANN, 2.21e19, 389e6, 9.47e9), (BESIROGLU, 5.88e23, 7.302e10, 1.342e12),
    (HOFFMANN | dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28), 2.21e19, 326e6, 11.29e9)])
def test_published_optima(law, C, N, D):
    """../shared/oracles/README.md; rounding Hoffmann et al.'s exponents moves the optimum by a sixth.

    The README's 316M for the rounded ones is 10^8.5, a point of a grid; equation 4 gives 326M.
    """
    assert goal(law, C) == pytest.approx((N, D), rel=2e-3)


def test_besiroglus_loss_for_gopher():
    assert goals.best(BESIROGLU, 5.88e23)[2] == pytest.approx(1.97386, abs=1e-5)


def test_kaplan_in_pf_days():
    N, D = goal(KAPLAN, 100 * counts.PF_DAY)
    assert N == pytest.approx(1.3e9 * 100 ** 0.73) and 6 * N * D == pytest.approx(100 * counts.PF_DAY)
    assert goals.best(KAPLAN, 100 * counts.PF_DAY)[2] == pytest.approx((3.1e8 / 100) ** 0.050)
    with pytest.raises(UserError, match="only the best run of each budget"):
        plan.make_plan(KAPLAN, plan.Options(params=1e9, tokens=1e9))


def test_repeated_data_as_muennighoff_et_al_compute_it():
    assert goals.loss_at(REPEATED, 6.34e9, 242e9) == pytest.approx(2.2256440889984477, abs=1e-9)
    assert goals.loss_at(REPEATED, 8.67e9, 178e9) == pytest.approx(2.2269634075087867, abs=1e-9)
    N, D = goal(REPEATED, 1e22)
    assert (N, D, D / 25e9) == pytest.approx((7.0224e9, 237.34e9, 9.493), rel=1e-3)
    made = plan.make_plan(MUENNIGHOFF, plan.Options(flops=1e22, unique_tokens=25e9))
    assert plan.UNIDENTIFIED in plan.notes(made)
    enough = plan.make_plan(MUENNIGHOFF, plan.Options(flops=1e18, unique_tokens=25e9))
    assert plan.UNIDENTIFIED not in plan.notes(enough)
    assert enough.N == pytest.approx(goal(MUENNIGHOFF, 1e18)[0])


def test_serving_as_sardana_et_al_compute_it():
    """Their figure 1: for 2T tokens served a 7B model of a 13B's quality saves 1.7e22 FLOPs, 17 %."""
    law = HOFFMANN | dict(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283)
    N, D = goal(law, N=13e9)
    small, longer = goals.serving_optimum(law, goals.loss_at(law, N, D), 2e12)
    cost, less = (6 * n * d + 2 * n * 2e12 for n, d in ((N, D), (small, longer)))
    assert small == pytest.approx(7e9, rel=0.01)
    assert goals.loss_at(law, small, longer) == pytest.approx(goals.loss_at(law, N, D))
    assert (cost - less, 1 - less / cost) == (pytest.approx(1.7e22, rel=0.01), pytest.approx(0.17, abs=0.005))
    assert goals.serving_optimum(law, goals.loss_at(law, N, D), 1e3)[0] == pytest.approx(N, rel=1e-3)


def test_serving_counts_as_the_table_of_the_law_does():
    """Of all models of one loss none is cheaper over its life, by the C(N, D) that was learnt."""
    law, served = COUNTED, 1e12
    N, D = goal(law, 1e21)
    loss = goals.loss_at(law, N, D)
    small, longer = goals.serving_optimum(law, loss, served)
    cost = goals.lifelong(law, small, longer, served)
    for share in np.linspace(0.2, 0.8, 25):
        n = (law["A"] / (share * (loss - law["E"]))) ** (1 / law["alpha"])
        d = (law["B"] / ((1 - share) * (loss - law["E"]))) ** (1 / law["beta"])
        assert cost <= goals.lifelong(law, n, d, served) * (1 + 1e-9)
    assert cost == pytest.approx(float(forms.flops_of(law, small, longer)) * (1 + served / 3 / longer))
    assert abs(forms.flops_of(law, small, longer) / (6 * small * longer) - 1) > 0.02  # else it is 6 N D


# ---- Goals. ----

@pytest.mark.parametrize("law", [HOFFMANN, KAPLAN, COUNTED, OWN_TOKENS], ids=lambda law: law["source"])
def test_every_goal_alone_finds_the_same_optimum(law):
    C = 1e21
    N, D = goal(law, C)
    for other in (dict(N=N), dict(D=D), dict(L=goals.best(law, C)[2])):
        assert goal(law, **other) == pytest.approx((N, D), rel=1e-6)
    assert (N, D) == pytest.approx(goals.best(law, C)[:2]) and forms.flops_of(law, N, D) == pytest.approx(C)


def test_two_goals_fix_size_and_tokens():
    N, D, C = 1e9, 5e10, 3e20
    L = goals.loss_at(HOFFMANN, N, D)
    for pair in (dict(C=C, N=N), dict(C=C, D=D), dict(N=N, D=D), dict(N=N, L=L), dict(D=D, L=L)):
        assert goal(HOFFMANN, **pair) == pytest.approx((N, D), rel=1e-6)
    spent = float(forms.flops_of(COUNTED, N, D))
    for pair in (dict(N=N), dict(D=D)):
        assert goal(COUNTED, C=spent, **pair) == pytest.approx((N, D))
    with pytest.raises(UserError, match="give fewer"):
        goal(HOFFMANN, C=1e20, L=2.5)
    with pytest.raises(UserError, match="cannot be reached.*2.053"):
        goal(HOFFMANN, N=1e9, L=1.9)


def test_the_published_formula_contradicts_itself():
    """N = D = sqrt(C/6) and "400M parameters, 8B tokens for 1e18 FLOPs": 6 4e8 8e9 is 1.9e19."""
    with pytest.raises(UserError) as e:
        goal(HOFFMANN, C=1e18, N=4e8, D=8e9)
    for fact in ("1.9e+19 FLOPs", "19 times", "4.17e+08 tokens for 4e+08", "2.08e+07 parameters",
                 "4.08e+08 of each"):
        assert fact in str(e.value)
    assert goal(HOFFMANN, C=6 * 4e8 * 8e9, N=4e8, D=8e9) == (4e8, 8e9)


def test_time_is_a_budget():
    options = plan.Options(gpu_hours=10, tok_per_s="50000@1e8", gpus=4)
    made = plan.make_plan(HOFFMANN, options)
    assert made.flops == pytest.approx(10 * 3600 * 6 * 50000 * 1e8) and made.hours == pytest.approx(2.5)
    again = plan.make_plan(HOFFMANN, plan.Options(deadline=2.5, tok_per_s="50000@1e8", gpus=4))
    assert again.flops == pytest.approx(made.flops)
    late = plan.Options(flops=made.flops, deadline=1.0, tok_per_s="50000@1e8")
    assert "10 such devices" in plan.plan_text(plan.make_plan(HOFFMANN, late))


def test_neighbours_cost_what_the_law_says():
    made = plan.make_plan(HOFFMANN, plan.Options(flops=1e20))
    half = next(line for line in plan.neighbours(made) if line.endswith(" 0.5x")).split()
    loss = goals.loss_at(HOFFMANN, made.N / 2, made.D * 2)
    assert float(half[3]) == pytest.approx(loss, abs=1e-4)
    assert half[4] == f"{loss / goals.best(HOFFMANN, 1e20)[2] - 1:+.2%}"


# ---- Shapes. ----

BASE = Config(vocab_size=84, block_size=128)


@pytest.mark.parametrize("N", [3e4, 1e6, 1.2e8, 7e9])
@pytest.mark.parametrize("convention", counts.PARAMS)
def test_shapes_come_near_and_can_be_built(N, convention):
    built = ground.shape(N, BASE, convention)
    assert built.n_embd % built.n_head == 0
    assert abs(ground.size(built, convention) / N - 1) < 0.08
    assert N < 1e6 or 16 < built.n_embd / built.n_layer < 256


def test_sizes_are_those_that_settings_count():
    c = model(3, 48, bias=True, tie_weights=False)
    params = settings.count_params(c)
    assert ground.size(c, "total") == params["total"]
    assert ground.size(c, "as given") == params["non_embedding"] + params["head"]
    row = {f"params_{group}": np.array([count]) for group, count in params.items()}
    for convention in counts.PARAMS:
        assert ground.size(c, convention) == counts.params(row, convention)


def test_head_size_and_the_studys_shapes():
    built = ground.shape(1e7, BASE, "total", head_size=48)
    assert built.n_embd / built.n_head == 48
    study = ground.Study({}, vocab=84, n_layer=3, n_head=2)
    built = ground.shape(1e6, BASE, "non_embedding_plus_head", study=study)
    assert built.n_layer == 3 and built.n_head == 2
    with pytest.raises(UserError, match="widths from 4096 the smallest has"):
        ground.shape(1e7, BASE, "total", head_size=4096)


def test_a_small_size_may_take_another_depth_than_the_studys():
    """Two layers miss 5,000 parameters by half at either width; one layer is near, and better than none."""
    study = ground.Study({}, vocab=84, n_layer=2, n_head=2)
    built = ground.shape(5e3, Config(vocab_size=84, block_size=32), "non_embedding_plus_head", study=study)
    assert abs(np.log(ground.size(built, "non_embedding_plus_head") / 5e3)) < 0.35 and built.n_layer == 1


# ---- A study: fit.json with runs.csv beside it. ----

LAW = {"E": 1.5, "A": 110.0, "alpha": 0.6, "B": 500.0, "beta": 0.55}
SIZES = [(2, 16), (2, 32), (3, 48), (4, 64), (4, 96)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(path of fit.json, law) of 20 runs of the shapes SIZES at four budgets, with 0.2 % noise."""
    folder, rng, rows = tmp_path_factory.mktemp("out") / "lab", np.random.default_rng(0), []
    folder.mkdir()
    for i, C in enumerate((1e11, 3e11, 9e11, 2.7e12)):
        for depth, width in SIZES:
            c = model(depth, width)
            params = settings.count_params(c)
            N = params["non_embedding"] + params["head"]
            D = round(C / (6 * N))
            loss = forms.surface_loss(LAW, N, D) * np.exp(0.002 * rng.standard_normal())
            rows.append(dict(
                study="lab", run=f"d{width}_{i}", dataset="tiny", schedule="wsd", n_layer=depth, n_head=2,
                n_embd=width, block_size=32, batch_tokens=512, learning_rate=4e-3, tokens=D, val_loss=loss,
                params_non_embedding=params["non_embedding"], params_head=params["head"], wall_s=D / 1e5,
                params_total=params["total"], flops_exact=D * settings.count_flops(c)["total"]))
    write_table(folder / "runs.csv", rows, list(rows[0]))              # a table of before: without the recipe
    N, D, L = (np.array([float(r[k]) for r in rows]) for k in ("params_non_embedding", "tokens", "val_loss"))
    surface = forms.fit_surface(N + [r["params_head"] for r in rows], D, L, bootstrap=300)
    fit = {"surface": surface, "data": {"params": "non_embedding_plus_head", "loss_column": "val_loss"}}
    (folder / "fit.json").write_text(json.dumps(fit))
    return folder / "fit.json"


def test_a_study_lends_its_recipe_speed_and_forecast(study):
    made = plan.make_plan(ground.load_law(str(study)), plan.Options(flops=8e12))
    config = made.config
    expected = dict(dataset="tiny", schedule="wsd", batch_size=16, learning_rate=4e-3, n_head=2)
    assert config["block_size"] == 32 and expected.items() <= config.items() and made.model.vocab_size == 80
    assert made.ci["N_opt"][0] < made.N < made.ci["N_opt"][1]
    loss = made.loss
    assert loss["lo95"] < forms.surface_loss(LAW, made.params, made.tokens) < loss["hi95"]
    biggest = settings.count_flops(model(4, 96))["total"] * 1e5
    assert made.hours == pytest.approx(8e12 / biggest / 3600)
    assert any("3.0 times outside" in n or "2.96 times outside" in n for n in plan.notes(made))
    assert any("runs.csv does not record (parametrization" in n for n in plan.notes(made))


@pytest.mark.parametrize("warmup", [{"warmup_iters": 100}, {"warmup_frac": 0.05}])
def test_the_recipe_comes_from_the_table(study, warmup, tmp_path):
    """Whichever of the two warmups was asked for counts, and a model is counted with the study's biases."""
    asked = model(4, 96, parametrization="mup", base_width=32, beta2=0.99, bias=True, tie_weights=False,
                  max_iters=900, **warmup)
    recipe = schema.recipe(asked, dataclasses.replace(asked, warmup_iters=100)) | {"val_tokens": 6400}
    law = ground.load_law(str(study))
    rows = [dict(zip(law["runs"], values)) | recipe for values in zip(*law["runs"].values())]
    write_table(tmp_path / "runs.csv", rows, list(rows[0]))
    table = read_table(tmp_path / "runs.csv")
    made = plan.make_plan(law | {"runs": table}, plan.Options(flops=8e12))
    expected = dict(parametrization="mup", base_width=32, beta2=0.99, bias=True, tie_weights=False, **warmup,
                    eval_iters=200)                    # 6,400 tokens in rows of 32: what the losses are of
    assert expected.items() <= made.config.items()
    assert len({"warmup_iters", "warmup_frac"} & set(made.config)) == 1
    assert {type(made.config[k]) for k in ("bias", "tie_weights")} == {bool}
    assert made.params == ground.size(made.model, law["params"]) and made.model.bias
    assert not any("does not record" in n for n in plan.notes(made))
    lent = ground.study_of(table, 1e5, 1e7)
    assert lent.n_head == 2 and lent.n_layer in (3, 4)


def test_a_row_that_records_its_recipe_goes_before_a_nearer_one(study):
    """A row of an older version has empty cells, which do not say that train.py's defaults were used."""
    table = read_table(study.parent / "runs.csv")
    N = table["params_non_embedding"] + table["params_head"]
    table["parametrization"] = np.array(["" if n < N.max() else "mup" for n in N], object)
    small = ground.study_of(table, N.min(), table["tokens"].max())
    assert small.settings["parametrization"] == "mup"
    table["parametrization"][:] = ""
    assert "parametrization" not in ground.study_of(table, N.min(), 1e6).settings


# ---- A law that its own fit calls undetermined. ----

@pytest.fixture
def undetermined(study, tmp_path):
    """The study, with a fit that finds fault with itself."""
    folder = tmp_path / "my lab"
    folder.mkdir()
    fit = json.loads(study.read_text())
    fit["surface"]["health"] |= {"lines": ["E is not identified", "one run moves alpha"],
                                 "undetermined": ["E is not identified"]}
    (folder / "fit.json").write_text(json.dumps(fit))
    (folder / "runs.csv").write_bytes((study.parent / "runs.csv").read_bytes())
    return folder / "fit.json"


WARNINGS = "warning: E is not identified\nwarning: one run moves alpha\n"


def test_what_is_undetermined_is_shown_with_its_warnings(undetermined, study, capsys):
    plan.main([str(undetermined), "--flops=8e12"])
    out = capsys.readouterr().out
    assert f"\n{WARNINGS}note: C is 2.96 times outside" in out
    assert " (not determined) (by scaling.forecast" in out and "serving (all with" not in out
    assert out.endswith(f"\nnext: python -m scaling.plan '{undetermined}' --flops=8e12 "
                        "--write=config/NAME.py --anyway\n")
    plan.main([str(undetermined), "--flops=1e14", "--next=2e13"])
    out = capsys.readouterr().out
    assert out.startswith(WARNINGS) and "note: both hold as far as the law does" in out
    assert out.endswith("--write=scaling/sweeps/NAME.py --anyway\n")
    plan.main(["--compare", str(study), str(undetermined)])
    assert f"warning: {undetermined}: one run moves alpha\n" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--write={}/x.py", "--figure={}/x.png", "--next=2e13 --write={}/x.py"])
def test_what_is_undetermined_is_written_only_if_asked(undetermined, option, lab, monkeypatch, capsys):
    monkeypatch.setattr(basics, "ROOT", lab.root)
    args = [str(undetermined), "--flops=8e12", "--unique_tokens=1e9", *option.format(lab.root).split()]
    with pytest.raises(UserError, match="my lab/fit.json, 20 runs: E is not identified; --anyway writes"):
        plan.main(args)
    assert not list(lab.root.glob("x.*")) and not capsys.readouterr().out
    plan.main([*args, "--anyway"])
    assert "warning: E is not identified" in capsys.readouterr().out and list(lab.root.glob("x.*"))


def test_an_interval_that_says_nothing_is_not_printed(undetermined, capsys):
    """Nor what numpy says of its resamples, the half of which put N_opt beyond all numbers."""
    fit = json.loads(undetermined.read_text())
    boot = fit["surface"]["boot"]
    boot["alpha"][::2] = [1e-3] * len(boot["alpha"][::2])
    boot["A"][::2] = [1e300] * len(boot["A"][::2])
    undetermined.write_text(json.dumps(fit))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.main([str(undetermined), "--flops=8e12", f"--figure={undetermined.parent}/x.png", "--anyway"])
        plan.main([str(undetermined), "--flops=8e12", "--unique_tokens=1e9"])
        plan.main(["--compare", str(undetermined), str(undetermined)])
    out = capsys.readouterr().out
    assert " (not determined), D " in out and "needs 1 times that (95 % 0.9" in out
    assert "nan" not in out and "inf" not in out


def test_an_optimum_that_cannot_be_meant_is_refused(undetermined):
    fit = json.loads(undetermined.read_text())
    fit["surface"] |= {"beta": 0.001, "B": 1e-5}
    undetermined.write_text(json.dumps(fit))
    with pytest.raises(UserError, match=r"parameters on .*e-.* tokens, which cannot be meant"):
        plan.main([str(undetermined), "--flops=8e12"])


# ---- A config that runs. ----

def test_the_config_trains_as_it_is_within_two_percent(lab, monkeypatch, capsys):
    import train
    monkeypatch.setattr(basics, "ROOT", lab.root)
    path = lab.root / "my_plan.py"
    plan.main(["hoffmann", "--params=60000", "--tokens=50000", "--dataset=tiny", "--block_size=32",
               f"--write={path}"])
    assert "run: python train.py" in capsys.readouterr().out
    here = ["--device=cpu", f"--out_dir={lab.out('planned')}"]
    result = train.train(configurator.configure(Config, [str(path), *here]))
    assert result["tokens"] == pytest.approx(50000, rel=0.02)
    assert result["params_total"] == pytest.approx(60000, rel=0.1)


@pytest.mark.parametrize("flops", [2e11, 1e13, 3e16])
def test_a_budget_is_met_in_exact_flops(lab, monkeypatch, flops):
    monkeypatch.setattr(basics, "ROOT", lab.root)
    path = lab.root / "my_plan.py"
    plan.main(["hoffmann", f"--flops={flops}", "--dataset=tiny", "--block_size=32", f"--write={path}"])
    run = settings.resolve(configurator.configure(Config, [str(path)]))
    assert run.C == pytest.approx(flops, rel=0.02)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists"):
        plan.main(["hoffmann", f"--flops={flops}", "--dataset=tiny", "--block_size=32", f"--write={path}"])
    assert path.read_bytes() == before


def test_reading_the_text_twice_is_said(lab, monkeypatch):
    monkeypatch.setattr(basics, "ROOT", lab.root)
    made = plan.make_plan(HOFFMANN, plan.Options(params=1e5, tokens=80_000, dataset="tiny", block_size=32))
    assert any("read 2 times" in note for note in plan.notes(made))
    assert "\ndata      2 epochs of 40k tokens\n" in plan.plan_text(made)
    once = plan.make_plan(HOFFMANN, plan.Options(params=1e5, tokens=40_000, dataset="tiny", block_size=32))
    assert "\ndata      1 epoch of 40k tokens\n" in plan.plan_text(once)


def test_a_price_makes_hours_a_cost(capsys):
    args = ["hoffmann", "--flops=1e21", "--tok_per_s=90000@124e6", "--gpus=8", "--price=2.5"]
    plan.main(args)
    hours = plan.make_plan(ground.load_law("hoffmann"), plan.Options(flops=1e21, gpus=8,
                                                                    tok_per_s="90000@124e6")).hours
    assert f" on 8 devices, costs {hours * 8 * 2.5:,.2f}\n" in capsys.readouterr().out
    plan.main(args[:1] + args[1:2] + args[3:])                   # hours unknown: so is the cost
    assert "costs" not in capsys.readouterr().out


# ---- Two recipes. ----

def test_compare_on_the_command_line(study, capsys):
    plan.main(["--compare", str(study), str(study)])
    out = capsys.readouterr().out
    assert "needs 1 times that (95 % 0." in out and "not clearly more or less" in out
    for wrong in ([str(study)], [str(study), "hoffmann"]):
        with pytest.raises(UserError, match="--compare"):
            plan.main(["--compare", *wrong])


# ---- Which runs next? ----

@pytest.fixture
def chosen(study):
    """(noise of the study's fit, its N and D, the sizes to choose from, the runs chosen by LAW)."""
    noise = json.loads(study.read_text())["surface"]["noise"]
    table = read_table(study.parent / "runs.csv")
    N, D = table["params_non_embedding"] + table["params_head"], table["tokens"]
    sizes = np.geomspace(N.min(), 4 * N.max(), 30)
    return noise, N, D, sizes, design.next_runs(LAW | {"noise": noise}, N, D, 1e14, 2e13, sizes, 6 * sizes)


def test_next_runs_shrink_what_refitting_finds(chosen):
    """The promised change of the interval, against 60 simulated studies, refitted without and with them."""
    _, N, D, _, found = chosen
    assert (6 * found.N * found.D).sum() == pytest.approx(2e13)
    assert len(set(found.N)) == len(found.N)
    assert (found.D / found.N).max() <= 2 * (D / N).max()

    def spread(N, D):
        rng, best = np.random.default_rng(3), []
        for _ in range(60):
            L = forms.surface_loss(LAW, N, D) * np.exp(0.002 * rng.standard_normal(len(N)))
            best.append(np.log(forms.surface_optimum(forms.fit_surface(N, D, L, bootstrap=0), 1e14)[0]))
        return np.std(best)
    seen = spread(np.append(N, found.N), np.append(D, found.D)) / spread(N, D)
    assert found.after < 0.8 * found.before
    assert seen == pytest.approx(found.after / found.before, rel=0.35)


def test_next_runs_beat_random_ones(chosen):
    noise, N, D, sizes, found = chosen
    k, rng = len(found.N), np.random.default_rng(0)

    def width(N, D):                                   # of log N_opt, by derivatives taken numerically
        p = np.log(list(LAW.values()))
        at = [dict(zip(LAW, np.exp(q))) for s in 1e-6 * np.eye(5) for q in (p + s, p - s)]
        J = np.array([np.log(forms.surface_loss(q, N, D)) for q in at])
        g = np.array([np.log(forms.surface_optimum(q, 1e14)[0]) for q in at])
        J, g = (J[::2] - J[1::2]) / 2e-6, (g[::2] - g[1::2]) / 2e-6
        return 1.96 * noise * np.sqrt(g @ np.linalg.solve(J @ J.T, g))
    assert width(N, D) == pytest.approx(found.before, rel=1e-3)
    after = width(np.append(N, found.N), np.append(D, found.D))
    assert after == pytest.approx(found.after, rel=1e-3)
    tokens, seen = 2e13 / k / (6 * sizes), D / N
    usable = sizes[(tokens / sizes > seen.min() / 2) & (tokens / sizes < 2 * seen.max())]
    others = [rng.choice(usable, k, replace=False) for _ in range(200)]
    widths = [width(np.append(N, n), np.append(D, 2e13 / k / (6 * n))) for n in others]
    assert np.mean(np.array(widths) < found.after * 0.999) < 0.02


def test_next_writes_a_sweep(study, tmp_path, capsys):
    path = tmp_path / "more.py"
    plan.main([str(study), "--flops=1e14", "--next=2e13", f"--write={path}"])
    assert "after these" in capsys.readouterr().out
    found = {k: v for k, (v, _) in configurator.read_file(str(path)).items()}
    assert set(found) == {"base", "runs"} and len({r["name"] for r in found["runs"]}) == len(found["runs"])
    total = 0.0
    for run in found["runs"]:
        values = {k: (v, "here") for k, v in (found["base"] | run).items() if k != "name"}
        c = configurator.set_fields(Config(vocab_size=80), values)
        total += c.target_tokens * settings.count_flops(c)["total"]
    assert total == pytest.approx(2e13, rel=0.01)
    plan.main([str(study), "--flops=1e14", "--next=2e13", "--unique_tokens=1e7"])
    assert "runs" in capsys.readouterr().out
    with pytest.raises(UserError, match="suits that budget"):
        plan.main([str(study), "--flops=1e14", "--next=1e6"])
    for wrong in ([str(study), "--next=1e13"], ["hoffmann", "--flops=1e20", "--next=1e18"]):
        with pytest.raises(UserError, match="--next needs"):
            plan.main(wrong)


# ---- Slips, and what is printed. ----

@pytest.mark.parametrize("args, fix", [
    (["hoffmann", "--tokens=1e18"], "did you mean --flops="), (["hoffmann", "--flops=1e40"], "FLOPs go"),
    (["hoffmann", "--loss=50"], "nats per token"), (["hoffmann", "--flops=1e9"], "no GPT has"),
    (["hoffmann", "--loss=1.6"], "cannot be reached"), (["hoffmann"], "nothing to plan for"),
    (["hofman", "--flops=1e18"], "did you mean 'hoffmann'?"), ([], None),
    (["out/lab/fit.json", "--flops=1e18"], "no out/lab/fit.json yet; run: python -m scaling.sweep"),
    (["hoffmann", "--flops=1e18", "--head_size=100000"], "head_size"),
    (["hoffmann", "--flop=1e18"], "'flops'"), (["hoffmann", "--gpu_hours=3"], "tok_per_s"),
    (["hoffmann", "--gpu_hours=3", "--tok_per_s=9"], "90000@124e6"),
    (["hoffmann", "--flops=1e18", "--gpu_hours=3"], "give one"),
    (["hoffmann", "kaplan", "--flops=1e18"], "one law"),
    (["hoffmann", "--flops=1e18", "--write=x.py"], "--dataset"), (["hoffmann", "--flops=x"], "float"),
    (["hoffmann", "--flops=1e18", "--dataset=nowhere"], "--name=nowhere"),
    (["hoffmann", "--flops=1e18", "--head_size=-4"], "--head_size=-4 cannot be meant"),
    (["hoffmann", "--flops=1e18", "--block_size=-5"], "--block_size=-5 cannot be meant"),
    (["hoffmann", "--flops=1e18", "--gpus=0"], "devices"),
    (["hoffmann", "--flops=1e18", "--gpus=-1"], "devices"), (["hoffmann", "--flops=nan"], "float"),
    (["kaplan", "--flops=1e18", "--inference_tokens=1e9"], "hoffmann"),
    (["hoffmann", "--flops=1e18", "--figure=x.pdf"], ".png"),
    (["hoffmann", "--flops=1e18", "--figure=no/such/x.png"], "there is no such folder"),
    (["kaplan", "--flops=1e18", "--figure=x.png"], "hoffmann"),
    (["hoffmann", "--loss=1.7"], "cannot be meant"),
    (["scaling/results/nothing.csv", "--flops=1e18"], "unknown law"),
    (["scaling/results/laptop/runs.csv", "--flops=1e18"],
     "is a table, and no law yet; run: python -m scaling.fit scaling/results/laptop/runs.csv --json=")])
def test_slips_get_one_line(args, fix, capsys):
    if fix is None:
        plan.main(args or ["--help"])
        assert "--inference_tokens" in capsys.readouterr().out
        return
    with pytest.raises(UserError) as e:
        plan.main(args)
    assert fix in str(e.value) and "\n" not in str(e.value)
    assert "--write" in " ".join(args) or not capsys.readouterr().out


NO_TORCH = """
import sys
sys.modules["torch"] = None                            # importing it now is an error
from scaling import forecast, plan
plan.main([sys.argv[1], "--flops=5e12"])
plan.main([sys.argv[1], "--flops=1e14", "--next=2e13"])
forecast.main(["board", "scaling/results/laptop"])
assert "matplotlib" not in sys.modules
"""


def test_planning_and_forecasting_need_no_torch(study):
    subprocess.run([sys.executable, "-c", NO_TORCH, str(study)], cwd=ROOT, check=True)


def test_a_table_without_a_fit_is_to_be_fitted_first(tmp_path):
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n")
    for law in (tmp_path / "fit.json", tmp_path):      # a study's directory stands for its fit
        with pytest.raises(UserError, match=r"python -m scaling.fit .*runs.csv --json=.*fit.json"):
            plan.main([str(law), "--flops=1e18"])


def test_a_fit_without_a_law_is_refused(tmp_path):
    bare = {"skipped": {"surface": "two runs"}, "data": {"params": "total"}}
    (tmp_path / "fit.json").write_text(json.dumps(bare))
    with pytest.raises(UserError, match="neither a surface"):
        plan.main([str(tmp_path / "fit.json"), "--flops=1e18"])


def test_every_answer_leads_on(study, lab, monkeypatch, capsys):
    """By the same command with --write, which says what to run; brackets are named where some follow."""
    monkeypatch.setattr(basics, "ROOT", lab.root)
    plan.main(["hoffmann", "--flops=1e18"])
    out = capsys.readouterr().out
    assert out.endswith("\nnext: python -m scaling.plan hoffmann --flops=1e18 --dataset=DATASET "
                        "--write=config/NAME.py\n") and "brackets" not in out
    (lab.root / "my plans").mkdir()
    path = lab.root / "my plans" / "a.py"
    plan.main(["hoffmann", "--params=60000", "--tokens=50000", "--block_size=32", "--dataset=tiny",
               f"--write={path}"])
    assert capsys.readouterr().out.endswith(f"run: python train.py '{path}'\n")
    plan.main([str(study), "--flops=8e12"])
    assert "; brackets hold 95 % intervals\n" in capsys.readouterr().out
    path = lab.root / "my plans" / "more.py"
    plan.main([str(study), "--flops=1e14", "--next=2e13", "--unique_tokens=1e9", f"--write={path}"])
    *_, line = capsys.readouterr().out.splitlines()
    assert line == (f"next: python -m scaling.sweep '{path}' && python -m scaling.logs {study.parent} "
                    "out/more --out=runs.csv")
    plan.main(["--compare", str(study), str(study)])
    assert f"\nnext: python -m scaling.plan {study} --flops=" in capsys.readouterr().out


def test_a_law_of_parameters_as_given_says_how_the_model_counts(study):
    law = ground.load_law(str(study))
    for params, said in (("as given", 1), ("non_embedding_plus_head", 0)):
        made = plan.make_plan(law | {"params": params, "runs": {}}, plan.Options(flops=1e15))
        assert sum("the model's is its non_embedding_plus_head" in n for n in plan.notes(made)) == said


@pytest.mark.parametrize("hours, text", [
    (0.0181 / 60, "1.09 seconds"), (1 / 3600, "1 second"), (1 / 60, "1 minute"), (1.5, "90 minutes"),
    (24, "24 hours"), (72, "3 days")])
def test_durations(hours, text):
    assert plan.duration(hours) == text


def test_one_of_a_thing_is_not_many(lab, monkeypatch):
    monkeypatch.setattr(basics, "ROOT", lab.root)
    small = plan.Options(params=5e3, tokens=1e3, block_size=32, head_size=16, dataset="tiny")
    text = plan.plan_text(plan.make_plan(BESIROGLU, small))
    assert " 1 layer x 16, 1 head of 16, " in text and " 31 steps of 1 sequence or 32 tokens" in text


def test_figure(tmp_path, study):
    plan.main([str(study), "--flops=5e12", f"--figure={tmp_path}/plan.png"])
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("x, text", [(999.6, "1k"), (1.234e9, "1.23B"), (5e11, "500B"), (42, "42"),
                                     (3e15, "3e+15")])
def test_amounts(x, text):
    assert ground.amount(x) == text


@pytest.mark.parametrize("slope", [0.0, 0.02])
def test_no_plan_is_made_of_losses_that_do_not_fall(tmp_path, slope):
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(2e7, 2e8, 3)))
    loss = 3 + slope * np.log(N * D / 2e13) + 1e-3 * np.cos(N + D)
    law = fit_all({"params": N, "tokens": D, "loss": loss}, bootstrap=20)
    assert any(line.startswith("N_opt is not identified: alpha ") for line in
               law["surface"]["health"]["lines"])
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(law), encoding="utf-8")
    with pytest.raises(UserError, match="holds a surface without a best size; fit again"):
        plan.main([str(path), "--flops=1e18"])


def test_a_surface_at_its_bounds_leaves_the_plan_to_isoflop(tmp_path):
    law = json.loads((basics.ROOT / "scaling/results/laptop/fit.json").read_text(encoding="utf-8"))
    law["surface"]["health"]["bounds"] = ["beta"]
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(law), encoding="utf-8")
    found = ground.load_law(str(path))
    assert found["form"] == "frontier" and found["n"] == law["isoflop"]["n"]
