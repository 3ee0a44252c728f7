"""Data sets of texts: their splits, and which columns hold what."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from obert_modifiers.core.outputs import MULTI_LABEL, REGRESSION
from obert_modifiers.tasks._arguments import DataArguments, DataSetArguments
from obert_modifiers.tasks._files import GLUE_COLUMNS, nearest, read


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set mean.

    Attributes:
        column: The column they are in.
        ids: The class number of each label as it stands in the data; empty for numbers
            to be predicted (regression).
        names: The name of each class, by number.
        multi: A sample has any number of classes, in a list.
        hot: That list holds a 0 or 1 for each class, not the classes.
    """

    column: str
    ids: Mapping[Any, int]
    names: tuple[str, ...]
    multi: bool = False
    hot: bool = False

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be predicted."""
        return not self.ids

    @property
    def num_labels(self) -> int:
        """The width of the classification head."""
        return len(self.names) or 1

    @property
    def problem_type(self) -> str | None:
        """What transformers calls the head's loss; None for one class of several."""
        if self.multi:
            return MULTI_LABEL
        return REGRESSION if self.regression else None


@dataclass(frozen=True)
class TextData:
    """A data set as it was read.

    Attributes:
        splits: ``train``, ``validation`` and ``test``, as far as there are any.
        text_columns: One column, or two for pairs.
        label_column: The column of the labels; None where the task has no such column.
        description: Where the data came from, for the log.
        files: Where the rows of a split are, where its name does not say it.
    """

    splits: Mapping[str, Dataset]
    text_columns: tuple[str, ...]
    label_column: str | None
    description: str
    files: Mapping[str, str] = field(default_factory=dict)

    def place(self, split: str) -> str:
        """Say where the rows of a split are, for errors.

        Args:
            split: Its name.

        Returns:
            The file, or the data set and the split.
        """
        return self.files.get(split, f"{self.description} ({split})")


# From rows, flags and the data's description to the columns of text and of labels.
ColumnRule = Callable[[Dataset, Any, str], tuple[tuple[str, ...], str | None]]
# From flags and the cache's folder to the splits and the data's description.
Reader = Callable[[Any, str | None], tuple[dict[str, Dataset], str]]


def text_and_label(
    rows: Dataset, args: DataArguments, description: str
) -> tuple[tuple[str, ...], str]:
    """Decide which columns text classification reads.

    Args:
        rows: A split.
        args: The flags.
        description: Where the data came from, for errors.

    Returns:
        The columns of the text, and that of the labels.

    Raises:
        ValueError: If a column is missing or the choice is not clear.
    """  # noqa: DOC502  raised by what is called
    return text_columns(rows, args, description), args.label_column_name


def load(
    args: DataSetArguments,
    cache_dir: str | None,
    seed: int,
    columns: ColumnRule = text_and_label,
    reader: Reader = read,
) -> TextData:
    """Read the data set that the flags name; without any, the embedded one.

    Args:
        args: The flags.
        cache_dir: Where the datasets library keeps what it has read.
        seed: Which part of the training data `validation_ratio` keeps.
        columns: Decides which columns the task reads.
        reader: Finds the splits.

    Returns:
        Its splits, cut to the asked numbers of samples, and its columns.

    Raises:
        ValueError: If a file, split or column is missing or a value is empty.
    """
    splits, description = reader(args, cache_dir)
    if args.validation_ratio is not None and "train" in splits:
        parts = splits["train"].train_test_split(args.validation_ratio, seed=seed)
        splits |= {"train": parts["train"], "validation": parts["test"]}
    if args.eval_on_test:
        if "test" not in splits:
            raise ValueError(
                f"--eval_on_test: data={description} has no test split, only "
                f"{', '.join(splits)}; expected one; give --test_file or drop the flag"
            )
        splits["validation"] = splits["test"]
    for split, rows in splits.items():
        most = args.max_train_samples if split == "train" else args.max_eval_samples
        if most is not None and split != "test":
            splits[split] = rows.select(range(min(most, len(rows))))
    for split, rows in splits.items():
        if len(rows) == 0:
            raise ValueError(
                f"data={description} has no rows in its {split} split; expected at "
                "least one; check the file"
            )
    first = "train" if "train" in splits else next(iter(splits))
    texts, label = columns(splits[first], args, description)
    if label is not None and first != "test":  # to predict none are needed
        need_column(splits[first], label, "--label_column_name", description)
    return TextData(splits, texts, label, description, _files_of(args, description))


def _files_of(args: DataSetArguments, description: str) -> dict[str, str]:
    """Find the file of each split for errors.

    Args:
        args: The flags.
        description: Where the data came from.

    Returns:
        Files by split, as the flags name them; the test split of a data set for
        validation where it is evaluated on.
    """
    names = {split: split for split in ("train", "validation", "test")}
    if args.validation_ratio is not None:
        names["validation"] = "train"
    if args.eval_on_test:
        names["validation"] = "test"
    given = {split: getattr(args, f"{name}_file") for split, name in names.items()}
    files = {split: file for split, file in given.items() if file is not None}
    if args.eval_on_test:
        files.setdefault("validation", f"{description} (test)")
    return files


def text_columns(
    rows: Dataset, args: DataArguments, description: str
) -> tuple[str, ...]:
    """Decide which columns hold the text.

    Args:
        rows: A split.
        args: The flags; `input_column_names` and `task_name` decide where given.
        description: Where the data came from, for errors.

    Returns:
        One column, or two for pairs: those named, else the pair or single column of a
        GLUE task, else the one or two columns of text.

    Raises:
        ValueError: If a named column is missing or the choice is not clear.
    """
    if args.input_column_names is not None:
        names = tuple(name.strip() for name in args.input_column_names.split(","))
        for name in names:
            need_column(rows, name, "--input_column_names", description)
        if len(names) > 2:
            raise ValueError(
                f"--input_column_names={args.input_column_names} names {len(names)} "
                "columns; expected one, or two for pairs; join the others beforehand"
            )
        return names
    if args.task_name is not None:
        return GLUE_COLUMNS[args.task_name.lower()]
    usual = sorted(set(GLUE_COLUMNS.values()), key=lambda pair: (-len(pair), pair))
    for columns in (*usual, ("text",)):
        if set(columns) <= set(rows.column_names):
            return columns
    texts = [
        name
        for name, feature in rows.features.items()
        if getattr(feature, "dtype", "") in ("string", "large_string")
        and name not in (args.label_column_name, "id", "idx")
    ]
    if not 1 <= len(texts) <= 2:
        raise ValueError(
            f"data={description} has the columns {', '.join(rows.column_names)}, of "
            f"which {len(texts)} could be the text; expected one, or two for pairs; "
            "name them with --input_column_names"
        )
    return tuple(texts)


def need_columns(data: TextData) -> None:
    """Check that each split has the columns that are read of it.

    Args:
        data: The data set, with the splits that are needed.

    Raises:
        ValueError: If a text column is missing, or that of the labels in a split that
            is trained or evaluated on.
    """
    for split, rows in data.splits.items():
        asked = list(data.text_columns)
        if split != "test" and data.label_column is not None:
            asked.append(data.label_column)
        for column in asked:
            if column not in rows.column_names:
                raise ValueError(
                    f"data={data.place(split)} has no column {column}, only "
                    f"{', '.join(rows.column_names)}; expected the columns "
                    f"{', '.join(asked)} in it; rename what it has"
                )


def need_column(rows: Dataset, name: str, flag: str, description: str) -> None:
    """Check that there is a column.

    Args:
        rows: A split.
        name: The column.
        flag: The flag that named it, for errors.
        description: Where the data came from, for errors.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in rows.column_names:
        raise ValueError(
            f"{flag}={name} is no column of {description}; expected one of "
            f"{', '.join(rows.column_names)}; {nearest(name, rows.column_names)}"
        )
