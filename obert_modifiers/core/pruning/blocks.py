"""The only definition of a Fisher block and of a weight group.

A weight tensor is flattened in row-major order and cut into consecutive blocks of
``B = fisher_block_size`` weights. The last block is padded with zeros where B does
not divide the number of weights d; padding carries zero gradient and is never
selectable. A block may straddle two rows of the weight matrix.

Where weights live or die in groups, the flattened weights are first brought into an
order in which the members of a group are consecutive. B is a multiple of the group
size, so that no group straddles two blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from obert_modifiers.core.patterns import MaskPattern


@dataclass(frozen=True)
class GroupLayout:
    """Order of a parameter's weights in which the members of a group are consecutive.

    Groups are laid out along the input dimension, then along the output dimension;
    inside a group the weights are in row-major order. For groups of one row it is the
    row-major order of the parameter itself.

    Attributes:
        pattern: Structure of the sparsity.
        shape: Output rows and input columns of the weight matrix.
        transposed: True where the parameter is stored as input x output.
    """

    pattern: MaskPattern
    shape: tuple[int, int]
    transposed: bool = False

    @property
    def numel(self) -> int:
        """Number of weights d."""
        return self.shape[0] * self.shape[1]

    @property
    def _unchanged(self) -> bool:
        pattern = self.pattern
        return pattern.group_size == 1 or (pattern.rows == 1 and not self.transposed)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        rows, columns = self.pattern.rows, self.pattern.columns
        return self.shape[0] // rows, rows, self.shape[1] // columns, columns

    def arrange(self, values: Tensor) -> Tensor:
        """Return ``(..., d)`` values of the parameter's order in that of the groups.

        The tensor itself where the order is the same.
        """
        if self._unchanged:
            return values
        lead = values.shape[:-1]
        if self.transposed:
            values = values.reshape(*lead, *self.shape[::-1]).transpose(-1, -2)
        tiles = values.reshape(*lead, *self._sizes)  # (..., down, R, across, C)
        return tiles.transpose(-3, -2).reshape(*lead, -1)

    def restore(self, values: Tensor) -> Tensor:
        """Undo :meth:`arrange`: return ``(..., d)`` in the parameter's order."""
        if self._unchanged:
            return values
        lead = values.shape[:-1]
        down, rows, across, columns = self._sizes
        tiles = values.reshape(*lead, down, across, rows, columns)
        matrix = tiles.transpose(-3, -2).reshape(*lead, *self.shape)
        if self.transposed:
            matrix = matrix.transpose(-1, -2)
        return matrix.reshape(*lead, -1)

    def band(self, numel: int) -> "GroupLayout":
        """Return the layout of some whole rows of groups, of ``numel`` weights."""
        width = self.shape[1]
        return GroupLayout(self.pattern, (numel // width, width))

    def groups(self, values: Tensor) -> Tensor:
        """Return d values of any shape as groups, ``(d / Q, Q)``."""
        return self.arrange(values.reshape(-1)).reshape(-1, self.pattern.group_size)


def make_layout(
    pattern: MaskPattern, name: str, shape: Sequence[int], transposed: bool = False
) -> GroupLayout:
    """Check that a parameter consists of whole groups, and lay them out.

    The first dimension is the output, all others together are the input: a
    convolution's weight ``(out, in, kh, kw)`` is the matrix ``(out, in * kh * kw)``.
    ``transposed`` weights are ``(in, out)``, as of GPT-2's Conv1D layers.

    Returns:
        The order of the weights.

    Raises:
        ValueError: If the groups do not divide the shape.
    """
    if pattern.group_size > 1 and len(shape) < 2:
        raise ValueError(
            f"mask_type={pattern.name} has no groups in {name} of shape "
            f"{tuple(shape)}; expected two dimensions or more; leave it out of params"
        )
    matrix = (shape[0] if shape else 1, math.prod(shape[1:]))
    out, width = matrix[::-1] if transposed else matrix
    for size, step, what in (
        (out, pattern.rows, "output rows"),
        (width, pattern.columns, "input columns"),
    ):
        if size % step:
            raise ValueError(
                f"mask_type={pattern.name} does not divide the {size} {what} of "
                f"{name}, shape {tuple(shape)}; expected a multiple of {step}; leave "
                "it out of params"
            )
    return GroupLayout(pattern, (out, width), transposed)


def count_blocks(numel: int, fisher_block_size: int) -> int:
    """Return the number of Fisher blocks, ``ceil(d / B)``.

    Raises:
        ValueError: If either argument is smaller than 1.
    """
    if fisher_block_size < 1:
        raise ValueError(
            f"fisher_block_size={fisher_block_size} is smaller than 1; expected a "
            "positive width; use 48"
        )
    if numel < 1:
        raise ValueError(
            f"numel={numel} is smaller than 1; expected a parameter with weights; "
            "leave empty parameters out"
        )
    return math.ceil(numel / fisher_block_size)


def to_blocks(values: Tensor, fisher_block_size: int) -> Tensor:
    """Return ``(..., d)`` values in Fisher blocks, ``(..., num_blocks, B)``.

    The last block is padded with zeros; a view where B divides d, otherwise a copy.
    """
    numel = values.shape[-1]
    blocks = count_blocks(numel, fisher_block_size)
    padding = blocks * fisher_block_size - numel
    if padding:
        values = torch.nn.functional.pad(values, (0, padding))
    return values.reshape(*values.shape[:-1], blocks, fisher_block_size)


def from_blocks(blocks: Tensor, numel: int) -> Tensor:
    """Undo :func:`to_blocks`: return ``(num_blocks, B)`` as ``(d,)``, a view."""
    return blocks.reshape(-1)[:numel]
