"""Groups of weights: patterns, layouts, candidates and updates."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning import blocks, selection
from obert_modifiers.core.pruning.blocks import make_layout
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.saliency import magnitude_candidates, obs_candidates
from obert_modifiers.core.pruning.update import independent_update, joint_update
from tests import reference
from tests.core.models import (
    GROUP_PATTERNS,
    MIXED_NAMES,
    indices_of,
    make_mixed,
    mixed_targets,
)

DAMP = 1e-2
patterns = pytest.mark.parametrize("text", GROUP_PATTERNS)


@pytest.mark.parametrize(
    ("text", "kind", "size", "unit", "limit"),
    [
        ("unstructured", "unstructured", 1, 1, 1.0),
        ("block4", "block", 4, 4, 1.0),
        ("block:1x1", "unstructured", 1, 1, 1.0),
        ("block:16x2", "block", 32, 32, 1.0),
        ("2:4", "n_m", 4, 2, 0.5),
        ("1:4", "n_m", 4, 3, 0.75),
        ("10:16", "n_m", 16, 6, 0.375),
    ],
)
def test_mask_types(text, kind, size, unit, limit) -> None:
    found = parse_mask_type(text)
    assert found.name == text
    assert (found.kind, found.group_size, found.unit, found.limit) == (
        kind,
        size,
        unit,
        limit,
    )


KNOWN = "expected one of unstructured, block4, block:RxC, N:M; use"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blok4", f"is unknown; {KNOWN} block4"),
        ("block:2", f"is unknown; {KNOWN} block:2x2"),
        ("0:4", f"is unknown; {KNOWN} 2:4"),
        ("", f"is unknown; {KNOWN} unstructured"),
        ("4:2", "keeps 4 of every 2 weights; expected fewer kept than M; use 2:4"),
        ("4:4", "keeps 4 of every 4 weights; expected fewer kept than M; use 2:4"),
        ("1:1", "keeps 1 of every 1 weights; expected fewer kept than M; use 1:2"),
    ],
)
def test_mask_types_that_are_refused(text, message) -> None:
    with pytest.raises(ValueError) as error:
        parse_mask_type(text)
    assert str(error.value) == f"mask_type={text} {message}"


def test_groups_that_do_not_fit_are_refused_by_name() -> None:
    four, tiles, pairs = map(parse_mask_type, ("block4", "block:3x2", "2:4"))
    with pytest.raises(ValueError) as error:
        make_layout(four, "a.weight", (8, 10))
    assert str(error.value) == (
        "mask_type=block4 does not divide the 10 input columns of a.weight, shape "
        "(8, 10); expected a multiple of 4; leave it out of params"
    )
    with pytest.raises(ValueError, match="8 output rows of a.weight"):
        make_layout(tiles, "a.weight", (8, 10))
    with pytest.raises(ValueError, match="6 input columns of a.weight"):
        make_layout(pairs, "a.weight", (6, 8), transposed=True)
    with pytest.raises(ValueError, match=r"mask_type=2:4 has no groups in a.bias"):
        make_layout(pairs, "a.bias", (8,))
    assert make_layout(blocks.UNSTRUCTURED, "a.bias", (8,)).shape == (8, 1)
    with pytest.raises(ValueError) as error:
        blocks.check_block_size(50, four)
    assert str(error.value) == (
        "fisher_block_size=50 is not a multiple of group_size=4 (mask_type: block4); "
        "use 48"
    )
    with pytest.raises(ValueError, match="use 6$"):
        blocks.check_block_size(4, tiles)


@patterns
@pytest.mark.parametrize("name", MIXED_NAMES)
def test_layout_lists_the_groups_of_the_definition(text: str, name: str) -> None:
    pattern = parse_mask_type(text)
    target = next(t for t in mixed_targets(make_mixed()) if t.name == name)
    layout = target.layout(pattern)
    flat = torch.arange(target.parameter.numel())
    assert layout.groups(flat.reshape(target.parameter.shape)).tolist() == indices_of(
        target, pattern
    )
    if name == "turned.weight":  # control: as if it were output x input
        wrong = blocks.GroupLayout(pattern, layout.shape)
        assert not torch.equal(wrong.arrange(flat), layout.arrange(flat))
    stack = torch.stack([flat, flat + 1000])  # two gradients
    assert torch.equal(layout.restore(layout.arrange(stack)), stack)
    assert torch.equal(layout.arrange(stack)[1], layout.arrange(flat) + 1000)


def test_layout_of_rows_is_the_tensor_itself() -> None:
    values = torch.rand(3, 48)
    assert make_layout(parse_mask_type("2:4"), "a", (4, 12)).arrange(values) is values


def _fisher(count: int = 44, width: int = 12):
    """Several blocks, the last one padded."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    mix = torch.randn(8, count, generator=generator, dtype=torch.float64)
    grads = parts @ mix  # correlated, so that groups differ from their members
    weights = torch.randn(count, generator=generator, dtype=torch.float64)
    kept = torch.ones(count, dtype=torch.bool)
    kept[[3, 12, 13, 14]] = False
    fisher = BlockFisher(count, width, dtype=torch.float64)
    fisher.add_(grads.clone(), kept)
    dense = reference.dense_fisher((grads * kept).numpy(), DAMP)
    return fisher, reference.block_diagonal(dense, width), weights * kept, kept


@pytest.mark.parametrize("text", ["block4", "block:2x1", "2:4", "1:4", "3:4", "1:2"])
def test_candidates_against_brute_force(text: str) -> None:
    pattern = parse_mask_type(text)
    size = pattern.group_size
    fisher, dense, weights, kept = _fisher()
    found = obs_candidates(
        weights.reshape(-1, size), kept.reshape(-1, size), fisher, DAMP, pattern
    )
    for g in range(len(weights) // size):
        group = list(range(g * size, (g + 1) * size))
        gone = [i for i in group if not kept[i]]
        alive = len(gone) < (pattern.unit if pattern.n_m else size)
        assert bool(torch.isfinite(found.costs[g])) == alive
        if not alive:
            continue
        members, price = reference.cheapest_subset(
            dense, weights.numpy(), group, gone, pattern.unit
        )
        one = torch.arange(len(found.costs)) == g
        lost = found.pruned(one, len(weights)).nonzero().flatten().tolist()
        assert lost == list(members)
        assert found.costs[g].item() == pytest.approx(price, rel=1e-8)
        singles = [
            reference.group_saliency(dense, weights.numpy(), [i]) for i in members
        ]
        if len(members) - len(gone) > 1:  # control: a group is not its members
            assert sum(singles) != pytest.approx(price, rel=1e-3)


def test_candidates_of_large_groups_go_by_single_saliencies(monkeypatch) -> None:
    pattern = parse_mask_type("2:4")
    fisher, dense, weights, kept = _fisher()
    groups = weights.reshape(-1, 4), kept.reshape(-1, 4)
    exact = obs_candidates(*groups, fisher, DAMP, pattern)
    monkeypatch.setattr("obert_modifiers.core.pruning.saliency.MAX_SUBSETS", 1)
    found = obs_candidates(*groups, fisher, DAMP, pattern)
    values = weights.numpy()
    for g in torch.isfinite(found.costs).nonzero().flatten().tolist():
        group = list(range(4 * g, 4 * g + 4))
        singles = [reference.group_saliency(dense, values, [i]) for i in group]
        ranked = sorted(range(4), key=lambda i: (bool(kept[group[i]]), singles[i]))
        assert found.members[g].nonzero().flatten().tolist() == sorted(ranked[:2])
        members = [group[i] for i in sorted(ranked[:2])]
        price = reference.group_saliency(dense, values, members)
        assert found.costs[g].item() == pytest.approx(price, rel=1e-8)
        assert exact.costs[g] <= found.costs[g] + 1e-12
    assert not torch.equal(exact.members, found.members)


def test_magnitude_candidates() -> None:
    weights = torch.tensor([[3.0, -1, 1, 0.5], [0, 0, 5, -4], [1, 1, 1, 1]])
    kept = torch.tensor([[True] * 4, [False, True, True, True], [True] * 4])
    whole = magnitude_candidates(weights, kept, parse_mask_type("block4"))
    assert whole.costs.tolist() == [5.5, 9.0, 4.0] and whole.group_size == 4
    pairs = magnitude_candidates(weights, kept, parse_mask_type("2:4"))
    assert pairs.members.int().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert pairs.costs.tolist() == [1.5, 0.0, 2.0]
    three = magnitude_candidates(weights, kept, parse_mask_type("3:4"))
    assert torch.isfinite(three.costs).tolist() == [True, False, True]


def test_counts_are_whole_groups() -> None:
    pools = selection.make_pools([40, 24], [0.33, 0.33], True, unit=4)
    assert [(p.members, p.count) for p in pools] == [((0, 1), 20)]  # 21.12 of 64
    pools = selection.make_pools([40, 24], [0.33, 0.5], False, unit=3)
    assert [p.count for p in pools] == [12, 12]


@pytest.mark.parametrize("size", [1, 4])
def test_updates_of_groups(size: int) -> None:
    fisher, dense, weights, kept = _fisher()
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
