"""Question answering: answers that are spans of a context, as in SQuAD v1.1 and v2."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obert_modifiers.tasks import squad
from obert_modifiers.tasks.data.columns import Columns
from obert_modifiers.tasks.flags import DataSetArguments, check_positive, flag
from obert_modifiers.tasks.squad.answers import Answer, Search, answer_question
from obert_modifiers.tasks.squad.metrics import squad_metrics, squad_v2_metrics
from obert_modifiers.tasks.squad.windows import WindowShape, check_windows
from obert_modifiers.tasks.task import IGNORED, Inputs, Prepared, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_SIDES = ("start", "end")
PREDICTIONS, NBEST = "predictions.json", "nbest_predictions.json"
NULL_ODDS = "null_odds.json"


@dataclass
class QuestionAnsweringArguments(DataSetArguments):
    """Which questions are read, and how answers are chosen."""

    version_2_with_negative: bool = flag(False, "Answers may be missing, as in v2.")
    doc_stride: int = flag(
        128, "Tokens that the windows of a long context share with the next one."
    )
    max_answer_length: int = flag(30, "The most tokens of an answer.")
    n_best_size: int = flag(20, "Candidates that are kept for each question.")
    null_score_diff_threshold: float = flag(
        0.0, "No answer is given where its score is higher by more than this."
    )

    def check(self) -> None:
        """Raise ValueError if a value breaks its rule or two exclude each other."""
        super().check()
        check_positive(self, "max_answer_length", "n_best_size")
        stride, threshold = self.doc_stride, self.null_score_diff_threshold
        if stride < 0:
            raise ValueError(
                f"--doc_stride={stride} is negative; expected 0 or more; use 128"
            )
        if threshold and not self.version_2_with_negative:
            raise ValueError(
                f"--null_score_diff_threshold={threshold} is for questions without an "
                "answer; expected --version_2_with_negative beside it; add it"
            )
        if self.dataset_name is None and not self.files:
            raise ValueError(
                "--dataset_name is missing; expected it or --train_file and "
                "--validation_file; give a folder with SQuAD's files"
            )


def answer_losses(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of each window (k,), the mean of start's and end's cross-entropy.

    Padding is left out of the softmax over positions, so that a window's loss does not
    depend on its batch. A position past the sequence adds no loss.
    """
    import torch
    from torch.nn.functional import cross_entropy

    padding = batch["attention_mask"].eq(0)
    losses = []
    for side, logits in _both(outputs).items():
        logits = logits.masked_fill(padding, -torch.inf)
        labels = batch[f"{side}_positions"]
        labels = labels.masked_fill(labels >= logits.shape[1], IGNORED)
        options = {"reduction": "none", "ignore_index": IGNORED}
        losses.append(cross_entropy(logits, labels, **options))
    return torch.stack(losses).mean(dim=0)


def _both(outputs: Any) -> dict[str, Tensor]:
    """Return the logits of starts and ends, (k, T) in float32 or wider."""
    both = outputs  # a tuple starts with them
    if isinstance(outputs, Mapping):
        both = [outputs[f"{side}_logits"] for side in _SIDES]
    return {
        side: values if values.element_size() >= 4 else values.float()
        for side, values in zip(_SIDES, both, strict=False)
    }


def _keep(outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{side}_logits": logits for side, logits in _both(outputs).items()}


def collating(
    tokenizer: PreTrainedTokenizerBase,
    length: int | None = None,
    multiple: int | None = None,
) -> Callable[[list[dict[str, Any]]], Any]:
    """Return what pads windows on the right, where no position of an answer moves."""
    return partial(
        tokenizer.pad,
        padding="longest" if length is None else "max_length",
        max_length=length,
        pad_to_multiple_of=multiple,
        padding_side="right",
        return_tensors="pt",
    )


def answer_all(
    rows: Dataset, places: Dataset, logits: Mapping[str, np.ndarray], search: Search
) -> list[Answer]:
    """Choose the answer to each question, from the logits and places of windows."""
    windows: list[list[dict[str, Any]]] = [[] for _ in range(len(rows))]
    for number, place in enumerate(places):
        scores = {name: values[number] for name, values in logits.items()}
        windows[place["question"]].append({**place, **scores})
    pairs = zip(rows["context"], windows, strict=True)
    return [answer_question(context, group, search) for context, group in pairs]


def _columns(rows: Dataset, flags: Any, description: str) -> Columns:
    if not {"question", "context"} <= set(rows.column_names):
        raise ValueError(
            f"data={description} has the columns {', '.join(rows.column_names)}; "
            "expected question, context and answers; rename them"
        )
    answers = "answers" if "answers" in rows.column_names else None
    return ("question", "context"), answers


def _prepare(inputs: Inputs) -> Prepared:
    flags, splits = inputs.flags, inputs.data.splits
    tokenizer = inputs.pretrained.tokenizer
    shape = WindowShape(inputs.max_length, flags.doc_stride)
    check_windows(tokenizer, shape)
    with_null = flags.version_2_with_negative
    chosen = flags.n_best_size, flags.max_answer_length
    search = Search(*chosen, with_null, flags.null_score_diff_threshold)
    ids = squad.data.ids_of(splits["test"]) if "test" in splits else []
    windows, places = {}, {}
    for split, rows in splits.items():
        windows[split], places[split] = squad.data.windows_of(
            rows,
            tokenizer,
            shape,
            labelled=split != "test",
            with_null=with_null,
            workers=flags.preprocessing_num_workers,
        )

    def answer(split: str, logits: Mapping[str, np.ndarray]) -> list[Answer]:
        return answer_all(splits[split], places[split], logits, search)

    def metrics(**logits: np.ndarray) -> dict[str, float]:
        texts = [chosen.text for chosen in answer("validation", logits)]
        answers = map(squad.data.answers_of, splits["validation"]["answers"])
        truths = [[text for _, text in given] for given in answers]
        measure = squad_v2_metrics if with_null else squad_metrics
        counts = {"samples": len(texts), "windows": len(places["validation"])}
        return {**measure(texts, truths), **counts}

    def write(logits: dict[str, np.ndarray], folder: Path) -> None:
        named = dict(zip(ids, answer("test", logits), strict=True))
        _write(named, with_null, folder)

    length = inputs.max_length if flags.pad_to_max_length else None
    return Prepared.of(
        windows,
        write,
        collate=collating(tokenizer, length, inputs.pad_multiple),
        sample_loss=answer_losses,
        metrics=metrics,
        keep=_keep,
        headline=("f1", "exact_match"),
    )


def _write(named: Mapping[str, Answer], with_null: bool, folder: Path) -> None:
    """Write the answer to each question, its candidates and the odds of no answer."""
    files: dict[str, dict[str, Any]] = {
        PREDICTIONS: {name: answer.text for name, answer in named.items()},
        NBEST: {name: answer.candidates for name, answer in named.items()},
    }
    if with_null:
        files[NULL_ODDS] = {name: answer.null_odds for name, answer in named.items()}
    for file, values in files.items():
        text = json.dumps(values, indent=2, ensure_ascii=False)
        (folder / file).write_text(text + "\n", encoding="utf-8")


TASK = Task(
    name="question_answering",
    flags=QuestionAnsweringArguments,
    head="ForQuestionAnswering",
    columns=_columns,
    prepare=_prepare,
    prediction_files=(PREDICTIONS, NBEST, NULL_ODDS),
    reader=lambda flags, cache: squad.data.read(flags, cache),
)
