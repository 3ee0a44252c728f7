"""What labels mean, and texts and labels as the numbers that a model reads."""

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from obert_modifiers.modifiers._classes import places_of
from obert_modifiers.tasks._data import Labels, TextData


def understand(data: TextData, known: Mapping[str, int] | None = None) -> Labels:
    """Decide which class number each label gets.

    Labels that are floats are numbers to be predicted. The classes that a data set
    names in its own features keep their order; those found in the column are sorted.

    Args:
        data: The data set; classes are collected from training and validation.
        known: The class numbers by name that the model was trained with. They are
            kept where the names are the data set's.

    Returns:
        The classes.

    Raises:
        ValueError: If a label is missing, or there is only one class.
    """
    column = data.label_column
    rows = [split for name, split in data.splits.items() if name != "test"]
    rows = rows or list(data.splits.values())
    for split in rows:
        no_gaps(split, column, data.description)
    feature = rows[0].features[column]
    if getattr(feature, "dtype", "").startswith(("float", "double")):
        return Labels(column, {}, ())
    if isinstance(feature, ClassLabel):
        ids = dict(enumerate(range(len(feature.names))))
        names = tuple(feature.names)
    else:
        values = sorted({value for split in rows for value in split[column]})
        names = tuple(str(value) for value in values)
        ids = {value: number for number, value in enumerate(values)}
    return as_the_model_knows(Labels(column, ids, names), known or {}, data)


def as_the_model_knows(
    labels: Labels, known: Mapping[str, int], data: TextData
) -> Labels:
    """Keep the classes that the model was trained with.

    Args:
        labels: The classes as the data set gives them.
        known: Class numbers by name, as the model's configuration has them.
        data: The data set, for errors.

    Returns:
        The classes: renumbered where the model knows all their names, with the model's
        names where the data set has numbers only, else as they are.

    Raises:
        ValueError: If there is only one class.
    """
    names = tuple(sorted(known, key=lambda name: known[name]))
    places = places_of(labels.names, names)
    if known and places is not None:
        ids = {
            value: known[names[places[number]]] for value, number in labels.ids.items()
        }
        return Labels(labels.column, ids, names)
    unnamed = all(labels.names[number] == str(v) for v, number in labels.ids.items())
    if known and unnamed and all(v in range(len(known)) for v in labels.ids):
        return Labels(labels.column, {number: number for number in labels.ids}, names)
    if len(labels.names) < 2:
        raise ValueError(
            f"label column {labels.column} of {data.description} holds the one class "
            f"{', '.join(labels.names)}; expected two or more; check the data"
        )
    return labels


def no_gaps(rows: Dataset, column: str, description: str) -> None:
    """Check that every row has a value.

    Args:
        rows: A split.
        column: The column that is looked at.
        description: Where the data came from, for errors.

    Raises:
        ValueError: If a row has none.
    """
    missing = rows.data.column(column).null_count
    if missing:
        first = next(i for i, value in enumerate(rows[column]) if value is None)
        raise ValueError(
            f"column {column} of {description} is empty in {missing} rows, first in "
            f"row {first}; expected a value in each; fill or drop these rows"
        )


def tokenize(
    data: TextData,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    pad_to_max_length: bool = False,
    workers: int | None = None,
) -> dict[str, Dataset]:
    """Turn texts and labels into what the model reads.

    Args:
        data: The data set.
        labels: What its labels mean.
        tokenizer: The model's tokenizer.
        max_length: The most tokens of a sample.
        pad_to_max_length: Pad every sample to that length here.
        workers: Processes to use.

    Returns:
        The splits; a row has the tokenizer's keys, and ``labels`` except in ``test``.
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [batch[column] for column in data.text_columns]
        padding = "max_length" if pad_to_max_length else False
        encoded = dict(
            tokenizer(*texts, max_length=max_length, truncation=True, padding=padding)
        )
        if labels.column in batch:
            encoded["labels"] = numbers(batch[labels.column], labels)
        return encoded

    encoded = {}
    for name, rows in data.splits.items():
        for column in data.text_columns:
            no_gaps(rows, column, data.description)
        kept = [*data.text_columns] + ([labels.column] if name != "test" else [])
        encoded[name] = rows.select_columns(kept).map(
            encode,
            batched=True,
            remove_columns=kept,
            num_proc=workers,
            keep_in_memory=True,
            load_from_cache_file=False,
            desc=f"tokenizing {name}",
        )
    return encoded


def numbers(values: Iterable[Any], labels: Labels) -> list[int] | list[float]:
    """Turn labels as they stand in the data into what the loss takes.

    Args:
        values: The labels of some rows.
        labels: What they mean.

    Returns:
        Class numbers, or floats for regression.
    """
    if labels.regression:
        return [float(value) for value in values]
    return [labels.ids[value] for value in values]
