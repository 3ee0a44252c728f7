"""L5: what SparseML's own command line and recipes need to run again."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obert_modifiers.compat.replace import replace_sparseml_modifiers

__all__ = ["replace_sparseml_modifiers"]


def __getattr__(name: str) -> Any:
    """Import the public function on first use.

    Args:
        name: The attribute asked for.

    Returns:
        The function of that name.

    Raises:
        AttributeError: If the package has no such attribute.
    """
    if name in __all__:
        from obert_modifiers.compat import replace

        return getattr(replace, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
