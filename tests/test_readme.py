"""README against the repository: its numbers equal the committed results, its files and commands exist."""
import csv
import hashlib
import json
import re
from pathlib import Path

import pytest

from config import settings

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
        "isoflop forecast": forecast_text("isoflop"), "wikitext forecast": forecast_text("isoflop_wikitext2"),
        **{f"isoflop {k}": with_interval(isoflop[k], "a", 2) for k in ("surface", "isoflop", "envelope")},
        **{f"wikitext {k}": with_interval(text[k], "a", 2) for k in ("surface", "isoflop", "envelope")},
        **{f"walk {label}": f"{float(re.search(rf'{label} +a = ([0-9.]+)', printed())[1]):.3f}"
           for label in ("as Kaplan et al.", "tune each size, no decay")}}


def test_the_table_holds_the_committed_results():
    missing = {what: number for what, number in measured_numbers().items() if number not in README}
    assert not missing


def speed_rows():
    """README's rows of results/bench/cpu.json: tokens/s, share of the roofline, ratios to the peers."""
    found = json.loads((ROOT / "scaling" / "results" / "bench" / "cpu.json").read_text(encoding="utf-8"))
    for row in found["shapes"]:
        s, peers = row["settings"], row["contestants"]
        ratios = (f"{peers[k]['ratio']['median']:.2f}" if peers.get(k) else "-"
                  for k in ("hf", "hf_compiled", "plain"))
        yield (f"| {s['n_layer']} layers, d {s['n_embd']}, {s['batch_size']} x {s['block_size']} tokens, "
               f"V {s['vocab_size']:,} | {peers['ours']['tok_per_s']['median']:,.0f} | "
               f"{100 * peers['ours']['roofline_share']:.0f} % | " + " | ".join(ratios) + " |")


def test_speeds_are_the_committed_measurements():
    rows = list(speed_rows())
    assert len(rows) >= 5 and not [row for row in rows if row not in README]


def gpu_rows(found: dict):
    """README's rows of results/bench/gpu.json: tokens/s, ratios to the peers, ms of the loss."""
    T = found["settings"]["shapes"][0][1]
    steps = {(row["name"], row["d"], row["T"]): row["tok_per_s"]["median"] for row in found["steps"]}
    losses = {(row["name"], row["d"]): row["ms"]["median"] for row in found["loss"]}
    for trainer in found["trainer"]:
        d = trainer["d"]
        ours = steps["ours", d, T]
        ms = (losses[f"{name}", d] for name in ("fused", "compiled, fp32 logits", "eager, fp32 logits"))
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


@pytest.mark.parametrize("name", ["far", "far_shakespeare"])
def test_the_far_forecasts_are_the_committed_ones(name):
    words = re.search(r"Above, on bytes.*?Below:", README)[0]
    for row in rows(ROOT / "scaling" / "results" / name / "forecasts.csv"):
        assert row["inside"] == "1" and f"{100 * float(row['error']):+.1f} %" in words
