"""The weights of any exported model: how many, which can be pruned, which are zero.

The prunable weights are those that the papers count: the matrices of linear layers
inside the encoder's numbered layers, without embeddings, pooler and head. They are told
by their names, or in a graph by the names of the nodes that multiply with them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from obert_modifiers.export.artefact import (
    LOADERS,
    ONNX,
    RUN,
    Artefact,
)

_IN_A_LAYER = re.compile(r"(^|[./])\d+[./]")


@dataclass(frozen=True)
class Weight:
    """One tensor of a model.

    Attributes:
        name: Its name in the file.
        count: Its numbers.
        nonzero: Those that are not zero; for integers, not the zero point.
        prunable: Whether it is a linear layer's matrix in one of the encoder's layers.
    """

    name: str
    count: int
    nonzero: int
    prunable: bool


def weights_of(artefact: Artefact) -> list[Weight]:
    """Count the numbers of a model, tensor by tensor.

    Args:
        artefact: From `find_artefact`.

    Returns:
        Its weights; scales and zero points are none.

    Raises:
        ValueError: If a file is damaged or foreign.
    """  # noqa: DOC502  raised by what is called
    if artefact.kind == RUN:
        tensors = _tensors(artefact.files)
    elif artefact.kind in LOADERS:
        tensors = iter(LOADERS[artefact.kind](artefact.path).items())
    elif artefact.kind == ONNX:
        from obert_modifiers.export._onnx_weights import onnx_weights

        return onnx_weights(artefact.files[0])
    else:
        from obert_modifiers.export._ir_weights import ir_weights

        return ir_weights(*artefact.files)
    return [
        Weight(name, one.numel(), int(torch.count_nonzero(one)), _prunable(name, one))
        for name, one in tensors
    ]


def in_a_layer(name: str) -> bool:
    """Tell names below a numbered layer.

    Args:
        name: Of a parameter, or of a node in a graph.

    Returns:
        True for such as ``encoder.layer.0.output.dense.weight``.
    """
    return _IN_A_LAYER.search(name) is not None


def count_nonzero(array: np.ndarray, zero_point: np.ndarray | None) -> int:
    """Count what is not zero.

    Args:
        array: Any numbers; matrices of integers have rows or columns by zero point.
        zero_point: The integer that stands for zero, or one for each row or column.

    Returns:
        How many.
    """
    if zero_point is None or not zero_point.any():
        return int(np.count_nonzero(array))
    if zero_point.size > 1:
        axis = next(i for i, n in enumerate(array.shape) if n == zero_point.size)
        shape = [1] * array.ndim
        shape[axis] = -1
        zero_point = zero_point.reshape(shape)
    return int(np.count_nonzero(array != zero_point))


def _prunable(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight") and in_a_layer(name)


def _tensors(files: tuple[Path, ...]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
