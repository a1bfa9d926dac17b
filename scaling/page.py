"""The lesson of scaling_laws.ipynb on a study of your own, as one page that opens anywhere.

    STUDY=out/laptop make notebook            installs what it takes and runs
    python -m scaling.page out/laptop         which writes out/laptop/scaling_laws.html

The page holds its pictures, styles and formulas (MathML), and asks no network. The notebook stays as it is.
"""
import html
import os
import re
from pathlib import Path

from runtime import basics
from runtime.basics import Parser, UserError, exit_cleanly, whole_file
from scaling import plots

NOTEBOOK = "scaling_laws"
SHARP = "%config InlineBackend.figure_format = 'retina'"

STYLE = """
body {max-width: 52rem; margin: 1rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222}
h1, h2 {line-height: 1.2; margin: 2.5rem 0 0.8rem}
pre, code {font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.74rem}
pre {white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: 0.5rem 0.7rem; line-height: 1.4}
p code, li code {background: #f3f3f3; padding: 0.1rem 0.2rem; font-size: 0.85rem}
.input, .highlight {background: #f6f8fa}
.output_stream pre {border-left: 3px solid #ddd}
.output_png, .cell {margin: 0.6rem 0}
img {width: 100%; height: auto}
math {font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math", math; font-size: 1.05em}
math[display=block] {margin: 0.8rem 0; overflow-x: auto}
.prompt, .anchor-link {display: none}
"""

HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: scaling laws</title>
<style>{style}</style>
</head>
<body>
<p><strong>{name}</strong>, {runs} runs. What is printed and drawn is of this study; the words were written
for another, <code>isoflop</code>.</p>
{body}
</body>
</html>
"""


def run(folder: Path):
    """The notebook, run on the study in `folder`. Raises UserError where a cell of it fails."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    place = basics.ROOT / "scaling"
    notebook = nbformat.read(place / f"{NOTEBOOK}.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SHARP))
    os.environ["STUDY"] = str(folder.resolve())        # the notebook's process looks there
    try:
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(place)}}).execute()
    except CellExecutionError as e:
        raise UserError(f"{folder}: a cell of {NOTEBOOK}.ipynb failed on this study ({e.ename}: {e.evalue}); "
                        "open the notebook with STUDY set to it to see which") from None
    del notebook.cells[0]
    return notebook


def prepare(notebook) -> None:
    """Formulas become MathML, pictures get a text, and what only repeats an object's name goes."""
    heading = ""
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None]):
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.M) or [heading])[-1]
            cell.source = with_formulas(without_local_links(cell.source))
        else:
            cell.metadata["alt"] = f"{heading}. {what_to_see(after)}".strip()
            cell.outputs = [o for o in cell.outputs if o.output_type == "stream" or "image/png" in o.data]


def what_to_see(cell) -> str:
    """What the notebook says of the picture above this cell, in plain words."""
    said = re.search(r"\*See:\*(.+?)(?:\*Change:\*|$)", cell.source if cell else "", re.S)
    return " ".join(re.sub(r"[*`$\\]", "", said[1]).split()) if said else ""


def without_local_links(text: str) -> str:
    """The page may be sent to somebody who has none of the files beside the notebook."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


def with_formulas(text: str) -> str:
    """Markdown whose $...$ and $$...$$ are MathML."""
    from latex2mathml.converter import convert

    text = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1].strip(), display="block"), text, flags=re.S)
    return re.sub(r"\$(.+?)\$", lambda m: convert(m[1]), text)


def page(folder: Path, study) -> str:
    """The whole page, as HTML."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    notebook = run(folder)
    prepare(notebook)
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    return HTML.format(name=html.escape(study.name), runs=len(study.L), style=style, body=body)


def main(args: list[str] | None = None) -> None:
    parser = Parser("python -m scaling.page", __doc__)
    parser.add_argument("study", metavar="STUDY_DIR", help="a directory with runs.csv and fit.json")
    folder = Path(parser.parse_args(args).study)
    study = plots.read_study(folder)
    print(f"{folder}: {NOTEBOOK}.ipynb runs on {study.name}; a minute or less", flush=True)
    try:
        text = page(folder, study)
    except ModuleNotFoundError as e:
        raise UserError(f"a page takes {e.name}: pip install -r requirements-dev.txt") from None
    out = folder / f"{NOTEBOOK}.html"
    with whole_file(out) as f:
        f.write(text)
    print(out)


if __name__ == "__main__":
    exit_cleanly(main)
