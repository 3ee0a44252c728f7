"""Files of words and tags in columns, as CoNLL's shared tasks have them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from obert_modifiers.tasks._files import read as read_files

_ENDINGS = (".txt", ".conll")
_DOCUMENT = "-DOCSTART-"
_SPLITS = ("train", "validation", "test")
WORDS, TAGS = "tokens", "ner_tags"


def read(args: Any, cache_dir: str | None) -> tuple[Mapping[str, Dataset], str]:
    """Read the splits that the flags name; ``.txt`` and ``.conll`` files by columns.

    Args:
        args: The flags.
        cache_dir: Where the datasets library keeps what it has read.

    Returns:
        The splits and where they came from.

    Raises:
        ValueError: If a file cannot be read.
    """  # noqa: DOC502  raised by what is called
    named = {f"{split}_file": getattr(args, f"{split}_file") for split in _SPLITS}
    files = {flag: Path(path) for flag, path in named.items() if path is not None}
    columns = {
        flag: path for flag, path in files.items() if path.suffix.lower() in _ENDINGS
    }
    if not columns or args.dataset_name is not None:
        return read_files(args, cache_dir)
    splits: dict[str, Dataset] = {}
    if len(columns) < len(files):
        others, _ = read_files(replace(args, **dict.fromkeys(columns)), cache_dir)
        splits |= others
    for flag, path in columns.items():
        splits[flag.removesuffix("_file")] = read_columns(f"--{flag}", path)
    return splits, ", ".join(map(str, files.values()))


def read_columns(flag: str, path: Path) -> Dataset:
    """Read a file with a word in each line, its tag last, and blank lines between rows.

    Columns stand apart by tabs, or by spaces where a line has no tab; the first is the
    word, the last the tag, and a single column has no tags. Lines that begin documents
    are left out.

    Args:
        flag: Where the path came from, for errors.
        path: The file.

    Returns:
        Rows of ``tokens`` and ``ner_tags``.

    Raises:
        ValueError: If there is no such file, it is not UTF-8, or a line has another
            number of columns than the first.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{flag}={path} cannot be read ({error}); expected a text file in UTF-8; "
            "check the path"
        ) from error
    rows: list[list[list[str]]] = [[]]
    width = 0
    for number, line in enumerate(lines, 1):
        columns = line.rstrip().split("\t") if "\t" in line else line.split()
        if not columns or columns[0] == _DOCUMENT:
            rows.append([])
            continue
        width = width or len(columns)
        if len(columns) != width:
            raise ValueError(
                f"{flag}={path} has {len(columns)} columns in line {number}; expected "
                f"{width}, as in the lines before: a word, and its tag last; correct it"
            )
        rows[-1].append(columns)
    rows = [row for row in rows if row]
    found = {WORDS: [[columns[0] for columns in row] for row in rows]}
    if width > 1:
        found[TAGS] = [[columns[-1] for columns in row] for row in rows]
    return Dataset.from_dict(found)
