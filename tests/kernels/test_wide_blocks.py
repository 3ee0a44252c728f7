"""Blocks as wide as the papers and users go: 50, 128 and 384 weights."""

import numpy as np
import pytest
import torch

from tests.kernels.backends import kernels

COUNT, DAMP = 64, 1e-2
BACKENDS = ("torch", "numba")  # Triton hands wide blocks to torch


def _problem(width: int):
    generator = torch.Generator().manual_seed(width)
    grads = torch.randn(COUNT, 2, width, generator=generator, dtype=torch.float64)
    grads = grads + torch.randn(COUNT, 2, 1, generator=generator, dtype=torch.float64)
    sums = torch.zeros(2, width, width, dtype=torch.float64)
    kernels.accumulate_blocks_(sums, grads)
    weights = torch.randn(2, width, generator=generator, dtype=torch.float64)
    dense = np.einsum("kbi,kbj->bij", grads.numpy(), grads.numpy()) / COUNT
    return sums, weights, dense + DAMP * np.eye(width)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [50, 128, 384])
def test_wide_blocks(width: int, backend: str) -> None:
    sums, weights, dense = _problem(width)
    inverse = np.linalg.inv(dense)
    diagonal = kernels.inverse_group_blocks(
        sums, 1 / COUNT, DAMP, 1, backend=backend
    ).reshape(2, width)
    expected = np.einsum("bii->bi", inverse)
    np.testing.assert_allclose(diagonal.numpy(), expected, rtol=1e-9)
    eligible = torch.ones(2, width, dtype=torch.bool)
    greedy = kernels.eliminate_greedily(
        sums, 1 / COUNT, DAMP, weights, eligible, backend=backend
    )
    pruned = torch.zeros_like(eligible)
    half = width // 2
    pruned.scatter_(1, greedy.order[:, :half], True)
    updated, increases = kernels.solve_joint_update(
        sums, 1 / COUNT, DAMP, weights, pruned, backend=backend
    )
    # The saliencies up to a cut sum up to the increase of the whole set.
    np.testing.assert_allclose(
        increases.numpy(), greedy.saliency[:, :half].sum(dim=1).numpy(), rtol=1e-7
    )
    for b in range(2):
        gone, kept = pruned[b].numpy(), ~pruned[b].numpy()
        step = np.linalg.solve(
            dense[b][np.ix_(kept, kept)],
            dense[b][np.ix_(kept, gone)] @ weights[b].numpy()[gone],
        )
        ours = updated[b].numpy()
        np.testing.assert_allclose(
            ours[kept], weights[b].numpy()[kept] + step, rtol=1e-7, atol=1e-9
        )
        assert (ours[gone] == 0).all()
        # Control: another set of that size increases the loss more.
        other = np.zeros(width, dtype=bool)
        other[:half] = True
        inner = np.linalg.inv(inverse[b][np.ix_(other, other)])
        assert 0.5 * weights[b].numpy()[other] @ inner @ weights[b].numpy()[other] > (
            increases[b].item()
        )
