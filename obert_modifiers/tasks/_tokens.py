"""Batches of tasks that label tokens, and what is kept of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForTokenClassification

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.core.outputs import logits_of
from obert_modifiers.tasks._task import Inputs


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
