"""Question answering: answers that are spans of a context, as in SQuAD v1.1 and v2."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.tasks import _run
from obert_modifiers.tasks._flags import QuestionAnsweringArguments
from obert_modifiers.tasks._task import Inputs, Prepared, Task
from obert_modifiers.tasks.squad.answers import Answer, Search, answer_question
from obert_modifiers.tasks.squad.data import (
    answers_of,
    columns,
    ids_of,
    read,
    windows_of,
)
from obert_modifiers.tasks.squad.metrics import squad_metrics, squad_v2_metrics
from obert_modifiers.tasks.squad.windows import WindowShape, check_windows
from obert_modifiers.training.batches import TaskData

__all__ = ["TASK", "QuestionAnsweringArguments", "main", "run"]

_SIDES = ("start", "end")
PREDICTIONS, NBEST, NULL_ODDS = (
    "predictions.json",
    "nbest_predictions.json",
    "null_odds.json",
)


def _search(flags: QuestionAnsweringArguments) -> Search:
    return Search(
        flags.n_best_size,
        flags.max_answer_length,
        flags.version_2_with_negative,
        flags.null_score_diff_threshold,
    )


def answer_losses(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of each window, the mean of start's and end's cross-entropy.

    Padding is left out of the softmax over positions, so that the loss of a window
    does not depend on its batch. A position past the sequence adds no loss.

    Args:
        outputs: The model's outputs with ``start_logits`` and ``end_logits`` (k, T),
            or a tuple that starts with them.
        batch: What the model was given, with ``attention_mask`` (k, T),
            ``start_positions`` and ``end_positions`` (k,).

    Returns:
        Losses (k,) in float32 or wider.
    """
    padding = batch["attention_mask"].eq(0)
    losses = []
    for side, logits in _both(outputs).items():
        logits = logits.masked_fill(padding, -torch.inf)
        labels = batch[f"{side}_positions"]
        labels = labels.masked_fill(labels >= logits.shape[1], IGNORED_LABEL)
        losses.append(
            functional.cross_entropy(
                logits, labels, reduction="none", ignore_index=IGNORED_LABEL
            )
        )
    return torch.stack(losses).mean(dim=0)


def _both(outputs: Any) -> dict[str, Tensor]:
    """Find the logits of starts and ends.

    Returns:
        Both in float32 or wider.
    """
    named = isinstance(outputs, Mapping)
    found = {
        side: outputs[f"{side}_logits"] if named else outputs[number]
        for number, side in enumerate(_SIDES)
    }
    return {
        side: logits if logits.element_size() >= 4 else logits.float()
        for side, logits in found.items()
    }


def _keep(outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{side}_logits": logits for side, logits in _both(outputs).items()}


@dataclass(frozen=True)
class Collate:
    """Makes a batch of windows.

    Attributes:
        tokenizer: The model's tokenizer.
        length: The length that all are padded to; None for the longest of the batch.
        multiple: The length is a multiple of this, or None.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int | None = None
    multiple: int | None = None

    def __call__(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad windows on the right, where no position of an answer moves.

        Args:
            windows: Samples.

        Returns:
            Tensors by name.
        """
        return dict(
            self.tokenizer.pad(
                [dict(window) for window in windows],
                padding="longest" if self.length is None else "max_length",
                max_length=self.length,
                pad_to_multiple_of=self.multiple,
                padding_side="right",
                return_tensors="pt",
            )
        )


def answer_all(
    rows: Dataset, places: Dataset, logits: Mapping[str, np.ndarray], search: Search
) -> list[Answer]:
    """Choose the answer to each question.

    Args:
        rows: The questions, with ``context``.
        places: What `windows_of` tells of each window.
        logits: ``start_logits`` and ``end_logits``, a row for each window.
        search: How answers are chosen.

    Returns:
        An answer for each row.
    """
    windows: list[list[dict[str, Any]]] = [[] for _ in range(len(rows))]
    for number, place in enumerate(places):
        scores = {f"{side}_logits": logits[f"{side}_logits"][number] for side in _SIDES}
        windows[place["question"]].append({**place, **scores})
    contexts = rows["context"]
    return [
        answer_question(context, group, search)
        for context, group in zip(contexts, windows, strict=True)
    ]


def _windows(inputs: Inputs, split: str) -> tuple[Dataset, Dataset]:
    flags = inputs.flags
    return windows_of(
        inputs.data.splits[split],
        inputs.found.tokenizer,
        WindowShape(inputs.max_length, flags.doc_stride),
        labelled=split != "test",
        with_null=flags.version_2_with_negative,
        workers=flags.preprocessing_num_workers,
    )


def _prepare(inputs: Inputs) -> Prepared:
    flags, splits = inputs.flags, inputs.data.splits
    tokenizer = inputs.found.tokenizer
    check_windows(tokenizer, WindowShape(inputs.max_length, flags.doc_stride))
    if "test" in splits:
        ids_of(splits["test"])
    made = {split: _windows(inputs, split) for split in splits}

    def metrics(**logits: np.ndarray) -> dict[str, float]:
        rows, places = splits["validation"], made["validation"][1]
        texts = [a.text for a in answer_all(rows, places, logits, _search(flags))]
        truths = [[text for _, text in answers_of(a)] for a in rows["answers"]]
        measure = squad_v2_metrics if flags.version_2_with_negative else squad_metrics
        return {**measure(texts, truths), "samples": len(rows), "windows": len(places)}

    data = TaskData(
        train=made["train"][0] if "train" in made else [],
        validation=made["validation"][0] if "validation" in made else [],
        collate=Collate(
            tokenizer,
            inputs.max_length if flags.pad_to_max_length else None,
            inputs.pad_multiple,
        ),
        sample_loss=answer_losses,
        metrics=metrics,
        keep=_keep,
        headline=("f1", "exact_match"),
    )
    return Prepared(data, made["test"][0] if "test" in made else None)


def _write(logits: dict[str, np.ndarray], inputs: Inputs, folder: Path) -> None:
    """Write the answer to each question, its candidates and the odds of no answer.

    Args:
        logits: ``start_logits`` and ``end_logits``, a row for each window.
        inputs: What the windows were made from.
        folder: Where the files are written.
    """
    rows = inputs.data.splits["test"]
    places = _windows(inputs, "test")[1]
    found = answer_all(rows, places, logits, _search(inputs.flags))
    named = dict(zip(ids_of(rows), found, strict=True))
    files: dict[str, dict[str, Any]] = {
        PREDICTIONS: {name: answer.text for name, answer in named.items()},
        NBEST: {name: answer.candidates for name, answer in named.items()},
    }
    if inputs.flags.version_2_with_negative:
        files[NULL_ODDS] = {name: answer.null_odds for name, answer in named.items()}
    for file, values in files.items():
        text = json.dumps(values, indent=2, ensure_ascii=False)
        (folder / file).write_text(text + "\n", encoding="utf-8")


TASK = Task(
    name="question_answering",
    flags=QuestionAnsweringArguments,
    model_class=AutoModelForQuestionAnswering,
    columns=columns,
    prepare=_prepare,
    write_predictions=_write,
    prediction_files=(PREDICTIONS, NBEST, NULL_ODDS),
    reader=read,
)

main, run = partial(_run.main, TASK), partial(_run.run, TASK)
