"""Updates of the weights that stay, against the oracle."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.pruning.update import independent_update, joint_update
from tests import reference
from tests.core.models import (
    grouped_fisher,
    random_fisher,
)

DAMP = 1e-2


def test_updates() -> None:
    fisher, grads, weights = random_fisher()
    dense = reference.dense_fisher(grads.numpy(), 0.1)
    dense = reference.block_diagonal(dense, 5)
    mask = torch.rand(23) > 0.4
    gone = (~mask).nonzero().flatten().tolist()
    joint, price = joint_update(weights, fisher, 0.1, mask)
    expected, best = reference.best_update(dense, weights.numpy(), gone)
    np.testing.assert_allclose(joint.numpy(), expected, atol=1e-10)
    assert price == pytest.approx(best, rel=1e-9)
    added, sum_of_saliencies = independent_update(weights, fisher, 0.1, mask)
    expected = reference.single_updates_added(dense, weights.numpy(), gone)
    np.testing.assert_allclose(added.numpy(), expected, atol=1e-10)
    singles = [reference.group_saliency(dense, weights.numpy(), [j]) for j in gone]
    assert sum_of_saliencies == pytest.approx(sum(singles), rel=1e-9)
    assert (joint[~mask] == 0).all() and (added[~mask] == 0).all()
    # Control: the two rules differ, and the joint one is cheaper.
    step, other = (joint - weights).numpy(), (added - weights).numpy()
    assert step @ dense @ step < other @ dense @ other


@pytest.mark.parametrize("size", [1, 4])
def test_updates_of_groups(size: int) -> None:
    fisher, dense, weights, kept = grouped_fisher(DAMP)
    fresh = kept.clone()
    fresh[[0, 1, 2, 15, 20, 22, 40, 41, 42, 43]] = False
    gone = (~fresh).nonzero().flatten().tolist()
    sets = [[i for i in gone if i // size == g] for g in range(44 // size)]
    sets = [members for members in sets if members]
    added, total = independent_update(weights, fisher, DAMP, fresh, size)
    expected = reference.group_updates_added(dense, weights.numpy(), sets)
    np.testing.assert_allclose(added.numpy(), expected, atol=1e-10)
    prices = [reference.group_saliency(dense, weights.numpy(), s) for s in sets]
    assert total == pytest.approx(sum(prices), rel=1e-9)
    joint, best = joint_update(weights, fisher, DAMP, fresh, size)
    expected, price = reference.best_update(dense, weights.numpy(), gone)
    np.testing.assert_allclose(joint.numpy(), expected, atol=1e-10)
    assert best == pytest.approx(price, rel=1e-9)
    # Control: the sum over single weights is not the sum over groups.
    singles, _ = independent_update(weights, fisher, DAMP, fresh)
    assert torch.allclose(singles, added) == (size == 1)
    assert (added[~fresh] == 0).all() and (joint[~fresh] == 0).all()
