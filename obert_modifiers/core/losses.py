"""Losses of each sample, for the usual heads of classification."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.core.outputs import logits_of


def classification_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy of each sample.

    Args:
        outputs: The model's outputs with ``logits`` (k, classes).
        batch: What the model was given, with ``labels`` (k,).

    Returns:
        Losses (k,) in float32.
    """
    logits = logits_of(outputs).float()
    return functional.cross_entropy(logits, batch["labels"], reduction="none")


def multi_label_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the binary cross-entropy of each sample, the mean over its classes.

    Args:
        outputs: The model's outputs with ``logits`` (k, classes).
        batch: What the model was given, with ``labels`` (k, classes), each 0 or 1.

    Returns:
        Losses (k,) in float32.
    """
    logits, labels = logits_of(outputs).float(), batch["labels"].float()
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    )
    return losses.mean(-1)


def regression_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the squared error of each sample, the mean over its outputs.

    Args:
        outputs: The model's outputs with ``logits`` (k, outputs), mostly (k, 1).
        batch: What the model was given, with as many ``labels``, (k,) for one output.

    Returns:
        Losses (k,) in float32.
    """
    logits = logits_of(outputs).float()
    error = logits - batch["labels"].float().reshape(logits.shape)
    return error.square().flatten(1).mean(-1)


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
