"""Masked language modelling: upstream training and pruning on plain text."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForMaskedLM

from obert_modifiers.core.losses import token_loss, token_sums
from obert_modifiers.tasks import _run
from obert_modifiers.tasks._data import need_column
from obert_modifiers.tasks._flags import MaskedArguments
from obert_modifiers.tasks._labels import as_text, no_gaps
from obert_modifiers.tasks._masking import MaskedSamples, Masking, masking_of
from obert_modifiers.tasks._task import Inputs, Prepared, Task
from obert_modifiers.tasks._tokens import collate_tokens
from obert_modifiers.training.batches import TaskData

_TEXT_COLUMNS = ("text", "sentence")
_LARGEST = 700.0  # of which the exponential is still a number


def _columns(
    rows: Dataset, flags: MaskedArguments, description: str
) -> tuple[tuple[str, ...], None]:
    """Decide which column holds the text.

    Args:
        rows: A split.
        flags: The task's flags.
        description: Where the data came from, for errors.

    Returns:
        The column; there is none of labels.

    Raises:
        ValueError: If there is none.
    """  # noqa: DOC502  raised by what is called
    column = flags.text_column_name
    if column is None:
        there = [name for name in _TEXT_COLUMNS if name in rows.column_names]
        column = there[0] if there else _TEXT_COLUMNS[0]
    need_column(rows, column, "--text_column_name", description)
    return (column,), None


def _prepare(inputs: Inputs) -> Prepared:
    masking = masking_of(inputs.found.tokenizer, inputs.flags.mlm_probability)
    blocks = {
        name: tokenize(rows, inputs, masking, name)
        for name, rows in inputs.data.splits.items()
    }
    none = Dataset.from_dict({"input_ids": []})
    train = MaskedSamples(blocks.get("train", none), masking, inputs.seed)
    validation = MaskedSamples(blocks.get("validation", none), masking, None)
    return Prepared(
        TaskData(
            train=train,
            validation=validation,
            collate=collate_tokens(inputs),
            sample_loss=token_loss,
            metrics=masked_metrics,
            keep=_keep,
            headline=("perplexity", "accuracy"),
            start_epoch=train.start_epoch,
        )
    )


def tokenize(rows: Dataset, inputs: Inputs, masking: Masking, name: str) -> Dataset:
    """Turn texts into blocks of tokens.

    Rows of white space alone are left out. Joined rows keep their special tokens, a
    thousand rows at a time; what remains of them is a shorter block.

    Args:
        rows: A split.
        inputs: The column, the flags and the tokenizer.
        masking: Tells blocks in which nothing can be masked, which are left out.
        name: What the split is called.

    Returns:
        Rows with ``input_ids``.

    Raises:
        ValueError: If nothing is left.
    """
    flags, length = inputs.flags, inputs.max_length
    (column,) = inputs.data.text_columns
    no_gaps(rows, column, inputs.data.place(name))
    rows = as_text(rows, column, inputs.data.place(name))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = [text for text in batch[column] if text.strip()]
        if not texts:
            return {"input_ids": []}
        options = {"truncation": True, "max_length": length}
        found = inputs.found.tokenizer(
            texts, verbose=False, **(options if flags.line_by_line else {})
        )["input_ids"]
        if not flags.line_by_line:
            joined = [token for ids in found for token in ids]
            found = [joined[i : i + length] for i in range(0, len(joined), length)]
        return {"input_ids": [ids for ids in found if masking.choosable(ids).any()]}

    blocks = rows.select_columns([column]).map(
        encode,
        batched=True,
        remove_columns=[column],
        num_proc=flags.preprocessing_num_workers,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc=f"tokenizing {name}",
    )
    if len(blocks) == 0:
        raise ValueError(
            f"data={inputs.data.description} has no words in its {name} split; expected"
            " a text; check the file"
        )
    return blocks


def _keep(outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sums, counts, hits = token_sums(outputs, batch)
    return {"sums": sums.double(), "counts": counts, "hits": hits}


def masked_metrics(
    sums: np.ndarray, counts: np.ndarray, hits: np.ndarray
) -> dict[str, float]:
    """Measure predictions of masked tokens.

    Args:
        sums: Sum of the cross-entropies of each sample (n,).
        counts: Its number of tokens to be predicted (n,).
        hits: Its number of right predictions (n,).

    Returns:
        ``loss``, the mean over all these tokens, ``perplexity``, its exponential, and
        ``accuracy``.
    """
    total = float(counts.sum())
    loss = float(sums.sum()) / total
    perplexity = math.exp(loss) if loss < _LARGEST else math.inf
    return {
        "perplexity": perplexity,
        "accuracy": float(hits.sum()) / total,
        "loss": loss,
    }


TASK = Task(
    name="masked_language_modeling",
    flags=MaskedArguments,
    model_class=AutoModelForMaskedLM,
    columns=_columns,
    prepare=_prepare,
    write_predictions=None,
    prediction_files=(),
)

main, run = partial(_run.main, TASK), partial(_run.run, TASK)
