"""Pruning algorithms on plain tensors.

Imports torch, ``torch.distributed`` and :mod:`obert_modifiers.kernels` only. A module
is imported when it is first asked for, as in ``core.selection.make_pools``: recipes are
checked without torch, by :mod:`~obert_modifiers.core.options` and
:mod:`~obert_modifiers.core.patterns`.
"""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import one of the modules here.

    Args:
        name: Its name.

    Returns:
        The module.

    Raises:
        AttributeError: If there is none of that name.
        ModuleNotFoundError: If it wants a package that is missing.
    """
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
