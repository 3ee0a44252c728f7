"""One pruning event as a whole, for single weights and for groups."""

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
from tests import reference
from tests.core.models import (
    GROUP_PATTERNS,
    all_kept,
    indices_of,
    losses,
    make_batches,
    make_mixed,
    make_model,
    make_source,
    mixed_batches,
    mixed_losses,
    mixed_targets,
    sample_gradients,
    targets_of,
    unchanged,
)

NAMES = ("first.weight", "shared.weight")
SINGLE, DAMP = "unstructured", 1e-2
patterns = pytest.mark.parametrize("text", (SINGLE, *GROUP_PATTERNS))


def _problem(text: str):
    """Model, targets, batches, losses: an encoder, or layers that all groups divide."""
    if text == SINGLE:
        model = make_model()
        return model, targets_of(model, *NAMES), make_batches(), losses
    model = make_mixed()
    return model, mixed_targets(model), mixed_batches(), mixed_losses


def _width(pattern: MaskPattern) -> int:
    if pattern.group_size == 1:
        return 12
    return 24 if pattern.group_size == 12 else 20  # 12 and 20 leave a padded block


def _prune(sparsity=0.5, text=SINGLE, masks=None, batches=None, **options):
    model, targets, given, loss = _problem(text)
    masks = all_kept(targets) if masks is None else masks
    for target, mask in zip(targets, masks, strict=True):
        target.parameter.data.mul_(mask)
    before = [t.parameter.detach().clone() for t in targets]
    pattern = parse_mask_type(text)
    config = {"damp": DAMP, "damp_fraction": None, "fisher_block_size": _width(pattern)}
    global_sparsity = options.pop("global_sparsity", True)
    result = second_order_step_(
        model,
        targets,
        masks,
        [sparsity] * len(targets),
        global_sparsity=global_sparsity,
        config=SecondOrderConfig(
            num_grads=12 if text == SINGLE else 24, pattern=pattern, **config | options
        ),
        source=GradientSource(lambda request: batches or given, loss),
    )
    return targets, before, result


def _oracle_order(fisher, weights, groups, pattern, selection):
    """What goes from one Fisher block, in its order, and the saliency of each."""
    everything = list(range(len(weights)))
    if selection == "greedy":
        if pattern.group_size == 1:
            order, found = reference.greedy_elimination(fisher, weights, everything)
            sets = [[i] for i in order]
        elif pattern.n_m:
            order, found = reference.greedy_n_m_elimination(
                fisher, weights, everything, pattern.n_m
            )
            sets = [[i] for i in order]
        else:
            order, found = reference.greedy_group_elimination(fisher, weights, groups)
            sets = [groups[g] for g in order]
        return list(zip(sets, np.maximum.accumulate(found), strict=True))
    if pattern.n_m is None:
        saliency = [reference.group_saliency(fisher, weights, g) for g in groups]
        return list(zip(groups, saliency, strict=True))
    return [
        reference.cheapest_subset(fisher, weights, group, [], pattern.unit)
        for group in groups
    ]


@patterns
@pytest.mark.parametrize("selection", ["independent", "greedy"])
@pytest.mark.parametrize("update", ["joint", "independent"])
def test_whole_event_against_the_oracle(text, selection, update) -> None:
    pattern, width = parse_mask_type(text), _width(parse_mask_type(text))
    sparsity = 0.5 if text == SINGLE else 0.4
    targets, before, result = _prune(sparsity, text, selection=selection, update=update)
    fresh, _, batches, loss = _problem(text)
    keys, increase = [], 0.0
    for target, old, mask in zip(targets, before, result.masks, strict=True):
        parameter = fresh.get_parameter(target.name)
        grads = sample_gradients(fresh, batches, parameter, loss).numpy()
        order = np.concatenate(indices_of(target, pattern))
        saliency = np.full(len(order), np.inf)
        ours = target.parameter.detach().reshape(-1).numpy()
        for start in range(0, len(order), width):
            part = order[start : start + width]
            weights = old.reshape(-1).numpy()[part]
            fisher = reference.dense_fisher(grads[:, part], DAMP)
            size = pattern.group_size
            groups = np.arange(len(part)).reshape(-1, size).tolist()
            gone = np.flatnonzero(~mask.reshape(-1).numpy()[part]).tolist()
            ranked = _oracle_order(fisher, weights, groups, pattern, selection)
            for members, value in ranked:
                saliency[start + np.array(members)] = value
            if selection == "greedy":  # a prefix of the order
                flat = [i for members, _ in ranked for i in members]
                assert sorted(flat[: len(gone)]) == gone
            sets = [[i for i in gone if i // size == g] for g in range(len(groups))]
            if update == "joint":
                expected, cost = reference.best_update(fisher, weights, gone)
            else:
                expected = reference.group_updates_added(fisher, weights, sets)
                cost = sum(reference.group_saliency(fisher, weights, s) for s in sets)
            increase += cost
            np.testing.assert_allclose(ours[part], expected, atol=1e-9)
        keys.append((saliency, ~mask.reshape(-1).numpy()[order]))
    values, pruned = map(np.concatenate, zip(*keys, strict=True))
    assert pruned.sum() == _count(sparsity, len(pruned), pattern)
    assert values[pruned].max() <= values[~pruned].min() + 1e-12
    assert result.predicted_loss_increase == pytest.approx(
        increase, rel=1e-7, abs=1e-12
    )
    assert result.gradients.used == (12 if text == SINGLE else 24)


def _count(sparsity: float, numel: int, pattern: MaskPattern) -> int:
    return round(sparsity * numel / pattern.unit) * pattern.unit


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
    for sparsity in (0.0, 0.2, 0.37, 0.9 * pattern.limit, pattern.limit):
        if selection == "magnitude":
            targets = _problem(text)[1]
            result = magnitude_step_(
                targets,
                masks or all_kept(targets),
                [sparsity] * len(targets),
                global_sparsity=True,
                pattern=pattern,
            )
        else:
            targets, _, result = _prune(sparsity, text, masks, selection=selection)
        _check_structure(targets, result.masks, pattern, sparsity == pattern.limit)
        total = sum(int((~m).sum()) for m in result.masks)
        numel = sum(m.numel() for m in result.masks)
        assert total == _count(sparsity, numel, pattern)
        for old, new in zip(masks or [], result.masks, strict=False):
            assert not (new & ~old).any()
        masks = result.masks


@pytest.mark.parametrize(
    ("sparsity", "text", "options", "counts", "gradients"),
    [
        (0.7, SINGLE, {"global_sparsity": False}, [42, 70], 12),
        (0.6, SINGLE, {"num_recomputations": 3}, 96, 36),
        (
            0.55,
            "block:2x2",
            {"num_recomputations": 3, "global_sparsity": False},
            [28, 52, 28],
            72,
        ),
    ],
)
def test_uniform_sparsity_and_recomputations_hit_their_counts(
    sparsity, text, options, counts, gradients
) -> None:
    targets, _, result = _prune(sparsity, text, **options)
    pruned = [int((~m).sum()) for m in result.masks]
    assert counts == (pruned if isinstance(counts, list) else sum(pruned))
    assert result.gradients.used == gradients
    _check_structure(targets, result.masks, parse_mask_type(text), True)


def test_weights_pruned_earlier_do_not_move() -> None:
    torch.manual_seed(3)
    masks = [torch.rand(10, 6) > 0.5, torch.rand(10, 10) > 0.5]
    targets, _, result = _prune(0.7, masks=masks)
    for target, old, new in zip(targets, masks, result.masks, strict=True):
        assert not (new & ~old).any()
        assert (target.parameter[~old] == 0).all()


@pytest.mark.parametrize("selection", ["independent", "greedy"])
def test_groups_that_lost_too_much_before_do_not_spare_others(selection) -> None:
    targets = mixed_targets(make_mixed())
    masks = all_kept(targets)
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
            all_kept(targets),
            [0.5] * 3,
            global_sparsity=True,
            pattern=parse_mask_type(text),
        )


@pytest.mark.parametrize("text", [SINGLE, "2:4"])
def test_repeats_bit_for_bit(text: str) -> None:
    first, second = (_prune(0.4, text)[0] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.parameter, b.parameter)


def test_one_bad_gradient_is_left_out() -> None:
    batches = make_batches()
    batches[0][0][1] = float("inf")
    _, _, result = _prune(batches=batches)
    assert (result.gradients.used, result.gradients.skipped) == (11, 1)


@pytest.mark.parametrize(
    ("text", "width", "message"),
    [
        ("block:8x4", 32, "4 output rows of linear.weight"),
        ("block4", 50, "fisher_block_size=50 is not a multiple of group_size=4"),
    ],
)
def test_groups_that_do_not_fit_leave_everything_as_it_was(
    text, width, message
) -> None:
    model, targets, batches, loss = _problem(text)
    config = SecondOrderConfig(fisher_block_size=width, pattern=parse_mask_type(text))
    _refused(model, targets, config, GradientSource(lambda r: batches, loss), message)


def _refused(model, targets, config, source, message, error=ValueError) -> None:
    masks = all_kept(targets)
    with unchanged(targets), pytest.raises(error, match=message):
        second_order_step_(
            model,
            targets,
            masks,
            [0.5] * len(targets),
            global_sparsity=True,
            config=config,
            source=source,
        )
    assert all(mask.all() for mask in masks)


def test_many_bad_gradients_leave_everything_as_it_was() -> None:
    model, targets, batches, _ = _problem(SINGLE)
    for x, _ in batches:
        x[:1] = float("nan")
    config = SecondOrderConfig(num_grads=12, fisher_block_size=12)
    message = "3 of 12 sampled gradients are not"
    _refused(model, targets, config, make_source(batches), message, FloatingPointError)


def test_failure_in_a_later_recomputation_rolls_back() -> None:
    model, targets, _, _ = _problem(SINGLE)
    calls = []

    def batches(request):
        calls.append(request.draw)
        if len(calls) == 2:
            raise OSError("planted")
        return make_batches()

    config = SecondOrderConfig(num_grads=12, fisher_block_size=12, num_recomputations=2)
    source = GradientSource(batches, losses)
    _refused(model, targets, config, source, "planted", OSError)
    assert calls == [0, 1]


@pytest.mark.parametrize("global_sparsity", [True, False])
def test_magnitude_step(global_sparsity: bool) -> None:
    model = make_model()
    targets = targets_of(model, *NAMES)
    before = [t.parameter.detach().clone().reshape(-1) for t in targets]
    result = magnitude_step_(
        targets, all_kept(targets), [0.5, 0.5], global_sparsity=global_sparsity
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
