"""Texts without labels, beside the labelled data of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from obert_modifiers.tasks.data import sources
from obert_modifiers.tasks.data.dataset import TextData, need_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from obert_modifiers.tasks.flags import Arguments
    from obert_modifiers.tasks.task import Inputs, Prepared, Task

_PLAIN = "text"  # the column of a txt file
_POSITIONS = ("start_positions", "end_positions")


@dataclass(eq=False)
class Filled(Sequence[dict[str, Any]]):
    """Samples with labels that only fill their places."""

    samples: Dataset
    labels: dict[str, Any]

    def token_counts(self) -> list[int]:
        """Return the number of tokens of each."""
        return [len(ids) for ids in self.samples["input_ids"]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return self.labels | self.samples[int(index)]


def check(task: Task, arguments: Arguments) -> None:
    """Check that a run can use texts without labels."""
    given = f"--distill_file={arguments.data.distill_file}"
    if not task.prediction_files:
        raise ValueError(
            f"{given} is for tasks with labels, and {task.name} reads texts; expected "
            "them in the training data; give --train_file"
        )
    if not arguments.train.do_train:
        raise ValueError(
            f"{given} needs training; expected --do_train beside it; add it, or leave "
            "the file out"
        )


def add(task: Task, inputs: Inputs, samples: Prepared) -> Prepared:
    """Read the texts as a test split is read, and put them beside the samples."""
    path, columns = inputs.flags.distill_file, inputs.data.text_columns
    alone = {"dataset_name": None, "task_name": None, "files": {"distill": path}}
    flags = SimpleNamespace(**vars(inputs.flags) | alone)
    read = task.reader or sources.read
    rows = read(flags, inputs.pretrained.args.cache_dir)[0]["distill"]
    if len(columns) == 1 and rows.column_names == [_PLAIN]:
        rows = rows.rename_column(_PLAIN, columns[0])
    named = {"description": path, "files": {"test": f"--distill_file={path}"}}
    data = TextData({"test": rows}, columns, inputs.data.label_column, **named)
    need_columns(data)
    data = replace(data, splits={"test": rows.select_columns(list(columns))})
    made = task.prepare(replace(inputs, data=data)).test
    if not len(made):
        raise ValueError(
            f"--distill_file={path} has no rows; expected texts; check the file"
        )
    first = samples.data.train[0]
    labels = dict.fromkeys(_POSITIONS, 0) if _POSITIONS[0] in first else {}
    if "labels" in first and "labels" not in made.column_names:
        labels["labels"] = first["labels"]
    filled = Filled(made, labels)
    share = inputs.flags.distill_share
    return replace(samples, data=replace(samples.data, texts=filled, texts_share=share))
