"""Pruning algorithms on plain tensors.

Imports torch, ``torch.distributed`` and :mod:`obert_modifiers.kernels` only. A module
is imported when it is first asked for, as in ``core.pruning.selection.make_pools``:
recipes are checked without torch, by :mod:`~obert_modifiers.core.options` and
:mod:`~obert_modifiers.core.patterns`.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType


def importing(package: str) -> Callable[[str], ModuleType]:
    """Return a package's ``__getattr__``, which imports its modules on first use."""

    def module_of(name: str) -> ModuleType:
        full = f"{package}.{name}"
        try:
            return import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:
                raise
            text = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(text) from None

    return module_of


__getattr__ = importing(__name__)
