"""What labels mean, and texts and labels as the numbers that a model reads."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset, Value
from transformers import PreTrainedTokenizerBase

from obert_modifiers.modifiers._classes import places_of
from obert_modifiers.tasks._data import Labels, TextData
from obert_modifiers.tasks._label_types import (
    UNLABELLED,
    need_labels,
    own_names,
    types_of,
    unlabelled,
)

logger = logging.getLogger(__name__)


def understand(data: TextData, known: Mapping[str, int] | None = None) -> Labels:
    """Decide which class number each label gets.

    Labels that are floats are numbers to be predicted. Labels that are lists are any
    number of classes, or a 0 or 1 for each. The classes that a data set names in its
    own features keep their order; those found in the column are sorted. A -1 is no
    label where `unlabelled` says so.

    Args:
        data: The data set; classes are collected from training and validation.
        known: The class numbers by name that the model was trained with. They are
            kept where the names are the data set's.

    Returns:
        The classes.

    Raises:
        ValueError: If labels are missing or of several types, or there is only one
            class.
    """  # noqa: DOC502  raised by what is called
    column = data.label_column
    splits = {name: rows for name, rows in data.splits.items() if name != "test"}
    splits = splits or dict(data.splits)
    for name, rows in splits.items():
        no_gaps(rows, column, data.place(name), empty="")
    found = {name: rows[column][:] for name, rows in splits.items()}
    kinds = types_of(found, data)
    known = known or {}
    if kinds == {list}:
        return multi_labels(splits, found, known, data)
    if kinds == {float}:
        need_labels(found, data)
        return Labels(column, {}, ())
    named = own_names(splits, data)
    values = {value for labels in found.values() for value in labels}
    values = set(map(int, values)) if kinds == {int} else values
    if UNLABELLED in values and (
        named is not None or unlabelled(found, values - {UNLABELLED}, known)
    ):
        need_labels(found, data)
        values -= {UNLABELLED}
    if named is not None:
        labels = Labels(column, dict(enumerate(range(len(named)))), named)
    else:
        ids = {value: number for number, value in enumerate(sorted(values))}
        labels = Labels(column, ids, tuple(str(value) for value in ids))
    return as_the_model_knows(labels, known, data)


def multi_labels(
    splits: Mapping[str, Dataset],
    found: Mapping[str, list[Any]],
    known: Mapping[str, int],
    data: TextData,
) -> Labels:
    """Decide which class numbers the labels in lists get.

    Args:
        splits: The splits whose labels are read.
        found: The lists of each split.
        known: The classes that the model was trained with.
        data: The data set, for errors.

    Returns:
        The classes. Lists of one length that hold 0 and 1 alone say of each class
        whether the sample has it; other lists hold the classes.

    Raises:
        ValueError: If the lists hold labels of several types, or other floats.
    """
    column = data.label_column
    inner = {
        split: [value for row in rows for value in row] for split, rows in found.items()
    }
    kinds = types_of(inner, data) if any(inner.values()) else set()
    named = own_names(splits, data)
    lengths = {len(row) for rows in found.values() for row in rows}
    values = {value for row in inner.values() for value in row}
    alike = named is None and len(lengths) == 1 and max(lengths) > 1
    if alike and values <= {0, 1}:
        ids = {number: number for number in range(max(lengths))}
        names = tuple(str(number) for number in ids)
        labels = Labels(column, ids, names, multi=True, hot=True)
    elif kinds & {float, list}:
        wrong = sorted(map(str, values - {0, 1}))[:1] or sorted(map(str, lengths))
        raise ValueError(
            f"label column {column} of {data.description} holds lists with "
            f"{', '.join(wrong)}; expected lists of classes, or lists of a 0 or 1 for "
            "each class, all of one length; check the data"
        )
    elif named is not None:
        ids = dict(enumerate(range(len(named))))
        labels = Labels(column, ids, named, multi=True)
    else:
        ids = {value: number for number, value in enumerate(sorted(values))}
        labels = Labels(column, ids, tuple(str(value) for value in ids), multi=True)
    return as_the_model_knows(labels, known, data)


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
        return replace(labels, ids=ids, names=names)
    unnamed = all(labels.names[number] == str(v) for v, number in labels.ids.items())
    if known and unnamed and all(v in range(len(known)) for v in labels.ids):
        ids = {number: number for number in labels.ids}
        return replace(labels, ids=ids, names=names)
    if len(labels.names) < 2:
        raise ValueError(
            f"label column {labels.column} of {data.description} holds the one class "
            f"{', '.join(labels.names)}; expected two or more; check the data"
        )
    return labels


def no_gaps(
    rows: Dataset, column: str, description: str, empty: str | None = None
) -> None:
    """Check that every row has a value.

    Args:
        rows: A split.
        column: The column that is looked at.
        description: Where the data came from, for errors.
        empty: Another value that is none, beside None and a float that is no number.

    Raises:
        ValueError: If a row has none.
    """
    missing = [
        row
        for row, one in enumerate(rows[column])
        if one is None or one == empty or one != one  # NaN is not itself
    ]
    if missing:
        raise ValueError(
            f"column {column} of {description} is empty in {len(missing)} rows, first "
            f"in row {missing[0]}; expected a value in each; fill or drop these rows"
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
            no_gaps(rows, column, data.place(name))
            rows = as_text(rows, column, data.place(name))
        kept = [*data.text_columns] + ([labels.column] if name != "test" else [])
        if name != "test":
            rows = _labelled(rows, labels, data.place(name))
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


def as_text(rows: Dataset, column: str, place: str) -> Dataset:
    """Write a column of numbers as text.

    Args:
        rows: A split.
        column: A column that is read as text.
        place: Where the rows are, for errors.

    Returns:
        The rows with text in that column.

    Raises:
        ValueError: If it holds something else than text or numbers.
    """
    dtype = str(getattr(rows.features[column], "dtype", ""))
    if dtype in ("string", "large_string"):
        return rows
    if not dtype.startswith(("int", "uint", "float")):
        raise ValueError(
            f"column {column} of {place} holds {rows[0][column]!r} in row 0; expected "
            "text; name another column, or write its values as text"
        )
    return rows.cast_column(column, Value("string"))


def _labelled(rows: Dataset, labels: Labels, place: str) -> Dataset:
    """Leave out the rows that have no label, and say how many.

    Args:
        rows: A split that is trained or evaluated on.
        labels: What its labels mean.
        place: Where the rows are, for the log.

    Returns:
        Those with a label.
    """
    if labels.regression or labels.multi or UNLABELLED in labels.ids:
        return rows
    kept = [i for i, one in enumerate(rows[labels.column]) if one != UNLABELLED]
    if len(kept) == len(rows):
        return rows
    logger.warning(
        "%d of %d rows of %s are left out: their label is -1, which is no label; where"
        " it is a class, write the labels as text",
        len(rows) - len(kept),
        len(rows),
        place,
    )
    return rows.select(kept)


def numbers(values: Iterable[Any], labels: Labels) -> list[Any]:
    """Turn labels as they stand in the data into what the loss takes.

    Args:
        values: The labels of some rows.
        labels: What they mean.

    Returns:
        Class numbers, floats for regression, or for each row a 0.0 or 1.0 for each
        class.
    """
    if labels.regression:
        return [float(value) for value in values]
    if labels.hot:
        return [[float(value) for value in row] for row in values]
    if labels.multi:
        rows = [{labels.ids[value] for value in row} for row in values]
        return [[float(i in row) for i in range(labels.num_labels)] for row in rows]
    return [labels.ids[value] for value in values]
