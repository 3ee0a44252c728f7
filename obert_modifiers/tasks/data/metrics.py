"""Metrics of text classification."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predicted classes: logits (n, classes), class numbers (n,).

    Two classes also have ``f1`` of class 1 and ``matthews_correlation``, which GLUE
    reports for some tasks.
    """
    predicted = logits.argmax(-1)
    figures = {"accuracy": float(accuracy_score(labels, predicted))}
    if logits.shape[-1] == 2:
        figures["f1"] = float(f1_score(labels, predicted, zero_division=0.0))
        figures["matthews_correlation"] = _score(matthews_corrcoef, labels, predicted)
    return figures


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure any number of classes for each sample: logits and labels (n, classes).

    Above 0 a class is predicted. ``f1_micro`` is over all decisions, ``f1_macro`` the
    mean over the classes, ``accuracy`` the share of samples with no wrong decision.
    """
    predicted, truth = logits > 0, labels > 0
    figures = {
        f"f1_{kind}": float(f1_score(truth, predicted, average=kind, zero_division=0.0))
        for kind in ("micro", "macro")
    }
    return figures | {"accuracy": float(accuracy_score(truth, predicted))}


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predicted numbers (n, 1) by correlation, 0.0 where a side is constant."""
    predicted = logits.reshape(-1).astype(np.float64)
    truth = labels.astype(np.float64)
    return {
        "pearson": _score(lambda a, b: pearsonr(a, b).statistic, truth, predicted),
        "spearman": _score(lambda a, b: spearmanr(a, b).statistic, truth, predicted),
    }


def _score(score: Callable[..., Any], a: np.ndarray, b: np.ndarray) -> float:
    # The libraries warn of constants, of which no correlation is defined.
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(score(a, b))
