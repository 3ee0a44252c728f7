"""The weights of a model: how many, which can be pruned, which are zero.

The prunable weights are those that the papers count: the matrices of linear layers
inside the encoder's numbered layers, without embeddings, pooler and head. They are told
by their names, or in a graph by the names of the nodes that multiply with them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_IN_A_LAYER = re.compile(r"(^|[./])\d+[./]")


@dataclass(frozen=True)
class Weight:
    """A tensor of a model; scales and zero points are none."""

    name: str
    count: int
    nonzero: int  # of integers, those that are not the zero point
    prunable: bool


def in_a_layer(name: str) -> bool:
    """Tell names below a numbered layer, as ``encoder.layer.0.output.dense.weight``."""
    return _IN_A_LAYER.search(name) is not None


def count_tensors(tensors: Iterable[tuple[str, Tensor]]) -> list[Weight]:
    """Count the parameters of a saved model."""
    found = []
    for name, one in tensors:
        prunable = one.ndim == 2 and name.endswith(".weight") and in_a_layer(name)
        nonzero = int(torch.count_nonzero(one))
        found.append(Weight(name, one.numel(), nonzero, prunable))
    return found


def count_nonzero(array: np.ndarray, zero_point: np.ndarray | None) -> int:
    """Count what is not zero, or not the zero point: one, or one by row or column."""
    if zero_point is None or not zero_point.any():
        return int(np.count_nonzero(array))
    if zero_point.size > 1:
        shape = [1] * array.ndim
        shape[array.shape.index(zero_point.size)] = -1
        zero_point = zero_point.reshape(shape)
    return int(np.count_nonzero(array != zero_point))
