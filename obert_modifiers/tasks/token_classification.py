"""Token classification: a class for each word, such as named entities."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from seqeval import metrics as entities
from transformers import AutoModelForTokenClassification

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.core.losses import token_loss
from obert_modifiers.tasks import _conll, _run
from obert_modifiers.tasks._data import Labels, TextData, need_column
from obert_modifiers.tasks._flags import TokenArguments
from obert_modifiers.tasks._labels import as_the_model_knows, no_gaps
from obert_modifiers.tasks._task import Inputs, Prepared, Task
from obert_modifiers.tasks._tokens import collate_tokens, keep_tokens
from obert_modifiers.tasks._word_windows import by_word, cut_rows, outside_of
from obert_modifiers.training.batches import TaskData

logger = logging.getLogger(__name__)

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
    splits = inputs.data.splits
    made = {name: _windows(inputs, name) for name in splits}
    for name in splits:
        _warn(inputs, name, made[name][1])
    names = inputs.labels.names

    def metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        truth, places = _classes(inputs, "validation"), made["validation"][1]
        found = _by_row(predicted, labels, places, truth, names)
        figures = token_metrics(found, truth, names)
        return {**figures, "samples": len(truth), "windows": len(places)}

    data = TaskData(
        train=made["train"][0] if "train" in made else [],
        validation=made["validation"][0] if "validation" in made else [],
        collate=collate_tokens(inputs),
        sample_loss=token_loss,
        metrics=metrics,
        keep=keep_tokens,
        headline=("f1", "accuracy") if are_entities(names) else ("accuracy",),
    )
    return Prepared(data, made["test"][0] if "test" in made else None)


def _classes(inputs: Inputs, split: str) -> list[np.ndarray]:
    """Read the class number of each word; in a test split 0 marks it to be predicted.

    Returns:
        An array for each row, -100 for words without a label.
    """
    rows, (text,) = inputs.data.splits[split], inputs.data.text_columns
    if split == "test":
        return [np.zeros(len(words), int) for words in rows[text]]
    return [
        np.array([inputs.labels.ids.get(tag, IGNORED_LABEL) for tag in tags], int)
        for tags in rows[inputs.data.label_column]
    ]


def _windows(inputs: Inputs, split: str) -> tuple[Dataset, Dataset]:
    """Turn words and labels into windows of tokens.

    Args:
        inputs: The data set, its classes, and the tokenizer.
        split: Which rows.

    Returns:
        What the model reads, with ``labels``; and ``row`` and ``words`` of each.

    Raises:
        ValueError: If no word has a token.
    """
    (text,) = inputs.data.text_columns
    labels = _classes(inputs, split)

    def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        classes = [labels[number] for number in numbers]
        tokenizer, most = inputs.found.tokenizer, inputs.max_length
        windows = cut_rows(tokenizer, batch[text], classes, most)
        windows["row"] = [numbers[row] for row in windows["row"]]
        return windows

    rows = inputs.data.splits[split].select_columns([text])
    windows = rows.map(
        encode,
        batched=True,
        # One batch where it is not shared out: an empty one would have no types.
        batch_size=max(len(rows), 1),
        with_indices=True,
        remove_columns=[text],
        num_proc=inputs.flags.preprocessing_num_workers,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc=f"tokenizing {split}",
    )
    if len(windows) == 0:
        raise ValueError(
            f"data={inputs.data.description} has no words that become tokens in its "
            f"{split} split; expected at least one with a label; check the file"
        )
    places = ["row", "words"]
    return windows.remove_columns(places), windows.select_columns(places)


def _warn(inputs: Inputs, split: str, places: Dataset) -> None:
    """Count the words that no token stands for."""
    wanted = sum(int((row >= 0).sum()) for row in _classes(inputs, split))
    missing = wanted - sum(map(len, places["words"]))
    if missing:
        known = outside_of(inputs.labels.names) is not None
        logger.warning(
            "%d of %d words in %s have no token, such as empty ones and zero-width "
            "characters; they get the label %s",
            missing,
            wanted,
            split,
            "O" if known else "of the word before",
        )
    if len(set(places["row"])) < len(places):
        logger.info("%s: long rows are read in %d windows", split, len(places))


def _by_row(
    predicted: np.ndarray,
    labels: np.ndarray,
    places: Dataset,
    rows: Sequence[Sequence[Any]],
    names: tuple[str, ...],
) -> list[np.ndarray]:
    lengths = [len(row) for row in rows]
    return by_word(predicted, labels, places, lengths, outside_of(names))


def are_entities(names: tuple[str, ...]) -> bool:
    """Tell names of parts of entities from others.

    Args:
        names: The names of the classes.

    Returns:
        True where each is O or starts with a part of an entity, such as B-.
    """
    return all(name == "O" or name[:2] in _PARTS for name in names)


def token_metrics(
    predicted: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    names: tuple[str, ...],
) -> dict[str, float]:
    """Measure predicted classes, and entities where the classes are parts of such.

    Args:
        predicted: Class numbers (T,) of each row.
        labels: The true ones (T,), -100 for those without a label.
        names: The names of the classes.

    Returns:
        ``accuracy`` over the labelled tokens, and ``precision``, ``recall`` and ``f1``
        of whole entities, as CoNLL's script counts them; 0.0 where there are none.
    """
    labelled = [row != IGNORED_LABEL for row in labels]
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
    hits = np.concatenate([
        (guess == row)[kept]
        for guess, row, kept in zip(predicted, labels, labelled, strict=True)
    ])
    return found | {"accuracy": float(hits.mean()) if hits.size else 0.0}


def _write(rows: dict[str, np.ndarray], inputs: Inputs, folder: Path) -> None:
    """Write a line for each test sample: the classes of its words.

    Args:
        rows: ``predicted`` and ``labels``, which marks the first tokens of words.
        inputs: What the windows were made from.
        folder: Where ``predictions.txt`` is written.
    """
    names = inputs.labels.names
    words = inputs.data.splits["test"][inputs.data.text_columns[0]]
    places = _windows(inputs, "test")[1]
    found = _by_row(rows["predicted"], rows["labels"], places, words, names)
    with (folder / "predictions.txt").open("w", encoding="utf-8") as file:
        for row in found:
            file.write(" ".join(names[i] for i in row) + "\n")


TASK = Task(
    name="token_classification",
    flags=TokenArguments,
    model_class=AutoModelForTokenClassification,
    columns=_columns,
    prepare=_prepare,
    write_predictions=_write,
    labels=_labels,
    prediction_files=("predictions.txt",),
    reader=_conll.read,
    words=True,
)

main, run = partial(_run.main, TASK), partial(_run.run, TASK)
