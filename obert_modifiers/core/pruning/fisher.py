"""Block-diagonal empirical Fisher information, and its dampening."""

import math
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from obert_modifiers.core.pruning.blocks import count_blocks, from_blocks, to_blocks
from obert_modifiers.kernels import accumulate_blocks_, multiply_inverse
from obert_modifiers.kernels.packed import packed_diagonals, packed_size


def sums_shape(
    fisher_block_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, ...]:
    """Return the shape of a block's sums: packed in float64, but not on a GPU."""
    width = fisher_block_size
    if device.type == "cuda" or dtype != torch.float64:
        return (width, width)
    return (packed_size(width),)


class BlockFisher:
    r"""Sum of gradient outer products inside each Fisher block of a parameter's piece.

    Holds :math:`S = \sum_i g_i g_i^T` restricted to the diagonal blocks. The dampened
    Fisher of oBERT equation (2) is :math:`F = \lambda I + S / m` with m the number of
    gradients *actually added*, over all processes.

    Memory: what :func:`sums_shape` says for each block. Time of :meth:`add_`:
    ``2 k d B`` floating-point operations for k gradients.
    """

    def __init__(
        self,
        numel: int,
        fisher_block_size: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        with_mean: bool = False,
    ) -> None:
        """Allocate; ``with_mean`` keeps the sum of the gradients too."""
        blocks = count_blocks(numel, fisher_block_size)
        self.numel = numel
        self.fisher_block_size = fisher_block_size
        self.num_grads = 0
        shape = sums_shape(fisher_block_size, torch.device(device), dtype)
        self.sums = torch.empty(blocks, *shape, device=device, dtype=dtype)
        self.grad_sum = None
        if with_mean:
            self.grad_sum = torch.zeros(numel, device=device, dtype=torch.float64)

    @property
    def scale(self) -> float:
        """Factor from the sum to the mean, ``1 / m``; raises if m is 0."""
        if self.num_grads == 0:
            raise ValueError(
                "num_grads=0: no gradient was added to the Fisher; expected at least "
                "1; check that the gradient source is not empty"
            )
        return 1.0 / self.num_grads

    def add_(self, grads: Tensor, kept: Tensor | None = None) -> None:
        """Add finite gradients ``(k, d)`` to the sum, in place.

        With a mask ``(d,)``, True = kept, they change in place too: those of pruned
        weights count as zero, so that only the dampening stays on their diagonal.
        """
        grads = grads.to(self.sums.dtype)
        if kept is not None:
            grads.mul_(kept)
        if self.grad_sum is not None:
            self.grad_sum += grads.sum(dim=0, dtype=torch.float64)
        blocks = to_blocks(grads, self.fisher_block_size)
        accumulate_blocks_(self.sums, blocks, fresh=self.num_grads == 0)
        self.num_grads += grads.shape[0]

    def to(self, device: torch.device | str) -> "BlockFisher":
        """Return the same state on a device, itself if it is there."""
        if self.sums.device == torch.device(device):
            return self
        moved = copy(self)
        moved.sums = self.sums.to(device)
        moved.grad_sum = None if self.grad_sum is None else self.grad_sum.to(device)
        return moved

    def newton_step(self, damp: float) -> tuple[Tensor, float]:
        r"""Compute the step to the minimum of the quadratic model, unconstrained.

        :math:`-F^{-1} \bar g` with the mean gradient :math:`\bar g`. Removing weights
        from the point that it leads to, by the rules for a model at its minimum, is
        the exact minimiser of :math:`\bar g^T d + \frac12 d^T F d` with
        :math:`d_P = -w_P`.

        Returns:
            The step ``(d,)``, float64, and the change of the model's value that it
            makes, :math:`-\frac12 \bar g^T F^{-1} \bar g`.

        Raises:
            ValueError: If the sum of the gradients was not kept.
        """
        if self.grad_sum is None:
            raise ValueError(
                "with_mean=False keeps no mean gradient; expected with_mean=True; "
                "allocate the state with it"
            )
        mean = self.grad_sum * self.scale
        blocks = to_blocks(mean, self.fisher_block_size)
        step = multiply_inverse(self.sums, self.scale, damp, blocks)
        step = -from_blocks(step, self.numel)
        return step, 0.5 * float(mean @ step)

    def diagonal(self) -> Tensor:
        """Return the mean squared gradient of each weight, ``(d,)``, undampened."""
        diagonal = packed_diagonals(self.sums).reshape(-1)
        return diagonal[: self.numel] * self.scale

    def living_trace(self, kept: Tensor | None) -> tuple[float, int]:
        """Return the undampened diagonal's sum over kept weights, and their number."""
        diagonal = self.diagonal()
        if kept is not None:
            diagonal = diagonal[kept]
        return float(diagonal.sum(dtype=torch.float64)), diagonal.numel()


def resolve_damp(
    traces: Sequence[float],
    living: int,
    damp: float | None,
    damp_fraction: float | None,
) -> float:
    r"""Choose the dampening of one pruning event, the same for all parameters.

    Returns:
        :math:`\lambda > 0` as in oBERT equation (2): ``damp``, or a fraction of the
        undampened diagonal's mean; ``traces`` are its sums over the ``living`` weights
        of each piece.

    Raises:
        ValueError: If every gradient is zero, so that a fraction of the mean diagonal
            dampens nothing, or if not exactly one of the two is given.
    """
    if (damp is None) == (damp_fraction is None):
        what = "missing" if damp is None else "given"
        raise ValueError(
            f"damp={damp} and damp_fraction={damp_fraction} are both {what}; expected "
            "one of them; use damp_fraction: 0.01"
        )
    if damp is not None:
        return damp
    assert damp_fraction is not None
    total = math.fsum(traces)
    if total <= 0.0:
        raise ValueError(
            f"damp_fraction={damp_fraction} of a mean Fisher diagonal of 0 is 0: every "
            "sampled gradient is zero; expected gradients that are not all zero; check "
            "the loss, or give an absolute damp"
        )
    return damp_fraction * total / living
