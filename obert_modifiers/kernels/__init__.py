"""Tensor kernels: one public function per operation, with a choice of backend.

``backend="auto"`` takes numba for tensors on a CPU and Triton for those on a GPU, where
they are installed, and plain torch otherwise. Triton holds a block on chip: for blocks
wider than 128, padded to a power of two, torch takes its place.

Names and shapes are those of :mod:`obert_modifiers.core.pruning`: ``sums`` S
``(num_blocks, B, B)``, or in half of the memory as :mod:`.packed` has them, float32 or
float64, ``scale`` ``1 / m`` and ``damp`` > 0 make up the dampened Fisher
``F = damp I + scale S``; ``weights`` ``(num_blocks, B)``; masks of that shape are bool;
Q is ``group_size``. What is computed is float64. A block that is not numerically
positive definite raises ``FloatingPointError``.
"""

from obert_modifiers.kernels.fisher import (
    accumulate_blocks_,
    inverse_blocks,
    inverse_group_blocks,
    multiply_inverse,
    solve_joint_update,
)
from obert_modifiers.kernels.greedy import GreedyOrder, eliminate_greedily
from obert_modifiers.kernels.groups import lowest_subsets, solve_groups
from obert_modifiers.kernels.masks import apply_mask_

__all__ = [
    "GreedyOrder",
    "accumulate_blocks_",
    "apply_mask_",
    "lowest_subsets",
    "eliminate_greedily",
    "inverse_blocks",
    "inverse_group_blocks",
    "multiply_inverse",
    "solve_groups",
    "solve_joint_update",
]
