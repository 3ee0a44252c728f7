"""Losses and metrics of text classification."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

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


def regression_loss(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the squared error of each sample.

    Args:
        outputs: The model's outputs with ``logits`` (k, 1).
        batch: What the model was given, with ``labels`` (k,).

    Returns:
        Losses (k,) in float32.
    """
    error = logits_of(outputs).float().squeeze(-1) - batch["labels"].float()
    return error.square()


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predicted classes.

    Args:
        logits: Outputs (n, classes).
        labels: Class numbers (n,).

    Returns:
        ``accuracy``; for two classes also ``f1`` of class 1 and
        ``matthews_correlation``, which GLUE reports for some tasks.
    """
    predicted = logits.argmax(-1)
    found = {"accuracy": float((predicted == labels).mean())}
    if logits.shape[-1] == 2:
        hits = float(((predicted == 1) & (labels == 1)).sum())
        wrong = float((predicted != labels).sum())
        found["f1"] = 2 * hits / (2 * hits + wrong) if hits else 0.0
        # For two classes Matthews' coefficient is the correlation of the class numbers.
        found["matthews_correlation"] = _correlation(predicted, labels)
    return found


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predicted numbers.

    Args:
        logits: Outputs (n, 1).
        labels: The numbers (n,).

    Returns:
        ``pearson`` and ``spearman`` correlation; 0.0 where one side is constant.
    """
    predicted = logits.reshape(-1)
    return {
        "pearson": _correlation(predicted, labels),
        "spearman": _correlation(_ranks(predicted), _ranks(labels)),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank values.

    Args:
        values: Numbers (n,).

    Returns:
        Ranks (n,) from 1; equal values share the mean of theirs.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[place]
