"""Systems inside groups, and their subsets, against brute force."""

import numpy as np
import pytest
import torch

from tests import reference
from tests.kernels.backends import NUMBERS, cut, each_backend, kernels, problem, some

GROUPS = [(1, 4, 4), (2, 8, 2), (3, 12, 4), (2, 12, 6), (2, 9, 3)]  # blocks, B, Q
PATTERNS = [(1, 4, (2, 4)), (2, 8, (1, 4)), (2, 8, (3, 4)), (2, 10, (2, 5))]
assert (len(GROUPS), len(PATTERNS)) == (5, 4)


@each_backend
@pytest.mark.parametrize(("num_blocks", "width", "size"), GROUPS)
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_solve_groups(backend, num_blocks, width, size, share) -> None:
    sums, weights, dense = problem(num_blocks, width)
    members = some(num_blocks, width, share)
    shape = (num_blocks, width // size, size)
    pull = kernels.solve_groups(
        kernels.inverse_group_blocks(sums, *NUMBERS, size, backend="torch"),
        weights.reshape(shape),
        members.reshape(shape),
        backend=backend,
    ).reshape(num_blocks, width)
    assert (pull[~members] == 0).all()
    for b in range(num_blocks):
        values = weights[b].double().numpy()
        for group in cut(width, size):
            inside = [i for i in group if members[b, i]]
            saliency = 0.5 * float(values[inside] @ pull[b, inside].numpy())
            expected = reference.group_saliency(dense[b], values, inside)
            assert saliency == pytest.approx(expected, rel=1e-7, abs=1e-15)
            # The update that the pull calls for takes the members to zero.
            step = np.linalg.inv(dense[b])[:, inside] @ pull[b, inside].numpy()
            best, _ = reference.best_update(dense[b], values, inside)
            np.testing.assert_allclose(values - step, best, atol=1e-8)


@each_backend
@pytest.mark.parametrize(("num_blocks", "width", "n_m"), PATTERNS)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_lowest_subsets(backend, num_blocks, width, n_m, share) -> None:
    kept, size = n_m
    pruned = some(num_blocks, width, share)
    sums, weights, dense = problem(num_blocks, width, ~pruned)
    shape = (num_blocks, width // size, size)
    saliency, sets = kernels.lowest_subsets(
        kernels.inverse_group_blocks(sums, *NUMBERS, size, backend="torch"),
        weights.reshape(shape),
        pruned.reshape(shape),
        size - kept,
        backend=backend,
    )
    for b in range(num_blocks):
        for g, group in enumerate(cut(width, size)):
            gone = [i for i in group if pruned[b, i]]
            if len(gone) > size - kept:
                assert torch.isinf(saliency[b, g]) and not sets[b, g].any()
                continue
            found, lowest = reference.cheapest_subset(
                dense[b], weights[b].double().numpy(), group, gone, size - kept
            )
            assert [group[i] for i in sets[b, g].nonzero().flatten()] == list(found)
            assert saliency[b, g].item() == pytest.approx(lowest, rel=1e-7, abs=1e-12)


@each_backend
def test_lowest_subsets_control_single_saliencies_miss_the_best_mask(backend) -> None:
    """Two weights that stand in for each other must not go together."""
    inverse = torch.tensor([
        [[[1.0, -0.9, 0, 0], [-0.9, 1.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]
    ])
    weights = torch.tensor([[[1.0, 1.0, 1.1, 1.2]]])
    saliency, sets = kernels.lowest_subsets(
        inverse.double(),
        weights,
        torch.zeros(1, 1, 4, dtype=torch.bool),
        2,
        backend=backend,
    )
    assert sets.tolist() == [[[True, False, True, False]]]
    assert saliency.item() == pytest.approx(0.5 * (1.0 + 1.21), rel=1e-6)
    singles = weights.square() / (2 * inverse.diagonal(dim1=2, dim2=3))
    assert singles.argsort(dim=2)[0, 0, :2].tolist() == [0, 1]  # the planted choice


@each_backend
def test_lowest_subsets_break_ties_by_index(backend) -> None:
    _, sets = kernels.lowest_subsets(
        torch.eye(4, dtype=torch.float64)[None, None],
        torch.ones(1, 1, 4),
        torch.zeros(1, 1, 4, dtype=torch.bool),
        2,
        backend=backend,
    )
    assert sets.tolist() == [[[True, True, False, False]]]


@each_backend
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
