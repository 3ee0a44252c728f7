"""A run's state as JSON beside a file of tensors, and back; nothing is pickled."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TENSOR, _BITS, _TUPLE, _ITEMS = "$tensor", "$bits", "$tuple", "$items"


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Take the tensors out of a state, for JSON and a file of tensors by name.

    Tensors that share memory are kept once; masks (bool) are packed, 8 to a byte. Plain
    values, tensors and dicts (keys str or int), lists and tuples of them are known.
    """
    packer = _Packer()
    return packer.plain(value, ""), packer.tensors


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._memory: set[int] = set()

    def plain(self, value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), where)
        # Not bool(x) or int(x) of what is close to one, such as numpy's numbers.
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, tuple):
            return {_TUPLE: self.plain(list(value), where)}
        if isinstance(value, list):
            return [self.plain(v, _below(where, i)) for i, v in enumerate(value)]
        if isinstance(value, dict):
            inside = [(k, self.plain(v, _below(where, k))) for k, v in value.items()]
            if all(type(k) is str and not k.startswith("$") for k in value):
                return dict(inside)
            return {_ITEMS: [[self.plain(k, where), v] for k, v in inside]}
        raise TypeError(
            f"{where or 'state'} is a {type(value).__name__}; expected plain values, "
            "tensors and containers of them; it cannot be saved"
        )

    def _tensor(self, values: Tensor, where: str) -> dict[str, Any]:
        same = (values.data_ptr(), values.shape, values.stride(), values.dtype)
        key = (*same, values.device)
        name = self._names.get(key) if values.numel() else None
        if name is None:
            taken = where in self.tensors
            name = f"{where} {len(self.tensors)}" if taken else where
            self._names[key] = name
            held = values.cpu().contiguous()
            if values.dtype == torch.bool:
                held = torch.from_numpy(np.packbits(held.numpy().reshape(-1)))
            where_it_is = held.untyped_storage().data_ptr()
            if where_it_is in self._memory:
                held = held.clone()
            self._memory.add(where_it_is)
            self.tensors[name] = held
        if values.dtype == torch.bool:
            return {_BITS: name, "shape": list(values.shape)}
        return {_TENSOR: name}


def _below(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put the tensors back; what shared memory does so no longer."""
    if isinstance(plain, list):
        return [unpack(one, tensors) for one in plain]
    if not isinstance(plain, dict):
        return plain
    if _TENSOR in plain:
        return tensors[plain[_TENSOR]].clone()
    if _BITS in plain:
        count = prod(plain["shape"])
        bits = np.unpackbits(tensors[plain[_BITS]].numpy(), count=count)
        return torch.from_numpy(bits.astype(bool)).reshape(plain["shape"])
    if _TUPLE in plain:
        return tuple(unpack(one, tensors) for one in plain[_TUPLE])
    if _ITEMS in plain:
        return {unpack(k, tensors): unpack(v, tensors) for k, v in plain[_ITEMS]}
    return {key: unpack(value, tensors) for key, value in plain.items()}
