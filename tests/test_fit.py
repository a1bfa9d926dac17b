"""fit.py: tables in, fits out; what is dropped is said, and what is wrong is one line."""
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runtime.basics import UserError
from scaling import fit
from scaling.laws import forms as laws
from scaling.logs import RUN_COLUMNS
from scaling.tables.csv import read_table, write_table
from scaling.tables.runs import MAX_ROWS, along, select

ROOT = Path(__file__).resolve().parents[1]
LAW = {"E": 1.8, "A": 30.0, "B": 800.0, "alpha": 0.24, "beta": 0.33}


def study(sigma=0.004, seed=0):
    """params, tokens, loss, flops and budget of 25 runs: five budgets, five sizes each."""
    rng = np.random.default_rng(seed)
    C, m = np.repeat(np.geomspace(1e14, 1.6e15, 5), 5), np.tile([0.25, 0.5, 1, 2, 4], 5)
    N = laws.surface_optimum(LAW, C)[0] * m
    L = laws.surface_loss(LAW, N, C / (6 * N)) * np.exp(sigma * rng.standard_normal(25))
    return {"params": N, "tokens": C / (6 * N), "loss": L, "flops": C, "budget": C}


def our_runs():
    """The same as sweep.py writes it: shapes and groups of parameters, no column `params`."""
    t, rows = study(), []
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
                     "val_loss": float(laws.surface_loss(LAW, body + 1000 * width, tokens))})
    return rows


def save(path, table):
    rows = [dict(zip(table, values)) for values in zip(*table.values())]
    write_table(path, rows, list(table))
    return str(path)


def run(*args):
    command = [sys.executable, "-m", "scaling.fit", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# ---- The command line. ----

def test_command_line_prints_fits_and_writes_json_and_card(tmp_path, capsys):
    path = save(tmp_path / "runs.csv", study())
    fit.main([path, "--bootstrap=100", f"--json={tmp_path / 'fit.json'}", f"--card={tmp_path / 'card.json'}",
              "--at=1e16,1e18"])
    text = capsys.readouterr().out
    for word in ("surface: L = E + A/N^alpha + B/D^beta; n = 25", "isoflop", "verdict: the approaches agree",
                 "C 1e+18", "625x outside the data", "skipped", "health"):
        assert word in text, word
    result = json.loads((tmp_path / "fit.json").read_text())
    assert set(result) == {"surface", "isoflop", "loss_vs_compute", "loss_vs_params", "loss_vs_tokens",
                           "comparison", "verdict", "skipped", "data", "card"}
    assert set(result["surface"]) >= {"E", "A", "B", "alpha", "beta", "a", "b", "objective", "n", "ci",
                                      "health", "profile_E"}
    assert set(result["isoflop"]) >= {"a", "b", "points", "ci", "health"}
    assert set(result["loss_vs_compute"]) >= {"alpha", "C_c", "L_inf", "hull", "kink", "ci", "health"}
    assert set(result["loss_vs_params"]) >= {"alpha", "N_c", "L_inf", "ci", "health"}
    card = json.loads((tmp_path / "card.json").read_text())
    assert card == result["card"] and set(card) == {"hypothesis", "training", "data", "fit", "validation"}
    assert card["fit"]["surface"]["starts"] > 50 and card["data"]["filters"] == "none"


def test_json_alone_goes_to_standard_output(tmp_path):
    done = run(save(tmp_path / "runs.csv", study()), "--json=-", "--bootstrap=50")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["verdict"]["agree"] is True and "verdict" in done.stderr
    assert 0 < abs(result["surface"]["a"] - 0.33 / 0.57) < 0.1


def test_no_bootstrap_no_intervals(tmp_path, capsys):
    fit.main([save(tmp_path / "runs.csv", study()), "--bootstrap=0", "--json=" + str(tmp_path / "f.json")])
    result = json.loads((tmp_path / "f.json").read_text())
    assert result["surface"]["ci"] == result["isoflop"]["ci"] == {} and result["verdict"]["agree"] is None


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
    L = laws.surface_loss(LAW, N, D) * np.exp(np.repeat(0.004 * rng.standard_normal(8), 30))
    run = np.repeat([f"m{i}" for i in range(8)], 30).astype(object)
    result = fit.fit_all({"run": run, "params": N, "tokens": D, "loss": L}, bootstrap=60)
    assert result["surface"]["runs"] == 8 and "over 8 runs (240 rows)" in result["surface"]["method"]
    assert result["envelope"]["ci"]["a"][0] < 0.33 / 0.57 < result["envelope"]["ci"]["a"][1]
    assert any("intermediate checkpoints" in n for n in result["data"]["notes"])
    assert result["card"]["data"]["checkpoints"] == "intermediate and final"
    alone = laws.fit_surface(N, D, L, bootstrap=60)["ci"]["alpha"]
    wide = result["surface"]["ci"]["alpha"]
    assert wide[1] - wide[0] > 2 * (alone[1] - alone[0])        # rows of a run are not independent


def test_repeated_data_are_fitted_with_the_data_constrained_surface():
    rng = np.random.default_rng(0)
    U = np.tile(np.geomspace(1e8, 1e10, 6), 12)
    D, N = U * np.repeat(np.geomspace(1, 60, 12), 6), 10 ** rng.uniform(7, 9, 72)
    t = {"params": N, "tokens": D, "unique_tokens": U, "loss": laws.repeated_loss(laws.C4, N, D, U)}
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
    (lambda t: t.pop("tokens"), "no column 'tokens'"),
    (lambda t: t.update(loss=np.array(["three"] * 25, object)), "hold numbers; data row 1 holds 'three'"),
    (lambda t: t.update(dataset=np.array(["c4"] * 24 + ["pile"], object)), "holds 2 values (c4, pile)"),
    (lambda t: t.update({k: v[:0] for k, v in t.items()}), "the table has no rows"),
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
    (["missing.csv"], "missing.csv"), ([], None), (["{}", "--bootstraps=10"], "did you mean 'bootstrap'?"),
    (["{}", "--bootstrap=many"], "--bootstrap=many"), (["{}", "--at=-1"], "--at=-1"), (["{}", "{}"], "not 2"),
    (["{}", "--params=nonembedding"], "did you mean 'non_embedding'"),
    (["{}", "--params=total"], "params_total"),
    (["{}", "--bootstrap=5", "--json=/nowhere/at/all.json"], "cannot write")])
def test_bad_command_lines(tmp_path, args, message):
    path = save(tmp_path / "runs.csv", study())
    done = run(*(a.format(path) for a in args))
    if message is None:
        assert done.returncode == 0 and "python -m scaling.fit" in done.stdout
    else:
        error = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and error.startswith("error: ") and message in error
        assert "Traceback" not in done.stderr


# ---- Size and speed. ----

def test_a_large_table_is_thinned_and_said_so(tmp_path):
    """Half a million rows of learning curves: the reader and the fits keep to seconds and to little
    memory."""
    n, runs = 120_000, 24
    rng = np.random.default_rng(0)
    each = n // runs
    N, D = np.repeat(np.geomspace(1e5, 1e8, runs), each), np.tile(np.geomspace(1e6, 1e10, each), runs)
    t = {"run": np.repeat([f"m{i}" for i in range(runs)], each).astype(object), "params": N, "tokens": D,
         "loss": laws.surface_loss(LAW, N, D) * np.exp(0.002 * rng.standard_normal(n))}
    start = time.process_time()
    result = fit.fit_all(t, bootstrap=30)
    assert time.process_time() - start < 60
    assert any("the surface is fitted to" in note for note in result["data"]["notes"])
    assert result["surface"]["alpha"] == pytest.approx(0.24, abs=0.01)
    assert result["surface"]["n"] <= MAX_ROWS


def test_a_thousand_resamples_take_seconds():
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7, 10, 240), 10 ** rng.uniform(9, 12, 240)
    L = laws.surface_loss(LAW, N, D) * np.exp(0.01 * rng.standard_normal(240))
    start = time.process_time()
    laws.fit_surface(N, D, L, bootstrap=1000)
    assert time.process_time() - start < 10
    t, start = study(), time.process_time()
    fit.isoflop(select(t), 1000, 0)
    assert time.process_time() - start < 2


# ---- Learning curves beside the runs, and repeated seeds. ----

def wsd_study():
    """Eight sizes trained by WSD, and their curves: 5 % above the law until the cooldown."""
    N, runs, rows = np.geomspace(1e4, 3e6, 8), [], []
    for k, n in enumerate(N):
        D = 40 * n * np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
        lr = np.where(D <= 0.8 * D[-1], 1e-3, 1e-4)
        L = laws.surface_loss(LAW, n, D) * np.where(lr == 1e-3, 1.05, 0.5)
        rows += [{"run": f"r{k}", "step": i, "tokens": d, "flops": 6 * n * d, "train_loss": loss,
                  "val_loss": loss, "lr": rate} for i, (d, loss, rate) in enumerate(zip(D, L, lr))]
        runs.append({"run": f"r{k}", "params": n, "tokens": D[-1], "schedule": "wsd",
                     "loss": float(laws.surface_loss(LAW, n, D[-1]))})
    return [{k: np.array([row[k] for row in part]) for k in part[0]} for part in (runs, rows)]


def test_envelope_takes_the_curves_before_their_cooldown():
    runs, curves = wsd_study()
    part = along(select(runs), runs["schedule"], curves)
    assert len(part["L"]) == 8 * 8                     # the last two of each ten are annealing
    assert part["L"] == pytest.approx(1.05 * laws.surface_loss(LAW, part["N"], part["C"] / (6 * part["N"])))
    result = fit.fit_all(runs, bootstrap=20, curves=curves)
    assert "envelope" in result and "envelope" in fit.fit_all(runs, bootstrap=0)["skipped"]
    twice = {k: np.append(v, v) for k, v in curves.items()}             # a branch repeats its trunk's log
    again = along(select(runs), runs["schedule"], twice)
    assert sorted(again["L"]) == sorted(part["L"])
    assert not along(select(runs), runs["schedule"], {k: v[:0] for k, v in curves.items()})
    for name in ("run", "tokens", "val_loss"):
        with pytest.raises(UserError, match=f"no column '{name}'"):
            fit.fit_all(runs, bootstrap=0, curves={k: v for k, v in curves.items() if k != name})


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
