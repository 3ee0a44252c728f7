"""Saliency of weights and groups, and updates of what stays, against the oracle."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning.saliency import (
    magnitude_candidates,
    obs_candidates,
    obs_saliency,
)
from obert_modifiers.core.pruning.update import independent_update, joint_update
from tests import reference
from tests.core.models import grouped_fisher, random_fisher

DAMP = 1e-2


@pytest.mark.parametrize("width", [1, 5, 23, 40])
def test_saliency_of_single_weights(width: int) -> None:
    fisher, grads, weights = random_fisher(width=width)
    dense = reference.dense_fisher(grads.numpy(), 0.1)
    dense = reference.block_diagonal(dense, width)
    ours = obs_saliency(weights, fisher, 0.1)
    for j in range(len(weights)):
        expected = reference.group_saliency(dense, weights.numpy(), [j])
        assert ours[j].item() == pytest.approx(expected, rel=1e-9)
    if width == 1:  # the diagonal formula
        diagonal = grads.square().mean(dim=0) + 0.1
        torch.testing.assert_close(ours, weights.square() * diagonal / 2)


def test_large_damping_gives_the_magnitude_order() -> None:
    fisher, _, weights = random_fisher()
    ours = obs_saliency(weights, fisher, 1e6).argsort()
    assert ours.tolist() == weights.abs().argsort().tolist()


@pytest.mark.parametrize("text", ["block4", "block:2x1", "2:4", "1:4", "3:4", "1:2"])
def test_candidates_against_brute_force(text: str) -> None:
    pattern = parse_mask_type(text)
    size = pattern.group_size
    fisher, dense, weights, kept = grouped_fisher(DAMP)
    found = obs_candidates(
        weights.reshape(-1, size), kept.reshape(-1, size), fisher, DAMP, pattern
    )
    for g in range(len(weights) // size):
        group = list(range(g * size, (g + 1) * size))
        gone = [i for i in group if not kept[i]]
        alive = len(gone) < (pattern.unit if pattern.n_m else size)
        assert bool(torch.isfinite(found.saliency[g])) == alive
        if not alive:
            continue
        members, lowest = reference.cheapest_subset(
            dense, weights.numpy(), group, gone, pattern.unit
        )
        one = torch.arange(len(found.saliency)) == g
        lost = found.pruned(one, len(weights)).nonzero().flatten().tolist()
        assert lost == list(members)
        assert found.saliency[g].item() == pytest.approx(lowest, rel=1e-8)
        if len(members) - len(gone) > 1:  # control: a group is not its members
            singles = [
                reference.group_saliency(dense, weights.numpy(), [i]) for i in members
            ]
            assert sum(singles) != pytest.approx(lowest, rel=1e-3)


def test_candidates_of_large_groups_go_by_single_saliencies(monkeypatch) -> None:
    pattern = parse_mask_type("2:4")
    fisher, dense, weights, kept = grouped_fisher(DAMP)
    groups = weights.reshape(-1, 4), kept.reshape(-1, 4)
    exact = obs_candidates(*groups, fisher, DAMP, pattern)
    monkeypatch.setattr("obert_modifiers.core.pruning.saliency.MAX_SUBSETS", 1)
    found = obs_candidates(*groups, fisher, DAMP, pattern)
    values = weights.numpy()
    for g in torch.isfinite(found.saliency).nonzero().flatten().tolist():
        group = list(range(4 * g, 4 * g + 4))
        singles = [reference.group_saliency(dense, values, [i]) for i in group]
        ranked = sorted(range(4), key=lambda i: (bool(kept[group[i]]), singles[i]))
        assert found.members[g].nonzero().flatten().tolist() == sorted(ranked[:2])
        members = [group[i] for i in sorted(ranked[:2])]
        expected = reference.group_saliency(dense, values, members)
        assert found.saliency[g].item() == pytest.approx(expected, rel=1e-8)
        assert exact.saliency[g] <= found.saliency[g] + 1e-12
    assert not torch.equal(exact.members, found.members)


def test_magnitude_candidates() -> None:
    weights = torch.tensor([[3.0, -1, 1, 0.5], [0, 0, 5, -4], [1, 1, 1, 1]])
    kept = torch.tensor([[True] * 4, [False, True, True, True], [True] * 4])
    whole = magnitude_candidates(weights, kept, parse_mask_type("block4"))
    assert whole.saliency.tolist() == [5.5, 9.0, 4.0] and whole.group_size == 4
    pairs = magnitude_candidates(weights, kept, parse_mask_type("2:4"))
    assert pairs.members.int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert pairs.saliency.tolist() == [1.5, 0.0, 2.0]
    three = magnitude_candidates(weights, kept, parse_mask_type("3:4"))
    assert torch.isfinite(three.saliency).tolist() == [True, False, True]


def test_updates() -> None:
    fisher, grads, weights = random_fisher()
    dense = reference.dense_fisher(grads.numpy(), 0.1)
    dense, values = reference.block_diagonal(dense, 5), weights.numpy()
    mask = torch.rand(23) > 0.4
    gone = (~mask).nonzero().flatten().tolist()
    joint, increase = joint_update(weights, fisher, 0.1, mask)
    expected, best = reference.best_update(dense, values, gone)
    np.testing.assert_allclose(joint.numpy(), expected, atol=1e-10)
    assert increase == pytest.approx(best, rel=1e-9)
    added, sum_of_saliencies = independent_update(weights, fisher, 0.1, mask)
    expected = reference.single_updates_added(dense, values, gone)
    np.testing.assert_allclose(added.numpy(), expected, atol=1e-10)
    singles = [reference.group_saliency(dense, values, [j]) for j in gone]
    assert sum_of_saliencies == pytest.approx(sum(singles), rel=1e-9)
    assert (joint[~mask] == 0).all() and (added[~mask] == 0).all()
    # Control: the two rules differ, and the joint one increases the loss less.
    step, other = (joint - weights).numpy(), (added - weights).numpy()
    assert step @ dense @ step < other @ dense @ other


@pytest.mark.parametrize("size", [1, 4])
def test_updates_of_groups(size: int) -> None:
    fisher, dense, weights, kept = grouped_fisher(DAMP)
    fresh, values = kept.clone(), weights.numpy()
    fresh[[0, 1, 2, 15, 20, 22, 40, 41, 42, 43]] = False
    gone = (~fresh).nonzero().flatten().tolist()
    sets = [[i for i in gone if i // size == g] for g in range(44 // size)]
    sets = [members for members in sets if members]
    added, total = independent_update(weights, fisher, DAMP, fresh, size)
    expected = reference.group_updates_added(dense, values, sets)
    np.testing.assert_allclose(added.numpy(), expected, atol=1e-10)
    saliencies = [reference.group_saliency(dense, values, s) for s in sets]
    assert total == pytest.approx(sum(saliencies), rel=1e-9)
    joint, increase = joint_update(weights, fisher, DAMP, fresh, size)
    expected, best = reference.best_update(dense, values, gone)
    np.testing.assert_allclose(joint.numpy(), expected, atol=1e-10)
    assert increase == pytest.approx(best, rel=1e-9)
    # Control: the sum over single weights is not the sum over groups.
    singles, _ = independent_update(weights, fisher, DAMP, fresh)
    assert torch.allclose(singles, added) == (size == 1)
    assert (added[~fresh] == 0).all() and (joint[~fresh] == 0).all()
