"""Which columns a data set has, and which it should have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from obert_modifiers.tasks.flags import DataSetArguments

if TYPE_CHECKING:
    from datasets import Dataset

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
# What the papers report of a task that is not accuracy alone.
GLUE_FIGURES = {
    "cola": ("matthews_correlation",),
    "mnli": ("accuracy", "accuracy_mm"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
}
MISMATCHED = "validation_mismatched"  # MNLI's second validation set


def glue_task(args: DataSetArguments) -> str | None:
    """Tell which GLUE task the flags name, by a folder or configuration too.

    Its name may go on behind an underscore (``qqp_subset``).
    """
    folder = Path(args.dataset_name).name if args.dataset_name is not None else None
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
    if named is not None:
        return named
    return next((name for name in usual if name in rows.column_names), usual[0])
