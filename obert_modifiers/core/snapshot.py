"""A copy of a model's weights and quantization ranges, to go back to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.quantization.scheme import quantizers_of


@dataclass(frozen=True)
class Snapshot:
    """Copies of parameters and buffers on the CPU, states of quantizers, by name."""

    values: dict[str, Tensor]
    ranges: dict[str, dict[str, Any]]


def take_snapshot(model: nn.Module) -> Snapshot:
    """Return copies of weights, buffers and quantization ranges on the CPU."""
    values = {name: one.detach().to("cpu", copy=True) for name, one in _values(model)}
    ranges = {name: one.state() for name, one in quantizers_of(model).items()}
    return Snapshot(values, ranges)


@torch.no_grad()
def restore_snapshot_(model: nn.Module, snapshot: Snapshot) -> bool:
    """Write the copies back into parameters, buffers and ranges.

    Returns:
        True if a parameter or buffer held something else.

    Raises:
        ValueError: If layers were dropped, added or quantized in between.
    """
    values, ranges = dict(_values(model)), quantizers_of(model)
    if set(values) != set(snapshot.values) or set(ranges) != set(snapshot.ranges):
        raise ValueError(
            f"snapshot has {len(snapshot.values)} tensors and {len(snapshot.ranges)} "
            f"quantization ranges, the model {len(values)} and {len(ranges)}; expected "
            "the same; take it after layers are dropped and quantization has begun"
        )
    moved = False
    for name, value in values.items():
        best = snapshot.values[name].to(value.device)
        if not torch.equal(value, best):
            moved = True
            value.copy_(best)
    for name, quantizer in ranges.items():
        quantizer.load_state_(snapshot.ranges[name])
    return moved


def _values(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
