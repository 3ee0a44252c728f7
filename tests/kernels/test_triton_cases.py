"""What Triton's kernels have to do beyond the common oracles.

Without a GPU it is ``test_triton_interpreted.py`` that runs this file, in a process
in which Triton interprets; that is slow, so the problems are small there.
"""

import numpy as np
import pytest
import torch

from obert_modifiers import kernels as package_kernels
from tests.kernels.backends import CAN_RUN_TRITON, INTERPRETED, kernels

if not CAN_RUN_TRITON:
    pytest.skip(
        "needs Triton and a GPU, or its interpreter (test_triton_interpreted.py)",
        allow_module_level=True,
    )
NUM_GRADS = 24
BLOCKS = 1 if INTERPRETED else 200
STRUCTURES = ({}, {"group_size": 2}, {"n_m": (1, 2)})
assert len(STRUCTURES) == 3


def _grads(count: int, num_blocks: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, num_blocks, width, generator=generator)


def _sums(num_blocks: int, width: int) -> torch.Tensor:
    sums = torch.zeros(num_blocks, width, width, dtype=torch.float64)
    grads = _grads(NUM_GRADS, num_blocks, width)
    return kernels.accumulate_blocks_(sums, grads, backend="torch")


def _tf32(values: torch.Tensor) -> torch.Tensor:
    """Cut float32 values down to the ten bits of TF32."""
    return (values.view(torch.int32) & ~0x1FFF).view(torch.float32)


def _error(found: torch.Tensor, exact: np.ndarray) -> float:
    wrong = found.numpy().astype(np.longdouble) - exact
    return float(np.linalg.norm(wrong.ravel().astype(np.float64)))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Invert in extended precision, by Gauss and Jordan."""
    width = len(matrix)
    rows = np.concatenate([matrix, np.eye(width, dtype=matrix.dtype)], axis=1)
    for p in range(width):
        rows[p] /= rows[p, p]
        others = np.arange(width) != p
        rows[others] -= rows[others, p][:, None] * rows[p]
    return rows[:, width:]


def _exact_fisher(sums: torch.Tensor, damp: float) -> np.ndarray:
    unit = np.eye(sums.shape[1], dtype=np.longdouble)
    exact = sums.numpy().astype(np.longdouble)
    return exact * np.longdouble(1 / NUM_GRADS) + np.longdouble(damp) * unit


# count, num_blocks, B: one gradient; no multiple of the step of 16; more than one
# tile of 64 in a block
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 50), (17, 1, 65), (33, 2, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_at_most_twice_as_wrong_as_torch(shape, dtype) -> None:
    grads = _grads(*shape)
    start = _grads(shape[2], shape[1], shape[2], seed=1).transpose(0, 1).to(dtype)
    exact = grads.numpy().astype(np.longdouble)
    exact = np.einsum("kbi,kbj->bij", exact, exact) + start.numpy()
    errors = [
        _error(kernels.accumulate_blocks_(start.clone(), grads, backend=backend), exact)
        for backend in ("torch", "triton")
    ]
    assert errors[1] <= 2.0 * errors[0] or errors[1] == 0.0
    if dtype == torch.float32:  # a planted kernel that rounds to TF32 must be seen
        planted = package_kernels.accumulate_blocks_(start.clone(), _tf32(grads))
        assert _error(planted, exact) > 20.0 * errors[0]


def test_gradients_may_have_any_strides() -> None:
    grads = _grads(5, 6, 2).permute(0, 2, 1)[:, :, ::2]  # (5, 2, 3)
    sums = torch.zeros(2, 3, 3)
    found = kernels.accumulate_blocks_(sums, grads, backend="triton")
    expected = torch.einsum("kbi,kbj->bij", grads, grads)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_solutions_are_at_most_twice_as_wrong_as_torch() -> None:
    sums, damp = _sums(2, 50), 1e-7
    weights, pruned = _grads(2, 1, 50)[:, 0], torch.rand(2, 50) < 0.5
    diagonal, updated = [], []
    for block in range(2):
        fisher = _exact_fisher(sums[block], damp)
        diagonal.append(np.diag(_inverse(fisher)))
        gone = pruned[block].numpy()
        new = np.where(gone, 0.0, weights[block].numpy()).astype(np.longdouble)
        pull = fisher[np.ix_(~gone, gone)] @ weights[block].numpy()[gone]
        new[~gone] += _inverse(fisher[np.ix_(~gone, ~gone)]) @ pull
        updated.append(new)
    errors = []
    for backend in ("torch", "triton"):
        numbers = (1 / NUM_GRADS, damp)
        inverse = kernels.inverse_group_blocks(sums, *numbers, 1, backend=backend)
        new, _ = kernels.solve_joint_update(
            sums, *numbers, weights, pruned, backend=backend
        )
        errors.append((
            _error(inverse.reshape(2, 50), np.stack(diagonal)),
            _error(new, np.stack(updated)),
        ))
    assert errors[1][0] <= 2.0 * errors[0][0]
    assert errors[1][1] <= 2.0 * errors[0][1]


@pytest.mark.parametrize(
    ("structure", "width"), [({}, 20), ({"group_size": 4}, 48), ({"n_m": (2, 5)}, 20)]
)
def test_same_order_as_torch(structure, width) -> None:
    sums, weights = _sums(BLOCKS, width), _grads(1, BLOCKS, width)[0]
    eligible = torch.ones(BLOCKS, width, dtype=torch.bool)
    eligible[:, 4:8] = eligible[:, ::11] = False
    sums *= eligible[:, :, None] & eligible[:, None, :]
    found = [
        kernels.eliminate_greedily(
            sums, 1 / NUM_GRADS, 1e-3, weights, eligible, backend=backend, **structure
        )
        for backend in ("torch", "triton")
    ]
    assert torch.equal(found[0].order, found[1].order)
    torch.testing.assert_close(found[0].saliency, found[1].saliency, rtol=1e-8, atol=0)


def _everything() -> list[torch.Tensor]:
    """Run every kernel once."""
    width = 2 if INTERPRETED else 48
    sums, weights = _sums(BLOCKS, width), _grads(1, BLOCKS, width)[0]
    some = weights > -0.5
    numbers, on = (1 / NUM_GRADS, 1e-3), {"backend": "triton"}
    groups = kernels.inverse_group_blocks(sums, *numbers, 2, **on)
    tiles = weights.reshape(BLOCKS, -1, 2), some.reshape(BLOCKS, -1, 2)
    found = [
        kernels.accumulate_blocks_(
            torch.zeros(BLOCKS, width, width), _grads(3, BLOCKS, width), **on
        ),
        groups,
        *kernels.solve_joint_update(sums, *numbers, weights, some, **on),
        kernels.solve_groups(groups, *tiles, **on),
        *kernels.lowest_subsets(groups, tiles[0], tiles[1], 1, **on),
        kernels.apply_mask_(weights.clone(), some, **on),
    ]
    for structure in STRUCTURES:
        order = kernels.eliminate_greedily(
            sums, *numbers, weights, weights < 9, **structure, **on
        )
        found += [order.order, order.saliency]
    return found


def test_ten_runs_are_equal_bit_for_bit() -> None:
    runs = [_everything() for _ in range(10)]
    assert len(runs[0]) == 14
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


def test_a_block_too_wide_for_the_chip_is_solved_by_torch() -> None:
    sums, weights = _sums(1, 130), _grads(1, 1, 130)[0]
    found = [
        kernels.solve_joint_update(
            sums, 1.0, 1e-3, weights, weights > 0, backend=backend
        )[0]
        for backend in ("torch", "triton")
    ]
    assert torch.equal(*found)


def test_no_blocks_at_all() -> None:
    weights, some = torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)
    blocks, on = (torch.zeros(0, 4, 4), 1.0, 1.0, weights, some), {"backend": "triton"}
    assert kernels.eliminate_greedily(*blocks, **on).order.shape == (0, 4)
    updated, increases = kernels.solve_joint_update(*blocks, **on)
    assert (updated.shape, increases.shape) == ((0, 4), (0,))
