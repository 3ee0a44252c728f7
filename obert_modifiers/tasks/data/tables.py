"""Files of rows with commas or tabs, read so that text stays text."""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from datasets import Dataset, Features, Value, concatenate_datasets

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
_CHUNK = 10_000  # rows that are Python's strings at the same time
_LONGEST_CELL = 2**31 - 1
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})").fullmatch
_NUMBER = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
).fullmatch
_DOUBLED = re.compile(r'"[^\t]*""[^\t]*"').fullmatch
# In a column of numbers these are cells without one; elsewhere they are words.
_NO_NUMBER = {"na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none"}

_WAY = (
    "where the mark belongs to the text, put the cell in quotation marks and double the"
    " mark in it, or save the file as .tsv, which is read without quoting"
)


class TableError(ValueError):
    """A file whose rows cannot be told apart."""


def read_table(paths: Sequence[Path]) -> Dataset:
    """Read files whose first line names the columns.

    A ``.csv`` file has commas, and cells with commas, line ends or quotation marks
    stand in quotation marks. A ``.tsv`` file has tabs and is read without quoting, as
    GLUE's files are, unless its first line begins with a quotation mark. An empty
    cell is a missing value. A column with only numbers becomes numbers; words such as
    null, NA and None are missing values there, and text in every other column.
    """
    tables = [_read(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if table.column_names != tables[0].column_names:
            raise TableError(
                f"{path} has the columns {', '.join(table.column_names)}; expected "
                f"{', '.join(tables[0].column_names)} as in {paths[0]}; rename them"
            )
    joined = concatenate_datasets(tables)
    names = joined.column_names
    turned = [one for name in names if (one := _numbers(joined, name)) is not None]
    text = joined.remove_columns([one.column_names[0] for one in turned])
    parts = [one for one in (text, *turned) if one.column_names]
    return concatenate_datasets(parts, axis=1).select_columns(names)


def _read(path: Path) -> Dataset:
    limit = csv.field_size_limit(_LONGEST_CELL)  # the process's, so it is put back
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _table(path, file)
    except csv.Error as error:
        raise TableError(
            f"{path} is no table ({error}); expected rows of cells; check the file"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _table(path: Path, file: TextIO) -> Dataset:
    """Read one open file: columns of text, None for empty cells."""
    tabs = path.suffix.lower() == ".tsv"
    quoted = not tabs or file.read(1) == '"'
    file.seek(0)
    dialect = {
        "delimiter": "\t" if tabs else ",",
        "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    }
    seen = _Quotes(path, dialect)
    reader = csv.reader(seen.lines(file), **dialect)
    names = _header(next(reader, []))
    seen.forget()
    if not names:
        raise ValueError("its first line is empty")
    features = Features({name: Value("string") for name in names})
    chunks, rows = [], []
    for row in _rows(reader, names, seen):
        rows.append(row)
        if len(rows) == _CHUNK:
            chunks.append(_chunk(rows, features))
            rows = []
    chunks.append(_chunk(rows, features))
    seen.tell()
    return concatenate_datasets(chunks)


def _header(cells: list[str]) -> list[str]:
    """Name columns: where there is no name, or twice the same, with a number."""
    names: list[str] = []
    for number, cell in enumerate(cells):
        name, count = cell or f"Unnamed: {number}", 0
        while name in names:
            count += 1
            name = f"{cell}.{count}"
        names.append(name)
    return names


def _rows(reader: Any, names: list[str], seen: "_Quotes") -> Iterator[list[str | None]]:
    """Check the rows and give each as many cells as there are columns."""
    end = reader.line_num
    for row in reader:
        first, end = end + 1, reader.line_num
        seen.look(row, first, len(names))
        if not any(cell.strip() for cell in row) and len(row) < len(names):
            continue  # an empty line
        while len(row) > len(names) and not row[-1]:
            row.pop()
        if len(row) > len(names):
            way = (
                "put texts with a comma in quotation marks"
                if reader.dialect.delimiter == ","
                else "take the tabs out of its texts"
            )
            raise TableError(
                f"line {first} of {seen.path} has {len(row)} cells; expected "
                f"{len(names)} as in its first line, {', '.join(names)}; {way}"
            )
        short = [""] * (len(names) - len(row))
        yield [cell or None for cell in (*row, *short)]


def _chunk(rows: list[list[str | None]], features: Features) -> Dataset:
    columns = list(zip(*rows, strict=True)) or [()] * len(features)
    return Dataset.from_dict(dict(zip(features, columns, strict=True)), features)


class _Quotes:
    """Counts rows that a lone quotation mark has joined into one cell.

    The lines of such a cell have as many cells as the file has columns; a paragraph's
    lines do not.
    """

    def __init__(self, path: Path, dialect: dict[str, Any]) -> None:
        self.path, self.dialect = path, dialect
        self.cells = self.joined = self.first = self.doubled = 0
        self._held: list[str] = []

    def lines(self, file: TextIO) -> Iterator[str]:
        """Remember the lines of the row that is being read."""
        for line in file:
            self._held.append(line)
            yield line

    def forget(self) -> None:
        """Let go of the lines of the row before."""
        self._held = []

    def look(self, row: list[str], line: int, columns: int) -> None:
        """Look at the cells of a row, of which there should be as many as columns."""
        held = self._held
        self.forget()
        if self.dialect["quoting"] == csv.QUOTE_NONE:
            self.doubled += any(_DOUBLED(cell) is not None for cell in row)
            return
        if len(held) == 1 and len(row) == columns:
            return
        if len(list(csv.reader([*held, "end"], **self.dialect))) == 1:
            raise TableError(
                f"{self.path} ends in a cell that a quotation mark opens in line "
                f"{line}; {_WAY}"
            )
        # A few lines of a text in order may have as many commas by chance.
        enough = 1 if self._broken(held) else 3
        for number, cell in enumerate(row):
            start, *inner = re.split("\r\n|\n|\r", cell)
            # The last line goes on behind the mark that ended the cell.
            delimiter = self.dialect["delimiter"]
            counts = {one.count(delimiter) + 1 for one in inner[:-1]}
            counts.add(number + start.count(delimiter) + 1)
            if len(inner) >= enough and columns > 1 and counts == {columns}:
                self.cells, self.joined = self.cells + 1, self.joined + len(inner)
                self.first = self.first or line

    def _broken(self, lines: list[str]) -> bool:
        try:
            return not list(csv.reader(lines, strict=True, **self.dialect))
        except csv.Error:  # a text goes on behind the mark that ends it
            return True

    def tell(self) -> None:
        """Say how many rows were joined, or have marks that are text here."""
        if self.doubled:
            logger.warning(
                "%s: %d rows have quotation marks doubled within quotation marks; they "
                "are read as they stand, as a .tsv file has no quoting; save it as .csv"
                " where they belong to the file and not to the text",
                self.path,
                self.doubled,
            )
        if self.cells:
            logger.warning(
                "%s: %d lines that look like rows of their own are part of %d cells, "
                "the first in line %d; expected rows in lines of their own; %s",
                self.path,
                self.joined,
                self.cells,
                self.first,
                _WAY,
            )


def _numbers(rows: Dataset, name: str) -> Dataset | None:
    """Turn a column of text with only numbers into them; None for any other column."""
    whole, found = True, False
    for start in range(0, len(rows), _CHUNK):
        for cell in rows[start : start + _CHUNK][name]:
            if _missing(cell):
                continue
            found, cell = True, cell.strip()
            whole = whole and _WHOLE(cell) is not None
            if not whole and _NUMBER(cell) is None:
                return None
    if not found:
        return None
    dtype, kind = ("int64", int) if whole else ("float64", float)
    values = [None if _missing(cell) else kind(cell) for cell in rows[name]]
    return Dataset.from_dict({name: values}, Features({name: Value(dtype)}))


def _missing(cell: str | None) -> bool:
    return cell is None or cell.strip().lower() in _NO_NUMBER
