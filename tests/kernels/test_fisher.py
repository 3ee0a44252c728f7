"""Fisher blocks: sums, inverses, products, updates, against the dense oracle."""

import numpy as np
import pytest
import torch

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

# (num_blocks, B): as wide as the papers and users go; Triton hands 384 to torch.
SHAPES = [(1, 1), (1, 8), (3, 6), (2, 50), (1, 128), (1, 384)]
assert len(SHAPES) == 6


@pytest.mark.parametrize(("num_blocks", "width"), SHAPES)
def test_accumulated_sums_are_the_fisher(num_blocks: int, width: int) -> None:
    sums, _, dense = problem(num_blocks, width)
    for b in range(num_blocks):
        ours = sums[b].numpy() / NUM_GRADS + DAMP * np.eye(width)
        np.testing.assert_allclose(ours, dense[b], rtol=1e-12, atol=1e-12)


@each_backend
@pytest.mark.parametrize(("num_blocks", "width"), SHAPES)
def test_inverse_and_its_residual(num_blocks: int, width: int, backend: str) -> None:
    sums, _, dense = problem(num_blocks, width)
    inverse = kernels.inverse_blocks(sums, *NUMBERS, backend=backend)
    for b in range(num_blocks):
        np.testing.assert_allclose(
            inverse[b].numpy(), np.linalg.inv(dense[b]), rtol=1e-8, atol=1e-9
        )
        np.testing.assert_allclose(
            dense[b] @ inverse[b].numpy(), np.eye(width), atol=1e-9
        )


@each_backend
@pytest.mark.parametrize(("width", "group"), [(8, 1), (8, 4), (48, 4), (50, 1)])
def test_group_blocks_of_the_inverse(backend: str, width: int, group: int) -> None:
    sums, _, dense = problem(2, width)
    found = kernels.inverse_group_blocks(sums, *NUMBERS, group, backend=backend)
    for b in range(2):
        inverse = np.linalg.inv(dense[b])
        for g in range(width // group):
            part = slice(g * group, (g + 1) * group)
            np.testing.assert_allclose(
                found[b, g].numpy(), inverse[part, part], rtol=1e-8, atol=1e-9
            )


def test_group_blocks_need_whole_groups() -> None:
    sums, _, _ = problem(1, 50)
    with pytest.raises(ValueError, match="fisher_block_size=50 is not a multiple"):
        kernels.inverse_group_blocks(sums, 1.0, DAMP, 4)


def test_multiply_inverse() -> None:
    sums, weights, dense = problem(3, 50)
    ours = kernels.multiply_inverse(sums, *NUMBERS, weights)
    for b in range(3):
        expected = np.linalg.solve(dense[b], weights[b].double().numpy())
        np.testing.assert_allclose(ours[b].numpy(), expected, rtol=1e-8, atol=1e-8)


@each_backend
@pytest.mark.parametrize(("num_blocks", "width"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_joint_update(backend: str, num_blocks: int, width: int, share: float) -> None:
    sums, weights, dense = problem(num_blocks, width)
    pruned = some(num_blocks, width, share)
    updated, increases = kernels.solve_joint_update(
        sums, *NUMBERS, weights, pruned, backend=backend
    )
    assert (updated[pruned] == 0).all()
    for b in range(num_blocks):
        expected, best = reference.best_update(
            dense[b],
            weights[b].double().numpy(),
            pruned[b].nonzero().flatten().tolist(),
        )
        np.testing.assert_allclose(updated[b].numpy(), expected, rtol=1e-7, atol=1e-9)
        assert increases[b].item() == pytest.approx(best, rel=1e-8, abs=1e-12)


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


@each_backend
@pytest.mark.parametrize(
    "kernel",
    [
        lambda sums, **kw: kernels.inverse_group_blocks(sums, 1.0, 1e-3, 1, **kw),
        lambda sums, **kw: kernels.eliminate_greedily(
            sums, 1.0, 1e-3, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), **kw
        ),
        lambda sums, **kw: kernels.solve_joint_update(
            sums, 1.0, 1e-3, torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool), **kw
        ),
    ],
)
def test_indefinite_block_is_an_error(backend: str, kernel) -> None:
    sums = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    with pytest.raises(FloatingPointError, match="1 Fisher blocks are not positive"):
        kernel(sums, backend=backend)


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="backend=cuda is unknown"):
        kernels.inverse_group_blocks(torch.zeros(1, 2, 2), 1.0, 1.0, 1, backend="cuda")
