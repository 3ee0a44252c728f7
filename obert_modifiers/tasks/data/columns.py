"""Which columns a data set has, which it should have, and what is in them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_modifiers.tasks.flags import DataSetArguments

if TYPE_CHECKING:
    from datasets import Dataset

Columns = tuple[tuple[str, ...], str | None]  # the names of those of text and of labels
Batch = dict[str, list[Any]]  # some rows, by column

GLUE_COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
# What the papers report of a task, where it is not only accuracy.
GLUE_FIGURES = {
    "cola": ("matthews_correlation",),
    "mnli": ("accuracy", "accuracy_mm"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
}
MISMATCHED = "validation_mismatched"  # MNLI's second validation set


def glue_task(args: DataSetArguments) -> str | None:
    """Tell which GLUE task the flags name, by a folder (``qqp_subset``) too."""
    folder = Path(args.dataset_name or "").name
    for name in (getattr(args, "task_name", None), args.dataset_config_name, folder):
        task = (name or "").lower().split("_")[0]
        if task in GLUE_COLUMNS:
            return task
    return None


def nearest(name: str, names: Iterable[str]) -> str:
    """Suggest the name that was meant, for the end of an error."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"did you mean {close[0]}?" if close else "check the name"


def need_column(rows: Dataset, name: str, flag: str, description: str) -> None:
    """Check that there is a column; the flag named it, for the error."""
    if name not in rows.column_names:
        raise ValueError(
            f"{flag}={name} is no column of {description}; expected one of "
            f"{', '.join(rows.column_names)}; {nearest(name, rows.column_names)}"
        )


def usual_column(rows: Dataset, named: str | None, usual: tuple[str, ...]) -> str:
    """Return the column that a flag names, else the first usual one that is there."""
    there = (name for name in usual if name in rows.column_names)
    return named if named is not None else next(there, usual[0])


def no_gaps(rows: Dataset, column: str, place: str, empty: str | None = None) -> None:
    """Check that every row has a value: not None, NaN or what `empty` says is none."""
    missing = [
        row
        for row, value in enumerate(rows[column])
        if value is None or value == empty or value != value  # NaN is not itself
    ]
    if missing:
        raise ValueError(
            f"column {column} of {place} is empty in {len(missing)} rows, first "
            f"in row {missing[0]}; expected a value in each; fill or drop these rows"
        )


def as_text(rows: Dataset, column: str, place: str) -> Dataset:
    """Check that a column has no gaps, and write numbers in it as text."""
    from datasets import Value

    no_gaps(rows, column, place)
    dtype = str(getattr(rows.features[column], "dtype", ""))
    if dtype in ("string", "large_string"):
        return rows
    if not dtype.startswith(("int", "uint", "float")):
        raise ValueError(
            f"column {column} of {place} holds {rows[0][column]!r} in row 0; expected "
            "text; name another column, or write its values as text"
        )
    return rows.cast_column(column, Value("string"))


def map_rows(
    rows: Dataset,
    encode: Callable[..., Batch],
    columns: Sequence[str],
    workers: int | None,
    what: str,
    file: Path | None = None,
    **options: Any,
) -> Dataset:
    """Replace columns, the only ones that `encode` gets, by what it makes of them.

    The result is in memory, or in an Arrow file: one for each worker, by their order.
    """
    return rows.select_columns(list(columns)).map(
        encode,
        batched=True,
        remove_columns=list(columns),
        num_proc=workers,
        keep_in_memory=file is None,
        cache_file_name=None if file is None else str(file),
        load_from_cache_file=False,
        desc=what,
        **options,
    )
