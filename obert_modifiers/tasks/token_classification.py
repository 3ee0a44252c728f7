"""Token classification: a class for each word, such as named entities."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obert_modifiers import core
from obert_modifiers.tasks import data, words
from obert_modifiers.tasks.data.columns import (
    Batch,
    Columns,
    map_rows,
    need_column,
    no_gaps,
    usual_column,
)
from obert_modifiers.tasks.flags import DataSetArguments, flag
from obert_modifiers.tasks.task import IGNORED, Inputs, Prepared, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from obert_modifiers.tasks.data.dataset import TextData
    from obert_modifiers.tasks.data.labels import Labels

logger = logging.getLogger(__name__)

_USUAL = {
    "text_column_name": ("tokens", "words"),
    "label_column_name": ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags"),
}
_PARTS = ("B-", "I-", "E-", "S-", "L-", "U-")


@dataclass
class TokenArguments(DataSetArguments):
    """The flags of token classification's data."""

    text_column_name: str | None = flag(
        None, "The column of the words, a list in each row; else tokens or words."
    )
    label_column_name: str | None = flag(
        None, "The column of the words' labels; else ner_tags, tags or labels."
    )
    label_names: str | None = flag(
        None, "What the label numbers 0, 1, ... mean, with commas: O,B-PER,I-PER."
    )


def _columns(rows: Dataset, flags: TokenArguments, description: str) -> Columns:
    columns = {
        name: usual_column(rows, getattr(flags, name), usual)
        for name, usual in _USUAL.items()
    }
    for name, column in columns.items():
        if name == "label_column_name" and column not in rows.column_names:
            continue  # to predict it is not needed; where it is, the reader says so
        need_column(rows, column, f"--{name}", description)
        if not isinstance(rows[0][column], list):
            raise ValueError(
                f"--{name}={column} of {description} holds no lists; expected a list "
                "of words, and one of their labels, in each row; name another column"
            )
    text, label = columns.values()
    return (text,), label


def _labels(read: TextData, flags: TokenArguments, known: Mapping[str, int]) -> Labels:
    """Decide which class number each label gets; the data set's names come first."""
    from obert_modifiers.tasks.data.labels import Labels, keep_known, own_names

    column = read.label_column
    splits = [rows for name, rows in read.splits.items() if name != "test"]
    splits = splits or list(read.splits.values())
    for rows in splits:
        _check_rows(rows, read)
    names = own_names({"": splits[0]}, read)
    tags = {value for rows in splits for row in rows[column] for value in row}
    if names is None and flags.label_names is not None:
        names = tuple(name.strip() for name in flags.label_names.split(","))
        for value in tags - set(range(len(names))):
            raise ValueError(
                f"--label_names={flags.label_names} names {len(names)} classes, and "
                f"{column} of {read.description} holds {value}; expected a name for "
                "each number; add the others"
            )
    if names is not None:
        return keep_known(Labels.named(column, names), known, read)
    labels = keep_known(Labels.collected(column, tags), known, read)
    named = zip(labels.ids, labels.names, strict=False)
    if all(isinstance(value, int) and name == str(value) for value, name in named):
        raise ValueError(
            f"column {column} of {read.description} holds numbers without names; "
            "expected names; give them from 0 on with --label_names O,B-PER,I-PER"
        )
    return labels


def _check_rows(rows: Dataset, read: TextData) -> None:
    """Check that every word has a label."""
    columns = (*read.text_columns, read.label_column)
    for column in columns:
        no_gaps(rows, column, read.description)
    pairs = zip(*(rows[column] for column in columns), strict=True)
    for number, (texts, tags) in enumerate(pairs):
        if len(texts) != len(tags):
            raise ValueError(
                f"row {number} of {read.description} has {len(texts)} words and "
                f"{len(tags)} labels; expected as many; check {' and '.join(columns)}"
            )


class _Split:
    """The rows of a split as windows of tokens.

    `classes` has the class number of each word, -100 without a label, 0 in a test
    split. `windows` is what the model reads, `places` tells ``row`` and ``words``.
    """

    def __init__(self, inputs: Inputs, name: str) -> None:
        rows, (text,) = inputs.data.splits[name], inputs.data.text_columns
        self.names, tokenizer = inputs.labels.names, inputs.pretrained.tokenizer
        classes, most = _classes(inputs, name), inputs.max_length
        self.classes = classes

        def encode(batch: Batch, numbers: list[int]) -> Batch:
            labels = [classes[number] for number in numbers]
            windows = words.windows.cut_rows(tokenizer, batch[text], labels, most)
            windows["row"] = [numbers[row] for row in windows["row"]]
            return windows

        windows = map_rows(
            rows,
            encode,
            [text],
            inputs.flags.preprocessing_num_workers,
            f"tokenizing {name}",
            # One batch where it is not shared out: an empty one would have no types.
            batch_size=max(len(rows), 1),
            with_indices=True,
        )
        if len(windows) == 0:
            raise ValueError(
                f"data={inputs.data.description} has no words that become tokens in "
                f"its {name} split; expected at least one with a label; check the file"
            )
        self.windows = windows.remove_columns(["row", "words"])
        self.places = windows.select_columns(["row", "words"])
        wanted = sum(int((row >= 0).sum()) for row in classes)
        missing = wanted - sum(map(len, self.places["words"]))
        if missing:
            given = "O" if "O" in self.names else "of the word before"
            logger.warning(
                "%d of %d words in %s have no token, such as empty ones and zero-width "
                "characters; they get the label %s",
                *(missing, wanted, name, given),
            )
        if len(set(self.places["row"])) < len(self.places):
            logger.info("%s: long rows are read in %d windows", name, len(self.places))

    def by_word(self, predicted: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """Return the predicted class number of each word, an array for each row."""
        lengths, outside = map(len, self.classes), words.windows.outside_of(self.names)
        return words.windows.by_word(predicted, labels, self.places, lengths, outside)


def _classes(inputs: Inputs, split: str) -> list[np.ndarray]:
    rows, (text,) = inputs.data.splits[split], inputs.data.text_columns
    if split == "test":
        return [np.zeros(len(row), int) for row in rows[text]]
    ids = inputs.labels.ids
    return [
        np.array([ids.get(tag, IGNORED) for tag in tags], int)
        for tags in rows[inputs.data.label_column]
    ]


def _prepare(inputs: Inputs) -> Prepared:
    made = {name: _Split(inputs, name) for name in inputs.data.splits}
    names = inputs.labels.names

    def metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        split = made["validation"]
        guess, truth = split.by_word(predicted, labels), split.classes
        counts = {"samples": len(truth), "windows": len(split.places)}
        return {**token_metrics(guess, truth, names), **counts}

    def write(kept: Mapping[str, np.ndarray], folder: Path) -> None:
        rows = made["test"].by_word(kept["predicted"], kept["labels"])
        lines = [" ".join(names[i] for i in row) + "\n" for row in rows]
        (folder / "predictions.txt").write_text("".join(lines), encoding="utf-8")

    return Prepared.of(
        {name: split.windows for name, split in made.items()},
        write,
        collate=inputs.token_collator(),
        sample_loss=core.losses.token_loss,
        metrics=metrics,
        keep=_keep,
        headline=("f1", "accuracy") if are_entities(names) else ("accuracy",),
    )


def _keep(outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the predicted class of each token, and its label, both (k, T)."""
    predicted = core.outputs.logits_of(outputs).detach().argmax(-1)
    return {"predicted": predicted, "labels": batch["labels"]}


def are_entities(names: Sequence[str]) -> bool:
    """Tell names of parts of entities, such as B-PER, and O from others."""
    return all(name == "O" or name[:2] in _PARTS for name in names)


def token_metrics(
    predicted: Sequence[np.ndarray], labels: Sequence[np.ndarray], names: Sequence[str]
) -> dict[str, float]:
    """Measure predicted classes (T,) of rows, over the words with a label (not -100).

    Where the classes are parts of entities, also those of whole ones, as CoNLL's script
    counts them.
    """
    from seqeval import metrics as entities

    pairs = [
        (guess[row != IGNORED], row[row != IGNORED])
        for guess, row in zip(predicted, labels, strict=True)
    ]
    figures = {}
    if are_entities(names):
        guess, truth = (
            [[names[i] for i in row] for row in rows]
            for rows in zip(*pairs, strict=True)
        )
        for name in ("f1", "precision", "recall"):
            score = getattr(entities, f"{name}_score")
            figures[name] = float(score(truth, guess, zero_division=0))
    hits = np.concatenate([guess == row for guess, row in pairs])
    return figures | {"accuracy": float(hits.mean()) if hits.size else 0.0}


TASK = Task(
    name="token_classification",
    flags=TokenArguments,
    head="ForTokenClassification",
    columns=_columns,
    prepare=_prepare,
    prediction_files=("predictions.txt",),
    labels=_labels,
    reader=lambda flags, cache: data.sources.read(
        flags, cache, words.conll.read_columns
    ),
    words=True,
)
