"""Whether what a model was loaded from had all of its weights."""

from collections.abc import Collection

from torch import nn


def check_all_saved(
    model: nn.Module, missing: Collection[str], said: str, fix: str
) -> None:
    """Refuse missing weights, in whose place transformers puts random numbers.

    ``said`` is what was given, as ``name=value``.

    Raises:
        ValueError: If there are any.
    """
    if missing:
        raise ValueError(
            f"{said} lacks {', '.join(sorted(missing)[:5])}, {len(missing)} weights in "
            f"all that a {type(model).__name__} has; expected every one, none of them "
            f"random; {fix}"
        )
