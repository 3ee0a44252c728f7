"""Kernels on the blocks of the empirical Fisher: accumulate, invert, solve, update."""

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import (
    block_chunks,
    cholesky,
    choose_backend,
    dampened,
    padded_width,
)
from obert_modifiers.kernels._run import run_compiled, run_on_sums
from obert_modifiers.kernels.packed import block_width, is_packed, pack_blocks


def accumulate_blocks_(
    sums: Tensor, grads: Tensor, *, fresh: bool = False, backend: str = "auto"
) -> Tensor:
    """Add the outer products of gradients to each block, in place.

    ``S_b += sum_k g_kb g_kb^T``, the sum in oBERT equation (2) before it is divided
    by the number of gradients. Numba forms the lower triangles of packed float64 sums,
    with half of a product's operations; torch forms batched products on permuted
    views, for packed sums of some blocks at a time, and copies the gradients if they
    are not in the dtype of the sums. Triton converts them on chip, without TF32, and
    needs whole blocks. ``fresh`` sums, which were not written yet, count as zero.

    Returns:
        ``sums``, after ``grads`` ``(k, num_blocks, B)``, float32 or of their dtype.
    """
    able = ("torch", "numba") if is_packed(sums) else ("torch", "triton")
    chosen = choose_backend(backend, sums, among=able)
    if chosen == "triton":
        from obert_modifiers.kernels import _triton_fisher

        _triton_fisher.accumulate(sums.zero_() if fresh else sums, grads)
        return sums
    grads = grads.to(sums.dtype)
    factors = grads.permute(1, 2, 0), grads.permute(1, 0, 2)
    # What stands in fresh sums is not read, be it NaN.
    if not is_packed(sums):
        return torch.baddbmm(sums, *factors, beta=0 if fresh else 1, out=sums)
    if chosen == "numba" and sums.dtype == torch.float64:
        run_compiled("add_outer_products", sums, grads, fresh)
        return sums
    for blocks in block_chunks(len(sums), block_width(sums)):
        part, product = sums[blocks], torch.bmm(*(one[blocks] for one in factors))
        if fresh:
            part.copy_(pack_blocks(product))
        else:
            part += pack_blocks(product)
    return sums


def inverse_blocks(
    sums: Tensor, scale: float, damp: float, *, backend: str = "auto"
) -> Tensor:
    """Return ``(damp I + scale S)^-1``, ``(num_blocks, B, B)``."""
    width = block_width(sums)
    whole = inverse_group_blocks(sums, scale, damp, width, backend=backend)
    return whole.squeeze(1)


def inverse_group_blocks(
    sums: Tensor, scale: float, damp: float, group_size: int, *, backend: str = "auto"
) -> Tensor:
    """Invert the dampened Fisher and keep the diagonal ``Q x Q`` group blocks.

    They are what the saliency of a group needs (oBERT section 3.1); for Q = 1 they
    are the diagonal of the inverse. Time: ``O(B^3)`` per block.

    Returns:
        ``(num_blocks, B / Q, Q, Q)``.

    Raises:
        ValueError: If the group size does not divide the block size.
    """
    num_blocks, width = len(sums), block_width(sums)
    if width % group_size:
        raise ValueError(
            f"fisher_block_size={width} is not a multiple of group_size={group_size}; "
            "expected whole groups in a block; use a multiple"
        )
    groups = width // group_size
    shape = (num_blocks, groups, group_size, group_size)
    found = torch.empty(shape, dtype=torch.float64, device=sums.device)
    chosen = choose_backend(backend, sums, tile=padded_width(width))
    if chosen != "torch":
        run_on_sums(chosen, "invert_group_blocks", sums, scale, damp, group_size, found)
        return found
    for part in block_chunks(num_blocks, width):
        inverse = torch.cholesky_inverse(cholesky(dampened(sums[part], scale, damp)))
        found[part] = diagonal_groups(inverse, group_size)
    return found


def diagonal_groups(blocks: Tensor, size: int) -> Tensor:
    """Return the ``(n, B / Q, Q, Q)`` groups on the diagonals of blocks, a view."""
    groups = blocks.shape[1] // size
    tiles = blocks.reshape(-1, groups, size, groups, size)
    # (n, Q, Q, groups) -> (n, groups, Q, Q)
    return tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def multiply_inverse(sums: Tensor, scale: float, damp: float, vector: Tensor) -> Tensor:
    """Return ``(damp I + scale S)^-1 v`` for ``(num_blocks, B)`` vectors v."""
    solution = torch.empty(vector.shape, dtype=torch.float64, device=sums.device)
    for part in block_chunks(*vector.shape):
        factor = cholesky(dampened(sums[part], scale, damp))
        right = vector[part].to(torch.float64).unsqueeze(2)
        solution[part] = torch.cholesky_solve(right, factor).squeeze(2)
    return solution


def solve_joint_update(
    sums: Tensor,
    scale: float,
    damp: float,
    weights: Tensor,
    pruned: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Minimise the quadratic loss increase with all pruned weights at zero.

    The minimiser of :math:`\frac12 d^T F d` subject to :math:`d_P = -w_P` (oBERT
    equation (3) with Q the whole pruned set P of a block) is
    :math:`d_K = F_{KK}^{-1} F_{KP} w_P`, with K the kept weights.

    Time: ``O(|K|^3)`` per block; memory: the result.

    Returns:
        The updated weights ``(num_blocks, B)``, exactly zero where pruned, and the loss
        increase of each block ``(num_blocks,)``, >= 0.
    """
    updated = weights.new_empty(weights.shape, dtype=torch.float64)
    increases = weights.new_empty(len(weights), dtype=torch.float64)
    chosen = choose_backend(backend, sums, tile=padded_width(weights.shape[1]))
    if chosen != "torch":
        blocks = (weights.double(), pruned, updated, increases)
        run_on_sums(chosen, "solve_joint_blocks", sums, scale, damp, *blocks)
        return updated, increases
    for part in block_chunks(*weights.shape):
        updated[part], increases[part] = _solve_joint(
            dampened(sums[part], scale, damp), weights[part].double(), pruned[part]
        )
    return updated, increases


def _solve_joint(
    fisher: Tensor, weights: Tensor, pruned: Tensor
) -> tuple[Tensor, Tensor]:
    kept = ~pruned
    removed = torch.where(pruned, weights, 0.0).unsqueeze(2)  # (n, B, 1)
    pull = fisher @ removed
    dense = (removed * pull).sum(dim=(1, 2))
    right = pull * kept.unsqueeze(2)
    inner = fisher * (kept.unsqueeze(2) & kept.unsqueeze(1))
    inner.diagonal(dim1=1, dim2=2).add_(pruned.double())
    step = torch.cholesky_solve(right, cholesky(inner))
    increases = 0.5 * (dense - (right * step).sum(dim=(1, 2))).clamp(min=0.0)
    return torch.where(pruned, 0.0, weights + step.squeeze(2)), increases
