"""Fake quantization to 8 bits."""

from obert_modifiers.core import importing

__getattr__ = importing(__name__)
