"""Updates of the remaining weights when others are pruned."""

import torch
from torch import Tensor

from obert_modifiers.core.pruning.blocks import from_blocks, to_blocks
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.kernels import (
    inverse_group_blocks,
    multiply_inverse,
    solve_groups,
    solve_joint_update,
)


def joint_update(
    weight: Tensor, fisher: BlockFisher, damp: float, mask: Tensor, group_size: int = 1
) -> tuple[Tensor, float]:
    """Compute the best weights inside each block for the whole pruned set.

    See :func:`obert_modifiers.kernels.solve_joint_update` for the equation. Weights
    (before pruning) and new mask have d elements; ``group_size`` is unused.

    Returns:
        New weights ``(d,)``, float64, exactly zero where pruned, and the predicted
        loss increase.
    """
    width = fisher.fisher_block_size
    blocks = to_blocks(weight.detach().reshape(-1), width)
    pruned = to_blocks(~mask.reshape(-1), width).bool()
    updated, increases = solve_joint_update(
        fisher.sums, fisher.scale, damp, blocks, pruned
    )
    return from_blocks(updated, fisher.numel), float(increases.sum())


def independent_update(
    weight: Tensor, fisher: BlockFisher, damp: float, mask: Tensor, group_size: int = 1
) -> tuple[Tensor, float]:
    """Add up the updates for each group's pruned weights as if no other went.

    :math:`w - F^{-1} v` with :math:`v_P = ([F^{-1}]_{PP})^{-1} w_P` for the pruned
    weights P of each group and 0 otherwise (oBERT section 3.1, summed over groups as
    in section 3.2.1). For single weights :math:`v_j = w_j / [F^{-1}]_{jj}`. Takes what
    :func:`joint_update` takes.

    Returns:
        New weights ``(d,)``, float64, exactly zero where pruned, and the predicted
        loss increase, which is the sum of the saliencies.
    """
    kept = mask.reshape(-1)
    values = weight.detach().reshape(-1).double()
    width = fisher.fisher_block_size
    groups = inverse_group_blocks(fisher.sums, fisher.scale, damp, group_size)
    if group_size == 1:
        pull = torch.where(kept, 0.0, values / from_blocks(groups, fisher.numel))
    else:
        shape = groups.shape[:3]  # (num_blocks, B / Q, Q)
        gone = to_blocks(~kept, width).bool().reshape(shape)
        pull = solve_groups(groups, to_blocks(values, width).reshape(shape), gone)
        pull = from_blocks(pull, fisher.numel)
    step = multiply_inverse(fisher.sums, fisher.scale, damp, to_blocks(pull, width))
    updated = torch.where(kept, values - from_blocks(step, fisher.numel), 0.0)
    return updated, float(0.5 * (values * pull).sum())


UPDATES = {
    "joint": joint_update,
    "independent": independent_update,
    "row": joint_update,  # from which rows.fit_rows starts
}
