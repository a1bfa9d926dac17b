"""CSV files as columns of numbers: a number that is missing stays missing."""
import csv
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from config.settings import TEXT_COLUMNS
from runtime.basics import UserError, whole_file

MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def number(value) -> float:
    """A CSV cell or a JSON value as a float; nan, never 0, where it is missing. Raises ValueError."""
    if value is None:
        return math.nan
    if type(value) in (int, float):                   # not bool, which float() would take
        return float(value)
    if isinstance(value, str) and "_" not in value:   # nor 1_000
        return float(value.strip() or "nan")
    raise ValueError(f"{value!r:.40} is not a number")


def checked_header(path: str | Path, cells: list[str]) -> list[str]:
    """The names of the columns. Raises UserError when there are none, or two are equal."""
    header = [name.strip() for name in cells]
    if not header:
        raise UserError(f"{path}: line 1 is empty; it must name the columns")
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}: column {name!r} appears twice; rename one")
    return header


def csv_rows(path: str | Path, report: Callable | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each line that is not blank, the header first.

    A ragged row is an error, or is skipped and reported where `report` is given. Raises UserError.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, strict=True)
            header = checked_header(path, next(reader, []))
            yield 1, header
            for cells in reader:
                if len(cells) == len(header):
                    yield reader.line_num, cells
                elif cells:
                    wrong = f"{path}:{reader.line_num}: {len(cells)} cells where the header has {len(header)}"
                    if report is None:
                        raise UserError(wrong)
                    report(f"{wrong}; skipped")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', e)}; a CSV file in UTF-8 is needed") from None
    except csv.Error as e:
        raise UserError(f"{path}:{reader.line_num}: {e}") from None


def to_column(cells: list[str], text: bool) -> np.ndarray:
    """The cells as float64, nan where empty; as str objects if `text` says so or one of them is no number."""
    if not text:
        try:
            return np.array([number(cell) for cell in cells], float)
        except ValueError:
            pass
    return np.array([sys.intern(cell) for cell in cells], object)      # names repeat: each is held once


def read_table(path: str | Path) -> dict[str, np.ndarray]:
    """{column: values (n,)} of a CSV file: float64, nan where empty; or str objects, see `to_column`.

    Raises UserError for a file that is missing, empty, ragged (with the line) or undecodable. All cells are
    held as text at first: about ten times the size of the file.
    """
    header, *rows = [cells for _, cells in csv_rows(path)]
    columns = zip(*rows) if rows else [()] * len(header)
    return {name: to_column(column, name in TEXT_COLUMNS) for name, column in zip(header, columns)}


def cell(value) -> str:
    """A value as CSV text: of a float the shortest that reads back, empty for None and nan."""
    if value is None or value != value:
        return ""
    return str(value)


def write_table(path: str | Path, rows: Iterable[dict], columns: list[str]) -> None:
    """Write `rows` as CSV, atomically. Missing values are empty.

    A key that is not in `columns` is a ValueError. Raises UserError when the disk refuses.
    """
    with whole_file(path) as f:
        table = csv.DictWriter(f, columns, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({key: cell(value) for key, value in row.items()})
