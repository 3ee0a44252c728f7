"""The state of a modifier as tensors by name, as SparseML's modifiers have it.

Whoever walks over the values of a ``state_dict`` meets only tensors: what is none goes
into one of them, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers.host.bases import SCHEDULE_KEY

if TYPE_CHECKING:
    from torch import Tensor

_POINTER = "$tensor"


def as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bring a state into tensors."""
    import torch

    top = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    inside: dict[str, Tensor] = {}

    def without(value: Any, where: str) -> Any:
        if isinstance(value, torch.Tensor):
            inside[where] = value
            return {_POINTER: where}
        if isinstance(value, Mapping):
            return {k: without(v, f"{where}.{k}") for k, v in value.items()}
        return value

    plain = {k: without(v, k) for k, v in state.items() if k not in top}
    text = bytearray(json.dumps(plain).encode())
    return top | inside | {SCHEDULE_KEY: torch.frombuffer(text, dtype=torch.uint8)}


def from_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`as_tensors`."""
    from torch import Tensor

    left = dict(state)
    text = left.get(SCHEDULE_KEY)
    if not isinstance(text, Tensor):
        return left
    del left[SCHEDULE_KEY]

    def with_tensors(value: dict[str, Any]) -> Any:  # JSON calls it from the inside out
        return left.pop(value[_POINTER]) if _POINTER in value else value

    plain = json.loads(text.cpu().numpy().tobytes(), object_hook=with_tensors)
    return left | plain


def by_name(
    state: Mapping[str, Any], expected: Iterable[str], what: str
) -> dict[str, Any]:
    """Return what a state has by name; an error if the model has other names."""
    found = {k: v for k, v in state.items() if k != SCHEDULE_KEY}
    if found.keys() != set(expected):
        missing, extra = set(expected) - found.keys(), found.keys() - set(expected)
        raise IndexError(
            f"state has other {what} than the model: missing {sorted(missing)}, extra "
            f"{sorted(extra)}; expected the same names; use the model it was saved from"
        )
    return found
