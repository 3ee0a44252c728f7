"""Triton's kernels under the names that the compiled loops have for a CPU."""

from obert_modifiers.kernels._triton_fisher import (
    accumulate,
    invert_group_blocks,
    solve_joint_blocks,
    zero_unkept,
)
from obert_modifiers.kernels._triton_greedy import (
    eliminate_blocks,
    eliminate_group_blocks,
    eliminate_n_m_blocks,
    find_lowest_subsets,
    solve_group_blocks,
)

__all__ = [
    "accumulate",
    "eliminate_blocks",
    "eliminate_group_blocks",
    "eliminate_n_m_blocks",
    "find_lowest_subsets",
    "invert_group_blocks",
    "solve_group_blocks",
    "solve_joint_blocks",
    "zero_unkept",
]
