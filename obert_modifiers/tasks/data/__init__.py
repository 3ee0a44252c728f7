"""Data sets: where their rows are, and what the columns and labels of these mean."""

from obert_modifiers.core import importing

__getattr__ = importing(__name__)
