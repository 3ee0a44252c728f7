"""Updates of the remaining weights when others are pruned."""

import torch
from torch import Tensor

from obert_modifiers.core.blocks import from_blocks, to_blocks
from obert_modifiers.core.fisher import BlockFisher
from obert_modifiers.kernels import (
    inverse_group_blocks,
    multiply_inverse,
    solve_joint_update,
)


def joint_update(
    weight: Tensor, fisher: BlockFisher, damp: float, mask: Tensor
) -> tuple[Tensor, float]:
    """Compute the best weights inside each block for the whole pruned set.

    See :func:`obert_modifiers.kernels.solve_joint_update` for the equation.

    Args:
        weight: Weights before pruning, any shape with d elements.
        fisher: State of the parameter.
        damp: Dampening, larger than 0.
        mask: New mask, True = kept, shape of the weights.

    Returns:
        New weights ``(d,)``, float64, exactly zero where pruned, and the predicted
        loss increase.
    """
    width = fisher.fisher_block_size
    blocks = to_blocks(weight.detach().reshape(-1), width)
    pruned = to_blocks(~mask.reshape(-1), width).bool()
    updated, costs = solve_joint_update(fisher.sums, fisher.scale, damp, blocks, pruned)
    return from_blocks(updated, fisher.numel), float(costs.sum())


def independent_update(
    weight: Tensor, fisher: BlockFisher, damp: float, mask: Tensor
) -> tuple[Tensor, float]:
    r"""Add up the updates for each pruned weight as if it went alone.

    :math:`w - F^{-1} v` with :math:`v_j = w_j / [F^{-1}]_{jj}` for pruned j and 0
    otherwise (oBERT section 3.1 with |Q| = 1, summed as in section 3.2.1).

    Args:
        weight: Weights before pruning, any shape with d elements.
        fisher: State of the parameter.
        damp: Dampening, larger than 0.
        mask: New mask, True = kept, shape of the weights.

    Returns:
        New weights ``(d,)``, float64, exactly zero where pruned, and the predicted
        loss increase, which is the sum of the single saliencies.
    """
    kept = mask.reshape(-1)
    values = weight.detach().reshape(-1).double()
    blocks = inverse_group_blocks(fisher.sums, fisher.scale, damp, group_size=1)
    pull = torch.where(kept, 0.0, values / from_blocks(blocks, fisher.numel))
    step = multiply_inverse(
        fisher.sums, fisher.scale, damp, to_blocks(pull, fisher.fisher_block_size)
    )
    updated = torch.where(kept, values - from_blocks(step, fisher.numel), 0.0)
    return updated, float(0.5 * (values * pull).sum())


UPDATES = {"joint": joint_update, "independent": independent_update}
