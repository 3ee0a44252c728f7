"""Tensor kernels: one public function per operation, with a choice of backend.

``backend="auto"`` takes the compiled CPU backend (numba) where it is installed and
the tensors are on a CPU, and plain torch otherwise.
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

__all__ = [
    "GreedyOrder",
    "accumulate_blocks_",
    "cheapest_subsets",
    "eliminate_greedily",
    "inverse_blocks",
    "inverse_group_blocks",
    "multiply_inverse",
    "solve_groups",
    "solve_joint_update",
    "update_inverse_",
]
