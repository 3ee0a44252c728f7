"""What the labels of a data set mean: numbers, or the classes that they name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from datasets import Dataset

from obert_modifiers.core.outputs import MULTI_LABEL, REGRESSION
from obert_modifiers.modifiers._classes import places_of
from obert_modifiers.tasks.data.columns import no_gaps
from obert_modifiers.tasks.data.dataset import TextData

UNLABELLED = -1


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set mean."""

    column: str
    ids: Mapping[Any, int]  # class numbers by label as in the data; none in regression
    names: tuple[str, ...]  # by class number
    multi: bool = False  # a sample has any number of classes, in a list
    hot: bool = False  # that list holds a 0 or 1 for each class, not the classes

    @classmethod
    def named(cls, column: str, names: Iterable[str], **kind: bool) -> "Labels":
        """Make those of data that holds class numbers."""
        names = tuple(names)
        return cls(column, dict(enumerate(range(len(names)))), names, **kind)

    @classmethod
    def collected(cls, column: str, values: Iterable[Any], **kind: bool) -> "Labels":
        """Make those of data that holds these classes, which are sorted."""
        ids = {value: number for number, value in enumerate(sorted(values))}
        return cls(column, ids, tuple(map(str, ids)), **kind)

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

    def numbers(self, values: Iterable[Any]) -> list[Any]:
        """Turn labels into what the loss takes: numbers, or 0.0 and 1.0 by class."""
        if self.regression:
            return [float(value) for value in values]
        if self.hot:
            return [[float(value) for value in row] for row in values]
        if self.multi:
            rows = [{self.ids[value] for value in row} for row in values]
            return [[float(i in row) for i in range(self.num_labels)] for row in rows]
        return [self.ids[value] for value in values]


def labels_of(data: TextData, known: Mapping[str, int]) -> Labels:
    """Decide which class number each label gets.

    Floats are numbers to be predicted; lists are any number of classes, or a 0 or 1 for
    each. Classes keep the order that the data set's features give them, else they are
    sorted; those that the model knows, `known` by name, keep its numbers.
    """
    column = data.label_column
    splits = {name: rows for name, rows in data.splits.items() if name != "test"}
    splits = splits or dict(data.splits)
    for name, rows in splits.items():
        no_gaps(rows, column, data.place(name), empty="")
    by_split = {name: rows[column][:] for name, rows in splits.items()}
    kind = _type_of(by_split, data)
    if kind is list:
        return keep_known(_multi_labels(splits, by_split, data), known, data)
    if kind is float:
        _need_labels(by_split, data)
        return Labels(column, {}, ())
    named = own_names(splits, data)
    values = set(chain(*by_split.values()))
    values = set(map(int, values)) if kind is int else values
    others = values - {UNLABELLED}
    if values != others and (named is not None or _unlabelled(by_split, others, known)):
        _need_labels(by_split, data)
        values = others
    if named is not None:
        return keep_known(Labels.named(column, named), known, data)
    return keep_known(Labels.collected(column, values), known, data)


def _multi_labels(
    splits: Mapping[str, Dataset], by_split: Mapping[str, list[Any]], data: TextData
) -> Labels:
    """Decide which class numbers the labels in lists get.

    Lists of one length that hold only 0 and 1 say of each class whether the sample has
    it; other lists hold the classes.
    """
    column = data.label_column
    inner = {split: list(chain(*rows)) for split, rows in by_split.items()}
    kind = _type_of(inner, data) if any(inner.values()) else None
    named = own_names(splits, data)
    lengths = {len(row) for rows in by_split.values() for row in rows}
    values = set(chain(*inner.values()))
    alike = named is None and len(lengths) == 1 and max(lengths) > 1
    if alike and values <= {0, 1}:
        names = map(str, range(max(lengths)))
        return Labels.named(column, names, multi=True, hot=True)
    if kind in (float, list):
        wrong = sorted(map(str, values - {0, 1}))[:1] or sorted(map(str, lengths))
        raise ValueError(
            f"label column {column} of {data.description} holds lists with "
            f"{', '.join(wrong)}; expected lists of classes, or lists of a 0 or 1 for "
            "each class, all of one length; check the data"
        )
    if named is not None:
        return Labels.named(column, named, multi=True)
    return Labels.collected(column, values, multi=True)


def keep_known(labels: Labels, known: Mapping[str, int], data: TextData) -> Labels:
    """Keep the numbers of the classes that the model was trained with.

    That is where it knows all names of the data set, or where the data set has only
    numbers, which then get the model's names.
    """
    names = tuple(sorted(known, key=lambda name: known[name]))
    places = places_of(labels.names, names)
    if known and places is not None:
        ids = {value: known[names[places[i]]] for value, i in labels.ids.items()}
        return replace(labels, ids=ids, names=names)
    unnamed = all(labels.names[number] == str(v) for v, number in labels.ids.items())
    if known and unnamed and all(v in range(len(known)) for v in labels.ids):
        return replace(labels, ids={v: v for v in labels.ids}, names=names)
    if len(labels.names) < 2:
        raise ValueError(
            f"label column {labels.column} of {data.description} holds the one class "
            f"{', '.join(labels.names)}; expected two or more; check the data"
        )
    return labels


def own_names(splits: Mapping[str, Dataset], data: TextData) -> tuple[str, ...] | None:
    """Return the names that a data set gives its classes in its features, if any."""
    names = {}
    for split, rows in splits.items():
        feature = rows.features[data.label_column]
        feature = getattr(feature, "feature", feature)
        names[split] = getattr(feature, "names", None)
    first = next(iter(names))
    for split in names:
        if names[split] != names[first]:
            one, other = (", ".join(names[s] or ["no names"]) for s in (first, split))
            raise ValueError(
                f"label column {data.label_column} has the classes {other} in "
                f"{data.place(split)} and {one} in {data.place(first)}; expected the "
                "same in the same order; write the labels as text"
            )
    return None if names[first] is None else tuple(names[first])


def _type_of(by_split: Mapping[str, list[Any]], data: TextData) -> type:
    """Return the type of all labels; whole floats beside whole numbers are int."""
    first: dict[type, str] = {}
    broken = False
    for split, labels in by_split.items():
        for row, label in enumerate(labels):
            if type(label) not in first:
                first[type(label)] = f"{label!r} in row {row} of {data.place(split)}"
            broken = broken or (type(label) is float and not label.is_integer())
    if first.keys() == {int, float}:
        return float if broken else int
    if len(first) > 1 or not first.keys() <= {bool, int, float, str, list}:
        raise ValueError(
            f"label column {data.label_column} holds {' and '.join(first.values())}; "
            "expected text, whole numbers, floats or lists throughout; write all alike"
        )
    return next(iter(first))


def _unlabelled(
    by_split: Mapping[str, list[Any]], others: set[Any], known: Mapping[str, int]
) -> bool:
    """Tell whether -1 means that there is no label, as in GLUE's test sets.

    Where training data has it too it is a class, unless the others are three or more
    numbers from 0 on, as SNLI's. Without training data it is a class where the model
    has one class more than the others are.
    """
    if "train" in by_split:
        counted = len(others) > 2 and others == set(range(len(others)))
        return counted or UNLABELLED not in by_split["train"]
    return bool(known) and len(known) != len(others) + 1


def _need_labels(by_split: Mapping[str, list[Any]], data: TextData) -> None:
    """Check that a split has labels other than -1, unless training data has none."""
    bare = {name for name, labels in by_split.items() if set(labels) == {UNLABELLED}}
    for split in by_split:
        if split in bare and (split != "train" or bare != set(by_split)):
            raise ValueError(
                f"label column {data.label_column} of {data.place(split)} is -1 in each"
                " row, which is no label, as in GLUE's test sets; expected labels to "
                "evaluate on; take other data, or predict them with --do_predict"
            )
