"""Saliency of weights: the loss increase that their removal is predicted to cost."""

import torch
from torch import Tensor

from obert_modifiers.core.blocks import from_blocks, to_blocks
from obert_modifiers.core.fisher import BlockFisher
from obert_modifiers.kernels import inverse_group_blocks


def magnitude_saliency(weight: Tensor) -> Tensor:
    """Take the absolute value of each weight as its saliency.

    The order of magnitude pruning (GMP★ section 2); it carries no unit of loss.

    Args:
        weight: ``(d,)`` or any shape.

    Returns:
        ``(d,)``, at least float32.
    """
    values = weight.detach().reshape(-1)
    return (values if values.element_size() >= 4 else values.float()).abs()


def obs_saliency(weight: Tensor, fisher: BlockFisher, damp: float) -> Tensor:
    r"""Compute the saliency of each single weight.

    :math:`\rho_j = w_j^2 / (2 [F^{-1}]_{jj})`, oBERT section 3.1 for a group of one.

    Args:
        weight: ``(d,)`` or any shape with d elements.
        fisher: State of the parameter.
        damp: Dampening, larger than 0.

    Returns:
        ``(d,)``, float64, >= 0.
    """
    blocks = inverse_group_blocks(fisher.sums, fisher.scale, damp, group_size=1)
    diagonal = from_blocks(blocks, fisher.numel)
    return weight.detach().reshape(-1).double().square() / (2.0 * diagonal)


def living_blocks(mask: Tensor, fisher_block_size: int) -> Tensor:
    """Mark the weights of each block that can still be pruned.

    Args:
        mask: Mask of the parameter, True = kept, any shape with d elements.
        fisher_block_size: Width B of a block.

    Returns:
        ``(num_blocks, B)``, bool; padding is False.
    """
    return to_blocks(mask.reshape(-1), fisher_block_size).bool()


def running_maximum(costs: Tensor) -> Tensor:
    """Make greedy costs comparable across blocks without changing their order.

    A later removal in a block may be cheaper than an earlier one; with the running
    maximum it never sorts before it.

    Args:
        costs: ``(num_blocks, B)``, by rank inside the block.

    Returns:
        ``(num_blocks, B)``, not decreasing along the ranks.
    """
    return torch.cummax(costs, dim=1).values
