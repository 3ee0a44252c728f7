"""Evaluation of any exported file with its task's data and metric."""

from obert_modifiers.evaluating.run import evaluate_file

__all__ = ["evaluate_file"]
