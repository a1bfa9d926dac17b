"""The notebooks: one teaches, one re-runs published studies; committed with the outputs that they give."""
import ast
import html
import math
import re
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from runtime.basics import UserError, load_json
from scaling import page, plots, published
from scaling.laws import forms
from scaling.tables.csv import read_table

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT.parent / "shared" / "raw"
TEACHING, PUBLISHED = "scaling_laws", "published_studies"
both = pytest.mark.parametrize("name", [TEACHING, PUBLISHED])


def read(name):
    return nbformat.read(ROOT / "scaling" / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook):
    """Run all cells as Jupyter would; an exception in one of them, an assert say, fails the test."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "scaling")}}).execute()
    return notebook


def text(cell):
    """What the cell printed on standard output."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def images(cell):
    return sum("image/png" in o.get("data", {}) for o in cell.outputs)


def numbers(printed):
    return [float(n) for n in re.findall(r"(?<![\w.])[-+]?\d+\.?\d*(?:e[-+]?\d+)?", printed)]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if RAW.exists():
            patch.setattr(published, "FOLDER", tmp_path_factory.mktemp("published"))
            patch.setenv("PUBLISHED", str(published.FOLDER))
            for name in ("chinchilla", "porian", "width_sweep"):
                published.fetch(name, RAW)
        return {name: execute(read(name)) for name in (TEACHING, PUBLISHED)}


@both
def test_outputs_are_committed_small_and_clean(name):
    notebook = read(name)
    assert (ROOT / "scaling" / f"{name}.ipynb").stat().st_size < 500_000
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for output in (o for cell in code(notebook) for o in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        printed = str(output.get("text", ""))
        assert str(ROOT) not in printed and not re.search(r"/(home|Users|root|tmp)/", printed)
        assert output.output_type == "stream" or "image/png" in output.data        # no <Legend at 0x...>
    assert not any("skipped:" in text(cell) for cell in code(notebook))


def test_it_teaches_in_few_lines():
    """One function of its own, at most ten pictures, no wall of text, a change to try in each section."""
    notebook = read(TEACHING)
    tree = ast.parse("\n".join(cell.source for cell in code(notebook)))
    definitions = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    assert [node.name for node in ast.walk(tree) if isinstance(node, definitions)] == ["misfit"]
    assert sum(map(images, code(notebook))) == 10
    assert max(len(text(cell).splitlines()) for cell in code(notebook)) <= 10
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^## \d", words, re.M)) == 12
    assert words.count("*See:*") >= 9 and words.count("*Change:*") >= 9
    assert sum("assert" in cell.source for cell in code(notebook)) >= 6      # held against the library


@both
def test_running_it_gives_what_is_committed(name, fresh):
    for old, new in zip(code(read(name)), code(fresh[name])):
        if "skipped:" in text(new) and not RAW.exists():
            continue                                   # the published data are not part of the project
        assert numbers(text(new)) == pytest.approx(numbers(text(old)), rel=0.02, abs=0.01), new.source
        assert images(new) == images(old), new.source


def test_it_shows_the_differences_of_two_ways():
    printed, = (text(cell) for cell in code(read(TEACHING)) if "differences" in cell.source)
    fit = load_json(ROOT / "scaling" / "results" / "isoflop" / "fit.json")
    rows = fit["verdict"]["differences"]
    *lines, fitted, noise = printed.splitlines()
    assert noise == "noise: that between seeds" and len(lines) == 4
    apart, usual = numbers(fitted)
    assert apart == pytest.approx(fit["isoflop"]["a"] - fit["surface"]["a"], abs=6e-4)
    assert apart - usual == pytest.approx(rows[0]["difference"], abs=1.1e-3)
    assert [line.partition(":")[0] for line in lines] == [row["what"] for row in rows]
    for row, line in zip(rows, lines):
        shown = [row["difference"], *row["ci"]]
        if row["what"] != "a":
            shown = [100 * math.expm1(v) for v in shown]
        assert numbers(line.partition("surface")[2]) == pytest.approx([*shown, row["p"]], abs=0.051)


def test_numbers_in_the_words_are_those_of_the_study():
    words = " ".join(cell.source for cell in read(TEACHING).cells if cell.cell_type == "markdown")
    results = ROOT / "scaling" / "results"
    study = plots.read_study(results / "isoflop")
    law = study.fit["loss_vs_params"]["points"]["N"]                     # the slice L(N), section 7
    beside = [study.D[study.N == n][study.L[study.N == n].argmin()] for n in law]
    assert f"varied by a factor of {max(beside) / min(beside):.1f} only" in words
    by = [row["6nd"]["a"] for row in study.fit["accounting"].values()]
    low, high = study.fit["surface"]["ci"]["a"]
    assert "by a third of its interval" in words
    assert (max(by) - min(by)) / (high - low) == pytest.approx(1 / 3, abs=0.03)
    start = dict(E=1.0, A=np.exp(5), B=np.exp(5), alpha=0.5, beta=0.5)   # section 10
    early, tight = plots.early_stop(study.N, study.D, study.L, start).axes[0].lines
    assert "a good third above the minimum" in words and 1 / 3 < early.get_ydata()[-1] < 0.45
    assert not low < float(re.search(r"a\$ = ([\d.]+)", early.get_label())[1]) < high
    made = {name: read_table(results / name / "forecasts.csv") for name in
            ("far", "far_shakespeare", "far_wikitext2")}                 # section 9
    worst = {name: 100 * abs(table["error"]).max() for name, table in made.items()}
    assert f"by up to {max(worst['far'], worst['far_shakespeare']):.1f} % on two texts" in words
    assert f"too high by up to {worst['far_wikitext2']:.1f} %" in words


def test_most_of_the_misfit_is_of_one_size():
    """So says section 10, which has it left out: the lack of fit then is what seeds explain."""
    study = plots.read_study(ROOT / "scaling" / "results" / "isoflop")
    F = []
    for keep in (study.N > 0, ~np.isclose(study.N, 6276)):
        y = np.log(study.L[keep])
        law = forms.fit_surface(study.N[keep], study.D[keep], study.L[keep], bootstrap=0)
        misses = y - np.log(forms.loss_of(law, {"N": study.N[keep], "D": study.D[keep]}))
        _, setting, count = np.unique(study.data["setting"][keep], return_inverse=True, return_counts=True)
        seeds = ((y - (np.bincount(setting, y) / count)[setting]) ** 2).sum()
        F.append(((misses ** 2).sum() - seeds) / (len(count) - 5) / (seeds / (len(y) - len(count))))
    assert F == pytest.approx([2.3, 1.3], abs=0.06)


@pytest.mark.parametrize("study", ["transfer", "modern_tune", "wikitext2_cpu"])
def test_a_study_that_cannot_carry_a_section_says_why(study, monkeypatch):
    """Without a fit, so of other blocks than GPT-2's, and without a surface; by hand all were tried."""
    monkeypatch.setenv("STUDY", f"scaling/results/{study}")
    notebook = read(TEACHING)
    notebook.cells = [cell for cell in notebook.cells if "modern" not in cell.source]
    cells = code(execute(notebook))
    said = "".join(map(text, cells))
    assert "no surface here:" in said and "no isoflop here:" in said and "no differences here:" in said
    assert "nan" not in said and "None" not in said
    assert all(o.output_type == "stream" or "image/png" in o.data for cell in cells for o in cell.outputs)


@both
def test_no_sentence_stutters(name):
    """No four words stand twice within forty of each other, as where a correction left what it replaced."""
    for cell in read(name).cells:
        words = cell.source.split() if cell.cell_type == "markdown" else []
        places = {}
        for i in range(len(words) - 3):
            four = tuple(words[i:i + 4])
            assert i - places.get(four, -100) > 40, four
            places[four] = i


def test_hours_of_runs_that_share_a_trunk_are_called_an_upper_bound():
    """wall_s of a branch holds its trunk's, so the sum counts the trunk for each of them."""
    notebook = read(TEACHING)
    assert any("core-hours at most" in cell.source for cell in code(notebook))
    assert any("they are an upper bound" in cell.source for cell in notebook.cells)


def test_the_puzzle_comes_out(fresh):
    printed, = (text(cell) for cell in code(fresh[PUBLISHED]) if "N_grid" in cell.source)
    assert re.search(r"all as fitted.*N = 389M, D = 9\.47B", printed)
    assert re.search(r"nanoGPT's grid: N = 316M, D = 11\.65B", printed)


def test_published_data_are_optional(tmp_path, monkeypatch):
    """Without them the cells that need them say so, and the puzzle still comes out."""
    monkeypatch.setenv("PUBLISHED", str(tmp_path))
    notebook = read(PUBLISHED)
    first = code(notebook)[0]
    others = [cell for cell in code(notebook)[1:] if "published(" in cell.source or "hoffmann" in cell.source]
    notebook.cells = [first, *others]
    execute(notebook)
    assert [text(cell).startswith("skipped:") for cell in notebook.cells] == [False, True, True, False, True]


# ---- The page of a study. ----

@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """A copy of the study, in a folder with a space; the STUDY that a page sets is forgotten afterwards."""
    monkeypatch.setenv("STUDY", "")
    return Path(shutil.copytree(ROOT / "scaling" / "results" / "laptop", tmp_path / "my studies" / "laptop"))


def test_the_page_of_a_study_opens_anywhere(laptop, capsys):
    """It asks no network and runs no script, each picture has words, and the notebook is as it was."""
    pytest.importorskip("nbconvert")
    pytest.importorskip("latex2mathml")
    before = (ROOT / "scaling" / f"{TEACHING}.ipynb").read_bytes()
    page.main([str(laptop)])
    made = laptop / "scaling_laws.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(made)
    text = made.read_text(encoding="utf-8")
    assert "<strong>laptop, shakespeare</strong>, 27 runs" in text and "d52_2.5e12: measured 1.706" in text
    assert re.findall(r'(?:src|href)="(?!data:image/png|#|https://arxiv)[^>]*', text) == []
    assert "<script" not in text and "@import" not in text and "Legend at 0x" not in text
    pictures = re.findall(r"<img [^>]*", text)
    words = [html.unescape(re.search(r'alt="([^"]*)"', one)[1]) for one in pictures]
    assert len(words) == 10 and words[0].startswith("1. One picture. larger compute, lower loss")
    assert all(len(one) > 20 for one in words)
    prose = re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)
    assert "$" not in prose.partition("<body>")[2] and prose.count("<math") > 10
    assert (ROOT / "scaling" / f"{TEACHING}.ipynb").read_bytes() == before


def test_a_page_that_cannot_be_made_says_why(laptop, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbconvert", None)
    with pytest.raises(UserError, match="a page takes nbconvert: pip install -r requirements-dev.txt"):
        page.main([str(laptop)])
    with pytest.raises(UserError, match="no runs.csv in it"):
        page.main([str(laptop.parent)])
    assert not [*laptop.parent.rglob("*.html")]


def test_a_cell_that_fails_is_named_in_a_line(laptop, monkeypatch):
    pytest.importorskip("nbconvert")
    monkeypatch.setattr(page, "SHARP", "1 / 0")
    with pytest.raises(UserError, match=r"a cell of scaling_laws.ipynb failed .*ZeroDivisionError"):
        page.main([str(laptop)])
