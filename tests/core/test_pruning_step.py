"""One pruning event as a whole."""

import numpy as np
import pytest
import torch

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.pruning_step import (
    magnitude_step_,
    second_order_step_,
)
from tests import reference
from tests.core.models import (
    make_batches,
    make_model,
    make_source,
    sample_gradients,
    targets_of,
)

NAMES = ("first.weight", "shared.weight")
WIDTH, DAMP = 12, 1e-2


def _prune(sparsity=0.5, masks=None, seed=0, batches=None, **options):
    model = make_model(seed)
    batches = make_batches() if batches is None else batches
    targets = targets_of(model, *NAMES)
    if masks is None:
        masks = [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]
    for target, mask in zip(targets, masks, strict=True):
        target.parameter.data.mul_(mask)
    before = [t.parameter.detach().clone() for t in targets]
    global_sparsity = options.pop("global_sparsity", True)
    settings = {"damp": DAMP, "damp_fraction": None, **options}
    config = SecondOrderConfig(num_grads=12, fisher_block_size=WIDTH, **settings)
    result = second_order_step_(
        model,
        targets,
        masks,
        [sparsity] * 2,
        global_sparsity=global_sparsity,
        config=config,
        source=make_source(batches),
    )
    return model, targets, before, result


def _blocks(parameter, mask):
    """Weights, gradients and mask of each Fisher block, by the definition."""
    weights = parameter.reshape(-1).numpy()
    for start in range(0, len(weights), WIDTH):
        part = slice(start, min(start + WIDTH, len(weights)))
        yield part, weights[part], mask.reshape(-1).numpy()[part]


@pytest.mark.parametrize("selection", ["independent", "greedy"])
@pytest.mark.parametrize("update", ["joint", "independent"])
def test_whole_event_against_the_oracle(selection: str, update: str) -> None:
    model, targets, before, result = _prune(selection=selection, update=update)
    fresh = make_model()
    saliencies, price = [], 0.0
    for target, old, mask in zip(targets, before, result.masks, strict=True):
        grads = sample_gradients(
            fresh, make_batches(), fresh.get_parameter(target.name)
        ).numpy()
        ours = target.parameter.detach().reshape(-1).numpy()
        for part, weights, kept in _blocks(old, mask):
            fisher = reference.dense_fisher(grads[:, part], DAMP)
            gone = np.flatnonzero(~kept).tolist()
            if selection == "independent":
                saliencies.append([
                    reference.group_saliency(fisher, weights, [j])
                    for j in range(len(weights))
                ])
            else:
                order, costs = reference.greedy_elimination(
                    fisher, weights, list(range(len(weights)))
                )
                assert sorted(order[: len(gone)]) == gone  # a prefix of the order
                keys = np.maximum.accumulate(costs)
                by_index = np.empty(len(order))
                by_index[order] = keys
                saliencies.append(by_index)
            if update == "joint":
                expected, cost = reference.best_update(fisher, weights, gone)
            else:
                expected = reference.single_updates_added(fisher, weights, gone)
                cost = sum(reference.group_saliency(fisher, weights, [j]) for j in gone)
            price += cost
            np.testing.assert_allclose(ours[part], expected, atol=1e-9)
    values = np.concatenate(saliencies)
    pruned = np.concatenate([(~m).reshape(-1).numpy() for m in result.masks])
    assert pruned.sum() == 80  # half of 60 + 100
    assert values[pruned].max() <= values[~pruned].min() + 1e-12
    assert result.predicted_loss_increase == pytest.approx(price, rel=1e-7)
    assert result.gradients.used == 12


def test_pruned_weights_are_exactly_zero_and_masks_nest() -> None:
    masks = None
    for sparsity in (0.0, 0.3, 0.6, 0.9, 1.0):
        _, targets, _, result = _prune(sparsity, masks)
        for target, mask in zip(targets, result.masks, strict=True):
            assert (target.parameter[~mask] == 0).all()
        if masks is not None:
            for old, new in zip(masks, result.masks, strict=True):
                assert not (new & ~old).any()
        masks = result.masks
        total = sum(int((~m).sum()) for m in masks)
        assert total == round(sparsity * 160)


def test_uniform_sparsity_hits_each_parameter() -> None:
    _, _, _, result = _prune(0.7, global_sparsity=False)
    assert [int((~m).sum()) for m in result.masks] == [42, 70]


def test_recomputations_reach_the_same_count_with_more_gradients() -> None:
    _, _, _, result = _prune(0.6, num_recomputations=3)
    assert sum(int((~m).sum()) for m in result.masks) == 96
    assert result.gradients.used == 36


def test_weights_pruned_earlier_do_not_move() -> None:
    torch.manual_seed(3)
    masks = [torch.rand(10, 6) > 0.5, torch.rand(10, 10) > 0.5]
    _, targets, _, result = _prune(0.7, masks)
    for target, old, new in zip(targets, masks, result.masks, strict=True):
        assert not (new & ~old).any()
        assert (target.parameter[~old] == 0).all()


def test_one_bad_gradient_is_left_out() -> None:
    batches = make_batches()
    batches[0][0][1] = float("inf")
    _, _, _, result = _prune(0.5, batches=batches)
    assert (result.gradients.used, result.gradients.skipped) == (11, 1)


def test_many_bad_gradients_leave_everything_as_it_was() -> None:
    batches = make_batches()
    for x, _ in batches:
        x[:1] = float("nan")
    model = make_model()
    targets = targets_of(model, *NAMES)
    before = [t.parameter.detach().clone() for t in targets]
    masks = [torch.ones_like(b, dtype=torch.bool) for b in before]
    with pytest.raises(FloatingPointError, match="3 of 12 sampled gradients are not"):
        second_order_step_(
            model,
            targets,
            masks,
            [0.5, 0.5],
            global_sparsity=True,
            config=SecondOrderConfig(num_grads=12, fisher_block_size=WIDTH),
            source=make_source(batches),
        )
    for target, old in zip(targets, before, strict=True):
        assert torch.equal(target.parameter, old)
    assert all(mask.all() for mask in masks)


def test_failure_in_a_later_recomputation_rolls_back() -> None:
    model = make_model()
    targets = targets_of(model, *NAMES)
    before = [t.parameter.detach().clone() for t in targets]
    source = make_source(make_batches())
    calls = []

    def batches(request):
        calls.append(request.draw)
        if len(calls) == 2:
            raise OSError("planted")
        return make_batches()

    source = type(source)(batches, source.loss)
    with pytest.raises(OSError, match="planted"):
        second_order_step_(
            model,
            targets,
            [torch.ones_like(b, dtype=torch.bool) for b in before],
            [0.5, 0.5],
            global_sparsity=True,
            config=SecondOrderConfig(
                num_grads=12, fisher_block_size=WIDTH, num_recomputations=2
            ),
            source=source,
        )
    assert calls == [0, 1]
    for target, old in zip(targets, before, strict=True):
        assert torch.equal(target.parameter, old)


def test_repeats_bit_for_bit() -> None:
    first = _prune(0.5)
    second = _prune(0.5)
    for a, b in zip(first[1], second[1], strict=True):
        assert torch.equal(a.parameter, b.parameter)


@pytest.mark.parametrize("global_sparsity", [True, False])
def test_magnitude_step(global_sparsity: bool) -> None:
    model = make_model()
    targets = targets_of(model, *NAMES)
    before = [t.parameter.detach().clone().reshape(-1) for t in targets]
    masks = [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]
    result = magnitude_step_(
        targets, masks, [0.5, 0.5], global_sparsity=global_sparsity
    )
    assert result.predicted_loss_increase is None
    values = [b.abs().numpy() for b in before]
    if global_sparsity:
        joined = np.concatenate(values)
        gone = reference.lowest(joined, np.ones(len(joined), bool), 80)
    else:
        gone = np.concatenate([
            reference.lowest(v, np.ones(len(v), bool), len(v) // 2) for v in values
        ])
    ours = np.concatenate([(~m).reshape(-1).numpy() for m in result.masks])
    assert (ours == gone).all()
    for target, old, mask in zip(targets, before, result.masks, strict=True):
        expected = torch.where(mask.reshape(-1), old, 0.0)
        assert torch.equal(target.parameter.detach().reshape(-1), expected)
