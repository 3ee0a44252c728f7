"""The joint update against the KKT system of the oracle."""

import numpy as np
import pytest
import torch

from tests import reference
from tests.kernels.backends import (
    NUMBERS,
    each_backend,
    kernels,
    problem,
)

SHAPES = [(1, 1), (1, 8), (3, 6), (2, 50)]  # (num_blocks, B)


@each_backend
@pytest.mark.parametrize(("num_blocks", "width"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_joint_update(backend: str, num_blocks: int, width: int, share: float) -> None:
    sums, weights, dense = problem(num_blocks, width)
    generator = torch.Generator().manual_seed(1)
    pruned = torch.rand(num_blocks, width, generator=generator) < share
    updated, costs = kernels.solve_joint_update(
        sums, *NUMBERS, weights, pruned, backend=backend
    )
    assert (updated[pruned] == 0).all()
    for b in range(num_blocks):
        expected, price = reference.best_update(
            dense[b],
            weights[b].double().numpy(),
            pruned[b].nonzero().flatten().tolist(),
        )
        np.testing.assert_allclose(updated[b].numpy(), expected, rtol=1e-7, atol=1e-9)
        assert costs[b].item() == pytest.approx(price, rel=1e-8, abs=1e-12)


@each_backend
def test_joint_update_control_ignoring_the_off_diagonal_is_worse(backend: str) -> None:
    """A planted wrong update, which leaves the kept weights alone, must be seen."""
    sums, weights, dense = problem(2, 8)
    pruned = torch.zeros(2, 8, dtype=torch.bool)
    pruned[:, ::2] = True
    updated, _ = kernels.solve_joint_update(
        sums, *NUMBERS, weights, pruned, backend=backend
    )
    wrong = torch.where(pruned, 0.0, weights.double())
    for b in range(2):
        step, bad = (updated - weights)[b].numpy(), (wrong - weights)[b].numpy()
        assert step @ dense[b] @ step < 0.9 * (bad @ dense[b] @ bad)
