"""Greedy elimination against re-solving from scratch."""

import numpy as np
import pytest
import torch

from tests import reference
from tests.kernels.backends import NUMBERS, cut, each_backend, kernels, problem, some

SINGLES = [(1, 1), (2, 8), (3, 10)]  # blocks, B
GROUPS = [(1, 4, 4), (2, 8, 2), (3, 12, 4), (2, 12, 6), (2, 9, 3)]  # blocks, B, Q
PATTERNS = [(1, 4, (2, 4)), (2, 8, (1, 4)), (2, 8, (3, 4)), (2, 10, (2, 5))]
assert (len(SINGLES), len(GROUPS), len(PATTERNS)) == (3, 5, 4)


def _everything(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def _eliminate(sums, weights, eligible=None, **options):
    eligible = _everything(*weights.shape) if eligible is None else eligible
    return kernels.eliminate_greedily(sums, *NUMBERS, weights, eligible, **options)


def _check(found, b: int, order: list[int], saliency: list[float]) -> None:
    """Compare with the oracle; what stays follows by index."""
    rest = [i for i in range(found.order.shape[1]) if i not in order]
    assert found.order[b].tolist() == order + rest
    np.testing.assert_allclose(found.saliency[b, : len(order)], saliency, rtol=1e-7)
    assert torch.isinf(found.saliency[b, len(order) :]).all()


@each_backend
@pytest.mark.parametrize(("num_blocks", "width"), SINGLES)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_greedy_order(backend: str, num_blocks: int, width: int, share: float) -> None:
    eligible = some(num_blocks, width, share)
    sums, weights, dense = problem(num_blocks, width, eligible)
    found = _eliminate(sums, weights, eligible, backend=backend)
    for b in range(num_blocks):
        living = eligible[b].nonzero().flatten().tolist()
        values = weights[b].double().numpy()
        _check(found, b, *reference.greedy_elimination(dense[b], values, living))


@each_backend
@pytest.mark.parametrize(("num_blocks", "width", "size"), GROUPS)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_greedy_order_of_groups(backend, num_blocks, width, size, share) -> None:
    eligible = some(num_blocks, width // size, share).repeat_interleave(size, dim=1)
    sums, weights, dense = problem(num_blocks, width, eligible)
    found = _eliminate(sums, weights, eligible, group_size=size, backend=backend)
    assert found.order.shape == found.saliency.shape == (num_blocks, width // size)
    for b in range(num_blocks):
        groups = cut(width, size)
        alive = [g for g, members in enumerate(groups) if eligible[b, members[0]]]
        order, saliency = reference.greedy_group_elimination(
            dense[b], weights[b].double().numpy(), [groups[g] for g in alive]
        )
        _check(found, b, [alive[g] for g in order], saliency)


@each_backend
def test_greedy_group_that_lost_some_weights_goes_at_the_saliency_of_the_others(
    backend,
) -> None:
    eligible = _everything(1, 12)
    eligible[0, [1, 4, 5, 6]] = False
    sums, weights, dense = problem(1, 12, eligible)
    dirty = torch.where(eligible, weights, 9.0)  # ineligible weights count as zero
    found = _eliminate(sums, dirty, eligible, group_size=4, backend=backend)
    groups = [[0, 2, 3], [7], [8, 9, 10, 11]]
    values = weights[0].double().numpy()
    _check(found, 0, *reference.greedy_group_elimination(dense[0], values, groups))


@each_backend
@pytest.mark.parametrize(("num_blocks", "width", "n_m"), PATTERNS)
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_greedy_order_of_n_m(backend, num_blocks, width, n_m, share) -> None:
    eligible = some(num_blocks, width, share)
    sums, weights, dense = problem(num_blocks, width, eligible)
    found = _eliminate(sums, weights, eligible, n_m=n_m, backend=backend)
    kept, size = n_m
    for b in range(num_blocks):
        living = eligible[b].nonzero().flatten().tolist()
        order, saliency = reference.greedy_n_m_elimination(
            dense[b], weights[b].double().numpy(), living, n_m
        )
        _check(found, b, order, saliency)
        left = eligible[b].clone()
        left[order] = False
        assert int(left.reshape(-1, size).sum(dim=1).max()) <= kept
        if share == 1.0:
            assert len(order) == width // size * (size - kept)


@each_backend
@pytest.mark.parametrize("size", [1, 4])
def test_greedy_control_saliencies_before_any_removal_are_another_order(
    backend, size
) -> None:
    """A planted wrong order, by the saliencies of the dense block, must be seen."""
    sums, weights, dense = problem(2, 16)
    found = _eliminate(sums, weights, group_size=size, backend=backend)
    wrong = []
    for b in range(2):
        values = weights[b].double().numpy()
        saliencies = [
            reference.group_saliency(dense[b], values, group) for group in cut(16, size)
        ]
        assert found.saliency[b, 0].item() == pytest.approx(min(saliencies), rel=1e-7)
        wrong.append(np.argsort(saliencies).tolist())
    assert found.order.tolist() != wrong


@each_backend
def test_greedy_control_free_elimination_breaks_the_pattern(backend) -> None:
    """A planted wrong order, without the groups' limits, must be seen."""
    sums, weights, _ = problem(2, 16)
    free, bound = (
        _eliminate(sums, weights, backend=backend, n_m=n_m) for n_m in (None, (2, 4))
    )
    half = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, free.order[:, :8], True)
    assert int(half.reshape(-1, 4).sum(dim=1).max()) > 2
    assert free.order.tolist() != bound.order.tolist()
    assert free.saliency[:, :8].sum() < bound.saliency[:, :8].sum()


TIES = {
    "single": ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
    "groups": ({"group_size": 2}, [0, 1, 2, 3]),
    "1:2": ({"n_m": (1, 2)}, [0, 2, 4, 6, 1, 3, 5, 7]),
}


@each_backend
@pytest.mark.parametrize("name", TIES)
def test_greedy_ties_go_to_the_lower_index(backend, name) -> None:
    structure, expected = TIES[name]
    sums, weights = torch.zeros(1, 8, 8), torch.ones(1, 8)
    found = _eliminate(sums, weights, backend=backend, **structure)
    assert found.order.tolist() == [expected]


@pytest.mark.parametrize("structure", [{}, {"group_size": 4}, {"n_m": (2, 4)}])
def test_backends_agree_and_repeat_bit_for_bit(structure) -> None:
    sums, weights, _ = problem(40, 48)
    backends = ("torch", *["numba"] * 10)
    runs = [_eliminate(sums, weights, backend=one, **structure) for one in backends]
    assert torch.equal(runs[0].order, runs[1].order)
    # Single weights are closer than groups, whose systems are solved in other orders.
    bound = {"rtol": 1e-8, "atol": 1e-14} if structure else {"rtol": 1e-9, "atol": 0}
    torch.testing.assert_close(runs[0].saliency, runs[1].saliency, **bound)
    for run in runs[2:]:
        assert torch.equal(run.order, runs[1].order)
        assert torch.equal(run.saliency, runs[1].saliency)


@pytest.mark.parametrize("backend", ["torch", "numba"])  # Triton hands over to torch
@pytest.mark.parametrize("width", [50, 128, 384])
def test_wide_blocks(width: int, backend: str) -> None:
    """The saliencies up to a cut sum up to the loss increase of the whole set."""
    sums, weights, _ = problem(2, width)
    order = _eliminate(sums, weights, backend=backend)
    half = width // 2
    for lower in (True, False):
        pruned = torch.zeros(2, width, dtype=torch.bool)
        gone = order.order[:, :half] if lower else torch.arange(half).expand(2, half)
        pruned.scatter_(1, gone, True)
        _, increases = kernels.solve_joint_update(
            sums, *NUMBERS, weights, pruned, backend=backend
        )
        total = order.saliency[:, :half].sum(dim=1).numpy()
        if lower:
            np.testing.assert_allclose(increases.numpy(), total, rtol=1e-7)
        else:  # control: another set of that size increases the loss more
            assert (increases.numpy() > total).all()


def test_greedy_set_is_close_to_the_best_set() -> None:
    """Greedy cannot beat the best set and stays near it on small problems."""
    sums, weights, dense = problem(6, 8)
    found = _eliminate(sums, weights)
    for b in range(6):
        total = found.saliency[b, :4].sum().item()
        best = reference.best_set(dense[b], weights[b].double().numpy(), 4)[1]
        assert best <= total + 1e-12
        assert total <= 2.0 * best


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"group_size": 4}, "fisher_block_size=10 is not a multiple"),
        ({"n_m": (2, 4)}, "fisher_block_size=10 is not a multiple"),
        ({"group_size": 2, "n_m": (1, 2)}, "are both given"),
    ],
)
def test_groups_have_to_fit_the_block(structure, message) -> None:
    sums, weights, _ = problem(1, 10)
    with pytest.raises(ValueError, match=message):
        _eliminate(sums, weights, **structure)
