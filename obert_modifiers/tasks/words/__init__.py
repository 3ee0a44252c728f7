"""Rows of words: read from columns, cut into windows."""

from obert_modifiers.core import importing

__getattr__ = importing(__name__)
