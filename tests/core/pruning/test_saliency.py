"""Saliency of weights and groups against the oracle."""

import pytest
import torch

from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning.saliency import (
    magnitude_candidates,
    obs_candidates,
    obs_saliency,
)
from tests import reference
from tests.core.models import (
    grouped_fisher,
    random_fisher,
)

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
        members, price = reference.cheapest_subset(
            dense, weights.numpy(), group, gone, pattern.unit
        )
        one = torch.arange(len(found.saliency)) == g
        lost = found.pruned(one, len(weights)).nonzero().flatten().tolist()
        assert lost == list(members)
        assert found.saliency[g].item() == pytest.approx(price, rel=1e-8)
        singles = [
            reference.group_saliency(dense, weights.numpy(), [i]) for i in members
        ]
        if len(members) - len(gone) > 1:  # control: a group is not its members
            assert sum(singles) != pytest.approx(price, rel=1e-3)


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
        price = reference.group_saliency(dense, values, members)
        assert found.saliency[g].item() == pytest.approx(price, rel=1e-8)
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
