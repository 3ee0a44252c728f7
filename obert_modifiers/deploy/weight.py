"""A tensor of a model: whether it can be pruned, and how much of it is zero."""

import re
from dataclasses import dataclass

import numpy as np

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
