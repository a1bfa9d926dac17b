"""CSV files as columns of numbers: a number that is missing stays missing."""
import csv
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from runtime.basics import UserError, whole_file

# Names, even if they look like numbers: runs 1 and 01 differ, and the commit 5e10843 is not infinity.
TEXT_COLUMNS = set("study run dataset tokenizer schedule device dtype commit sha256".split())


MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def number(value) -> float:
    """A CSV cell or a JSON value as a float; nan, never 0, where it is missing. Raises ValueError."""
    if isinstance(value, str) and "_" not in value:
        return float(value) if value.strip() else math.nan
    if value is None or type(value) in (int, float):
        return math.nan if value is None else float(value)
    raise ValueError(f"{value!r:.40} is not a number")


def csv_rows(path: str | Path, report: Callable | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each line that is not blank, the header first.

    A ragged row is an error, or is skipped and reported where `report` is given. Raises UserError.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, strict=True)
            header = [name.strip() for name in next(reader, [])]
            twice = [name for name, times in Counter(header).items() if times > 1]
            if not header or twice:
                raise UserError(f"{path}: column {twice[0]!r} appears twice; rename one" if twice else
                                f"{path}: line 1 is empty; it must name the columns")
            yield 1, header
            for cells in filter(None, reader):
                if len(cells) == len(header):
                    yield reader.line_num, cells
                    continue
                wrong = f"{path}:{reader.line_num}: {len(cells)} cells where the header has {len(header)}"
                if report is None:
                    raise UserError(wrong)
                report(f"{wrong}; skipped")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', e)}; a CSV file in UTF-8 is needed") from None
    except csv.Error as e:
        raise UserError(f"{path}:{reader.line_num}: {e}") from None


def to_column(cells: Iterable[str], text: bool) -> np.ndarray:
    """The cells as float64, nan where empty; as str objects if `text` says so or one of them is no number."""
    try:
        if text or "_" in "".join(cells):             # float() would take 1_000
            return np.array([sys.intern(c) for c in cells], object)
        return np.array([float(c.strip() or "nan") for c in cells])
    except ValueError:
        return to_column(cells, text=True)


def read_table(path: str | Path, text: Iterable[str] = TEXT_COLUMNS) -> dict[str, np.ndarray]:
    """{column: values} of a CSV file: float64, nan where empty; str objects for `text` and if a cell is text.

    Raises UserError for a file that is missing, empty, ragged (with the line) or undecodable.
    """
    rows, text, chunks, late = csv_rows(path), set(text), [], False
    header = next(rows)[1]
    while chunk := [cells for _, cells in itertools.islice(rows, 10_000)]:      # bounds what is held as text
        chunks.append({name: to_column(cells, name in text) for name, cells in zip(header, zip(*chunk))})
        new = {name for name, values in chunks[-1].items() if values.dtype == object} - text
        late |= bool(new) and len(chunks) > 1
        text |= new
    if late:                                          # numbers came first, their spelling is gone: once more
        return read_table(path, text)
    empty = {name: np.array([], object if name in text else float) for name in header}
    return {name: np.concatenate([c[name] for c in chunks or [empty]]) for name in header}


def cell(value) -> str:
    """A value as CSV text: repr for floats (the shortest that reads back), empty for None and nan."""
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, (float, np.floating)) else str(value)


def write_table(path: str | Path, rows: Iterable[dict], columns: list[str]) -> None:
    """Write `rows` as CSV, atomically. Missing values are empty.

    A key that is not in `columns` is a ValueError. Raises UserError when the disk refuses.
    """
    with whole_file(path) as f:
        table = csv.DictWriter(f, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({key: cell(value) for key, value in row.items()} for row in rows)
