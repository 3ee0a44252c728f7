"""Block-diagonal empirical Fisher information of one parameter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from obert_modifiers.core.blocks import count_blocks, to_blocks
from obert_modifiers.core.parallel import all_reduce_count, world
from obert_modifiers.kernels import accumulate_blocks_


class BlockFisher:
    r"""Sum of gradient outer products inside each Fisher block.

    Holds :math:`S = \sum_i g_i g_i^T` restricted to the diagonal blocks. The dampened
    Fisher of oBERT equation (2) is :math:`F = \lambda I + S / m` with m the number of
    gradients *actually added*, over all processes.

    Memory: ``num_blocks * B * B`` values. Time of :meth:`add_`: ``2 k d B``
    floating-point operations for k gradients.
    """

    def __init__(
        self,
        numel: int,
        fisher_block_size: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate the sum of no gradients.

        Args:
            numel: Number of weights d.
            fisher_block_size: Width B of a block.
            device: Where the state lives.
            dtype: Precision of the sum, float32 or float64.
        """
        blocks = count_blocks(numel, fisher_block_size)
        self.numel = numel
        self.fisher_block_size = fisher_block_size
        self.num_grads = 0
        self.sums = torch.zeros(
            blocks, fisher_block_size, fisher_block_size, device=device, dtype=dtype
        )

    @property
    def scale(self) -> float:
        """Factor from the sum to the mean, ``1 / m``.

        Raises:
            ValueError: If no gradient was added.
        """
        if self.num_grads == 0:
            raise ValueError(
                "num_grads=0: no gradient was added to the Fisher; expected at least "
                "1; check that the gradient source is not empty"
            )
        return 1.0 / self.num_grads

    def add_(self, grads: Tensor, kept: Tensor | None = None) -> None:
        """Add gradients to the sum, in place.

        Args:
            grads: ``(k, d)``, finite; changed in place where there is a mask.
            kept: Mask ``(d,)``, 1 or True = kept. Gradients of pruned weights count as
                zero, so that only the dampening stays on their diagonal.
        """
        grads = grads.to(self.sums.dtype)
        if kept is not None:
            grads.mul_(kept)
        accumulate_blocks_(self.sums, to_blocks(grads, self.fisher_block_size))
        self.num_grads += grads.shape[0]

    def diagonal(self) -> Tensor:
        """Return the mean squared gradient of each weight, ``(d,)``, undampened."""
        diagonal = self.sums.diagonal(dim1=1, dim2=2).reshape(-1)
        return diagonal[: self.numel] * self.scale

    def reduce_(self) -> None:
        """Sum over all processes, in place; equal bits everywhere afterwards."""
        if world()[1] > 1:
            torch.distributed.all_reduce(self.sums)
            self.num_grads = all_reduce_count(self.num_grads, self.sums.device)


def resolve_damp(
    fishers: Sequence[BlockFisher],
    masks: Sequence[Tensor],
    damp: float | None,
    damp_fraction: float | None,
) -> float:
    r"""Choose the dampening of one pruning event.

    Args:
        fishers: State of each selected parameter.
        masks: Mask of each parameter, True = kept.
        damp: Absolute :math:`\lambda` as in oBERT equation (2); None to derive it.
        damp_fraction: Fraction of the mean undampened diagonal over the living
            weights of all selected parameters.

    Returns:
        :math:`\lambda > 0`, one number for all parameters.

    Raises:
        ValueError: If every gradient is zero, so that a fraction of the mean diagonal
            dampens nothing, or if not exactly one of the two is given.
    """
    if damp is not None and damp_fraction is not None:
        raise ValueError(
            f"damp={damp} and damp_fraction={damp_fraction} are both given; expected "
            "one of them; leave damp out"
        )
    if damp is not None:
        return damp
    if damp_fraction is None:
        raise ValueError(
            "damp and damp_fraction are both missing; expected one of them; use "
            "damp_fraction: 0.01"
        )
    total, living = 0.0, 0
    for fisher, mask in zip(fishers, masks, strict=True):
        kept = mask.reshape(-1)
        total += float(fisher.diagonal()[kept].sum(dtype=torch.float64))
        living += int(kept.sum())
    if total <= 0.0:
        raise ValueError(
            f"damp_fraction={damp_fraction} of a mean Fisher diagonal of 0 is 0: every "
            "sampled gradient is zero; expected gradients that are not all zero; check "
            "the loss, or give an absolute damp"
        )
    return damp_fraction * total / living
