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
from tests.core import models

SINGLE, DAMP = "unstructured", 1e-2
patterns = pytest.mark.parametrize("text", (SINGLE, *models.GROUP_PATTERNS))


def _problem(text: str):
    """Model, targets, batches, losses: an encoder, or layers that all groups divide."""
    if text == SINGLE:
        model = models.make_model()
        targets = models.targets_of(model, *models.NAMES)
        return model, targets, models.make_batches(), models.losses
    model = models.make_mixed()
    targets = models.mixed_targets(model)
    return model, targets, models.mixed_batches(), models.mixed_losses


def _width(pattern: MaskPattern) -> int:
    if pattern.group_size == 1:
        return 12
    return 24 if pattern.group_size == 12 else 20  # 12 and 20 leave a padded block


def _prune(sparsity=0.5, text=SINGLE, masks=None, global_sparsity=True, **options):
    model, targets, batches, loss = _problem(text)
    pattern = parse_mask_type(text)
    defaults = {
        "damp": DAMP,
        "damp_fraction": None,
        "fisher_block_size": _width(pattern),
        "num_grads": 12 if text == SINGLE else 24,
    }
    result, _ = models.prune(
        SecondOrderConfig(pattern=pattern, **defaults | options),
        models.make_source(batches, loss),
        model=model,
        targets=targets,
        sparsity=sparsity,
        masks=masks,
        global_sparsity=global_sparsity,
    )
    return targets, result


def _oracle_order(fisher, weights, groups, pattern, selection):
    """What goes from one Fisher block, in its order, and the saliency of each."""
    everything = list(range(len(weights)))
    if selection == "greedy":
        if pattern.group_size > 1 and not pattern.n_m:
            order, found = reference.greedy_group_elimination(fisher, weights, groups)
            sets = [groups[g] for g in order]
        else:
            rule, more = reference.greedy_elimination, ()
            if pattern.n_m:
                rule, more = reference.greedy_n_m_elimination, (pattern.n_m,)
            order, found = rule(fisher, weights, everything, *more)
            sets = [[i] for i in order]
        return list(zip(sets, np.maximum.accumulate(found), strict=True))
    if pattern.n_m is None:
        return [(g, reference.group_saliency(fisher, weights, g)) for g in groups]
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
    targets, result = _prune(sparsity, text, selection=selection, update=update)
    fresh, _, batches, loss = _problem(text)
    keys, increase = [], 0.0
    for target, mask in zip(targets, result.masks, strict=True):
        parameter = fresh.get_parameter(target.name)
        old = parameter.detach().reshape(-1).numpy()
        grads = models.sample_gradients(fresh, batches, parameter, loss).numpy()
        order = np.concatenate(models.indices_of(target, pattern))
        saliency = np.full(len(order), np.inf)
        ours = target.parameter.detach().reshape(-1).numpy()
        for start in range(0, len(order), width):
            part = order[start : start + width]
            fisher = reference.dense_fisher(grads[:, part], DAMP)
            size = pattern.group_size
            groups = np.arange(len(part)).reshape(-1, size).tolist()
            gone = np.flatnonzero(~mask.reshape(-1).numpy()[part]).tolist()
            ranked = _oracle_order(fisher, old[part], groups, pattern, selection)
            for members, value in ranked:
                saliency[start + np.array(members)] = value
            if selection == "greedy":  # a prefix of the order
                flat = [i for members, _ in ranked for i in members]
                assert sorted(flat[: len(gone)]) == gone
            sets = [[i for i in gone if i // size == g] for g in range(len(groups))]
            if update == "joint":
                expected, added = reference.best_update(fisher, old[part], gone)
            else:
                expected = reference.group_updates_added(fisher, old[part], sets)
                added = sum(
                    reference.group_saliency(fisher, old[part], s) for s in sets
                )
            increase += added
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


def _gone(masks) -> int:
    return sum(int((~mask).sum()) for mask in masks)


def _check_structure(targets, masks, pattern: MaskPattern, final: bool) -> None:
    for target, mask in zip(targets, masks, strict=True):
        assert (target.parameter[~mask] == 0).all()
        flat, groups = mask.reshape(-1).numpy(), models.indices_of(target, pattern)
        kept = np.array([flat[group].sum() for group in groups])
        if pattern.n_m is None:
            assert set(kept) <= {0, pattern.group_size}
        elif final:
            assert set(kept) == {pattern.n_m[0]}
        else:
            assert kept.min() >= pattern.n_m[0]


def _magnitude(text: str, sparsity: float, masks=None, targets=None, uniform=False):
    targets = targets or _problem(text)[1]
    return targets, magnitude_step_(
        targets,
        masks or models.all_kept(targets),
        [sparsity] * len(targets),
        global_sparsity=not uniform,
        pattern=parse_mask_type(text),
    )


@patterns
@pytest.mark.parametrize("selection", ["independent", "greedy", "magnitude"])
def test_gradual_masks_nest_and_end_in_the_pattern(text, selection) -> None:
    pattern, masks = parse_mask_type(text), None
    for sparsity in (0.0, 0.2, 0.37, 0.9 * pattern.limit, pattern.limit):
        if selection == "magnitude":
            targets, result = _magnitude(text, sparsity, masks)
        else:
            targets, result = _prune(sparsity, text, masks, selection=selection)
        _check_structure(targets, result.masks, pattern, sparsity == pattern.limit)
        numel = sum(m.numel() for m in result.masks)
        assert _gone(result.masks) == _count(sparsity, numel, pattern)
        for old, new in zip(masks or [], result.masks, strict=False):
            assert not (new & ~old).any()
        masks = result.masks


TILES = "block:2x2"


@pytest.mark.parametrize(
    ("sparsity", "text", "recomputed", "global_sparsity", "counts", "gradients"),
    [
        (0.7, SINGLE, 1, False, [42, 70], 12),
        (0.6, SINGLE, 3, True, 96, 36),
        (0.55, TILES, 3, False, [28, 52, 28], 72),
    ],
)
def test_uniform_sparsity_and_recomputations_hit_their_counts(
    sparsity, text, recomputed, global_sparsity, counts, gradients
) -> None:
    options = {"num_recomputations": recomputed, "global_sparsity": global_sparsity}
    targets, result = _prune(sparsity, text, **options)
    pruned = [int((~m).sum()) for m in result.masks]
    assert counts == (pruned if isinstance(counts, list) else sum(pruned))
    assert result.gradients.used == gradients
    _check_structure(targets, result.masks, parse_mask_type(text), True)


def test_weights_pruned_earlier_do_not_move() -> None:
    torch.manual_seed(3)
    masks = [torch.rand(10, 6) > 0.5, torch.rand(10, 10) > 0.5]
    targets, result = _prune(0.7, masks=masks)
    for target, old, new in zip(targets, masks, result.masks, strict=True):
        assert not (new & ~old).any()
        assert (target.parameter[~old] == 0).all()


@pytest.mark.parametrize("selection", ["independent", "greedy"])
def test_groups_that_lost_too_much_before_do_not_spare_others(selection) -> None:
    masks = models.all_kept(models.mixed_targets(models.make_mixed()))
    masks[0][0] = False  # all of three groups
    targets, result = _prune(0.5, "2:4", masks, selection=selection)
    for target, mask in zip(targets, result.masks, strict=True):
        flat = mask.reshape(-1).numpy()
        for group in models.indices_of(target, parse_mask_type("2:4")):
            assert flat[group].sum() <= 2


@pytest.mark.parametrize("text", ["block4", TILES, "2:4"])
def test_magnitude_refuses_weights_that_are_not_numbers(text: str) -> None:
    targets = models.mixed_targets(models.make_mixed())
    with torch.no_grad():
        targets[0].parameter[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="saliency has NaN"):
        _magnitude(text, 0.5, targets=targets)


@pytest.mark.parametrize("text", [SINGLE, "2:4"])
def test_repeats_bit_for_bit(text: str) -> None:
    first, second = (models.weights_of(_prune(0.4, text)[0]) for _ in range(2))
    assert models.equal(first, second)


def test_one_bad_gradient_is_left_out() -> None:
    batches = models.make_batches()
    batches[0][0][1] = float("inf")
    result, _ = models.prune(models.make_config(), models.make_source(batches))
    assert (result.gradients.used, result.gradients.skipped) == (11, 1)


def _refused(problem, config, source, message, error=ValueError) -> None:
    model, targets, batches, loss = problem
    source = source or models.make_source(batches, loss)
    masks = models.all_kept(targets)
    with models.unchanged(targets), pytest.raises(error, match=message):
        models.prune(config, source, model=model, targets=targets, masks=masks)
    assert all(mask.all() for mask in masks)


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
    config = SecondOrderConfig(fisher_block_size=width, pattern=parse_mask_type(text))
    _refused(_problem(text), config, None, message)


def test_many_bad_gradients_leave_everything_as_it_was() -> None:
    problem = _problem(SINGLE)
    for x, _ in problem[2]:
        x[:1] = float("nan")
    message = "3 of 12 sampled gradients are not"
    _refused(problem, models.make_config(), None, message, FloatingPointError)


def test_the_last_goal_is_the_target_to_the_last_bit() -> None:
    """Or parameters with one target would be several pools."""
    assert 0.06 + (0.9 - 0.06) != 0.9
    found = []
    for reached in (None, [0.06, 0.5]):
        model = models.make_model()
        targets = models.targets_of(model, *models.NAMES)
        result = second_order_step_(
            model,
            targets,
            models.all_kept(targets),
            [0.9] * len(targets),
            global_sparsity=True,
            config=models.make_config(),
            source=models.make_source(models.make_batches()),
            reached=reached,
        )
        found.append(result.masks)
    assert models.equal(*found)


def test_failure_in_a_later_recomputation_rolls_back() -> None:
    calls = []

    def batches(request):
        calls.append(request.draw)
        if len(calls) == 2:
            raise OSError("planted")
        return models.make_batches()

    config = models.make_config(num_recomputations=2)
    source = GradientSource(batches, models.losses)
    _refused(_problem(SINGLE), config, source, "planted", OSError)
    assert calls == [0, 1]


@pytest.mark.parametrize("uniform", [False, True])
def test_magnitude_step(uniform: bool) -> None:
    before = [old.reshape(-1) for old in models.weights_of(_problem(SINGLE)[1])]
    targets, result = _magnitude(SINGLE, 0.5, uniform=uniform)
    assert result.predicted_loss_increase is None
    values = [old.abs().numpy() for old in before]
    values = values if uniform else [np.concatenate(values)]
    gone = [reference.lowest(v, np.ones(len(v), bool), len(v) // 2) for v in values]
    ours = np.concatenate([(~m).reshape(-1).numpy() for m in result.masks])
    assert (ours == np.concatenate(gone)).all()
    for target, old, mask in zip(targets, before, result.masks, strict=True):
        expected = torch.where(mask.reshape(-1), old, 0.0)
        assert torch.equal(target.parameter.detach().reshape(-1), expected)
