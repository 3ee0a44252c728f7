"""What the labels of a data set are: their types, their own names, and none at all."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from obert_modifiers.tasks._data import TextData

UNLABELLED = -1


def types_of(found: Mapping[str, list[Any]], data: TextData) -> set[type]:
    """Check that all labels are of one type.

    Args:
        found: The labels of each split.
        data: The data set, for errors.

    Returns:
        That type; whole numbers and floats together are floats, unless all floats are
        whole.

    Raises:
        ValueError: If there are several.
    """
    first: dict[type, str] = {}
    broken = False
    for split, labels in found.items():
        for row, label in enumerate(labels):
            if type(label) not in first:
                first[type(label)] = f"{label!r} in row {row} of {data.place(split)}"
            broken = broken or (type(label) is float and not label.is_integer())
    if first.keys() == {int, float}:
        return {float} if broken else {int}
    if len(first) > 1 or not first.keys() <= {bool, int, float, str, list}:
        raise ValueError(
            f"label column {data.label_column} holds {' and '.join(first.values())}; "
            "expected text, whole numbers, floats or lists throughout; write all labels"
            " alike"
        )
    return set(first)


def own_names(splits: Mapping[str, Dataset], data: TextData) -> tuple[str, ...] | None:
    """Find the names that a data set gives its classes in its features.

    Args:
        splits: The splits whose labels are read.
        data: The data set, for errors.

    Returns:
        The names by number, or None.

    Raises:
        ValueError: If splits name or order them otherwise.
    """
    names = {}
    for split, rows in splits.items():
        feature = rows.features[data.label_column]
        feature = getattr(feature, "feature", feature)
        names[split] = getattr(feature, "names", None)
    first, *others = names
    for split in others:
        if names[split] != names[first]:
            one, other = (
                ", ".join(names[s]) if names[s] else "no names" for s in (first, split)
            )
            raise ValueError(
                f"label column {data.label_column} has the classes {other} in "
                f"{data.place(split)} and {one} in {data.place(first)}; expected the "
                "same in the same order; write the labels as text"
            )
    return None if names[first] is None else tuple(names[first])


def unlabelled(
    found: Mapping[str, list[Any]], others: set[Any], known: Mapping[str, int]
) -> bool:
    """Tell whether -1 means that there is no label, as in GLUE's test sets.

    Args:
        found: The labels of each split, -1 among them.
        others: All other labels.
        known: The classes that the model was trained with.

    Returns:
        False where training data has it too: a class, such as a negative one, unless
        the others are three or more numbers from 0 on, as SNLI's. Without training
        data, False where the model has one class more than the others are.
    """
    if "train" in found:
        counted = len(others) > 2 and others == set(range(len(others)))
        return counted or UNLABELLED not in found["train"]
    return bool(known) and len(known) != len(others) + 1


def need_labels(found: Mapping[str, list[Any]], data: TextData) -> None:
    """Check that a split has a label that is not -1.

    Args:
        found: The labels of each split.
        data: The data set, for errors.

    Raises:
        ValueError: If all of a split's are, and training data's are not.
    """
    for split, labels in found.items():
        others = any(set(found[other]) - {UNLABELLED} for other in found)
        if set(labels) == {UNLABELLED} and (others or split != "train"):
            raise ValueError(
                f"label column {data.label_column} of {data.place(split)} is -1 in each"
                " row, which is no label, as in GLUE's test sets; expected labels to "
                "evaluate on; take other data, or predict them with --do_predict"
            )
