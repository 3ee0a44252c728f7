"""oBERT pruning for BERT-class encoders, as SparseML modifiers.

Importing this package is light: it loads neither torch nor SparseML. Import
``obert_modifiers.modifiers`` to register the modifiers' YAML tags.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obert_modifiers.recipe.manager import RecipeError, RecipeManager

__version__ = "0.1.0"
__all__ = ["RecipeError", "RecipeManager", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public classes on first use.

    Args:
        name: The attribute asked for.

    Returns:
        The class of that name from ``obert_modifiers.recipe.manager``.

    Raises:
        AttributeError: If the package has no such attribute.
    """
    if name in ("RecipeError", "RecipeManager"):
        from obert_modifiers.recipe import manager

        return getattr(manager, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the lazy names too.

    Returns:
        The names of the module, sorted.
    """
    return sorted({*globals(), *__all__})
