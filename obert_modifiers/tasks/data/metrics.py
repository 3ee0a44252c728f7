"""Figures of classes and numbers."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _correlation(score: Callable[..., Any]) -> Callable[..., Any]:
    def correlation(a: np.ndarray, b: np.ndarray) -> Any:
        # The libraries warn of constants, of which no correlation is defined.
        return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else score(a, b)

    return correlation


# Of what is true and what is predicted; f1 is that of class 1.
FIGURES: dict[str, Callable[..., Any]] = {
    "accuracy": accuracy_score,
    "f1": lambda truth, predicted: f1_score(truth, predicted, zero_division=0.0),
    "matthews_correlation": _correlation(matthews_corrcoef),
    "pearson": _correlation(lambda a, b: pearsonr(a, b).statistic),
    "spearman": _correlation(lambda a, b: spearmanr(a, b).statistic),
}


def measure(names: Iterable[str], predicted: Any, truth: Any) -> dict[str, float]:
    """Return the figures of these names for predictions (n,)."""
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    return {name: float(FIGURES[name](truth, predicted)) for name in names}


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predicted classes: logits (n, classes), class numbers (n,)."""
    pair = ("f1", "matthews_correlation") if logits.shape[-1] == 2 else ()
    return measure(("accuracy", *pair), logits.argmax(-1), labels)


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure any number of classes for each sample: logits and labels (n, classes).

    ``f1_micro`` is over all decisions, ``f1_macro`` the mean over the classes,
    ``accuracy`` the share of samples with no wrong decision.
    """
    predicted, truth = logits > 0, labels > 0
    figures = {
        f"f1_{kind}": float(f1_score(truth, predicted, average=kind, zero_division=0.0))
        for kind in ("micro", "macro")
    }
    return figures | measure(("accuracy",), predicted, truth)


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure predicted numbers (n, 1) by correlation, 0.0 where a side is constant."""
    predicted = logits.reshape(-1).astype(np.float64)
    return measure(("pearson", "spearman"), predicted, labels.astype(np.float64))
