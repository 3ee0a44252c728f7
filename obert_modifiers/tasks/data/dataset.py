"""A data set as it was read: its splits, and which columns hold what."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from datasets import Dataset

from obert_modifiers.tasks.data import sources
from obert_modifiers.tasks.data.columns import Columns, need_column
from obert_modifiers.tasks.flags import DataSetArguments


@dataclass(frozen=True)
class TextData:
    """A data set as it was read."""

    splits: Mapping[str, Dataset]  # train, validation and test, as far as there are any
    text_columns: tuple[str, ...]  # one, or two for pairs
    label_column: str | None  # None where the task has no such column
    description: str  # where the data came from, for the log
    # Those of the splits, for errors.
    files: Mapping[str, str | None] = field(default_factory=dict)

    def place(self, split: str) -> str:
        """Say where the rows of a split are, for errors."""
        return self.files.get(split) or f"{self.description} ({split})"


def load(
    args: DataSetArguments,
    cache_dir: str | None,
    seed: int,
    columns: Callable[..., Columns],
    reader: Callable[..., tuple[dict[str, Dataset], str]] | None = None,
) -> TextData:
    """Read the data set that the flags name, with a `Task`'s columns and reader.

    The seed decides which part of the training data `validation_ratio` keeps.
    """
    splits, description = (reader or sources.read)(args, cache_dir)
    files = args.files
    if args.validation_ratio is not None and "train" in splits:
        parts = splits["train"].train_test_split(args.validation_ratio, seed=seed)
        splits |= {"train": parts["train"], "validation": parts["test"]}
        files["validation"] = files.get("train")
    if args.eval_on_test:
        if "test" not in splits:
            raise ValueError(
                f"--eval_on_test: data={description} has no test split, only "
                f"{', '.join(splits)}; expected one; give --test_file or drop the flag"
            )
        splits["validation"] = splits["test"]
        files["validation"] = files.get("test", f"{description} (test)")
    for split, rows in splits.items():
        if len(rows) == 0:
            raise ValueError(
                f"data={description} has no rows in its {split} split; expected at "
                "least one; check the file"
            )
        most = args.max_train_samples if split == "train" else args.max_eval_samples
        if most is not None and split != "test":
            splits[split] = rows.select(range(min(most, len(rows))))
    first = "train" if "train" in splits else next(iter(splits))
    texts, label = columns(splits[first], args, description)
    if label is not None and first != "test":  # to predict none are needed
        need_column(splits[first], label, "--label_column_name", description)
    return TextData(splits, texts, label, description, files)


def need_columns(data: TextData) -> None:
    """Check that each split has the text columns, and all but test the labels."""
    for split, rows in data.splits.items():
        asked = list(data.text_columns)
        if split != "test" and data.label_column is not None:
            asked.append(data.label_column)
        for column in asked:
            if column not in rows.column_names:
                raise ValueError(
                    f"data={data.place(split)} has no column {column}, only "
                    f"{', '.join(rows.column_names)}; expected {', '.join(asked)}; "
                    "rename what it has"
                )
