"""Events under every plan, with the mean gradient, and with a chosen dampening."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from obert_modifiers.core.distributed import sharding
from obert_modifiers.core.distributed.sharding import plan_event
from obert_modifiers.core.options import DAMP_GRID, SecondOrderConfig
from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning import collect
from obert_modifiers.core.pruning import event as event_module
from obert_modifiers.core.pruning.event import PruningEvent, plan_targets
from obert_modifiers.core.pruning.gradients import (
    sum_losses,
)
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.selection import make_pools
from obert_modifiers.core.pruning.targets import write_parameters_
from tests import reference
from tests.core.models import (
    all_kept,
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
)

NAMES = ("first.weight", "shared.weight")
WIDTH = 12


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tiny models into many pieces, and add gradients in many portions."""
    monkeypatch.setattr(sharding, "PIECE_WEIGHTS", 24)
    monkeypatch.setattr(sharding, "HELD_BYTES", 1)
    monkeypatch.setattr(collect, "FOLD_SAMPLES", 3)


def _config(**keys) -> SecondOrderConfig:
    settings = {"num_grads": 12, "fisher_block_size": WIDTH, **keys}
    return SecondOrderConfig(**settings)


def _step(config, sparsity=0.5, masks=None, source=None, seed=0, weights=None):
    model = make_model(seed, torch.float32)
    targets = targets_of(model, *NAMES)
    if weights is not None:
        for target, values in zip(targets, weights, strict=True):
            target.parameter.data.copy_(values)
    if masks is None:
        masks = all_kept(targets)
    for target, mask in zip(targets, masks, strict=True):
        target.parameter.data.mul_(mask)
    result = second_order_step_(
        model,
        targets,
        masks,
        [sparsity] * len(targets),
        global_sparsity=True,
        config=config,
        source=source or make_source(make_batches()),
    )
    return result, [t.parameter.detach().clone() for t in targets]


@pytest.mark.parametrize("damp", [None, 1e-3])
@pytest.mark.parametrize("selection", ["greedy", "independent"])
@pytest.mark.parametrize("update", ["joint", "independent"])
def test_turns_change_no_bit(small_pieces, selection, update, damp) -> None:
    fraction = None if damp else 0.01
    config = _config(
        selection=selection, update=update, damp=damp, damp_fraction=fraction
    )
    model = make_model(0, torch.float32)
    free = plan_targets(targets_of(model, *NAMES), config)
    assert free.turns == 1 and len(free.pieces) == 5
    one, whole = _step(config)
    budget = free.working_bytes + free.state_bytes * 2 // 5
    result, cut = _step(replace(config, memory_budget=budget))
    assert result.plan.turns >= 3 and result.plan.keeps == "nothing"
    assert result.gradients == one.gradients
    assert result.damp == one.damp
    assert result.predicted_loss_increase == one.predicted_loss_increase
    for a, b in zip(whole + one.masks, cut + result.masks, strict=True):
        assert torch.equal(a, b)


def test_samples_of_all_turns_are_the_same(small_pieces) -> None:
    drawn = []

    def draw(request):  # other samples each time it is asked
        drawn.append(request.draw)
        return make_batches(seed=len(drawn))

    source = GradientSource(draw, losses)
    config = _config()
    free = plan_targets(targets_of(make_model(), *NAMES), config)
    _, whole = _step(config, source=GradientSource(lambda r: make_batches(), losses))
    budget = free.working_bytes + free.state_bytes * 2 // 5
    _, cut = _step(replace(config, memory_budget=budget), source=source)
    assert drawn == [0]
    for a, b in zip(whole, cut, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("text", ["unstructured", "block:2x2", "2:4"])
def test_sums_parked_in_host_memory(small_pieces, text: str) -> None:
    pattern = parse_mask_type(text)
    found = []
    for budget in (None, "third"):
        model = make_mixed()
        targets = mixed_targets(model)
        masks = all_kept(targets)
        config = _config(pattern=pattern, num_grads=24)
        layouts = [t.layout(pattern) for t in targets]
        plan = plan_event(layouts, WIDTH)
        if budget:
            limit = plan.working_bytes + plan.state_bytes * 2 // 5
            plan = plan_event(layouts, WIDTH, memory_budget=limit, host_budget=2**40)
            assert plan.keeps == "host"
        source = GradientSource(lambda request: mixed_batches(), mixed_losses)
        event = PruningEvent(model, targets, masks, plan, config, source, 0)
        pools = make_pools([m.numel() for m in masks], [0.5] * 3, True, pattern.unit)
        outcome, _ = event.best_outcome(pools)
        found.append(outcome)
    for a, b in zip(*(one.masks + one.values for one in found), strict=True):
        assert torch.equal(a, b)


def test_sums_in_portions_are_the_fisher(small_pieces) -> None:
    """Batches larger and smaller than a portion, and several pieces of a layer."""
    batches = make_batches(1, 8) + make_batches(3, 2, seed=5)
    model = make_model()
    targets = targets_of(model, *NAMES)
    masks = all_kept(targets)
    config = _config(damp=0.1, damp_fraction=None, num_grads=14)
    plan = plan_targets(targets, config)
    event = PruningEvent(model, targets, masks, plan, config, make_source(batches), 0)
    (fishers,) = list(event.state.sweep())
    assert len(fishers) == len(plan.pieces) > 2
    for i, fisher in fishers.items():
        piece = plan.pieces[i]
        name = NAMES[piece.target]
        grads = sample_gradients(model, batches, model.get_parameter(name)).numpy()
        dense = reference.dense_fisher(grads[:, piece.start : piece.stop], 0.0)
        assert fisher.num_grads == 14
        for b in range(len(fisher.sums)):
            part = slice(b * WIDTH, min((b + 1) * WIDTH, piece.numel))
            size = part.stop - part.start
            ours = fisher.sums[b, :size, :size].numpy() * fisher.scale
            np.testing.assert_allclose(ours, dense[part, part], rtol=1e-10, atol=1e-15)


def test_mean_gradient_against_the_oracle() -> None:
    config = _config(first_order=True, damp=0.1, damp_fraction=None)
    model = make_model()
    targets = targets_of(model, *NAMES)
    before = [t.parameter.detach().clone() for t in targets]
    result = second_order_step_(
        model,
        targets,
        all_kept(targets),
        [0.5] * 2,
        global_sparsity=True,
        config=config,
        source=make_source(make_batches()),
    )
    fresh, price = make_model(), 0.0
    differs = False
    for target, old, mask in zip(targets, before, result.masks, strict=True):
        parameter = fresh.get_parameter(target.name)
        grads = sample_gradients(fresh, make_batches(), parameter).numpy()
        weights, kept = old.reshape(-1).numpy(), mask.reshape(-1).numpy()
        ours = target.parameter.detach().reshape(-1).numpy()
        for start in range(0, len(weights), WIDTH):
            part = slice(start, min(start + WIDTH, len(weights)))
            dense = reference.dense_fisher(grads[:, part], 0.1)
            gone = np.flatnonzero(~kept[part]).tolist()
            slope = grads[:, part].mean(axis=0)
            expected, cost = reference.best_step_from_slope(
                dense, slope, weights[part], gone
            )
            np.testing.assert_allclose(ours[part], expected, atol=1e-9)
            price += cost
            flat, _ = reference.best_update(dense, weights[part], gone)
            differs |= not np.allclose(ours[part], flat, atol=1e-6)
    assert result.predicted_loss_increase == pytest.approx(price, rel=1e-7)
    assert differs  # control: without the mean gradient it is another update


def test_auto_takes_the_dampening_of_lowest_held_out_loss() -> None:
    grid = DAMP_GRID
    batches = {0: make_batches(), event_module._HELD_OUT_DRAWS: make_batches(seed=9)}
    source = GradientSource(lambda request: batches[request.draw], losses)
    tried = []
    for fraction in grid:
        result, weights = _step(_config(damp_fraction=fraction), 0.7, source=source)
        model = make_model(0, torch.float32)
        write_parameters_(targets_of(model, *NAMES), weights, result.masks)
        held_out = batches[event_module._HELD_OUT_DRAWS]
        total, count = sum_losses(model, held_out, source)
        tried.append((total / count, result.damp))
    auto, _ = _step(_config(damp_fraction=None, damp_grid=grid), 0.7, source=source)
    assert auto.damp == min(tried)[1]
    assert len({loss for loss, _ in tried}) > 1


def test_auto_is_refused_where_the_fisher_does_not_stay(small_pieces) -> None:
    config = _config(damp_fraction=None, damp_grid=DAMP_GRID)
    free = plan_targets(targets_of(make_model(), *NAMES), config)
    budget = free.working_bytes + free.state_bytes * 2 // 5
    with pytest.raises(ValueError, match="damp=auto tries several dampenings"):
        _step(replace(config, memory_budget=budget))


def test_a_layer_of_zeros_goes_first_at_no_cost() -> None:
    weights = [torch.zeros(10, 6), torch.randn(10, 10)]
    result, after = _step(_config(), 60 / 160, weights=weights)
    assert not result.masks[0].any() and result.masks[1].all()
    assert result.predicted_loss_increase == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(after[1], weights[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("selection", ["greedy", "independent"])
def test_an_already_sparse_model(selection: str) -> None:
    torch.manual_seed(3)
    masks = [torch.rand(10, 6) > 0.5, torch.rand(10, 10) > 0.5]
    gone = sum(int((~m).sum()) for m in masks)
    below, weights = _step(_config(selection=selection), 0.2, masks)
    assert all(torch.equal(a, b) for a, b in zip(below.masks, masks, strict=True))
    above, _ = _step(_config(selection=selection), 0.8, masks)
    assert sum(int((~m).sum()) for m in above.masks) == 128 > gone
    for old, new, values in zip(masks, above.masks, weights, strict=True):
        assert not (new & ~old).any() and (values[~old] == 0).all()


def test_sparsity_zero_and_one() -> None:
    nothing, after = _step(_config(), 0.0)
    before = [t.parameter for t in targets_of(make_model(0, torch.float32), *NAMES)]
    assert all(mask.all() for mask in nothing.masks)
    assert nothing.predicted_loss_increase == 0.0
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b)
    everything, after = _step(_config(), 1.0)
    assert not any(mask.any() for mask in everything.masks)
    assert all((values == 0).all() for values in after)


def test_minimum_density_holds_in_an_event() -> None:
    weights = [torch.randn(10, 6) * 1e-3, torch.randn(10, 10)]
    free, _ = _step(_config(), 0.5, weights=weights)
    assert int(free.masks[0].sum()) < 18
    held, _ = _step(_config(min_density=0.3), 0.5, weights=weights)
    assert int(held.masks[0].sum()) == 18  # 30 % of 60
    assert sum(int((~m).sum()) for m in held.masks) == 80
