"""Losses of each sample, for the usual heads of classification.

They take a model's outputs with ``logits`` and a batch with ``labels``.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.core.outputs import logits_of


def classification_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's cross-entropy, (k,) in float32; logits (k, classes)."""
    logits = logits_of(outputs).float()
    return functional.cross_entropy(logits, batch["labels"], reduction="none")


def multi_label_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's mean binary cross-entropy, (k,) in float32.

    Logits (k, classes); labels of the same shape, each 0 or 1.
    """
    logits, labels = logits_of(outputs).float(), batch["labels"].float()
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    )
    return losses.mean(-1)


def regression_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's mean squared error over its outputs, (k,) in float32.

    Logits (k, outputs), mostly (k, 1); as many labels, (k,) for one output.
    """
    logits = logits_of(outputs).float()
    error = logits - batch["labels"].float().reshape(logits.shape)
    return error.square().flatten(1).mean(-1)


def token_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's mean cross-entropy over its labelled tokens, (k,).

    Logits (k, T, classes); labels (k, T), -100 for none. 0 for a sample without.
    """
    sums, counts, _ = token_sums(outputs, batch)
    return sums / counts.clamp(min=1)


def token_sums(
    outputs: Any, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each sample's summed loss, labelled tokens and hits among them, (k,) each.

    Logits (k, T, classes); labels (k, T), -100 for none.
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
