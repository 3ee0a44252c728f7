"""Text classification: single sentences, pairs, and numbers to be predicted."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.tasks import data
from obert_modifiers.tasks.data.columns import (
    GLUE_COLUMNS,
    GLUE_FIGURES,
    MISMATCHED,
    Batch,
    as_text,
    glue_task,
    map_rows,
    need_column,
)
from obert_modifiers.tasks.flags import DataSetArguments, flag
from obert_modifiers.tasks.task import Inputs, Prepared, Task

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from obert_modifiers.tasks.data.labels import Labels

logger = logging.getLogger(__name__)


@dataclass
class TextArguments(DataSetArguments):
    """The flags of text classification's data."""

    task_name: str | None = flag(None, "A GLUE task, fetched from the hub.")
    input_column_names: str | None = flag(
        None, "The column of the text, or two of them with a comma for pairs."
    )
    label_column_name: str = flag("label", "The column of the labels.")


def text_columns(rows: Dataset, flags: Any, description: str) -> tuple[str, ...]:
    """Return the columns that are named, else those of GLUE's, else those of text."""
    if flags.input_column_names is not None:
        names = tuple(name.strip() for name in flags.input_column_names.split(","))
        for name in names:
            need_column(rows, name, "--input_column_names", description)
        if len(names) > 2:
            raise ValueError(
                f"--input_column_names={flags.input_column_names} names {len(names)} "
                "columns; expected one, or two for pairs; join the others beforehand"
            )
        return names
    if flags.task_name is not None:
        return GLUE_COLUMNS[flags.task_name.lower()]
    usual = sorted(set(GLUE_COLUMNS.values()), key=lambda pair: (-len(pair), pair))
    for columns in (*usual, ("text",)):
        if set(columns) <= set(rows.column_names):
            return columns
    texts = tuple(
        name
        for name, feature in rows.features.items()
        if getattr(feature, "dtype", "") in ("string", "large_string")
        and name not in (flags.label_column_name, "id", "idx")
    )
    if not 1 <= len(texts) <= 2:
        raise ValueError(
            f"data={description} has the columns {', '.join(rows.column_names)}, of "
            f"which {len(texts)} could be the text; expected one, or two for pairs; "
            "name them with --input_column_names"
        )
    return texts


def _prepare(inputs: Inputs) -> Prepared:
    from transformers import DataCollatorWithPadding

    labels, losses, metrics = inputs.labels, core.losses, data.metrics
    samples = {split: tokenize(inputs, split) for split in inputs.data.splits}
    loss, measure = losses.classification_loss, metrics.classification_metrics
    headline = GLUE_FIGURES.get(glue_task(inputs.flags), ("accuracy",))
    if labels.multi:
        loss, measure = losses.multi_label_loss, metrics.multi_label_metrics
        headline = ("f1_micro", "f1_macro", "accuracy")
    elif labels.regression:
        loss, measure = losses.regression_loss, metrics.regression_metrics
        headline = ("pearson", "spearman")
    return Prepared.of(
        samples,
        partial(_write, labels),
        collate=DataCollatorWithPadding(
            inputs.pretrained.tokenizer, pad_to_multiple_of=inputs.pad_multiple
        ),
        sample_loss=loss,
        metrics=measure,
        headline=headline,
        more_validation={"mm": samples[MISMATCHED]} if MISMATCHED in samples else {},
    )


def tokenize(inputs: Inputs, split: str) -> Dataset:
    """Turn texts and labels into what the model reads, without labels to predict."""
    labels, flags, texts = inputs.labels, inputs.flags, inputs.data.text_columns
    rows, place = inputs.data.splits[split], inputs.data.place(split)
    tokenizer = inputs.pretrained.tokenizer
    padding = "max_length" if flags.pad_to_max_length else False
    lengths = {"max_length": inputs.max_length, "padding": padding}

    def encode(batch: Batch) -> Batch:
        given = [batch[column] for column in texts]
        encoded = tokenizer(*given, truncation=True, **lengths)
        if labels.column in batch:
            encoded["labels"] = labels.numbers(batch[labels.column])
        return dict(encoded)

    for column in texts:
        rows = as_text(rows, column, place)
    columns = [*texts]
    if split != "test":
        rows = _labelled(rows, labels, place)
        columns.append(labels.column)
    workers = flags.preprocessing_num_workers
    return map_rows(rows, encode, columns, workers, f"tokenizing {split}")


def _labelled(rows: Dataset, labels: Labels, place: str) -> Dataset:
    """Leave out the rows that have no label, and say how many."""
    none = data.labels.UNLABELLED
    if labels.regression or labels.multi or none in labels.ids:
        return rows
    kept = [i for i, one in enumerate(rows[labels.column]) if one != none]
    if len(kept) == len(rows):
        return rows
    counts = (len(rows) - len(kept), len(rows), place)
    logger.warning(
        "%d of %d rows of %s are left out: their label is -1, which is no label; where"
        " it is a class, write the labels as text",
        *counts,
    )
    return rows.select(kept)


def _write(labels: Labels, kept: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write index and class (several with a | between) or number of each sample."""
    logits = kept["logits"]
    if labels.multi:
        predicted = [
            "|".join(name for name, has in zip(labels.names, row, strict=True) if has)
            for row in logits > 0
        ]
    elif labels.regression:
        predicted = logits.squeeze(-1).tolist()
    else:
        predicted = [labels.names[i] for i in logits.argmax(-1)]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("index", "prediction"), *enumerate(predicted)])


TASK = Task(
    name="text_classification",
    flags=TextArguments,
    head="ForSequenceClassification",
    columns=lambda rows, flags, of: (
        text_columns(rows, flags, of),
        flags.label_column_name,
    ),
    prepare=_prepare,
    prediction_files=("predictions.csv",),
    labels=lambda read, flags, known: data.labels.labels_of(read, known),
)
