"""Token classification: a class for each word, such as named entities."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from seqeval import metrics as entities
from transformers import AutoModelForTokenClassification

from obert_modifiers.batches import TaskData
from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.core.losses import token_loss
from obert_modifiers.tasks import _run
from obert_modifiers.tasks._data import Labels, TextData, need_column
from obert_modifiers.tasks._flags import TokenArguments
from obert_modifiers.tasks._labels import as_the_model_knows, no_gaps
from obert_modifiers.tasks._task import Inputs, Prepared, Task
from obert_modifiers.tasks._tokens import collate_tokens, keep_tokens

_TEXT_COLUMNS = ("tokens", "words")
_PARTS = ("B-", "I-", "E-", "S-", "L-", "U-")
_LABEL_COLUMNS = ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags")


def _columns(
    rows: Dataset, flags: TokenArguments, description: str
) -> tuple[tuple[str, ...], str]:
    """Decide which columns hold the words and their labels.

    Args:
        rows: A split.
        flags: The task's flags.
        description: Where the data came from, for errors.

    Returns:
        The column of the words, and that of the labels.

    Raises:
        ValueError: If there is none, or it holds no lists.
    """
    chosen = []
    for name, usual in (
        ("text_column_name", _TEXT_COLUMNS),
        ("label_column_name", _LABEL_COLUMNS),
    ):
        column = getattr(flags, name)
        if column is None:
            column = next((one for one in usual if one in rows.column_names), usual[0])
        chosen.append(column)
        if name == "label_column_name" and column not in rows.column_names:
            continue  # to predict it is not needed; where it is, the reader says so
        need_column(rows, column, f"--{name}", description)
        if not isinstance(rows[0][column], list):
            raise ValueError(
                f"--{name}={column} of {description} holds no lists; expected a list "
                "of words, and one of their labels, in each row; name another column"
            )
    return (chosen[0],), chosen[1]


def _labels(data: TextData, flags: TokenArguments, known: Mapping[str, int]) -> Labels:
    """Decide which class number each label gets.

    Args:
        data: The data set; its own names of classes come first.
        flags: The task's flags, with names for the numbers.
        known: The class numbers by name that the model was trained with.

    Returns:
        The classes.

    Raises:
        ValueError: If words and labels do not match, or numbers have no names.
    """
    column = data.label_column
    rows = [split for name, split in data.splits.items() if name != "test"]
    rows = rows or list(data.splits.values())
    for split in rows:
        _check_rows(split, data)
    feature = getattr(rows[0].features[column], "feature", None)
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
        found = Labels(column, dict(enumerate(range(len(names)))), names)
        return as_the_model_knows(found, known, data)
    tags = {value for split in rows for row in split[column] for value in row}
    if flags.label_names is not None:
        names = tuple(name.strip() for name in flags.label_names.split(","))
        for value in tags - set(range(len(names))):
            raise ValueError(
                f"--label_names={flags.label_names} names {len(names)} classes, and "
                f"{column} of {data.description} holds {value}; expected a name for "
                "each number from 0 on; add the others"
            )
        found = Labels(column, dict(enumerate(range(len(names)))), names)
        return as_the_model_knows(found, known, data)
    ids = {value: number for number, value in enumerate(sorted(tags))}
    found = Labels(column, ids, tuple(str(value) for value in ids))
    found = as_the_model_knows(found, known, data)
    if all(name == str(value) for value, name in zip(ids, found.names, strict=False)):
        _need_names(found, data)
    return found


def _need_names(labels: Labels, data: TextData) -> None:
    if all(isinstance(value, int) for value in labels.ids):
        raise ValueError(
            f"column {labels.column} of {data.description} holds numbers without "
            "names; expected names such as B-PER; give them with --label_names "
            "O,B-PER,I-PER and so on, from that of 0 on"
        )


def _check_rows(rows: Dataset, data: TextData) -> None:
    """Check that every word has a label.

    Args:
        rows: A split.
        data: The data set it is from.

    Raises:
        ValueError: If a row has more or fewer labels than words.
    """
    (text,) = data.text_columns
    for column in (text, data.label_column):
        no_gaps(rows, column, data.description)
    pairs = zip(rows[text], rows[data.label_column], strict=True)
    for number, (words, tags) in enumerate(pairs):
        if len(words) != len(tags):
            raise ValueError(
                f"row {number} of {data.description} has {len(words)} words and "
                f"{len(tags)} labels; expected as many; check {text} and "
                f"{data.label_column}"
            )


def _prepare(inputs: Inputs) -> Prepared:
    samples = _tokenize(inputs)
    names = inputs.labels.names
    data = TaskData(
        train=samples.get("train", []),
        validation=samples.get("validation", []),
        collate=collate_tokens(inputs),
        sample_loss=token_loss,
        metrics=partial(token_metrics, names=names),
        keep=keep_tokens,
        headline=("f1", "accuracy") if are_entities(names) else ("accuracy",),
    )
    return Prepared(data, samples.get("test"))


def _tokenize(inputs: Inputs) -> dict[str, Dataset]:
    """Turn words and labels into tokens; the first token of a word has its label.

    Args:
        inputs: The data set, its classes, and the tokenizer.

    Returns:
        The splits; a row has the tokenizer's keys and ``labels``, -100 for tokens
        without one. In a test split they only mark the tokens to be predicted.
    """
    data, flags, tokenizer = inputs.data, inputs.flags, inputs.found.tokenizer
    (text,), column = data.text_columns, data.label_column

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(
            batch[text],
            is_split_into_words=True,
            max_length=inputs.max_length,
            truncation=True,
        )
        tags = batch.get(column) or [[None] * len(words) for words in batch[text]]
        labels = []
        for number, row in enumerate(tags):
            words = encoded.word_ids(number)
            first = [
                word is not None and word != before
                for word, before in zip(words, [None, *words[:-1]], strict=True)
            ]
            labels.append([
                inputs.labels.ids.get(row[word], 0) if starts else IGNORED_LABEL
                for word, starts in zip(words, first, strict=True)
            ])
        return {**encoded, "labels": labels}

    encoded = {}
    for name, rows in data.splits.items():
        kept = [text] + ([column] if name != "test" else [])
        encoded[name] = rows.select_columns(kept).map(
            encode,
            batched=True,
            remove_columns=kept,
            num_proc=flags.preprocessing_num_workers,
            keep_in_memory=True,
            load_from_cache_file=False,
            desc=f"tokenizing {name}",
        )
    return encoded


def are_entities(names: tuple[str, ...]) -> bool:
    """Tell names of parts of entities from others.

    Args:
        names: The names of the classes.

    Returns:
        True where each is O or starts with a part of an entity, such as B-.
    """
    return all(name == "O" or name[:2] in _PARTS for name in names)


def token_metrics(
    predicted: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> dict[str, float]:
    """Measure predicted classes, and entities where the classes are parts of such.

    Args:
        predicted: Class numbers (n, T).
        labels: The true ones (n, T), -100 for tokens without a label.
        names: The names of the classes.

    Returns:
        ``accuracy`` over the labelled tokens, and ``precision``, ``recall`` and ``f1``
        of whole entities, as CoNLL's script counts them; 0.0 where there are none.
    """
    labelled = labels != IGNORED_LABEL
    found = {}
    if are_entities(names):
        truth, guess = (
            [
                [names[i] for i in row[kept]]
                for row, kept in zip(one, labelled, strict=True)
            ]
            for one in (labels, predicted)
        )
        for name in ("f1", "precision", "recall"):
            score = getattr(entities, f"{name}_score")
            found[name] = float(score(truth, guess, zero_division=0))
    hits = (predicted == labels)[labelled]
    return found | {"accuracy": float(hits.mean()) if hits.size else 0.0}


def _write(rows: dict[str, np.ndarray], inputs: Inputs, folder: Path) -> None:
    """Write a line for each test sample: the classes of its words.

    Args:
        rows: ``predicted`` and ``labels``, which marks the first tokens of words.
        inputs: With the classes.
        folder: Where ``predictions.txt`` is written.
    """
    names = inputs.labels.names
    with (folder / "predictions.txt").open("w", encoding="utf-8") as file:
        for row, labels in zip(rows["predicted"], rows["labels"], strict=True):
            kept = row[labels != IGNORED_LABEL]
            file.write(" ".join(names[i] for i in kept) + "\n")


TASK = Task(
    name="token_classification",
    flags=TokenArguments,
    model_class=AutoModelForTokenClassification,
    columns=_columns,
    prepare=_prepare,
    write_predictions=_write,
    labels=_labels,
    prediction_files=("predictions.txt",),
    words=True,
)

main, run = partial(_run.main, TASK), partial(_run.run, TASK)
