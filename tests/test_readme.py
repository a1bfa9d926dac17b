"""README against the repository: its numbers equal the committed results, its files and commands exist."""
import csv
import hashlib
import json
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import published_table

from config import settings
from scaling import forecast
from scaling.laws import forms
from scaling.tables.csv import read_table

ROOT = Path(__file__).resolve().parents[1]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())       # wherever its lines break
STUDY = ROOT / "scaling" / "results" / "laptop"
CONFIGS = sorted([*(ROOT / "config").glob("scale_*.py"), *(ROOT / "config").glob("train_*.py")])


def fit():
    return json.loads((STUDY / "fit.json").read_text(encoding="utf-8"))


def rows(path):
    with open(path, encoding="utf-8") as f:
        return list(csv.DictReader(f))


def with_interval(law, key, digits):
    """'0.47 (0.35 to 0.61)', as README writes a fitted number."""
    lo, hi = law["ci"][key]
    return f"{law[key]:.{digits}f} ({lo:.{digits}f} to {hi:.{digits}f})"


def test_the_law_is_the_committed_fit():
    surface, isoflop = fit()["surface"], fit()["isoflop"]
    for key in ("E", "alpha", "beta", "a"):
        assert with_interval(surface, key, 2) in README, key
    assert with_interval(isoflop, "a", 2) in README
    law = (f"L(N, D) = {surface['E']:.2f} + {surface['A']:.0f}/N^{surface['alpha']:.2f} "
           f"+ {surface['B']:.0f}/D^{surface['beta']:.2f}")
    assert law in README
    assert f"{surface['n']} runs" in README and f"{100 * surface['noise']:.1f} % of the loss" in README


def test_the_forecast_is_the_committed_one():
    trained = rows(STUDY / "runs.csv")
    largest = max(float(r["flops_6nd"]) for r in trained)
    forecasts = rows(STUDY / "forecasts.csv")
    beyond = []
    for row in forecasts:
        columns = ("predicted", "lo95", "hi95", "measured", "error")
        predicted, lo, hi, measured, error = (float(row[k]) for k in columns)
        came = f"{measured:.3f} ({100 * error:+.2f} %)"
        assert f"{predicted:.3f} ({lo:.3f} to {hi:.3f}), which came out at {came}" in README
        beyond.append(float(row["tokens"]) * float(row["params"]) * 6 / largest)
        seal = json.loads((STUDY / "forecasts" / f"{row['run']}.json").read_text(encoding="utf-8"))
        assert row["sha256"] == seal["sha256"]
    assert f"{beyond[0]:.0f} and {beyond[1]:.1f} times the compute" in README
    assert float(forecasts[1]["tokens"]) > max(float(r["tokens"]) for r in trained)
    sizes = [float(r["params_non_embedding"]) + float(r["params_head"]) for r in trained]
    assert float(forecasts[1]["params"]) > max(sizes)


@pytest.mark.parametrize("seal", sorted((ROOT / "scaling" / "results").glob("*/forecasts/*.json")), ids=str)
def test_the_sealed_tables_are_the_committed_ones(seal):
    """To the first three the recipe was added later, as columns behind the 30 that were there (LOG.md)."""
    text = (seal.parents[1] / "runs.csv").read_text(encoding="utf-8")
    if seal.parents[1].name in ("isoflop", "isoflop_wikitext2", "nano_to_small_cpu"):
        text = "".join(",".join(line.split(",")[:30]) + "\n" for line in text.splitlines())
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == json.loads(seal.read_text(encoding="utf-8"))["runs_sha256"]


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(path):
    assert path.startswith("http") or (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"[\w/]+\.(?:py|ipynb|json|md|csv)\b", README))
                                        | set(re.findall(r"scaling/results/\w+", README))))
def test_named_files_exist(path):
    """Files that README names, but for what the reader's own runs write."""
    if path in ("fit.json", "config.json", "result.json", "meta.json", "runs.csv",
                "curves.csv", "forecasts.csv", "RUNS.csv", "CURVES.csv", "RUN.csv", "STUDY.py",
                "trainer_state.json", "config/next.py", "A/fit.json", "B/fit.json", "mine.py",
                "mine_tune.py"):
        return
    folders = ("config", "runtime", "scaling", "scaling/sweeps", "scaling/laws", "scaling/recipe")
    found = [ROOT / path, *(ROOT / folder / path for folder in folders)]
    assert "NAME" in path or any(place.exists() for place in found), f"README names {path}"


def test_config_costs_are_measured():
    """The first comment of every config gives the command; the next lines a cost and a loss, not blank."""
    for path in CONFIGS:
        head = path.read_text(encoding="utf-8").splitlines()[:4]
        assert head[0] == f"# python train.py config/{path.name}"
        assert re.search(r"\d+ (s|minutes?) on .*val_loss \d\.\d\d", " ".join(head)), path.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_quick_look_at_any_config_is_one_option(path, monkeypatch, capsys):
    """Its horizon, warmup and decay follow, and one line says so."""
    text = dict(vocab_size=84, train_tokens=4_703_531, val_tokens=353_787)
    monkeypatch.setattr(settings, "load_meta", lambda dataset: text)
    c = settings.resolve(settings.configure_run([str(path), "--max_iters=30"])).config
    assert c.max_iters == c.lr_decay_iters == 30 and c.warmup_iters < 15
    said = capsys.readouterr().out
    assert re.fullmatch(r"30 steps instead of the config's [\d,]+; warmup_iters \d+ -> \d+\n", said)


# ---------------------------------------------------------------- the table of reproduced papers


def study(name):
    folder = ROOT / "scaling" / "results" / name
    return json.loads((folder / "fit.json").read_text(encoding="utf-8")), rows(folder / "runs.csv")


def losses(name, sizes):
    """'9.51, 8.42, 7.04': the mean val_loss over seeds of each (n_layer, n_embd), trained the longest."""
    found = []
    for size in sizes:
        own = [row for row in study(name)[1] if (int(row["n_layer"]), int(row["n_embd"])) == size]
        longest = max(int(row["tokens"]) for row in own)
        ends = [float(row["val_loss"]) for row in own if int(row["tokens"]) == longest]
        found.append(sum(ends) / len(ends))
    return ", ".join(f"{loss:.2f}" for loss in found)


def forecast_text(name):
    """'1.374 (1.318 to 1.433), measured 1.380 (-0.4 %)' of a study's one forecast."""
    row, = rows(ROOT / "scaling" / "results" / name / "forecasts.csv")
    columns = ("predicted", "lo95", "hi95", "measured", "error")
    predicted, lo, hi, measured, error = (float(row[k]) for k in columns)
    return f"{predicted:.3f} ({lo:.3f} to {hi:.3f}), measured {measured:.3f} ({100 * error:+.1f} %)"


def printed():
    """Everything that the committed notebook printed."""
    notebook = json.loads((ROOT / "scaling" / "published_studies.ipynb").read_text(encoding="utf-8"))
    outputs = (o for cell in notebook["cells"] for o in cell.get("outputs", ()))
    return "".join("".join(o.get("text", "")) for o in outputs)


def measured_numbers():
    """{what: the string that README must hold}, all from scaling/results and the notebook's outputs."""
    tiny = ((2, 32), (4, 64), (6, 128))
    stated, wiki, wide, isoflop, text = (study(name)[0] for name in (
        "tinyshakespeare", "wikitext2_cpu", "width_sweep_cpu", "isoflop", "isoflop_wikitext2"))
    curves = re.search(r"L\(C\), published curves\n +alpha +(.*)", printed())[1]
    c_min = re.search(r"L\(C_min\), published curves\n +alpha +(.*)", printed())[1]
    health = " ".join(stated["loss_vs_params"]["health"]["lines"])
    miss = float(re.search(r"residuals are ([\d.]+) times", health)[1])
    return {
        "stated losses": losses("tinyshakespeare", tiny),
        "recipe losses": losses("tinyshakespeare_recipe", tiny),
        "stated alpha": with_interval(stated["loss_vs_params"], "alpha", 2),
        "stated miss": f"{miss:.0f} times",
        "small and medium": losses("wikitext2_cpu", ((2, 64), (4, 128))),
        "wiki alpha": with_interval(wiki["loss_vs_params"], "alpha", 1),
        "wiki floor": with_interval(wiki["loss_vs_params"], "L_inf", 2),
        "wide alpha": with_interval(wide["loss_vs_compute"], "alpha", 3),
        "published hull": curves, "published C_min": c_min,
        "nano to mini": losses("nano_to_small_cpu", ((2, 16), (4, 32), (6, 64))),
        "nano forecast": forecast_text("nano_to_small_cpu"),
        "CompleteP forecast": forecast_text("nano_to_small_completep"),
        "isoflop forecast": forecast_text("isoflop"), "wikitext forecast": forecast_text("isoflop_wikitext2"),
        **{f"isoflop {k}": with_interval(isoflop[k], "a", 2) for k in ("surface", "isoflop", "envelope")},
        **{f"wikitext {k}": with_interval(text[k], "a", 2) for k in ("surface", "isoflop", "envelope")},
        **{f"walk {label}": f"{float(re.search(rf'{label} +a = ([0-9.]+)', printed())[1]):.3f}"
           for label in ("as Kaplan et al.", "tune each size, no decay")}}


def test_the_table_holds_the_committed_results():
    missing = {what: number for what, number in measured_numbers().items() if number not in README}
    assert not missing


def speed_rows(name):
    """README's rows of results/bench/NAME.json: tokens/s, share of the roofline, ratios with quartiles."""
    found = json.loads((ROOT / "scaling" / "results" / "bench" / f"{name}.json").read_text(encoding="utf-8"))
    for row in found["shapes"]:
        s, contestants = row["settings"], row["contestants"]
        ratios = [contestants[k]["ratio"] if k in contestants else None
                  for k in ("nanogpt", "hf", "hf_compiled", "plain")]
        text = "{median:.2f} ({q25:.2f} to {q75:.2f})"
        cells = [text.format(**ratio) if ratio else "-" for ratio in ratios]
        ours = contestants["ours"]
        yield (f"| {s['n_layer']} layers, d {s['n_embd']}, {s['batch_size']} x {s['block_size']} tokens, "
               f"V {s['vocab_size']:,} | {ours['tok_per_s']['median']:,.0f} | "
               f"{100 * ours['roofline_share']:.0f} % | " + " | ".join(cells) + " |")


@pytest.mark.parametrize("name, kernels", [("cpu", "AVX512"), ("cpu_avx2", "AVX2")])
def test_speeds_are_the_committed_measurements(name, kernels):
    rows = list(speed_rows(name))
    assert len(rows) == 8 and not [row for row in rows if row not in README]
    found = json.loads((ROOT / "scaling" / "results" / "bench" / f"{name}.json").read_text(encoding="utf-8"))
    assert found["cpu"] == kernels and "family 25, model 17" in found["processor"]       # which is Zen 4


def test_the_race_of_fits_is_the_committed_one():
    found = json.loads((ROOT / "scaling" / "results" / "bench" / "cpu.json").read_text(encoding="utf-8"))
    ours, theirs = found["fits"]["ours"], found["fits"]["chinchilla"]
    assert ours["forms"] == 6 and f"with 1,000 resamples take {ours['seconds']:.1f} s here" in README
    assert f"{theirs['seconds']:.0f} s on two cores for one form" in README
    assert ours["objective"] == pytest.approx(theirs["objective"], rel=1e-4)         # the same optimum


def gpu_rows(found: dict):
    """README's rows of results/bench/gpu.json: tokens/s, ratios to the peers, ms of the loss."""
    T = found["settings"]["shapes"][0][1]
    steps = {(row["name"], row["d"], row["T"]): row["tok_per_s"]["median"] for row in found["steps"]}
    losses = {(row["name"], row["d"]): row["ms"]["median"] for row in found["loss"]}
    for trainer in found["trainer"]:
        d = trainer["d"]
        ours = steps["ours", d, T]
        ms = (losses[name, d] for name in ("fused", "compiled", "eager"))
        yield (f"| {d} | {ours / 1e6:.2f}M | {ours / steps['nanogpt', d, T]:.2f} | "
               f"{ours / steps['eager', d, T]:.1f} | {ours / trainer['tok_per_s']['median']:.1f} | "
               "{:.1f} | {:.1f} | {:.0f} |".format(*ms))


def test_speeds_on_a_gpu_are_the_committed_measurements():
    path = ROOT / "scaling" / "results" / "bench" / "gpu.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = list(gpu_rows(found))
    assert len(rows) == 4 and not [row for row in rows if row not in README]
    assert f"would take {found['projection']['ours']['hours']:.2f} hours" in README


# ---------------------------------------------------------------- what a change is worth


def worth(row):
    """'1.38 (1.30 to 1.46)' of a factor and its interval in fit.json."""
    lo, hi = row["ci"]
    return f"{row['factor']:.2f} ({lo:.2f} to {hi:.2f})"


def test_the_arms_are_the_committed_fit():
    found = study("modern")[0]["arms"]["arms"]
    for name, arm in found.items():
        low, high = (min(arm["multiplier"], key=lambda row: abs(row["C"] / C - 1)) for C in (1e11, 8e11))
        hourly = min(arm["per_hour"], key=lambda row: abs(row["C"] / 8e11 - 1))
        tenfold = {"factor": arm["trend"]["per_tenfold_C"], "ci": arm["trend"]["ci"]}
        cells = [name, worth(low), worth(high), f"times {worth(tenfold)}", worth(hourly)]
        assert f"| {' | '.join(cells)} |" in README
        lo, hi = arm["trend"]["ci"]
        assert (lo <= 1 <= hi) == (name != "muon")     # as the sentence below the table says
        same = all(row["ci"][0] <= 1 <= row["ci"][1] for row in (low, high))
        assert same == (name in ("rms", "relu2", "qk_norm"))
    assert len(found) == 7


@pytest.mark.parametrize("name", ["far", "far_shakespeare", "far_wikitext2"])
def test_the_far_forecasts_are_the_committed_ones(name):
    words = re.search(r"Above, on bytes.*?Below:", README)[0]
    for row in rows(ROOT / "scaling" / "results" / name / "forecasts.csv"):
        assert row["inside"] == "1" and f"{100 * float(row['error']):+.1f} %" in words


# ---------------------------------------------------------------- what a critic asked for

def test_the_first_line_tells_of_both_forecasts():
    first = README.partition("Or give it")[0]
    made = rows(STUDY / "forecasts.csv")
    said, came = (" and ".join(f"{float(row[key]):.3f}" for row in made) for key in ("predicted", "measured"))
    assert f"we said {said}, they came out at {came}." in first
    largest = max(float(row["flops_6nd"]) for row in rows(STUDY / "runs.csv"))
    near, far = (6 * float(row["params"]) * float(row["tokens"]) / largest for row in made)
    assert f"{near:.0f} and {far:.1f} times the compute" in first


def test_what_the_study_seals_now_is_said():
    table = read_table(STUDY / "runs.csv")
    fit = json.loads((STUDY / "fit.json").read_text(encoding="utf-8"))
    now = [forecast.predict(table, fit, float(row["params"]), float(row["tokens"]))["predicted"]
           for row in rows(STUDY / "forecasts.csv")]
    assert "`make study` now seals " + " and ".join(f"{loss:.3f}" for loss in now) in README


def test_the_far_intervals_are_as_wide_as_readme_says():
    made = {row["run"]: row for row in rows(ROOT / "scaling" / "results" / "far" / "forecasts.csv")}
    near, far = (100 * math.log(float(made[run]["hi95"]) / float(made[run]["predicted"]))
                 for run in ("d56_2.4e12", "d184_2.4e14"))
    assert f"which widen from {near:.1f} % either way to {far:.0f} %" in README


def test_on_which_side_the_forecasts_beyond_ten_times_lie_and_what_two_other_seeds_give():
    low = {}
    for name in ("far", "far_shakespeare", "far_wikitext2"):
        largest = max(float(row["flops_6nd"]) for row in study(name)[1])
        for row in rows(ROOT / "scaling" / "results" / name / "forecasts.csv"):
            if 6 * float(row["params"]) * float(row["tokens"]) / largest > 11:
                low.setdefault(name, []).append(float(row["error"]) < 0)
    assert low == {"far": [True] * 3, "far_shakespeare": [True], "far_wikitext2": [False] * 2}
    assert "Beyond 10 times the forecasts are all too low on the first two texts, and too high on" in README
    log = " ".join((ROOT / "scaling" / "LOG.md").read_text(encoding="utf-8").split())
    assert "+1.4, +1.2, +1.8, +.1, +.1, +.0 % and +1.1, +.6, +1.9, -.8, -1.2, -1.7 %" in log
    assert "give 0.0 % and -1.7 % at 300 times" in README


def test_coverage_of_all_sealed_forecasts():
    made = [row for path in (ROOT / "scaling" / "results").glob("*/forecasts.csv") for row in rows(path)]
    inside = sum(int(row["inside"]) for row in made)
    low = 0.025 ** (1 / len(made))                    # Clopper and Pearson, where all are inside
    assert inside == len(made)
    assert f"{inside} of {len(made)} lie inside their intervals" in README
    assert f"the true share is {100 * low:.0f} % to 100 %" in README


@pytest.mark.parametrize("name, law, key, digits", [
    ("tinyshakespeare", "loss_vs_params", "alpha", 2), ("wikitext2_cpu", "loss_vs_params", "alpha", 1),
    ("width_sweep_cpu", "loss_vs_compute", "alpha", 3), ("laptop", "surface", "a", 2),
    ("laptop", "isoflop", "a", 2),
    *((name, law, "a", 2) for name in ("isoflop", "isoflop_wikitext2")
      for law in ("surface", "isoflop", "envelope"))])
def test_a_fit_that_our_tool_warns_of_is_called_flagged(name, law, key, digits):
    """Between its number and the next one of its row, or in the sentence, as it is of the laptop study."""
    found = study(name)[0][law]
    after = README.partition(with_interval(found, key, digits))[2]
    if name in ("isoflop", "isoflop_wikitext2"):
        after = README[README.index("| this lab," if name == "isoflop" else "| the same recipe,"):]
        after = after.partition(with_interval(found, key, digits))[2]
    nearest = re.split(r", \d\.\d|; (?:forecast|IsoFLOP)|\| `", after[:90])[0]
    assert ("flagged" in nearest) == (not found["health"]["ok"]), nearest


def test_budgets_without_a_vertex():
    """README counts the budgets that have a warning, of all."""
    for name, words in (("laptop", "at two budgets their vertex may lie outside"),
                        ("isoflop_wikitext2", "flagged at three of five budgets")):
        law = study(name)[0]["isoflop"]
        said = sum("left the sizes" in line for line in law["health"]["lines"])
        assert words in README and said == dict(laptop=2, isoflop_wikitext2=3)[name]
    assert len(law["points"]) == 5


def test_the_walk_has_intervals_and_runs():
    for label in ("as Kaplan et al.", "tune each size, no decay"):
        shown = rf"{label} +a = ([\d.]+) \(([\d.]+) to ([\d.]+)\), (\d+) runs"
        *law, n = re.search(shown, printed()).groups()
        said = re.search(rf"(0\.\d+) \((0\.\d+) to (0\.\d+); n = {n}\)", README).groups()
        assert [float(v) for v in said] == pytest.approx([float(v) for v in law], abs=0.00056)


def test_besiroglus_points_give_what_readme_says():
    table = read_table(published_table("chinchilla"))
    kept = table["loss"] < np.sort(table["loss"])[-5]
    law = forms.fit_surface(*(table[key][kept] for key in ("params", "tokens", "loss")))
    low, high = law["ci"]["a"]
    assert f"a = {law['a']:.3f} ({low:.3f} to {high:.3f})".replace("0.", ".") in README and law["n"] == 240


def test_differences_of_two_ways():
    row = study("isoflop")[0]["verdict"]["differences"][0]
    low, high = row["ci"]
    said = f"IsoFLOP less surface is {row['difference']:.2f} ({low:.2f} to {high:.2f}), no difference seen"
    assert row["what"] == "a" and low < 0 < high and said in README


def test_the_modern_forecast_and_the_test_of_exponents():
    fitted, trained = study("modern")
    assert forecast_text("modern") in README and f"({len(trained)} runs)" in README
    line, = fitted["arms"]["health"]["lines"]
    p = float(re.search(r"p = ([\d.]+)", line)[1])
    assert f"F test, p = {p:.4f}".replace("0.", ".") in README
    arms = runpy.run_path(str(ROOT / "scaling" / "sweeps" / "modern.py"))["_arms"]
    changes = [{pair for pair in arm.items() if pair[0] != "learning_rate"} for arm in arms.values()]
    assert set().union(*changes[:-1]) - changes[-1] == {("mlp", "relu2")}
    assert "`all` is every change but relu2" in README


def test_rates_move_as_readme_says():
    for name, key in (("transfer", "n_embd"), ("depth", "n_layer")):
        best = {}
        for row in rows(ROOT / "scaling" / "results" / name / "transfer.csv"):
            trial = float(row["val_loss"]), float(row["learning_rate"])
            place = row["parametrization"], int(row[key])
            best[place] = min(best.get(place, trial), trial)
        spread = {}
        for kind in {kind for kind, _ in best}:
            rates = [rate for (own, _), (_, rate) in best.items() if own == kind]
            spread[kind] = max(rates) / min(rates)
        assert all(spread[kind] <= 2 for kind in spread if name == "depth" or kind != "gpt2")
        assert len(spread) == 3 if name == "depth" else spread["gpt2"] == pytest.approx(8)


def test_costs_of_configs_are_those_of_their_files():
    table = README.partition("| config | model |")[2].partition("Measured once each")[0]
    for line in re.findall(r"\| (`config/[^|]*) \|[^|]*\| ([^|]*) \| ([^|]*) \|", table):
        names, minutes, ends = (re.sub(r" minutes?|`", "", part).split(",") for part in line)
        for name, minute, end in zip(names, minutes, ends, strict=True):
            path = ROOT / "config" / Path(name.strip()).name
            head = " ".join(path.read_text(encoding="utf-8").splitlines()[:4])
            assert re.search(rf"About {minute.strip()} minutes? on .*val_loss {end.strip()} ", head), name


def test_the_rest_of_the_speeds():
    folder = ROOT / "scaling" / "results" / "bench"
    cpu, gpu = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("cpu", "gpu"))
    ratios = ", ".join(f"{row['ratio']['median']:.1f}" for row in cpu["processes"])
    assert f"do {ratios} times the work" in README and f"medians of {cpu['rounds']} rounds" in README
    assert f"Medians of {gpu['settings']['rounds']} rounds" in README
    speed = {(row["name"], row["d"], row["T"]): row["tok_per_s"]["median"] for row in gpu["steps"]}
    a, b = (speed["ours", d, 128] for d in (32, 256))
    slow, less = (speed["eager", d, 128] for d in (32, 256))
    assert f"{a:,.0f} tokens/s at d 32, {a / slow:.0f} times eager" in README
    assert f"and {b:,.0f} at d 256, {b / less:.1f} times" in README
    first, *others = (row["tok_per_s"]["median"] for row in gpu["trainer"])
    assert gpu["trainer"][0]["d"] == 32 and first < min(others)
    assert "the Trainer at d 32 ran first and was slow" in README
