"""Kernels on groups of weights against the dense float64 oracles."""

import numpy as np
import pytest
import torch

from tests import reference
from tests.kernels.backends import BACKENDS, kernels

NUM_GRADS, DAMP = 24, 1e-3
GROUPS = [(1, 4, 4), (2, 8, 2), (3, 12, 4), (2, 12, 6), (2, 9, 3)]  # blocks, B, Q
PATTERNS = [(1, 4, (2, 4)), (2, 8, (1, 4)), (2, 8, (3, 4)), (2, 10, (2, 5))]
assert (len(GROUPS), len(PATTERNS)) == (5, 4)

backends = pytest.mark.parametrize("backend", BACKENDS)


def _problem(num_blocks: int, width: int, living: torch.Tensor | None = None):
    """Random blocks; what does not live has zero gradient and zero weight."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(NUM_GRADS, num_blocks, width, generator=generator).double()
    weights = torch.randn(num_blocks, width, generator=generator)
    if living is not None:
        grads, weights = grads * living, weights * living
    sums = torch.zeros(num_blocks, width, width, dtype=torch.float64)
    kernels.accumulate_blocks_(sums, grads)
    dense = [
        reference.dense_fisher(grads[:, b].numpy(), DAMP) for b in range(num_blocks)
    ]
    return sums, weights, dense


def _inverse_groups(sums, size):
    return kernels.inverse_group_blocks(
        sums, 1 / NUM_GRADS, DAMP, size, backend="torch"
    )


def _some(num_blocks: int, width: int, share: float, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_blocks, width, generator=generator) < share


def _cut(width: int, size: int) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(0, width, size)]


@backends
@pytest.mark.parametrize(("num_blocks", "width", "size"), GROUPS)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_greedy_order_of_groups(backend, num_blocks, width, size, share) -> None:
    eligible = _some(num_blocks, width // size, share).repeat_interleave(size, dim=1)
    sums, weights, dense = _problem(num_blocks, width, eligible)
    found = kernels.eliminate_greedily(
        sums, 1 / NUM_GRADS, DAMP, weights, eligible, group_size=size, backend=backend
    )
    assert found.order.shape == found.saliency.shape == (num_blocks, width // size)
    for b in range(num_blocks):
        groups = _cut(width, size)
        alive = [g for g, members in enumerate(groups) if eligible[b, members[0]]]
        order, costs = reference.greedy_group_elimination(
            dense[b], weights[b].double().numpy(), [groups[g] for g in alive]
        )
        rest = [g for g in range(len(groups)) if g not in alive]
        assert found.order[b].tolist() == [alive[g] for g in order] + rest
        np.testing.assert_allclose(found.saliency[b, : len(order)], costs, rtol=1e-7)
        assert torch.isinf(found.saliency[b, len(order) :]).all()


@backends
def test_greedy_group_that_lost_some_weights_goes_for_the_price_of_the_others(
    backend,
) -> None:
    eligible = torch.ones(1, 12, dtype=torch.bool)
    eligible[0, [1, 4, 5, 6]] = False
    sums, weights, dense = _problem(1, 12, eligible)
    dirty = torch.where(eligible, weights, 9.0)  # ineligible weights count as zero
    found = kernels.eliminate_greedily(
        sums, 1 / NUM_GRADS, DAMP, dirty, eligible, group_size=4, backend=backend
    )
    order, costs = reference.greedy_group_elimination(
        dense[0], weights[0].double().numpy(), [[0, 2, 3], [7], [8, 9, 10, 11]]
    )
    assert found.order[0].tolist() == order
    np.testing.assert_allclose(found.saliency[0], costs, rtol=1e-7)


@backends
@pytest.mark.parametrize(("num_blocks", "width", "n_m"), PATTERNS)
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_greedy_order_of_n_m(backend, num_blocks, width, n_m, share) -> None:
    eligible = _some(num_blocks, width, share)
    sums, weights, dense = _problem(num_blocks, width, eligible)
    found = kernels.eliminate_greedily(
        sums, 1 / NUM_GRADS, DAMP, weights, eligible, n_m=n_m, backend=backend
    )
    kept, size = n_m
    for b in range(num_blocks):
        order, costs = reference.greedy_n_m_elimination(
            dense[b],
            weights[b].double().numpy(),
            eligible[b].nonzero().flatten().tolist(),
            n_m,
        )
        rest = [i for i in range(width) if i not in order]
        assert found.order[b].tolist() == order + rest
        np.testing.assert_allclose(found.saliency[b, : len(order)], costs, rtol=1e-7)
        assert torch.isinf(found.saliency[b, len(order) :]).all()
        left = eligible[b].clone()
        left[order] = False
        assert int(left.reshape(-1, size).sum(dim=1).max()) <= kept
        if share == 1.0:
            assert len(order) == width // size * (size - kept)


@backends
def test_greedy_control_costs_before_any_removal_are_another_order(backend) -> None:
    """A planted wrong order, by the saliencies of the dense block, must be seen."""
    sums, weights, dense = _problem(2, 16)
    everything = torch.ones(2, 16, dtype=torch.bool)
    found = kernels.eliminate_greedily(
        sums, 1 / NUM_GRADS, DAMP, weights, everything, group_size=4, backend=backend
    )
    wrong = []
    for b in range(2):
        values = weights[b].double().numpy()
        prices = [
            reference.group_saliency(dense[b], values, group) for group in _cut(16, 4)
        ]
        assert found.saliency[b, 0].item() == pytest.approx(min(prices), rel=1e-7)
        wrong.append(np.argsort(prices).tolist())
    assert found.order.tolist() != wrong


@backends
def test_greedy_control_free_elimination_breaks_the_pattern(backend) -> None:
    """A planted wrong order, without the groups' limits, must be seen."""
    sums, weights, _ = _problem(2, 16)
    everything = torch.ones(2, 16, dtype=torch.bool)
    free, bound = (
        kernels.eliminate_greedily(
            sums, 1 / NUM_GRADS, DAMP, weights, everything, backend=backend, n_m=n_m
        )
        for n_m in (None, (2, 4))
    )
    half = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, free.order[:, :8], True)
    assert int(half.reshape(-1, 4).sum(dim=1).max()) > 2
    assert free.order.tolist() != bound.order.tolist()
    assert free.saliency[:, :8].sum() < bound.saliency[:, :8].sum()


@backends
@pytest.mark.parametrize("structure", [{"group_size": 2}, {"n_m": (1, 2)}])
def test_greedy_ties_go_to_the_lower_index(backend, structure) -> None:
    found = kernels.eliminate_greedily(
        torch.zeros(1, 8, 8),
        1.0,
        1.0,
        torch.ones(1, 8),
        torch.ones(1, 8, dtype=torch.bool),
        backend=backend,
        **structure,
    )
    whole = "group_size" in structure
    expected = [0, 1, 2, 3] if whole else [0, 2, 4, 6, 1, 3, 5, 7]
    assert found.order.tolist() == [expected]


@pytest.mark.parametrize("structure", [{"group_size": 4}, {"n_m": (2, 4)}])
def test_backends_agree_and_repeat_bit_for_bit(structure) -> None:
    sums, weights, _ = _problem(40, 48)
    everything = torch.ones(40, 48, dtype=torch.bool)
    runs = [
        kernels.eliminate_greedily(
            sums,
            1 / NUM_GRADS,
            DAMP,
            weights,
            everything,
            backend=backend,
            **structure,
        )
        for backend in ("torch", *["numba"] * 10)
    ]
    assert torch.equal(runs[0].order, runs[1].order)
    torch.testing.assert_close(
        runs[0].saliency, runs[1].saliency, rtol=1e-8, atol=1e-14
    )
    for run in runs[2:]:
        assert torch.equal(run.order, runs[1].order)
        assert torch.equal(run.saliency, runs[1].saliency)


@backends
@pytest.mark.parametrize(("num_blocks", "width", "size"), GROUPS)
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_solve_groups(backend, num_blocks, width, size, share) -> None:
    sums, weights, dense = _problem(num_blocks, width)
    members = _some(num_blocks, width, share)
    shape = (num_blocks, width // size, size)
    pull = kernels.solve_groups(
        _inverse_groups(sums, size),
        weights.reshape(shape),
        members.reshape(shape),
        backend=backend,
    ).reshape(num_blocks, width)
    assert (pull[~members] == 0).all()
    for b in range(num_blocks):
        values = weights[b].double().numpy()
        for group in _cut(width, size):
            inside = [i for i in group if members[b, i]]
            price = 0.5 * float(values[inside] @ pull[b, inside].numpy())
            expected = reference.group_saliency(dense[b], values, inside)
            assert price == pytest.approx(expected, rel=1e-7, abs=1e-15)
            # The update that the pull calls for takes the members to zero.
            step = np.linalg.inv(dense[b])[:, inside] @ pull[b, inside].numpy()
            best, _ = reference.best_update(dense[b], values, inside)
            np.testing.assert_allclose(values - step, best, atol=1e-8)


@backends
@pytest.mark.parametrize(("num_blocks", "width", "n_m"), PATTERNS)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_cheapest_subsets(backend, num_blocks, width, n_m, share) -> None:
    kept, size = n_m
    pruned = _some(num_blocks, width, share)
    sums, weights, dense = _problem(num_blocks, width, ~pruned)
    shape = (num_blocks, width // size, size)
    costs, sets = kernels.lowest_subsets(
        _inverse_groups(sums, size),
        weights.reshape(shape),
        pruned.reshape(shape),
        size - kept,
        backend=backend,
    )
    for b in range(num_blocks):
        for g, group in enumerate(_cut(width, size)):
            gone = [i for i in group if pruned[b, i]]
            if len(gone) > size - kept:
                assert torch.isinf(costs[b, g]) and not sets[b, g].any()
                continue
            found, price = reference.cheapest_subset(
                dense[b], weights[b].double().numpy(), group, gone, size - kept
            )
            assert [group[i] for i in sets[b, g].nonzero().flatten()] == list(found)
            assert costs[b, g].item() == pytest.approx(price, rel=1e-7, abs=1e-12)


@backends
def test_cheapest_subsets_control_single_saliencies_miss_the_best_mask(backend) -> None:
    """Two weights that stand in for each other must not go together."""
    inverse = torch.tensor([
        [[[1.0, -0.9, 0, 0], [-0.9, 1.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]
    ])
    weights = torch.tensor([[[1.0, 1.0, 1.1, 1.2]]])
    costs, sets = kernels.lowest_subsets(
        inverse.double(),
        weights,
        torch.zeros(1, 1, 4, dtype=torch.bool),
        2,
        backend=backend,
    )
    assert sets.tolist() == [[[True, False, True, False]]]
    assert costs.item() == pytest.approx(0.5 * (1.0 + 1.21), rel=1e-6)
    singles = weights.square() / (2 * inverse.diagonal(dim1=2, dim2=3))
    assert singles.argsort(dim=2)[0, 0, :2].tolist() == [0, 1]  # the planted choice


@backends
def test_cheapest_subsets_break_ties_by_index(backend) -> None:
    _, sets = kernels.lowest_subsets(
        torch.eye(4, dtype=torch.float64)[None, None],
        torch.ones(1, 1, 4),
        torch.zeros(1, 1, 4, dtype=torch.bool),
        2,
        backend=backend,
    )
    assert sets.tolist() == [[[True, True, False, False]]]


@backends
def test_indefinite_group_is_an_error(backend) -> None:
    broken = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]], dtype=torch.float64)
    weights, yes = torch.ones(1, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool)
    with pytest.raises(FloatingPointError, match="not positive definite"):
        kernels.solve_groups(broken, weights, yes, backend=backend)
    with pytest.raises(FloatingPointError, match="not positive definite"):
        kernels.lowest_subsets(broken, weights, ~yes, 2, backend=backend)
    for structure in ({"group_size": 2}, {"n_m": (1, 2)}):
        with pytest.raises(FloatingPointError, match="not positive definite"):
            kernels.eliminate_greedily(
                broken[0], 1.0, 1e-3, weights[0], yes[0], backend=backend, **structure
            )


def test_groups_have_to_fit_the_block() -> None:
    sums, weights, _ = _problem(1, 10)
    everything = torch.ones(1, 10, dtype=torch.bool)
    for structure in ({"group_size": 4}, {"n_m": (2, 4)}):
        with pytest.raises(ValueError, match="fisher_block_size=10 is not a multiple"):
            kernels.eliminate_greedily(sums, 1.0, 1.0, weights, everything, **structure)
    with pytest.raises(ValueError, match="are both given"):
        kernels.eliminate_greedily(
            sums, 1.0, 1.0, weights, everything, group_size=2, n_m=(1, 2)
        )
