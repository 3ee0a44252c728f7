"""What SparseML's recipes and command line need to run again; light until used."""

from typing import Any

_LAZY = {
    "replace_sparseml_modifiers": "replace",
    "restore_sparseml_modifiers": "replace",
    "replaced": "replace",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
