"""Kernels on Fisher blocks against the dense float64 oracles."""

import numpy as np
import pytest
import torch

from tests import reference
from tests.kernels.backends import BACKENDS, kernels

SHAPES = [(1, 1), (1, 8), (3, 6), (2, 50)]  # (num_blocks, B)
NUM_GRADS, DAMP = 24, 1e-3


def _problem(num_blocks: int, width: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(NUM_GRADS, num_blocks, width, generator=generator)
    weights = torch.randn(num_blocks, width, generator=generator)
    sums = torch.zeros(num_blocks, width, width, dtype=torch.float64)
    kernels.accumulate_blocks_(sums, grads.double())
    dense = [
        reference.dense_fisher(grads[:, b].numpy(), DAMP) for b in range(num_blocks)
    ]
    return sums, weights, dense


@pytest.mark.parametrize(("num_blocks", "width"), SHAPES)
def test_accumulated_sums_are_the_fisher(num_blocks: int, width: int) -> None:
    sums, _, dense = _problem(num_blocks, width)
    for b in range(num_blocks):
        ours = sums[b].numpy() / NUM_GRADS + DAMP * np.eye(width)
        np.testing.assert_allclose(ours, dense[b], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_blocks", "width"), SHAPES)
def test_inverse_and_its_residual(num_blocks: int, width: int, backend: str) -> None:
    sums, _, dense = _problem(num_blocks, width)
    inverse = kernels.inverse_blocks(sums, 1 / NUM_GRADS, DAMP, backend=backend)
    for b in range(num_blocks):
        np.testing.assert_allclose(
            inverse[b].numpy(), np.linalg.inv(dense[b]), rtol=1e-8, atol=1e-9
        )
        np.testing.assert_allclose(
            dense[b] @ inverse[b].numpy(), np.eye(width), atol=1e-9
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("width", "group"), [(8, 1), (8, 4), (48, 4), (50, 1)])
def test_group_blocks_of_the_inverse(backend: str, width: int, group: int) -> None:
    sums, _, dense = _problem(2, width)
    found = kernels.inverse_group_blocks(
        sums, 1 / NUM_GRADS, DAMP, group, backend=backend
    )
    for b in range(2):
        inverse = np.linalg.inv(dense[b])
        for g in range(width // group):
            part = slice(g * group, (g + 1) * group)
            np.testing.assert_allclose(
                found[b, g].numpy(), inverse[part, part], rtol=1e-8, atol=1e-9
            )


def test_group_blocks_need_whole_groups() -> None:
    sums, _, _ = _problem(1, 50)
    with pytest.raises(ValueError, match="fisher_block_size=50 is not a multiple"):
        kernels.inverse_group_blocks(sums, 1.0, DAMP, 4)


def test_multiply_inverse() -> None:
    sums, weights, dense = _problem(3, 50)
    ours = kernels.multiply_inverse(sums, 1 / NUM_GRADS, DAMP, weights)
    for b in range(3):
        expected = np.linalg.solve(dense[b], weights[b].double().numpy())
        np.testing.assert_allclose(ours[b].numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_blocks", "width"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_joint_update(backend: str, num_blocks: int, width: int, share: float) -> None:
    sums, weights, dense = _problem(num_blocks, width)
    generator = torch.Generator().manual_seed(1)
    pruned = torch.rand(num_blocks, width, generator=generator) < share
    updated, costs = kernels.solve_joint_update(
        sums, 1 / NUM_GRADS, DAMP, weights, pruned, backend=backend
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_joint_update_control_ignoring_the_off_diagonal_is_worse(backend: str) -> None:
    """A planted wrong update, which leaves the kept weights alone, must be seen."""
    sums, weights, dense = _problem(2, 8)
    pruned = torch.zeros(2, 8, dtype=torch.bool)
    pruned[:, ::2] = True
    updated, _ = kernels.solve_joint_update(
        sums, 1 / NUM_GRADS, DAMP, weights, pruned, backend=backend
    )
    wrong = torch.where(pruned, 0.0, weights.double())
    for b in range(2):
        step, bad = (updated - weights)[b].numpy(), (wrong - weights)[b].numpy()
        assert step @ dense[b] @ step < 0.9 * (bad @ dense[b] @ bad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_blocks", "width"), [(1, 1), (2, 8), (3, 10)])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_greedy_order(backend: str, num_blocks: int, width: int, share: float) -> None:
    sums, weights, dense = _problem(num_blocks, width)
    generator = torch.Generator().manual_seed(2)
    eligible = torch.rand(num_blocks, width, generator=generator) <= share
    # What is not eligible has zero gradient, by contract.
    sums = sums * eligible[:, :, None] * eligible[:, None, :]
    found = kernels.eliminate_greedily(
        sums, 1 / NUM_GRADS, DAMP, weights, eligible, backend=backend
    )
    for b in range(num_blocks):
        living = eligible[b].nonzero().flatten().tolist()
        keep = np.outer(eligible[b], eligible[b]) | np.eye(width, dtype=bool)
        fisher = np.where(keep, dense[b], 0.0)
        order, costs = reference.greedy_elimination(
            fisher, weights[b].double().numpy(), living
        )
        rest = [i for i in range(width) if i not in living]
        assert found.order[b].tolist() == order + rest
        np.testing.assert_allclose(found.saliency[b, : len(order)], costs, rtol=1e-7)
        assert torch.isinf(found.saliency[b, len(order) :]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_control_order_by_first_saliency_differs(backend: str) -> None:
    """A planted wrong order, by the costs before any removal, must be seen."""
    sums, weights, dense = _problem(2, 12)
    everything = torch.ones(2, 12, dtype=torch.bool)
    found = kernels.eliminate_greedily(
        sums, 1 / NUM_GRADS, DAMP, weights, everything, backend=backend
    )
    wrong = []
    for b in range(2):
        diagonal = np.diag(np.linalg.inv(dense[b]))
        wrong.append(np.argsort(weights[b].numpy() ** 2 / diagonal).tolist())
    assert found.order.tolist() != wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_ties_go_to_the_lower_index(backend: str) -> None:
    sums = torch.zeros(1, 6, 6)
    found = kernels.eliminate_greedily(
        sums,
        1.0,
        1.0,
        torch.ones(1, 6),
        torch.ones(1, 6, dtype=torch.bool),
        backend=backend,
    )
    assert found.order.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_backends_agree_and_repeat_bit_for_bit() -> None:
    sums, weights, _ = _problem(40, 48)
    everything = torch.ones(40, 48, dtype=torch.bool)
    runs = [
        kernels.eliminate_greedily(
            sums, 1 / NUM_GRADS, DAMP, weights, everything, backend=backend
        )
        for backend in ("torch", *["numba"] * 10)
    ]
    assert torch.equal(runs[0].order, runs[1].order)
    torch.testing.assert_close(runs[0].saliency, runs[1].saliency, rtol=1e-9, atol=0)
    for run in runs[2:]:
        assert torch.equal(run.order, runs[1].order)
        assert torch.equal(run.saliency, runs[1].saliency)


@pytest.mark.parametrize("backend", BACKENDS)
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


def test_greedy_set_is_close_to_the_best_set() -> None:
    """Greedy cannot beat the best set and stays near it on small problems."""
    sums, weights, dense = _problem(6, 8)
    everything = torch.ones(6, 8, dtype=torch.bool)
    found = kernels.eliminate_greedily(sums, 1 / NUM_GRADS, DAMP, weights, everything)
    for b in range(6):
        price = found.saliency[b, :4].sum().item()
        best = reference.best_set(dense[b], weights[b].double().numpy(), 4)[1]
        assert best <= price + 1e-12
        assert price <= 2.0 * best
