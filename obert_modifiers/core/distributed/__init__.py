"""Processes and memory."""

from obert_modifiers.core import importing

__getattr__ = importing(__name__)
