"""Files of rows with commas or tabs, read so that text stays text."""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

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
    """Read files whose first line names the columns; an empty cell is a missing value.

    A ``.csv`` file is read with quoting. A ``.tsv`` file is read without, as GLUE's
    are, unless its first line begins with a quotation mark. A column with only numbers
    becomes numbers; words such as null and NA are missing values there, and else text.
    """
    tables = [_read(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if table.column_names != tables[0].column_names:
            raise TableError(
                f"{path} has the columns {', '.join(table.column_names)}; expected "
                f"{', '.join(tables[0].column_names)} as in {paths[0]}; rename them"
            )
    rows = concatenate_datasets(tables)
    columns = [_as_numbers(rows.select_columns([name])) for name in rows.column_names]
    return concatenate_datasets(columns, axis=1)


def _read(path: Path) -> Dataset:
    """Read one file: columns of text, None for empty cells."""
    limit = csv.field_size_limit(_LONGEST_CELL)  # the process's, so it is put back
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = _Table(path, file)
            features = Features(dict.fromkeys(table.names, Value("string")))
            rows, chunks = table.rows(), []
            while (chunk := list(islice(rows, _CHUNK))) or not chunks:
                cells = zip(*chunk, strict=True) if chunk else [()] * len(features)
                named = dict(zip(features, cells, strict=True))
                chunks.append(Dataset.from_dict(named, features))
    except csv.Error as error:
        raise TableError(
            f"{path} is no table ({error}); expected rows of cells; check the file"
        ) from error
    finally:
        csv.field_size_limit(limit)
    table.warn()
    return concatenate_datasets(chunks)


class _Table:
    """One open file, and how many of its rows a lone quotation mark joins into a cell.

    The lines of such a cell have as many cells as the file has columns; a paragraph's
    lines do not.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        tabs = path.suffix.lower() == ".tsv"
        self.path, self.quoted = path, not tabs or file.read(1) == '"'
        file.seek(0)
        self.delimiter = "\t" if tabs else ","
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        self.dialect = {"delimiter": self.delimiter, "quoting": quoting}
        self.cells = self.joined = self.first = self.doubled = 0
        self.lines: list[str] = []  # of the row that is being read
        self.reader = csv.reader(self._lines_of(file), **self.dialect)
        self.names: list[str] = []
        for number, cell in enumerate(next(self.reader, [])):
            # Where there is no name, or twice the same, with a number.
            name, count = cell or f"Unnamed: {number}", 0
            while name in self.names:
                count += 1
                name = f"{cell}.{count}"
            self.names.append(name)
        if not self.names:
            raise ValueError("its first line is empty")

    def _lines_of(self, file: TextIO) -> Iterator[str]:
        for line in file:
            self.lines.append(line)
            yield line

    def rows(self) -> Iterator[list[str | None]]:
        """Check the rows and give each as many cells as there are columns."""
        width, end = len(self.names), self.reader.line_num
        self.lines.clear()
        for row in self.reader:
            first, end = end + 1, self.reader.line_num
            self._look(row, first)
            self.lines.clear()
            if not any(cell.strip() for cell in row) and len(row) < width:
                continue  # an empty line
            while len(row) > width and not row[-1]:
                row.pop()
            if len(row) > width:
                way = "take the tabs out of its texts"
                if self.delimiter == ",":
                    way = "put texts with a comma in quotation marks"
                raise TableError(
                    f"line {first} of {self.path} has {len(row)} cells; expected "
                    f"{width} as in its first line, {', '.join(self.names)}; {way}"
                )
            yield [cell or None for cell in (*row, *[""] * (width - len(row)))]

    def _look(self, row: list[str], line: int) -> None:
        """Count a row that looks as if marks had joined or doubled something in it."""
        width = len(self.names)
        if not self.quoted:
            self.doubled += any(_DOUBLED(cell) is not None for cell in row)
            return
        if len(self.lines) == 1 and len(row) == width:
            return
        if len(list(csv.reader([*self.lines, "end"], **self.dialect))) == 1:
            raise TableError(
                f"{self.path} ends in a cell that a quotation mark opens in line "
                f"{line}; {_WAY}"
            )
        # A few lines of a text in order may have as many commas by chance.
        enough = 1 if self._broken() else 3
        for number, cell in enumerate(row):
            start, *inner = re.split("\r\n|\n|\r", cell)
            # The last line goes on behind the mark that ended the cell.
            counts = {one.count(self.delimiter) + 1 for one in inner[:-1]}
            counts.add(number + start.count(self.delimiter) + 1)
            if len(inner) >= enough and width > 1 and counts == {width}:
                self.cells, self.joined = self.cells + 1, self.joined + len(inner)
                self.first = self.first or line

    def _broken(self) -> bool:
        try:
            return not list(csv.reader(self.lines, strict=True, **self.dialect))
        except csv.Error:  # a text goes on behind the mark that ends it
            return True

    def warn(self) -> None:
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
            counts = (self.path, self.joined, self.cells, self.first)
            logger.warning(
                "%s: %d lines that look like rows of their own are part of %d cells, "
                "the first in line %d; expected rows in lines of their own; %s",
                *(*counts, _WAY),
            )


def _as_numbers(column: Dataset) -> Dataset:
    """Turn a column of text with only numbers into them; leave any other as it is."""
    [name] = column.column_names
    kind: type | None = None
    for start in range(0, len(column), _CHUNK):
        for cell in column[start : start + _CHUNK][name]:
            if _missing(cell):
                continue
            if kind is not float and _WHOLE(cell.strip()):
                kind = int
            elif _NUMBER(cell.strip()):
                kind = float
            else:
                return column
    if kind is None:
        return column
    values = [None if _missing(cell) else kind(cell) for cell in column[name]]
    dtype = Value("int64" if kind is int else "float64")
    return Dataset.from_dict({name: values}, Features({name: dtype}))


def _missing(cell: str | None) -> bool:
    return cell is None or cell.strip().lower() in _NO_NUMBER
