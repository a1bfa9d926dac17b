"""The notebook: short, without definitions, committed with the outputs that it gives when it is run."""
import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "scaling" / "scaling_laws.ipynb"
ORACLES = ROOT.parent / "shared" / "oracles"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook):
    """Run all cells as Jupyter would; an exception in one of them fails the test."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return notebook


def text(cell):
    """What the cell printed on standard output."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def images(cell):
    return sum("image/png" in o.get("data", {}) for o in cell.outputs)


def numbers(printed):
    return [float(n) for n in re.findall(r"(?<![\w.])[-+]?\d+\.?\d*(?:e[-+]?\d+)?", printed)]


@pytest.fixture(scope="module")
def committed():
    return read()


@pytest.fixture(scope="module")
def fresh():
    return execute(read())


def test_code_is_short_and_defines_nothing(committed):
    lines = [line for cell in code(committed) for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 100 and max(map(len, lines)) <= 110
    tree = ast.parse("\n".join(line for line in lines if not line.startswith("%")))
    definitions = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda
    assert not [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, definitions)]


def test_outputs_are_committed_small_and_clean(committed):
    assert NOTEBOOK.stat().st_size < 500_000
    assert [cell.execution_count for cell in code(committed)] == list(range(1, len(code(committed)) + 1))
    assert sum(map(images, code(committed))) >= 12
    for output in (o for cell in code(committed) for o in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        printed = str(output.get("text", ""))
        assert str(ROOT) not in printed and not re.search(r"/(home|Users|root|tmp)/", printed)
    assert not any("skipped:" in text(cell) for cell in code(committed))


def test_running_it_gives_what_is_committed(committed, fresh):
    for old, new in zip(code(committed), code(fresh)):
        if "skipped:" in text(new) and not ORACLES.exists():
            continue                                   # the published data are not part of the project
        assert numbers(text(new)) == pytest.approx(numbers(text(old)), rel=0.02, abs=0.01), new.source
        assert images(new) == images(old), new.source


def test_the_puzzle_comes_out(fresh):
    printed, = (text(cell) for cell in code(fresh) if "N_grid" in cell.source)
    assert re.search(r"all as fitted.*N = 389M, D = 9\.47B", printed)
    assert re.search(r"nanoGPT's grid: N = 316M, D = 11\.65B", printed)


def test_published_data_are_optional():
    """Without them the cells that need them say so, and the puzzle still comes out."""
    notebook = read()
    first = code(notebook)[0]
    assert 'ROOT.parent / "shared" / "oracles"' in first.source
    first.source = first.source.replace('ROOT.parent / "shared" / "oracles"', 'ROOT / "nowhere"')
    others = [cell for cell in code(notebook)[1:] if "ORACLES" in cell.source or "hoffmann" in cell.source]
    notebook.cells = [first, *others]
    execute(notebook)
    assert [text(cell).startswith("skipped:") for cell in notebook.cells] == [False, True, True, False, True]
