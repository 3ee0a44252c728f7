"""A copy of a model's weights and quantization ranges, to go back to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.quantization.scheme import quantizers_of


@dataclass(frozen=True)
class Snapshot:
    """What a model held at some time.

    Attributes:
        values: Copies of parameters and buffers by name, on the CPU; shared ones once.
        ranges: State of each quantizer by name; empty before quantization.
    """

    values: dict[str, Tensor]
    ranges: dict[str, dict[str, Any]]


def take_snapshot(model: nn.Module) -> Snapshot:
    """Copy a model's weights, buffers and quantization ranges to the CPU.

    Costs the model's size in memory, and one transfer from its device.

    Args:
        model: Model, not wrapped; nothing is changed.

    Returns:
        The copies.
    """
    values = {name: one.detach().to("cpu", copy=True) for name, one in _values(model)}
    ranges = {name: one.state() for name, one in quantizers_of(model).items()}
    return Snapshot(values, ranges)


@torch.no_grad()
def restore_snapshot_(model: nn.Module, snapshot: Snapshot) -> bool:
    """Put the copies back; writes parameters, buffers and ranges.

    Args:
        model: The model that the snapshot was taken of, in the same structure.
        snapshot: As from :func:`take_snapshot`.

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
