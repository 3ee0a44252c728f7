"""Question answering as SQuAD has it: files, windows, answers, figures."""

from obert_modifiers.core import importing

__getattr__ = importing(__name__)
