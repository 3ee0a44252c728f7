"""Tensor kernels: one public function per operation, with a choice of backend.

``backend="auto"`` takes numba for tensors on a CPU and Triton for those on a GPU, where
they are installed, and plain torch otherwise. Triton holds a block on chip: for blocks
wider than 128, padded to a power of two, torch takes its place.
"""

from obert_modifiers.kernels.fisher import (
    accumulate_blocks_,
    inverse_blocks,
    inverse_group_blocks,
    multiply_inverse,
    update_inverse_,
)
from obert_modifiers.kernels.greedy import GreedyOrder, eliminate_greedily
from obert_modifiers.kernels.groups import cheapest_subsets, solve_groups
from obert_modifiers.kernels.joint import solve_joint_update
from obert_modifiers.kernels.masks import apply_mask_

__all__ = [
    "GreedyOrder",
    "accumulate_blocks_",
    "apply_mask_",
    "cheapest_subsets",
    "eliminate_greedily",
    "inverse_blocks",
    "inverse_group_blocks",
    "multiply_inverse",
    "solve_groups",
    "solve_joint_update",
    "update_inverse_",
]
