"""Kernels on the blocks of the empirical Fisher: accumulate, invert, multiply."""

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import (
    block_chunks,
    cholesky,
    choose_backend,
    dampened,
    padded_width,
)
from obert_modifiers.kernels._run import run_blocks


def accumulate_blocks_(sums: Tensor, grads: Tensor, *, backend: str = "auto") -> Tensor:
    """Add the outer products of gradients to each block, in place.

    ``S_b += sum_k g_kb g_kb^T``, the sum in oBERT equation (2) before it is divided
    by the number of gradients. In torch one batched matrix product on permuted views:
    it runs near the machine's matrix-product rate, and copies the gradients only if
    they are not in the dtype of the sums. Triton converts them on chip, and never
    rounds to TF32.

    Args:
        sums: ``(num_blocks, B, B)``, float32 or float64, changed in place.
        grads: ``(k, num_blocks, B)``, float32 or the sums' dtype; same device.
        backend: ``"auto"``, ``"torch"`` or ``"triton"``.

    Returns:
        ``sums``.
    """
    if choose_backend(backend, sums, among=("torch", "triton")) == "triton":
        from obert_modifiers.kernels import _triton_fisher

        _triton_fisher.accumulate(sums, grads)
        return sums
    grads = grads.to(sums.dtype)
    torch.baddbmm(sums, grads.permute(1, 2, 0), grads.permute(1, 0, 2), out=sums)
    return sums


def inverse_blocks(
    sums: Tensor, scale: float, damp: float, *, backend: str = "auto"
) -> Tensor:
    """Invert the dampened Fisher blocks, ``(damp I + scale S)^-1``.

    Returns:
        ``(num_blocks, B, B)``, float64; raises if a block is not numerically positive
        definite. Memory: ``8 d B`` bytes.
    """
    width = sums.shape[1]
    whole = inverse_group_blocks(sums, scale, damp, width, backend=backend)
    return whole.squeeze(1)


def inverse_group_blocks(
    sums: Tensor,
    scale: float,
    damp: float,
    group_size: int,
    *,
    backend: str = "auto",
) -> Tensor:
    """Invert the dampened Fisher and keep the diagonal ``Q x Q`` group blocks.

    They are what the saliency of a group needs (oBERT section 3.1); for Q = 1 they
    are the diagonal of the inverse. Time: ``O(B^3)`` per block.

    Returns:
        ``(num_blocks, B / Q, Q, Q)``, float64.

    Raises:
        ValueError: If the group size does not divide the block size.
        FloatingPointError: If a block is not numerically positive definite.
    """
    num_blocks, width = sums.shape[:2]
    if width % group_size:
        raise ValueError(
            f"fisher_block_size={width} is not a multiple of group_size={group_size}; "
            "expected whole groups in a block; use a multiple"
        )
    groups = width // group_size
    found = torch.empty(
        num_blocks, groups, group_size, group_size, dtype=torch.float64
    ).to(sums.device)
    chosen = choose_backend(backend, sums, tile=padded_width(width))
    if chosen != "torch":
        arguments = (sums, scale, damp, group_size, found)
        run_blocks(chosen, "invert_group_blocks", *arguments)
        return found
    for part in block_chunks(num_blocks, width):
        inverse = torch.cholesky_inverse(cholesky(dampened(sums[part], scale, damp)))
        tiles = inverse.reshape(-1, groups, group_size, groups, group_size)
        # (n, Q, Q, groups) -> (n, groups, Q, Q)
        found[part] = tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    return found


def multiply_inverse(sums: Tensor, scale: float, damp: float, vector: Tensor) -> Tensor:
    """Solve with the dampened Fisher, ``(damp I + scale S)^-1 v``.

    Returns:
        ``(num_blocks, B)`` for a vector of that shape, float64.

    Raises:
        FloatingPointError: If a block is not numerically positive definite.
    """
    solution = torch.empty(vector.shape, dtype=torch.float64, device=sums.device)
    for part in block_chunks(*sums.shape[:2]):
        factor = cholesky(dampened(sums[part], scale, damp))
        right = vector[part].to(torch.float64).unsqueeze(2)
        solution[part] = torch.cholesky_solve(right, factor).squeeze(2)
    return solution
