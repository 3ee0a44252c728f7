"""Losses of tasks that label tokens, and batches of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DataCollatorForTokenClassification

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.core.outputs import logits_of
from obert_modifiers.tasks._task import Inputs


def token_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy over the labelled tokens of each sample.

    Args:
        outputs: The model's outputs with ``logits`` (k, T, classes).
        batch: What the model was given, with ``labels`` (k, T), -100 for none.

    Returns:
        Losses (k,) in float32 or wider, 0 for a sample without labelled tokens.
    """
    sums, counts, _ = token_sums(outputs, batch)
    return sums / counts.clamp(min=1)


def token_sums(
    outputs: Any, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum loss and hits over the labelled tokens of each sample.

    Args:
        outputs: The model's outputs with ``logits`` (k, T, classes).
        batch: What the model was given, with ``labels`` (k, T), -100 for none.

    Returns:
        Sum of the cross-entropies, number of labelled tokens and of those that are
        predicted right, each (k,).
    """
    labels = batch["labels"]
    labelled = labels.ne(IGNORED_LABEL)
    # A vocabulary is wide: only the rows that count are cast and normalised.
    logits, truth = logits_of(outputs)[labelled], labels[labelled]  # (n, classes), (n,)
    logits = logits if logits.element_size() >= 4 else logits.float()
    losses = functional.cross_entropy(logits, truth, reduction="none")
    samples = labelled.nonzero()[:, 0]
    sums = losses.new_zeros(len(labels)).index_add(0, samples, losses)
    right = logits.argmax(-1).eq(truth).to(labels.dtype)
    hits = labels.new_zeros(len(labels)).index_add(0, samples, right)
    return sums, labelled.sum(-1), hits


def collate_tokens(inputs: Inputs) -> Callable[[list[dict[str, Any]]], Any]:
    """Make batches of samples whose labels are those of tokens.

    Args:
        inputs: Tokenizer, flags and how to pad.

    Returns:
        The function that pads; ``labels`` are filled up with -100.
    """
    fixed = inputs.flags.pad_to_max_length
    return DataCollatorForTokenClassification(
        inputs.found.tokenizer,
        padding="max_length" if fixed else True,
        max_length=inputs.max_length if fixed else None,
        pad_to_multiple_of=inputs.pad_multiple,
        label_pad_token_id=IGNORED_LABEL,
    )


def keep_tokens(outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the predicted class of each token, and its label.

    Args:
        outputs: The model's outputs with ``logits`` (k, T, classes).
        batch: What the model was given, with ``labels`` (k, T).

    Returns:
        ``predicted`` and ``labels``, both (k, T).
    """
    with torch.no_grad():
        predicted = logits_of(outputs).argmax(-1)
    return {"predicted": predicted, "labels": batch["labels"]}
