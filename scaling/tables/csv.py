"""CSV files as columns of numbers: a number that is missing stays missing."""
import csv
import gzip
import io
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from config.schema import TEXT_COLUMNS
from runtime.basics import UserError, whole_file

MISSING = ("", "na", "n/a", "#n/a", "null", "none", "-", "diverged", "oom")      # in anybody's small letters
UTF16 = (b"\xff\xfe", b"\xfe\xff")                 # how such a file begins: PowerShell and Excel write it
BINARY = {b"PK\x03\x04": "an Excel book or a zip", b"PAR1": "in Parquet"}
SUFFIXES = {"K": "e3", "k": "e3", "M": "e6", "B": "e9", "G": "e9", "T": "e12"}
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def number(value) -> float:
    """A CSV cell or a JSON value as a float; nan, never 0, where it is missing. Raises ValueError."""
    if value is None:
        return math.nan
    if type(value) in (int, float):                   # not bool, which float() would take
        return float(value)
    if isinstance(value, str) and value.strip().lower() in MISSING:
        return math.nan
    if isinstance(value, str) and "_" not in value:   # nor 1_000
        try:
            return float(value)
        except ValueError:
            return float(as_people_write(value.strip()))
    raise ValueError(f"{value!r:.40} is not a number")


def as_people_write(cell: str) -> str:
    """'10,881,692' and '10 881 692' as '10881692', '10.88M' as '10.88e6'; any other text as it stands.

    '3,741' stands, too: it may be a decimal comma. No decimal comma has three digits before it and after.
    """
    if re.fullmatch(r"\d{1,3}([\s']\d{3})+(\.\d+)?", cell):
        return re.sub(r"[\s']", "", cell)
    if re.fullmatch(r"\d{1,3}(,\d{3}){2,}(\.\d+)?|[1-9]\d\d,\d{3}", cell):
        return cell.replace(",", "")
    if re.fullmatch(r"\d+(\.\d+)? ?[KkMBGT]", cell):
        return cell[:-1].strip() + SUFFIXES[cell[-1]]
    return cell


def opened(path: str | Path) -> io.BufferedIOBase:
    """The bytes of a file, unpacked where it is a .gz. Raises OSError."""
    f = open(path, "rb")
    packed = f.peek(2)[:2] == b"\x1f\x8b"
    return gzip.GzipFile(fileobj=f) if packed else f


def cause(e: Exception) -> str:
    """Why a file could not be read, in words."""
    if isinstance(e, FileNotFoundError):
        return "no such file"
    if isinstance(e, UnicodeDecodeError):
        return f"byte 0x{e.object[e.start]:x} is not UTF-8 (Latin-1, perhaps); save it in UTF-8"
    return getattr(e, "strerror", None) or str(e) or type(e).__name__


@contextmanager
def unreadable(path: str | Path):
    """Turn what can go wrong with the bytes of a file into a UserError."""
    try:
        yield
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as e:
        raise UserError(f"{path}: {cause(e)}") from None


def text_lines(path: str | Path, errors: str = "strict") -> Iterator[str]:
    """The lines of a text in UTF-8 or UTF-16, with their ends; of a .gz, too. Raises UserError."""
    with unreadable(path), opened(path) as f:
        head = f.peek(4)[:4]
        if head in BINARY:
            raise UserError(f"{path}: it is {BINARY[head]}, no text; save the table as CSV")
        encoding = "utf-16" if head[:2] in UTF16 else "utf-8-sig"
        with io.TextIOWrapper(f, encoding, errors, newline="") as lines:
            yield from lines


def delimiter_of(header: str) -> str:
    """What parts the cells: of comma, semicolon and tab the one that the header has most of."""
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=unquoted.count)


def all_numbers(cells: list[str]) -> bool:
    """Whether each of the cells holds a number."""
    try:
        return not any(math.isnan(number(cell)) for cell in cells)
    except ValueError:
        return False


def checked_header(path: str | Path, cells: list[str]) -> list[str]:
    """The names of the columns, without empty ones at the end. Raises UserError if two are equal, or none is.

    A column without a name is "index" where it stands first, as pandas leaves its index, else "column_3".
    """
    header = [name.strip() for name in cells]
    while header and not header[-1]:
        header.pop()
    if not header:
        raise UserError(f"{path}: line 1 is empty; it must name the columns")
    if 2 * sum(all_numbers([name]) for name in header) > len(header):
        raise UserError(f"{path}: line 1 holds numbers; it must name the columns, for one run a line")
    if len(header) == 1 and len(re.split(r"[|\s]+", header[0].strip("|"))) > 2:
        raise UserError(f"{path}: line 1 is one cell, {header[0]!r:.60}: part the columns with commas, "
                        "semicolons or tabs, and begin lines above their names with #")
    for i, name in enumerate(header):
        if not name:
            header[i] = "index" if i == 0 else f"column_{i + 1}"
    name, times = Counter(header).most_common(1)[0]
    if times > 1:
        raise UserError(f"{path}: column {name!r} appears twice; rename one")
    return header


def with_point(cell: str, parts: str | None) -> str:
    """'3,74' as '3.74', and '331.776' as '331776' where a dot `parts` thousands; other text as it stands."""
    if parts and re.fullmatch(rf"\s*\d{{1,3}}(\{parts}\d{{3}})+([.,]\d+)?\s*", cell):
        cell = cell.replace(parts, "")
    if re.fullmatch(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*", cell):
        return cell.replace(",", ".")
    return cell


def with_points(rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """The rows with '3,74' as '3.74', but for columns where '10,881,692' or '10.881.692' parts thousands."""
    rows = list(rows)
    parts = {i: match[1] for _, cells in rows for i, cell in enumerate(cells)
             if (match := re.fullmatch(r"\s*\d{1,3}([.,])\d{3}(?:\1\d{3})+\s*", cell))}
    for line, cells in rows:
        yield line, [with_point(cell, parts.get(i)) for i, cell in enumerate(cells)]


def csv_rows(path: str | Path, report: Callable | None = None) -> Iterator[tuple[int, list[str]]]:
    """The (line number, cells) of each line that is not blank, the header first.

    Cells are parted by comma, semicolon or tab; with the latter two, numbers may have a decimal comma. Lines
    before the header that begin with # or sep= are comments, and so is a ragged line that begins with #; but
    where numbers follow, as numpy's savetxt has it, the last of these lines is the header.
    Empty cells at the end of a line do not count, nor does a header that stands again. Any other ragged row
    is an error, or is skipped and reported where `report` is given. Raises UserError.
    """
    lines = text_lines(path)
    above = []
    for first in lines:
        if not first.startswith(("#", "sep=", '"sep=')):
            break
        above.append(first)
    else:
        first = ""
    delimiter = delimiter_of(first)
    begin = [first]
    if above and all_numbers(first.split(delimiter)) and delimiter in above[-1]:
        begin = [above.pop().lstrip("# "), first]
    reader = csv.reader(chain(begin, lines), delimiter=delimiter, strict=True)
    rows = parted(path, reader, len(above), report)
    return rows if delimiter == "," else with_points(rows)


def parted(path: str | Path, reader, above: int, report: Callable | None) -> Iterator[tuple[int, list[str]]]:
    """As `csv_rows`, from a `reader` that begins after so many lines."""
    try:
        header = checked_header(path, next(reader, []))
        yield above + 1, header
        for cells in reader:
            if len(cells) > len(header) and not "".join(cells[len(header):]).strip():
                cells = cells[:len(header)]
            line = above + reader.line_num
            if [name.strip() for name in cells] == header:     # of the next file, in several that were joined
                continue
            if len(cells) == len(header):
                yield line, cells
            elif "".join(cells).strip() and not cells[0].startswith("#"):
                wrong = f"{path}:{line}: {len(cells)} cells where the header has {len(header)}"
                if report is None:
                    raise UserError(f"{wrong}: name each column there, and quote a cell that holds a comma")
                report(f"{wrong}; skipped")
    except csv.Error as e:
        raise UserError(f"{path}:{above + reader.line_num}: {e}; is a quotation mark not closed?") from None


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
