"""Text classification: single sentences, pairs, and numbers to be predicted."""

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from obert_modifiers.core.losses import (
    classification_loss,
    multi_label_loss,
    regression_loss,
)
from obert_modifiers.tasks import _labels, _metrics, _run
from obert_modifiers.tasks._arguments import DataArguments
from obert_modifiers.tasks._data import Labels, TextData, text_and_label
from obert_modifiers.tasks._files import GLUE_FIGURES, MISMATCHED, glue_task
from obert_modifiers.tasks._run import TRAIN_RECORD
from obert_modifiers.tasks._task import Inputs, Prepared, Task
from obert_modifiers.training.batches import TaskData

__all__ = ["TASK", "TRAIN_RECORD", "main", "run"]


def _classes(data: TextData, flags: DataArguments, known: Mapping[str, int]) -> Labels:
    return _labels.understand(data, known)


def _prepare(inputs: Inputs) -> Prepared:
    labels, flags = inputs.labels, inputs.flags
    tokenizer = inputs.found.tokenizer
    samples = _labels.tokenize(
        inputs.data,
        labels,
        tokenizer,
        inputs.max_length,
        flags.pad_to_max_length,
        flags.preprocessing_num_workers,
    )
    loss, metrics = classification_loss, _metrics.classification_metrics
    headline = GLUE_FIGURES.get(glue_task(flags), ("accuracy",))
    if labels.multi:
        loss, metrics = multi_label_loss, _metrics.multi_label_metrics
        headline = ("f1_micro", "f1_macro", "accuracy")
    elif labels.regression:
        loss, metrics = regression_loss, _metrics.regression_metrics
        headline = ("pearson", "spearman")
    second = samples.get(MISMATCHED)
    data = TaskData(
        train=samples.get("train", []),
        validation=samples.get("validation", []),
        collate=DataCollatorWithPadding(
            tokenizer, pad_to_multiple_of=inputs.pad_multiple
        ),
        sample_loss=loss,
        metrics=metrics,
        headline=headline,
        more_validation={} if second is None else {"mm": second},
    )
    return Prepared(data, samples.get("test"))


def _write(rows: dict[str, np.ndarray], inputs: Inputs, folder: Path) -> None:
    """Write a prediction for each test sample: its index, and class name or number.

    Where a sample has any number of classes, their names stand with a | between them.

    Args:
        rows: ``logits`` (n, classes).
        inputs: With the classes.
        folder: Where ``predictions.csv`` is written.
    """
    labels, logits = inputs.labels, rows["logits"]
    if labels.multi:
        found = [
            "|".join(name for name, one in zip(labels.names, row, strict=True) if one)
            for row in logits > 0
        ]
    elif labels.regression:
        found = logits.squeeze(-1).tolist()
    else:
        found = [labels.names[i] for i in logits.argmax(-1)]
    path = folder / "predictions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "prediction"))
        writer.writerows(enumerate(found))


TASK = Task(
    name="text_classification",
    flags=DataArguments,
    model_class=AutoModelForSequenceClassification,
    columns=text_and_label,
    prepare=_prepare,
    write_predictions=_write,
    labels=_classes,
)

main, run = partial(_run.main, TASK), partial(_run.run, TASK)
