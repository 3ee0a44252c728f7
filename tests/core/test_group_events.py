"""Pruning events with groups of weights as a whole."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import MaskPattern, parse_mask_type
from obert_modifiers.core.pruning.pruning_step import (
    magnitude_step_,
    second_order_step_,
)
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.targets import Target
from tests import reference
from tests.core.models import (
    GROUP_PATTERNS,
    indices_of,
    make_mixed,
    mixed_batches,
    mixed_losses,
    mixed_targets,
)

DAMP = 1e-2
patterns = pytest.mark.parametrize("text", GROUP_PATTERNS)


def _width(pattern: MaskPattern) -> int:
    return 24 if pattern.group_size == 12 else 20  # 20 leaves a padded block


def _ones(targets: list[Target]) -> list[torch.Tensor]:
    return [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]


def _prune(sparsity: float, text: str, masks=None, **options):
    model = make_mixed()
    targets = mixed_targets(model)
    masks = _ones(targets) if masks is None else masks
    for target, mask in zip(targets, masks, strict=True):
        target.parameter.data.mul_(mask)
    before = [t.parameter.detach().clone() for t in targets]
    pattern = parse_mask_type(text)
    global_sparsity = options.pop("global_sparsity", True)
    config = SecondOrderConfig(
        num_grads=24,
        fisher_block_size=_width(pattern),
        damp=DAMP,
        damp_fraction=None,
        pattern=pattern,
        **options,
    )
    result = second_order_step_(
        model,
        targets,
        masks,
        [sparsity] * 3,
        global_sparsity=global_sparsity,
        config=config,
        source=GradientSource(lambda request: mixed_batches(), mixed_losses),
    )
    return targets, before, result


def _oracle_keys(fisher, weights, groups, pattern, selection):
    """Cost at which each weight of one Fisher block goes; infinite if it stays."""
    keys = np.full(len(weights), np.inf)
    if selection == "greedy":
        if pattern.n_m:
            order, costs = reference.greedy_n_m_elimination(
                fisher, weights, list(range(len(weights))), pattern.n_m
            )
            sets = [[i] for i in order]
        else:
            order, costs = reference.greedy_group_elimination(fisher, weights, groups)
            sets = [groups[g] for g in order]
        priced = zip(sets, np.maximum.accumulate(costs), strict=True)
    else:
        priced = [
            reference.cheapest_subset(fisher, weights, group, [], pattern.unit)
            for group in groups
        ]
    for members, price in priced:
        keys[list(members)] = price
    return keys


@patterns
@pytest.mark.parametrize("selection", ["independent", "greedy"])
@pytest.mark.parametrize("update", ["joint", "independent"])
def test_whole_event_against_the_oracle(text, selection, update) -> None:
    pattern = parse_mask_type(text)
    sparsity = 0.4
    targets, before, result = _prune(sparsity, text, selection=selection, update=update)
    fresh, keys, price = make_mixed().eval(), [], 0.0
    rows = [loss for batch in mixed_batches() for loss in mixed_losses(fresh, batch)]
    for target, old, mask in zip(targets, before, result.masks, strict=True):
        grads = torch.stack([
            torch.autograd.grad(
                loss, fresh.get_parameter(target.name), retain_graph=True
            )[0].reshape(-1)
            for loss in rows
        ]).numpy()
        order = np.concatenate(indices_of(target, pattern))
        found = np.empty(len(order))
        ours = target.parameter.detach().reshape(-1).numpy()
        for start in range(0, len(order), _width(pattern)):
            part = order[start : start + _width(pattern)]
            values = old.reshape(-1).numpy()[part]
            fisher = reference.dense_fisher(grads[:, part], DAMP)
            size = pattern.group_size
            groups = np.arange(len(part)).reshape(-1, size).tolist()
            found[part] = _oracle_keys(fisher, values, groups, pattern, selection)
            gone = np.flatnonzero(~mask.reshape(-1).numpy()[part]).tolist()
            sets = [[i for i in gone if i // size == g] for g in range(len(groups))]
            if update == "joint":
                expected, cost = reference.best_update(fisher, values, gone)
            else:
                expected = reference.group_updates_added(fisher, values, sets)
                cost = sum(reference.group_saliency(fisher, values, s) for s in sets)
            price += cost
            np.testing.assert_allclose(ours[part], expected, atol=1e-9)
        keys.append(found)
    values = np.concatenate(keys)
    pruned = np.concatenate([(~m).reshape(-1).numpy() for m in result.masks])
    assert pruned.sum() == round(0.4 * 192 / pattern.unit) * pattern.unit
    assert values[pruned].max() <= values[~pruned].min() + 1e-12
    assert result.predicted_loss_increase == pytest.approx(price, rel=1e-7, abs=1e-12)


def _check_structure(targets, masks, pattern: MaskPattern, final: bool) -> None:
    for target, mask in zip(targets, masks, strict=True):
        assert (target.parameter[~mask] == 0).all()
        flat = mask.reshape(-1).numpy()
        kept = np.array([flat[group].sum() for group in indices_of(target, pattern)])
        if pattern.n_m is None:
            assert set(kept) <= {0, pattern.group_size}
        elif final:
            assert set(kept) == {pattern.n_m[0]}
        else:
            assert kept.min() >= pattern.n_m[0]


@patterns
@pytest.mark.parametrize("selection", ["independent", "greedy", "magnitude"])
def test_gradual_masks_nest_and_end_in_the_pattern(text, selection) -> None:
    pattern = parse_mask_type(text)
    masks = None
    for sparsity in (0.0, 0.2, 0.37, pattern.limit):
        if selection == "magnitude":
            targets = mixed_targets(make_mixed())
            start = _ones(targets) if masks is None else masks
            result = magnitude_step_(
                targets, start, [sparsity] * 3, global_sparsity=True, pattern=pattern
            )
        else:
            targets, _, result = _prune(sparsity, text, masks, selection=selection)
        _check_structure(targets, result.masks, pattern, sparsity == pattern.limit)
        total = sum(int((~m).sum()) for m in result.masks)
        assert total == round(sparsity * 192 / pattern.unit) * pattern.unit
        for old, new in zip(masks or [], result.masks, strict=False):
            assert not (new & ~old).any()
        masks = result.masks


@pytest.mark.parametrize("selection", ["independent", "greedy"])
def test_groups_that_lost_too_much_before_do_not_spare_others(selection) -> None:
    targets = mixed_targets(make_mixed())
    masks = _ones(targets)
    masks[0][0] = False  # all of three groups
    targets, _, result = _prune(0.5, "2:4", masks, selection=selection)
    for target, mask in zip(targets, result.masks, strict=True):
        flat = mask.reshape(-1).numpy()
        for group in indices_of(target, parse_mask_type("2:4")):
            assert flat[group].sum() <= 2


@pytest.mark.parametrize("text", ["block4", "block:2x2", "2:4"])
def test_magnitude_refuses_weights_that_are_not_numbers(text: str) -> None:
    targets = mixed_targets(make_mixed())
    with torch.no_grad():
        targets[0].parameter[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="saliency has NaN"):
        magnitude_step_(
            targets,
            _ones(targets),
            [0.5] * 3,
            global_sparsity=True,
            pattern=parse_mask_type(text),
        )


def test_uniform_sparsity_and_recomputations_in_groups() -> None:
    options = {"num_recomputations": 3, "global_sparsity": False}
    targets, _, result = _prune(0.55, "block:2x2", **options)
    assert [int((~m).sum()) for m in result.masks] == [28, 52, 28]
    assert result.gradients.used == 72
    _check_structure(targets, result.masks, parse_mask_type("block:2x2"), True)


def test_repeats_bit_for_bit() -> None:
    first, second = (_prune(0.4, "2:4")[0] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.parameter, b.parameter)


def test_refusals_leave_everything_as_it_was() -> None:
    model = make_mixed()
    targets = mixed_targets(model)
    before = [t.parameter.detach().clone() for t in targets]
    for text, width, message in (
        ("block:8x4", 32, "4 output rows of linear.weight"),
        ("block4", 50, "fisher_block_size=50 is not a multiple of group_size=4"),
    ):
        config = SecondOrderConfig(
            fisher_block_size=width, pattern=parse_mask_type(text)
        )
        with pytest.raises(ValueError, match=message):
            second_order_step_(
                model,
                targets,
                _ones(targets),
                [0.5] * 3,
                global_sparsity=True,
                config=config,
                source=GradientSource(lambda request: mixed_batches(), mixed_losses),
            )
    for target, old in zip(targets, before, strict=True):
        assert torch.equal(target.parameter, old)
