"""What the labels of a data set are: their types, their own names, and none at all."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from obert_modifiers.tasks.data.dataset import TextData

UNLABELLED = -1


def types_of(found: Mapping[str, list[Any]], data: TextData) -> set[type]:
    """Return the type that all labels have; raise ValueError if there are several.

    Whole numbers and floats together are floats, unless all floats are whole.
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
    """Return the names that a data set gives its classes in its features, if any."""
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

    Where training data has it too it is a class, such as a negative one, unless the
    others are three or more numbers from 0 on, as SNLI's. Without training data it is a
    class where the model has one class more than the others are.
    """
    if "train" in found:
        counted = len(others) > 2 and others == set(range(len(others)))
        return counted or UNLABELLED not in found["train"]
    return bool(known) and len(known) != len(others) + 1


def need_labels(found: Mapping[str, list[Any]], data: TextData) -> None:
    """Check that a split has labels other than -1, unless training data has none."""
    for split, labels in found.items():
        others = any(set(found[other]) - {UNLABELLED} for other in found)
        if set(labels) == {UNLABELLED} and (others or split != "train"):
            raise ValueError(
                f"label column {data.label_column} of {data.place(split)} is -1 in each"
                " row, which is no label, as in GLUE's test sets; expected labels to "
                "evaluate on; take other data, or predict them with --do_predict"
            )
