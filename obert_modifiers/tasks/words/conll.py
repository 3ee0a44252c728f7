"""Files of words and tags in columns, as CoNLL's shared tasks have them."""

from pathlib import Path

from datasets import Dataset

_ENDINGS = (".txt", ".conll")
_DOCUMENT = "-DOCSTART-"


def read_columns(flag: str, path: Path) -> Dataset | None:
    """Read a file with a word in each line, its tag last, and blank lines between rows.

    Columns stand apart by tabs, or by spaces where a line has no tab; a single column
    has no tags. Gives ``tokens`` and ``ner_tags``; None for files of other kinds.
    """
    if path.suffix.lower() not in _ENDINGS:
        return None
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
    made = {"tokens": [[columns[0] for columns in row] for row in rows]}
    if width > 1:
        made["ner_tags"] = [[columns[-1] for columns in row] for row in rows]
    return Dataset.from_dict(made)
