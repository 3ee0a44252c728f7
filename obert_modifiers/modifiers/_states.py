"""The state of a modifier as tensors by name, as SparseML's modifiers have it.

Whoever walks over the values of a ``state_dict`` meets tensors alone: what is none goes
into one of them, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers.host.bases import SCHEDULE_KEY

if TYPE_CHECKING:
    from torch import Tensor

_POINTER = "$tensor"


def as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bring a state into tensors."""
    import torch
    from torch import Tensor

    top = {name: one for name, one in state.items() if isinstance(one, Tensor)}
    inside: dict[str, Tensor] = {}
    plain = {
        name: _without_tensors(one, name, inside)
        for name, one in state.items()
        if name not in top
    }
    text = bytearray(json.dumps(plain).encode())
    return top | inside | {SCHEDULE_KEY: torch.frombuffer(text, dtype=torch.uint8)}


def from_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`as_tensors`."""
    from torch import Tensor

    text = state.get(SCHEDULE_KEY)
    if not isinstance(text, Tensor):
        return dict(state)
    used = {SCHEDULE_KEY}
    plain = _with_tensors(json.loads(text.cpu().numpy().tobytes()), state, used)
    return {k: v for k, v in state.items() if k not in used} | plain


def _without_tensors(value: Any, where: str, found: dict[str, Tensor]) -> Any:
    from torch import Tensor

    if isinstance(value, Tensor):
        found[where] = value
        return {_POINTER: where}
    if isinstance(value, Mapping):
        return {k: _without_tensors(v, f"{where}.{k}", found) for k, v in value.items()}
    return value


def _with_tensors(value: Any, state: Mapping[str, Any], used: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    if _POINTER in value:
        used.add(value[_POINTER])
        return state[value[_POINTER]]
    return {k: _with_tensors(v, state, used) for k, v in value.items()}
