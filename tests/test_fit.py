"""fit.py: tables in, fits out; what is dropped is said, and what is wrong is one line."""
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from config.schema import RUN_COLUMNS
from runtime.basics import UserError
from scaling import fit
from scaling.laws import forms
from scaling.tables.csv import read_table, write_table
from scaling.tables.runs import MAX_ROWS, along, select
from scaling.verdict import common

ROOT = Path(__file__).resolve().parents[1]
LAW = {"E": 1.8, "A": 30.0, "B": 800.0, "alpha": 0.24, "beta": 0.33}


def study(sigma=0.004, seed=0):
    """params, tokens, loss, flops and budget of 25 runs: five budgets, five sizes each."""
    rng = np.random.default_rng(seed)
    C = np.repeat(np.geomspace(1e14, 1.6e15, 5), 5)
    m = np.tile([0.25, 0.5, 1, 2, 4], 5)
    N = forms.surface_optimum(LAW, C)[0] * m
    L = forms.surface_loss(LAW, N, C / (6 * N)) * np.exp(sigma * rng.standard_normal(25))
    return {"params": N, "tokens": C / (6 * N), "loss": L, "flops": C, "budget": C}


def our_runs():
    """The same as sweep.py writes it: shapes and groups of parameters, no column `params`."""
    t = study()
    rows = []
    for i in range(25):
        width = 16 * max(1, round((t["params"][i] / (12 * 4)) ** 0.5 / 16))
        body = 4 * 12 * width ** 2
        tokens = t["flops"][i] / (6 * (body + 1000 * width))
        rows.append({"run": f"r{i}", "study": "s", "dataset": "c4", "tokenizer": "gpt2", "n_layer": 4,
                     "n_head": 4, "n_embd": width, "block_size": 256, "batch_tokens": 8192,
                     "learning_rate": 1e-3,
                     "schedule": "cosine", "params_total": body + 1256 * width,
                     "params_embedding": 1256 * width, "params_non_embedding": body,
                     "params_head": 1000 * width,
                     "tokens": tokens, "seed": 1,
                     "val_loss": float(forms.surface_loss(LAW, body + 1000 * width, tokens))})
    return rows


def save(path, table):
    rows = [dict(zip(table, values)) for values in zip(*table.values())]
    write_table(path, rows, list(table))
    return str(path)


# ---- The command line. ----

def test_command_line_prints_fits_and_writes_json_with_its_card(tmp_path, capsys):
    path = save(tmp_path / "runs.csv", study())
    fit.main([path, "--bootstrap=100", f"--json={tmp_path / 'fit.json'}", "--at=1e16,1e18"])
    text = capsys.readouterr().out
    assert text.endswith(f"next: python -m scaling.plan {tmp_path / 'fit.json'} --flops=1e+18\n")
    for word in ("surface: L = E + A/N^alpha + B/D^beta; n = 25", "isoflop", "verdict: the approaches agree",
                 "C 1e+18", "625x outside the data", "skipped", "health", "brackets hold 95 % intervals"):
        assert word in text, word
    assert text.startswith("law: L = ") and "SICK" not in text
    result = json.loads((tmp_path / "fit.json").read_text())
    assert set(result) == {"surface", "isoflop", "loss_vs_compute", "loss_vs_params", "loss_vs_tokens",
                           "one_exponent", "kaplan_nd", "comparison", "verdict", "skipped", "data", "card"}
    assert set(result["surface"]) >= {"E", "A", "B", "alpha", "beta", "a", "b", "objective", "n", "ci",
                                      "health", "profile_E"}
    assert set(result["isoflop"]) >= {"a", "b", "points", "ci", "health"}
    assert set(result["loss_vs_compute"]) >= {"alpha", "C_c", "L_inf", "hull", "kink", "ci", "health"}
    assert set(result["loss_vs_params"]) >= {"alpha", "N_c", "L_inf", "ci", "health"}
    card = result["card"]
    assert set(card) == {"hypothesis", "training", "data", "fit", "validation"}
    assert card["fit"]["surface"]["starts"] > 50 and card["data"]["filters"] == "none"


def test_json_alone_goes_to_standard_output(tmp_path, capsys):
    fit.main([save(tmp_path / "runs.csv", study()), "--json=-", "--bootstrap=50"])
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["verdict"]["agree"] is True and "verdict" in err
    asked = [row["what"] for row in result["verdict"]["differences"]]
    assert asked == ["a", *(f"{name} at C = 1.6e+15" for name in ("N_opt", "D_opt", "loss"))]
    assert "isoflop less surface: log N_opt at C = 1.6e+15 " in err
    assert 0 < abs(result["surface"]["a"] - 0.33 / 0.57) < 0.1


def test_values_may_follow_options_and_the_file_comes_before_the_text(tmp_path, monkeypatch):
    t = study() | {"optimizer": np.array(["adamw"] * 24 + ["lion"], object), "arm": np.full(25, "a", object)}
    path = save(tmp_path / "runs.csv", t)
    command = [path, "--bootstrap", "0", "--at", "1e15", "--json", str(tmp_path / "f.json"),
               "--where", "optimizer=adamw", "--where=budget=1e14", "--loss", "loss"]

    def broken(*_, **__):
        raise BrokenPipeError
    monkeypatch.setattr("builtins.print", broken)
    with pytest.raises(BrokenPipeError):               # as `| head` may
        fit.main(command)
    result = json.loads((tmp_path / "f.json").read_text())
    assert result["data"]["rows"] == 5 and result["verdict"]["budgets"] == [1e15]
    assert result["data"]["notes"][0].startswith("dropped 20 of 25 rows: --where=optimizer=adamw --where=b")


def test_what_a_table_makes_doubtful_is_in_the_summary_and_the_text():
    t = {"params": np.geomspace(1e6, 1e8, 5), "tokens": np.full(5, 1e9), "val_bpb":
         np.array([1.2, 1.1, 1.0, 1.1, 1.2]), "lr": np.full(5, 3e-3)}
    result = fit.fit_all(t, bootstrap=20)
    told = "loss rises with N at equal D in rows 4, 5: larger models are untuned, diverged or overfitted"
    assert any(line.startswith(f"warning: the table: {told}") for line in fit.summary(result))
    assert f"  warning: {told}" in fit.text(result).splitlines()
    assert "L: val_bpb, bits" in fit.summary(result)[-3]
    law = result["loss_vs_params"]
    assert law["note"].endswith("2 of 5 values of N are left out, as less N did better: 3.16e+07, 1e+08")
    two = {name: values[[0, 1, 3, 4]] for name, values in t.items()}
    two["val_bpb"] = np.array([1.2, 1.1, 1.1, 1.2])
    assert fit.fit_all(two, bootstrap=0)["skipped"]["loss_vs_params"] == (
        "the best runs at each N, as far as more N went with less loss, are only 2; a power law needs 3 or "
        "more")


def test_text_says_which_columns_make_settings():
    t = {name: np.tile(values, 2) for name, values in study().items()}
    t["loss"] = t["loss"] * np.repeat([1, 1.1], 25)
    other = fit.text(fit.fit_all(t | {"weight_decay": np.repeat([0.1, 0.2], 25)}, bootstrap=0))
    assert "  settings: rows of one size and tokens differ in weight_decay; no seed was repeated" in other
    assert "settings:" not in fit.text(fit.fit_all(study(), bootstrap=0))


def test_no_bootstrap_no_intervals(tmp_path, capsys):
    fit.main([save(tmp_path / "runs.csv", study()), "--bootstrap=0", "--json=" + str(tmp_path / "f.json")])
    result = json.loads((tmp_path / "f.json").read_text())
    assert result["surface"]["ci"] == result["isoflop"]["ci"] == {} and result["verdict"]["agree"] is None
    text = capsys.readouterr().out
    assert "brackets" not in text and " to " not in "".join(re.findall("  alpha .*", text))


def test_help_lists_the_options_with_their_comments(capsys):
    fit.main(["--help"])
    said = capsys.readouterr().out
    for option in ("params", "flops", "bootstrap=1000", "at", "curves", "json"):
        assert f"  --{option}" in said
    assert "python -m scaling.fit" in said and "0: no intervals" in said
    fit.main([])
    assert capsys.readouterr().out == said


def test_fit_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, scaling.fit; print('torch' in sys.modules)"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"


# ---- A study: fit.json, fit.txt, and the summary that a sweep ends with. ----

def test_a_study_is_fitted_into_its_directory(tmp_path):
    runs, curves = wsd_study()
    save(tmp_path / "runs.csv", runs)
    assert "envelope" in fit.fit_study(tmp_path, bootstrap=20)["skipped"]
    save(tmp_path / "curves.csv", curves)
    result = fit.fit_study(tmp_path, bootstrap=20)
    assert "envelope" in result and result == json.loads((tmp_path / "fit.json").read_text())
    words = (tmp_path / "fit.txt").read_text()
    assert words.endswith(fit.text(result) + "\n") and words.startswith(fit.summary(result)[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.csv", "fit.json", "fit.txt", "runs.csv"]
    (tmp_path / "runs.csv").unlink()
    with pytest.raises(UserError, match="runs.csv"):
        fit.fit_study(tmp_path)


def test_summary_says_the_law_the_best_size_the_health_and_where_the_rest_is():
    result = fit.fit_all(study(), bootstrap=100)
    found = result["surface"]
    law, counted, rule, meaning, agreement, health, rest = fit.summary(result)
    assert law == (f"law: L = {found['E']:.4g} + {found['A']:.4g}/N^{found['alpha']:.4g} + "
                   f"{found['B']:.4g}/D^{found['beta']:.4g}, from 25 runs")
    assert counted == "  N: as given; D: tokens; C: as given; L: loss, nats per token"
    low, high = found["ci"]["a"]
    best = forms.optimum(found, 1e15)["N_opt"]
    k = float(re.search("N_opt = (.*) C", rule)[1])
    assert f"a = {found['a']:.4g} (95 %: {low:.4g} to {high:.4g}), by the surface" in rule
    assert k * 1e15 ** found["a"] == pytest.approx(best, rel=0.01)
    assert meaning.startswith(f"  ten times the compute: {10 ** found['a']:.2g} times the parameters, ")
    assert agreement.startswith("  the approaches agree")
    assert health == "health: good" or health.startswith("warning: ")
    assert rest.endswith("fit.txt") and fit.summary(result, "below")[-1].endswith("below")


def test_numbers_that_json_cannot_hold_are_printed_as_none():
    result = fit.fit_all(study(), bootstrap=20)
    for found in [v for v in result.values() if "equation" in v]:
        for key in found["parameters"]:
            found[key] = None
        found["ci"] = {key: [None, 1.0] for key in found["ci"]}
    for row in result["comparison"]["forms"].values():
        row["aicc"] = row["held_out"] = None
    assert "  alpha    none (none to 1)" in fit.text(result)
    assert "AICc too few   held out none" in fit.text(result)
    assert fit.summary(result)[0].startswith("law: L = none + none/N^none")


def test_summary_counts_the_warnings_and_shows_the_first():
    result = fit.fit_all(study(), bootstrap=0)
    laws = [found for found in result.values() if "equation" in found]
    for found in laws:
        found["health"]["lines"] = []
    assert "health: not judged: no resamples" in fit.summary(result)
    for found in laws:
        found["ci"] = {"a": [0.4, 0.6]}
    assert "health: good" in fit.summary(result)
    result["isoflop"]["health"]["lines"] = ["too few", "too wide"]
    assert "warning: isoflop: too few (and 1 more)" in fit.summary(result)
    assert "  warning: too wide" in fit.text(result).splitlines()


def test_summary_of_a_study_that_makes_no_surface_says_what_it_supports():
    one = {"params": np.array([1e5]), "tokens": np.array([1e6]), "loss": np.array([3.0])}
    assert fit.summary(fit.fit_all(one, bootstrap=0)) == [
        "this study has one size and one training length: no law, by design",
        "every number, warning and dropped row: fit.txt"]
    N = np.geomspace(1e4, 1e7, 7)
    L = (1.5 + (3e3 / N) ** 0.4) * np.exp(1e-3 * np.array([1, -1, 1, 0, -1, 1, -1]))
    result = fit.fit_all({"params": N, "tokens": np.full(7, 1e8), "loss": L}, bootstrap=0)
    told = fit.summary(result)
    assert told[0] == "this study has 7 sizes and one training length: no law of N and D, by design"
    law = result["loss_vs_params"]
    assert f"  loss_vs_params: L = {law['L_inf']:.4g} + ({law['N_c']:.4g}/N)^{law['alpha']:.4g}" in told
    law["health"]["ok"] = False
    assert "  loss_vs_params: fitted, with warnings" in fit.summary(result)
    few = {k: v[[0, 6, 12, 18]] for k, v in study().items()}
    told = fit.summary(fit.fit_all(few, bootstrap=0))
    assert told[0].startswith("this study has 4 sizes and 4 training lengths: no law of N and D (surface: 4 ")


# ---- A law is a row of one table. ----

def test_a_new_law_is_fitted_printed_compared_and_in_the_card(monkeypatch):
    def no_floor(data, bootstrap):
        return forms.fit_surface(data["N"], data["D"], data["L"], E=0.0, bootstrap=bootstrap)
    monkeypatch.setitem(fit.LAWS, "no_floor", fit.Law("L = A/N^alpha + B/D^beta", "A B", no_floor))
    result = fit.fit_all(study(), bootstrap=20)
    law = result["no_floor"]
    text = fit.text(result)
    assert "no_floor: L = A/N^alpha + B/D^beta; n = 25" in text
    assert f"  A        {law['A']:.4g} (" in text and f"  no_floor  a {law['a']:.4g} (" in text
    assert result["verdict"]["approaches"]["no_floor"]["a"] == law["a"]
    assert result["card"]["fit"]["no_floor"]["equation"] == "L = A/N^alpha + B/D^beta"
    assert result["card"]["hypothesis"]["equations"]["no_floor"] == "L = A/N^alpha + B/D^beta"
    alone = {"surface": fit.LAWS["surface"]}
    monkeypatch.setattr(fit, "LAWS", alone)
    assert set(fit.fit_all(study(), bootstrap=0)["card"]["hypothesis"]["equations"]) == {"surface"}


def test_kaplans_law_of_size_and_steps_needs_the_batch():
    N = np.repeat(np.geomspace(1e5, 1e8, 5), 5)
    S = np.tile(np.geomspace(1e3, 1e5, 5), 5)
    L = (1e13 / N) ** 0.08 + (2e3 / S) ** 0.7
    table = {"params": N, "tokens": 512 * S, "loss": L, "batch_tokens": np.full(25, 512.0)}
    law = fit.fit_all(table, bootstrap=0)["kaplan_ns"]
    assert [law[k] for k in ("alpha_N", "alpha_S")] == pytest.approx([0.08, 0.7], rel=1e-3)
    assert law["S_c"] == pytest.approx(2e3, rel=1e-2) and "note" not in law
    two = fit.fit_all(table | {"batch_tokens": np.tile([256.0, 512, 512, 512, 1024], 5)}, bootstrap=0)
    assert "steps of 256 to 1024 tokens count alike" in two["kaplan_ns"]["note"]
    reasons = [fit.fit_all(t, bootstrap=0)["skipped"]["kaplan_ns"] for t in (
        {k: v for k, v in table.items() if k != "batch_tokens"}, table | {"tokens": np.full(25, 1e6)})]
    assert reasons[0].startswith("no column 'batch_tokens'") and "the same value of steps" in reasons[1]


def test_our_own_table_with_every_convention(tmp_path):
    write_table(tmp_path / "runs.csv", our_runs(), RUN_COLUMNS)
    result = fit.fit_all(read_table(tmp_path / "runs.csv"), bootstrap=40)
    assert result["data"]["params"] == "non_embedding_plus_head"
    assert result["data"]["loss_column"] == "val_loss"
    assert result["surface"]["alpha"] == pytest.approx(0.24, abs=1e-3)
    cells = {(p, f): c["a"] for p, row in result["accounting"].items() for f, c in row.items()}
    assert len(cells) == 12
    assert cells["non_embedding_plus_head", "6nd"] == pytest.approx(result["surface"]["a"])
    assert cells["non_embedding", "6nd"] > cells["non_embedding_plus_head", "6nd"] != cells["total", "exact"]
    other = fit.fit_all(read_table(tmp_path / "runs.csv"), "total", "chinchilla", bootstrap=0)
    assert other["data"]["params"] == "total" and other["data"]["flops"] == "chinchilla"
    sizes = result["card"]["training"]["sizes"]
    assert sizes[0]["n_layer"] == ["4.0"] and sizes[0]["learning_rate"] == ["0.001"]


# ---- What the approaches are asked, and what runs cannot tell. ----

def test_the_surface_and_the_budgets_answer_one_question():
    """C counts a third of 6 N D, or what this tool counts as exact: N_opt, D_opt and loss are of that C."""
    t = study(0.001)
    third = fit.fit_all(t | {"flops": t["flops"] / 3}, bootstrap=50, at=[4e14 / 3])
    plain = fit.fit_all(t, bootstrap=50, at=[4e14])
    for name in ("surface", "isoflop"):
        best, same = (r["verdict"]["approaches"][name]["at"][0] for r in (third, plain))
        assert [best[k] for k in ("N_opt", "D_opt", "loss")] == pytest.approx(
            [same[k] for k in ("N_opt", "D_opt", "loss")], rel=2e-3)
        assert best["outside"] == {}
    assert third["verdict"]["agree"] is True
    assert plain["surface"]["range"]["C"] == pytest.approx([1e14, 1.6e15]) and "cost" not in plain["surface"]


def test_a_table_without_tokens_has_them_from_its_compute_and_says_so():
    t = study(0.001)
    given = fit.fit_all(t, bootstrap=0)
    del t["tokens"]
    result = fit.fit_all(t, bootstrap=0)
    assert result["isoflop"]["b"] == pytest.approx(given["isoflop"]["b"])
    assert result["data"]["notes"] == ["no column 'tokens': D is taken to be C/(6 N)"]


def test_approaches_agree_only_where_their_optima_do():
    result = fit.fit_all(study(0.001), bootstrap=100, at=[4e14])
    assert result["verdict"]["agree"] is True
    result["isoflop"]["log_m"] += 0.5                  # of the same a, it says other tokens
    result["isoflop"]["boot"]["log_m"] = [v + 0.5 for v in result["isoflop"]["boot"]["log_m"]]
    found = fit.verdict(result, [4e14])
    assert found["agree"] is False and "no D_opt at C = 4e+14 lies in all" in found["text"]
    assert fit.verdict(result, [4e16])["agree"] is True                # nobody has seen what is best there


def test_two_budgets_have_no_floor_to_disagree_about():
    rng = np.random.default_rng(0)
    C = np.repeat([1e13, 1e17], 5)
    N = forms.surface_optimum(LAW, C)[0] * np.tile([0.25, 0.5, 1, 2, 4], 2)
    L = forms.surface_loss(LAW, N, C / (6 * N)) * np.exp(0.001 * rng.standard_normal(10))
    result = fit.fit_all({"params": N, "tokens": C / (6 * N), "loss": L}, bootstrap=100, at=[1e15])
    assert "L_inf" not in result["isoflop"]["ci"] and result["isoflop"]["L_inf"] == 0
    assert any("cannot tell the floor" in line for line in result["isoflop"]["health"]["lines"])
    rows = [result["verdict"]["approaches"][name] for name in ("surface", "isoflop")]
    low, high = common([row["at"][0]["ci"]["loss"] for row in rows])
    assert low > 1.01 * high                           # the power law between two budgets is far off
    assert result["verdict"]["agree"] is True and "losses not compared: isoflop" in result["verdict"]["text"]


def test_runs_whose_tokens_follow_their_size_have_a_compute_law_and_no_best_size():
    N = np.geomspace(1e5, 1e8, 10)
    L = forms.surface_loss(LAW, N, 15 * N) * np.exp(0.001 * np.random.default_rng(0).standard_normal(10))
    result = fit.fit_all({"params": N, "tokens": 15 * N, "loss": L}, bootstrap=50)
    assert result["verdict"]["agree"] is None and "no approach can tell" in result["verdict"]["text"]
    law = result["loss_at_ratio"]
    C = 6 * 15 * N ** 2
    assert forms.loss_of(law, {"C": C}) == pytest.approx(L, rel=0.004)
    assert "only along these tokens per parameter" in law["note"]
    told = fit.summary(result)
    assert told[0].endswith("no law of N and D: it is not identified")
    assert not any(line.startswith("best size") for line in told)
    assert any(line.startswith("  loss_at_ratio: L = ") for line in told)
    assert "surface   N_opt is not identified: D = 15 N" in fit.text(result)


def test_a_curve_that_bends_prints_the_law_that_bends():
    D = np.geomspace(1e6, 1e9, 24)
    law = {"form": "broken", "L_inf": 0.6, "A": 8.0, "c0": 0.03, "c1": 4.0, "x_break": 8e7, "f": 0.08}
    L = forms.loss_of(law, {"x": D}) * np.exp(0.001 * np.random.default_rng(0).standard_normal(24))
    result = fit.fit_all({"params": np.full(24, 1e7), "tokens": D, "loss": L}, bootstrap=50)
    found = result["loss_vs_tokens"]
    assert found["broken"]["c1"] == pytest.approx(4, rel=0.02) and found["broken"]["ci"]["D_break"]
    assert any(line.startswith("the curve bends at 8e+07") for line in found["health"]["lines"])
    assert re.search(r"\n  broken: .*n = 23", fit.text(result))
    assert "one size" in result["skipped"]["loss_vs_compute"]


def test_a_law_of_tokens_that_the_size_limited_says_so():
    result = fit.fit_all(study(0.001), bootstrap=50)
    for name, exponent in (("loss_vs_params", 0.24), ("loss_vs_tokens", 0.33)):
        line, = [line for line in result[name]["health"]["lines"] if "was a limit too" in line]
        assert float(line.split()[-1]) == pytest.approx(exponent, abs=0.02)
        assert "a wider range" not in " ".join(result[name]["health"]["lines"])


def test_losses_of_any_sign_are_fitted_by_their_own_residuals(tmp_path, capsys):
    """What is added to all losses is added to E, and to nothing else."""
    t = study(0.0)
    noisy = t["loss"] + 0.004 * np.random.default_rng(0).standard_normal(25)
    found = []
    for lower in (0, 5):
        path = save(tmp_path / "runs.csv", t | {"loss": noisy - lower})
        fit.main([path, "--residuals=linear", "--bootstrap=50", "--at=4e14",
                  f"--json={tmp_path / 'fit.json'}"])
        found.append(json.loads((tmp_path / "fit.json").read_text()))
    above, below = (r["surface"] for r in found)
    assert [above[k] for k in ("E", "alpha", "beta")] == pytest.approx([1.8, 0.24, 0.33], rel=0.02)
    assert above["E"] - below["E"] == pytest.approx(5) and above["alpha"] == pytest.approx(below["alpha"])
    assert above["noise"] == pytest.approx(0.004, rel=0.3) and above["health"]["ok"]
    best = [r["verdict"]["approaches"]["surface"]["at"][0] for r in found]
    assert best[0]["loss"] - best[1]["loss"] == pytest.approx(5)
    assert best[0]["N_opt"] == pytest.approx(best[1]["N_opt"])
    assert found[1]["skipped"]["isoflop"] == "it takes the logarithm of a loss"
    curves = {"run": ["a"], "tokens": [1.0], "val_loss": [1.0]}
    with_curves = fit.fit_all(t | {"loss": noisy}, bootstrap=0, curves=curves, residuals="linear")
    assert "curves are not used" in with_curves["data"]["curve_notes"][0]
    said = capsys.readouterr().out
    assert ", residual 0.00" in said and "nan" not in said
    with pytest.raises(UserError, match="or fit it with --residuals=linear"):
        fit.main([path])
    with pytest.raises(UserError, match="there are log and linear"):
        fit.main([path, "--residuals=none"])


# ---- What is dropped is said. ----

def test_unfinished_diverged_empty_and_repeated_rows_are_dropped_and_named(tmp_path):
    t = study()
    t = {k: np.append(v, v[:5]) for k, v in t.items()}
    t["loss"][25], t["loss"][26], t["tokens"][27], t["params"][28] = np.nan, np.inf, 0.0, np.nan
    notes = select(read_table(save(tmp_path / "r.csv", t)))["notes"]
    assert notes == ["dropped 1 of 30 rows: loss is missing (row 26)",
                     "dropped 1 of 30 rows: loss is infinite (diverged) (row 27)",
                     "dropped 1 of 30 rows: params is missing (row 29)",
                     "dropped 1 of 30 rows: tokens is zero (row 28)",
                     "dropped 1 of 30 rows: the same row stands earlier in the table (row 30)"]


def test_only_the_best_learning_rate_of_a_setting_is_kept():
    t = {k: np.repeat(v, 2) for k, v in study().items()}
    t["learning_rate"] = np.tile([1e-3, 4e-3], 25)
    t["loss"] = t["loss"] * np.tile([1.0, 1.02], 25)
    data = select(t)
    assert len(data["L"]) == 25 and "another learning rate was better" in data["notes"][0]
    assert set(t["learning_rate"][data["rows"]]) == {1e-3}


def test_repeated_seeds_give_the_noise():
    t = {k: np.repeat(v, 3) for k, v in study().items()}
    t["loss"] = t["loss"] * np.exp(0.005 * np.random.default_rng(5).standard_normal(75))
    t["seed"] = np.tile([1.0, 2.0, 3.0], 25)
    result = fit.fit_all(t, bootstrap=50)
    assert result["data"]["seed_df"] == 50 and result["data"]["seed_noise"] == pytest.approx(0.005, rel=0.25)
    assert "noise between seeds" in result["isoflop"]["method"]


def test_learning_curves_are_clusters(tmp_path):
    rng = np.random.default_rng(0)
    N, D = np.repeat(np.geomspace(1e5, 1e7, 8), 30), np.tile(np.geomspace(1e6, 4e9, 30), 8)
    L = forms.surface_loss(LAW, N, D) * np.exp(np.repeat(0.004 * rng.standard_normal(8), 30))
    run = np.repeat([f"m{i}" for i in range(8)], 30).astype(object)
    result = fit.fit_all({"run": run, "params": N, "tokens": D, "loss": L}, bootstrap=60)
    assert result["surface"]["runs"] == 8 and "over 8 runs (240 rows)" in result["surface"]["method"]
    assert result["envelope"]["ci"]["a"][0] < 0.33 / 0.57 < result["envelope"]["ci"]["a"][1]
    assert any("intermediate checkpoints" in n for n in result["data"]["notes"])
    assert result["card"]["data"]["checkpoints"] == "intermediate and final"
    alone = forms.fit_surface(N, D, L, bootstrap=60)["ci"]["alpha"]
    wide = result["surface"]["ci"]["alpha"]
    assert wide[1] - wide[0] > 2 * (alone[1] - alone[0])        # rows of a run are not independent


def test_repeated_data_are_fitted_with_the_data_constrained_surface():
    rng = np.random.default_rng(0)
    U = np.tile(np.geomspace(1e8, 1e10, 6), 12)
    D, N = U * np.repeat(np.geomspace(1, 60, 12), 6), 10 ** rng.uniform(7, 9, 72)
    t = {"params": N, "tokens": D, "unique_tokens": U, "loss": forms.repeated_loss(forms.C4, N, D, U)}
    result = fit.fit_all(t, bootstrap=20)
    assert result["repeated"]["R_D"] == pytest.approx(15.39, rel=0.05)
    assert any("repeat their data" in line for line in result["surface"]["health"]["lines"])


# ---- Bad input: one line each, exit code 2, never a traceback. ----

def broken(change):
    t = study()
    change(t)
    return t


@pytest.mark.parametrize("change, message", [
    (lambda t: t.update(loss=-t["loss"]), "loss is negative in rows 1, 2, 3, 4, 5 and 20 more; mend"),
    (lambda t: t.update(loss=t["loss"] * np.nan), "no usable row is left: dropped 25 of 25 rows: loss is m"),
    (lambda t: t.update(tokens=t["tokens"] * 0), "no usable row is left: dropped 25 of 25 rows: tokens is "),
    (lambda t: t.update(lose=t.pop("loss")), "no column 'loss' or 'val_loss' (did you mean 'lose'?)"),
    (lambda t: t.update(param=t.pop("params")), "no column 'params' (did you mean 'param'?)"),
    (lambda t: [t.pop(k) for k in ("tokens", "flops")], "no column 'tokens'"),
    (lambda t: t.update(loss=np.array(["three"] * 25, object)), "hold numbers; data row 1 holds 'three'"),
    (lambda t: t.update(dataset=np.array(["c4"] * 24 + ["pile"], object)), "holds 2 values (c4, pile)"),
    (lambda t: t.update({k: v[:0] for k, v in t.items()}), "the table has no rows"),
    (lambda t: t.update(epochs=np.array(["one"] * 25, object)), "'epochs' must hold numbers; data row 1 "),
])
def test_bad_tables(change, message):
    with pytest.raises(UserError) as e:
        fit.fit_all(broken(change), bootstrap=10)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("change, name, message", [
    (lambda t: t.update({k: v[:5] for k, v in t.items()}), "surface", "5 runs cannot determine 5 parameters"),
    (lambda t: t.update({k: v[:5] for k, v in t.items()}), "isoflop", "these runs have 1"),
    (lambda t: t.update(params=t["params"] * 0 + 1e6), "surface", "all runs have the same value of params"),
    (lambda t: t.update(params=t["params"] * 0 + 1e6), "isoflop", "only 1 sizes; three or more are needed"),
    (lambda t: None, "envelope", "learning curves"), (lambda t: None, "accounting", "no columns params_"),
])
def test_what_the_data_cannot_support_is_skipped_with_the_reason(change, name, message):
    result = fit.fit_all(broken(change), bootstrap=10)
    assert name not in result and message in result["skipped"][name]


@pytest.mark.parametrize("args, message", [
    (["missing.csv"], "missing.csv"), (["{}", "--bootstraps=10"], "did you mean 'bootstrap'?"),
    (["{}", "--bootstrap=many"], "bootstrap must be int, not 'many'"),
    (["{}", "--bootstrap=2.5"], "bootstrap must be int"), (["{}", "--bootstrap=-1"], "--bootstrap=-1"),
    (["{}", "--at=-1"], "--at=-1"), (["{}", "--at=1e18,soon"], "at must be float, not 'soon'"),
    (["{}", "--at=1e18,0"], "budgets above 0"), (["{}", "--at=1e400"], "budgets above 0"),
    (["{}", "{}"], "not 2"),
    (["{}", "--card=card.json"], "unknown key 'card'"),
    (["{}", "--params=nonembedding"], "did you mean 'non_embedding'"),
    (["{}", "--params=total"], "params_total"),
    (["{}", "--json=/nowhere/at/all.json"], "cannot write /nowhere/at/all.json: there is no"),
    (["{}", "--json"], "--json needs a value: --json=..."), (["{}", "--at", "--json=-"], "--at needs a v"),
    (["{}", "--where=loss"], "COLUMN=VALUE is needed"), (["{}", "--best_of=lr"], "no column 'lr'")])
def test_bad_command_lines(tmp_path, args, message):
    path = save(tmp_path / "runs.csv", study())
    with pytest.raises(UserError) as e:
        fit.main([a.format(path) for a in args])
    assert message in str(e.value)


def test_a_bad_command_line_is_one_line_on_the_console():
    command = [sys.executable, "-m", "scaling.fit", "missing.csv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


# ---- Size and speed. ----

def test_a_large_table_is_thinned_and_said_so(tmp_path):
    """Half a million rows of learning curves: the reader and the fits keep to seconds and to little
    memory."""
    n, runs = 120_000, 24
    rng = np.random.default_rng(0)
    each = n // runs
    N, D = np.repeat(np.geomspace(1e5, 1e8, runs), each), np.tile(np.geomspace(1e6, 1e10, each), runs)
    t = {"run": np.repeat([f"m{i}" for i in range(runs)], each).astype(object), "params": N, "tokens": D,
         "loss": forms.surface_loss(LAW, N, D) * np.exp(0.002 * rng.standard_normal(n))}
    start = time.process_time()
    result = fit.fit_all(t, bootstrap=30)
    assert time.process_time() - start < 60
    assert any("the surface is fitted to" in note for note in result["data"]["notes"])
    assert result["surface"]["alpha"] == pytest.approx(0.24, abs=0.01)
    assert result["surface"]["n"] <= MAX_ROWS


def test_a_thousand_resamples_take_seconds():
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7, 10, 240), 10 ** rng.uniform(9, 12, 240)
    L = forms.surface_loss(LAW, N, D) * np.exp(0.01 * rng.standard_normal(240))
    start = time.process_time()
    forms.fit_surface(N, D, L, bootstrap=1000)
    assert time.process_time() - start < 10
    start = time.process_time()
    fit.isoflop(select(study()), 1000)
    assert time.process_time() - start < 2


# ---- Learning curves beside the runs, and repeated seeds. ----

def wsd_study():
    """Eight sizes trained by WSD, and their curves: 5 % above the law until the cooldown."""
    N, runs, rows = np.geomspace(1e4, 3e6, 8), [], []
    for k, n in enumerate(N):
        D = 40 * n * np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
        lr = np.where(D <= 0.8 * D[-1], 1e-3, 1e-4)
        L = forms.surface_loss(LAW, n, D) * np.where(lr == 1e-3, 1.05, 0.5)
        rows += [{"run": f"r{k}", "step": i, "tokens": d, "flops": 6 * n * d, "train_loss": loss,
                  "val_loss": loss, "lr": rate} for i, (d, loss, rate) in enumerate(zip(D, L, lr))]
        runs.append({"run": f"r{k}", "params": n, "tokens": D[-1], "schedule": "wsd",
                     "loss": float(forms.surface_loss(LAW, n, D[-1]))})
    return [{k: np.array([row[k] for row in part]) for k in part[0]} for part in (runs, rows)]


def test_envelope_takes_the_curves_before_their_cooldown():
    runs, curves = wsd_study()
    part = along(select(runs), runs["schedule"], curves)
    assert len(part["L"]) == 8 * 8                     # the last two of each ten are annealing
    assert part["L"] == pytest.approx(1.05 * forms.surface_loss(LAW, part["N"], part["C"] / (6 * part["N"])))
    result = fit.fit_all(runs, bootstrap=20, curves=curves)
    assert "envelope" in result and "envelope" in fit.fit_all(runs, bootstrap=0)["skipped"]
    note = ("dropped 8 of 80 rows of the curves: the rate is below its peak (rows 9, 19, 29, 39, 49 and 3 "
            "more)")
    assert note in result["data"]["curve_notes"] and note not in result["data"]["notes"]
    assert f"  note: {note}" in fit.text(result).splitlines()
    twice = {k: np.append(v, v) for k, v in curves.items()}             # a branch repeats its trunk's log
    again = along(select(runs), runs["schedule"], twice)
    assert sorted(again["L"]) == sorted(part["L"])
    assert not along(select(runs), runs["schedule"], {k: v[:0] for k, v in curves.items()})
    for name in ("run", "tokens", "val_loss"):
        with pytest.raises(UserError, match=f"no column '{name}'"):
            fit.fit_all(runs, bootstrap=0, curves={k: v for k, v in curves.items() if k != name})


def test_hull_points_before_the_rate_fell_are_counted():
    runs, curves = wsd_study()
    runs = {k: v[-3:] for k, v in runs.items()}        # too few ends for a hull of their own
    curves = {k: v[-30:] for k, v in curves.items()}
    curves["val_loss"] *= 0.9                          # good enough for the hull
    law = fit.fit_all(runs, bootstrap=0, curves=curves)["loss_vs_compute"]
    k = law["health"]["unfinished"]
    finished = np.isclose(np.subtract.outer(law["hull"]["loss"], runs["loss"]), 0).any(1)
    assert k == (~finished[-law["hull"]["fitted"]:]).sum() > 0
    assert any(line.startswith(f"{k} of ") for line in law["health"]["lines"])
    runs["schedule"] = np.full(3, "constant")          # then a loss halfway is one of a shorter run
    law = fit.fit_all(runs, bootstrap=0, curves=curves)["loss_vs_compute"]
    assert "unfinished" not in law["health"]


def isoflop_with_curves():
    """`study` as runs by WSD, and losses at five places along each, 5 % above the law."""
    t = study(seed=3)                                  # all its budgets are on the hull
    names = np.array([f"r{i}" for i in range(25)])
    runs = t | {"run": names, "schedule": np.full(25, "wsd")}
    share = np.array([0.1, 0.2, 0.4, 0.6, 0.8])
    N, D = np.repeat(t["params"], 5), np.outer(t["tokens"], share).ravel()
    L = 1.05 * forms.surface_loss(LAW, N, D)
    return runs, {"run": np.repeat(names, 5), "step": np.tile(100 * share, 25), "tokens": D,
                  "flops": 6 * N * D, "train_loss": L, "val_loss": L, "lr": np.full(125, 1e-3)}


def test_finished_runs_make_the_hull_alone_where_they_suffice():
    runs, curves = isoflop_with_curves()
    curves["val_loss"] *= 0.9
    law = fit.fit_all(runs, bootstrap=0, curves=curves)["loss_vs_compute"]
    assert "unfinished" not in law["health"] and law["hull"]["fitted"] >= fit.FEW
    assert np.isclose(np.subtract.outer(law["hull"]["loss"], runs["loss"]), 0).any(1).all()
    assert law["alpha"] == fit.fit_all(runs, bootstrap=0)["loss_vs_compute"]["alpha"]
    runs["schedule"] = np.full(len(runs["loss"]), "constant")
    lower = fit.fit_all(runs, bootstrap=0, curves=curves)["loss_vs_compute"]
    assert min(lower["hull"]["loss"]) < min(law["hull"]["loss"])


def test_an_envelope_of_unfinished_runs_is_not_compared():
    runs, curves = isoflop_with_curves()
    result = fit.fit_all(runs, bootstrap=50, curves=curves, at=[1e18])
    assert result["envelope"]["health"]["unfinished"] == len(result["envelope"]["points"])
    assert "halfway along runs" in fit.text(result)
    known = {name for name, row in result["verdict"]["approaches"].items() if not row["unknown"]}
    assert known == {"surface", "isoflop"}
    runs["schedule"] = np.full(len(runs["loss"]), "constant")
    result = fit.fit_all(runs, bootstrap=50, curves=curves)
    assert not result["verdict"]["approaches"]["envelope"]["unknown"]


def test_power_law_takes_the_mean_over_seeds_and_needs_four_sizes_for_a_floor():
    N, seeds = np.repeat([1e4, 1e5, 1e6], 4), np.tile(np.arange(4), 3)
    L = 3 * (N / 1e4) ** -0.1 * np.exp(0.01 * np.tile([-1.5, -0.5, 0.5, 1.5], 3))
    table = {"run": np.array([f"r{i}" for i in range(12)]), "params": N, "tokens": np.full(12, 1e6),
             "seed": seeds, "loss": L}
    law = fit.fit_all(table, bootstrap=50)["loss_vs_params"]
    assert law["n"] == 3 and law["L_inf"] == 0 and "cannot show a floor" in law["note"]
    assert law["alpha"] == pytest.approx(0.1, abs=1e-6)
    assert law["range"]["loss"][1] == pytest.approx(3, rel=1e-6)        # the best seed alone is lower
    bent = fit.fit_all(table | {"loss": L * np.where(N == 1e5, 1.2, 1)}, bootstrap=50)["loss_vs_params"]
    assert any("times the noise between seeds" in line for line in bent["health"]["lines"])


@pytest.mark.parametrize("L, flat", [([3.0, 2.6, 2.55], True), ([3.0, 2.7, 2.42], False)])
def test_an_exponent_whose_interval_reaches_no_fall_is_not_good(L, flat):
    found = forms.fit_power(np.array([1e6, 1e7, 1e8]), np.array(L), irreducible=False, bootstrap=200)
    assert (found["ci"]["alpha"][0] < 0.002) == flat and found["health"]["ok"] != flat
    assert [line.split(":")[0] for line in found["health"]["lines"]] == ["alpha is not identified"] * flat
