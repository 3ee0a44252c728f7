"""Rows of text as rows of tokens."""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, Value


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
    encode: Callable[..., dict[str, list[Any]]],
    columns: Sequence[str],
    workers: int | None,
    what: str,
    **options: Any,
) -> Dataset:
    """Replace columns, the only ones that `encode` gets, by what it makes of them."""
    return rows.select_columns(list(columns)).map(
        encode,
        batched=True,
        remove_columns=list(columns),
        num_proc=workers,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc=what,
        **options,
    )
