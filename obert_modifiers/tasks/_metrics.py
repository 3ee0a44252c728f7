"""Metrics of text classification."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


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
    found = {"accuracy": float(accuracy_score(labels, predicted))}
    if logits.shape[-1] == 2:
        found["f1"] = float(f1_score(labels, predicted, zero_division=0.0))
        found["matthews_correlation"] = _score(matthews_corrcoef, labels, predicted)
    return found


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predictions of any number of classes for each sample.

    Args:
        logits: Outputs (n, classes); above 0 a class is predicted.
        labels: 1 for each class that a sample has, else 0 (n, classes).

    Returns:
        ``f1_micro`` over all decisions, ``f1_macro``, the mean over the classes, and
        ``accuracy``, the share of samples whose classes are all right and no others.
    """
    predicted, truth = logits > 0, labels > 0
    found = {
        f"f1_{kind}": float(f1_score(truth, predicted, average=kind, zero_division=0.0))
        for kind in ("micro", "macro")
    }
    return found | {"accuracy": float(accuracy_score(truth, predicted))}


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predicted numbers.

    Args:
        logits: Outputs (n, 1).
        labels: The numbers (n,).

    Returns:
        ``pearson`` and ``spearman`` correlation; 0.0 where one side is constant.
    """
    predicted = logits.reshape(-1).astype(np.float64)
    truth = labels.astype(np.float64)
    return {
        "pearson": _score(lambda a, b: pearsonr(a, b).statistic, truth, predicted),
        "spearman": _score(lambda a, b: spearmanr(a, b).statistic, truth, predicted),
    }


def _score(score: Callable[..., Any], a: np.ndarray, b: np.ndarray) -> float:
    # The libraries warn of constants, of which no correlation is defined.
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(score(a, b))
