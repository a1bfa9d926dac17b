"""README against the repository: its numbers equal the committed results, its files and commands exist."""
import csv
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDY = ROOT / "scaling" / "results" / "laptop"


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
    row, = rows(STUDY / "forecasts.csv")
    columns = ("predicted", "lo95", "hi95", "measured", "error")
    predicted, lo, hi, measured, error = (float(row[k]) for k in columns)
    assert f"{predicted:.3f} ({lo:.3f} to {hi:.3f})" in README
    assert f"{measured:.3f}" in README and f"{100 * error:+.2f} %" in README
    largest = max(float(r["flops_6nd"]) for r in rows(STUDY / "runs.csv"))
    beyond = float(row["tokens"]) * float(row["params"]) * 6 / largest
    assert beyond >= 3 and "3 times" in README
    seal = json.loads((STUDY / "forecasts" / f"{row['run']}.json").read_text(encoding="utf-8"))
    assert row["sha256"] == seal["sha256"]


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(path):
    assert path.startswith("http") or (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"[\w/]+\.(?:py|ipynb|json|md|csv)\b", README))
                                        | set(re.findall(r"scaling/results/\w+", README))))
def test_named_files_exist(path):
    """Files that README names, but for what the reader's own runs write."""
    if path in ("fit.json", "config.json", "result.json", "meta.json", "fit_card.json", "runs.csv",
                "curves.csv", "forecasts.csv", "RUNS.csv", "RUN.csv", "trainer_state.json", "config/next.py"):
        return
    found = (ROOT / path).exists() or any((ROOT / "scaling" / path).exists() for _ in (0,)) or "NAME" in path
    assert found, f"README names {path}"


def test_config_costs_are_measured():
    """The first comment of every config gives the command; the next lines a cost and a loss, not blank."""
    for path in sorted((ROOT / "config").glob("*.py")):
        head = path.read_text(encoding="utf-8").splitlines()[:4]
        assert head[0] == f"# python train.py config/{path.name}"
        assert re.search(r"\d+ (s|minutes?) on .*val_loss \d\.\d\d", " ".join(head)), path.name
