"""What a recipe wants pruned, and how far."""

from collections.abc import Sequence

from obert_modifiers.modifiers._targets import ALL_ENCODER
from obert_modifiers.modifiers._validate import as_fraction


def read_goals(
    params: str | Sequence[str] | None,
    final_sparsity: float | dict[float, list[str]],
) -> list[tuple[float, list[str]]]:
    """Bring ``params`` and ``final_sparsity`` into one form.

    Args:
        params: Names, ``re:`` patterns or tokens; None or empty for the default.
        final_sparsity: A sparsity in [0, 1], or a mapping from sparsities to names.

    Returns:
        Pairs of a sparsity and its names, patterns or tokens.

    Raises:
        ValueError: If the parameters are given in both places, or not as strings.
    """
    if isinstance(final_sparsity, dict):
        if params not in (None, [], "", ALL_ENCODER):
            raise ValueError(
                f"params={params} and a mapping in final_sparsity are both given; "
                "expected the parameters in one place; write params: []"
            )
        if not final_sparsity:
            raise ValueError(
                "final_sparsity={} names no parameters; expected a sparsity, or a "
                "mapping from sparsities to lists of names; write one"
            )
        return [
            (as_fraction("final_sparsity", sparsity), _as_list("final_sparsity", names))
            for sparsity, names in final_sparsity.items()
        ]
    goal = as_fraction("final_sparsity", final_sparsity)
    return [(goal, _as_list("params", params or ALL_ENCODER))]


def _as_list(key: str, names: str | Sequence[str]) -> list[str]:
    listed = list(names) if isinstance(names, (list, tuple)) else [names]
    for name in listed:
        if not isinstance(name, str):
            raise ValueError(
                f"{key}={name} is not a name; expected names or re: patterns; write "
                "a list of strings"
            )
    return listed
