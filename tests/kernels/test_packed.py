"""Packed blocks: what is kept of them, and every kernel on them as on whole ones."""

import numpy as np
import pytest
import torch

from obert_modifiers.kernels import _backend, packed
from obert_modifiers.kernels import fisher as module
from tests import reference
from tests.kernels.backends import (
    DAMP,
    NUM_GRADS,
    NUMBERS,
    each_backend,
    kernels,
    problem,
    some,
)

WIDTHS = [1, 2, 8, 50, 384]


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_packed_comes_back(width: int) -> None:
    whole, _, _ = problem(3, width)
    found = packed.pack_blocks(whole)
    assert found.shape == (3, packed.packed_size(width)) and packed.is_packed(found)
    assert packed.block_width(found) == packed.block_width(whole) == width
    assert packed.pack_blocks(found) is found
    rows, columns = np.tril_indices(width)  # another library's order
    np.testing.assert_array_equal(found.numpy(), whole.numpy()[:, rows, columns])
    again = packed.unpack_blocks(found)
    assert torch.equal(again, again.mT) and torch.equal(again.tril(), whole.tril())
    assert packed.unpack_blocks(again) is again
    for blocks in (found, again):
        diagonals = packed.packed_diagonals(blocks)
        assert torch.equal(diagonals, whole.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_packed_sums_are_the_fisher(backend, width, dtype, monkeypatch) -> None:
    """In products of two blocks at a time, into memory that is full of NaN."""
    monkeypatch.setattr(_backend, "_CHUNK_BYTES", 2 * 8 * width * width)
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(NUM_GRADS, 5, width, generator=generator).to(dtype)
    sums = torch.full((5, packed.packed_size(width)), torch.nan, dtype=dtype)
    for fresh, part in ((True, grads[:7]), (False, grads[7:])):
        kernels.accumulate_blocks_(sums, part, fresh=fresh, backend=backend)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"atol": 1e-5}
    for b, block in enumerate(packed.unpack_blocks(sums).double().numpy()):
        dense = reference.dense_fisher(grads[:, b].double().numpy(), DAMP)
        ours = block / NUM_GRADS + DAMP * np.eye(width)
        np.testing.assert_allclose(ours, dense, **close)


@each_backend
@pytest.mark.parametrize("width", [1, 2, 8, 50])
def test_every_kernel_has_the_same_bits_on_both(width: int, backend: str) -> None:
    whole, weights, _ = problem(3, width)
    whole = packed.unpack_blocks(packed.pack_blocks(whole))  # quite symmetric
    some_pruned, size = some(3, width, 0.6), 4 if width % 4 == 0 else 1

    def run(sums: torch.Tensor) -> list[torch.Tensor]:
        greedy = [
            kernels.eliminate_greedily(sums, *NUMBERS, weights, ~some_pruned, **keys)
            for keys in ({"backend": backend}, {"backend": backend, "group_size": size})
        ]
        return [
            kernels.inverse_blocks(sums, *NUMBERS, backend=backend),
            kernels.inverse_group_blocks(sums, *NUMBERS, size, backend=backend),
            kernels.multiply_inverse(sums, *NUMBERS, weights),
            *kernels.solve_joint_update(
                sums, *NUMBERS, weights, some_pruned, backend=backend
            ),
            *(value for one in greedy for value in (one.order, one.saliency)),
        ]

    found = zip(run(packed.pack_blocks(whole)), run(whole), strict=True)
    assert all(torch.equal(ours, expected) for ours, expected in found)


def test_triton_does_not_add_to_packed_sums() -> None:
    sums = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="backend=triton has no such kernel"):
        module.accumulate_blocks_(sums, torch.ones(1, 1, 2), backend="triton")
