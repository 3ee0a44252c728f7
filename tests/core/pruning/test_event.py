"""Events under every plan, with the mean gradient, and with a chosen dampening."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from obert_modifiers.core.distributed import sharding
from obert_modifiers.core.distributed.sharding import plan_event
from obert_modifiers.core.options import DAMP_GRID
from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning import collect
from obert_modifiers.core.pruning import event as event_module
from obert_modifiers.core.pruning.event import PruningEvent, plan_targets
from obert_modifiers.core.pruning.fisher_state import FisherState
from obert_modifiers.core.pruning.gradients import sum_losses
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.selection import make_pools
from obert_modifiers.core.pruning.targets import write_parameters_
from obert_modifiers.kernels.packed import unpack_blocks
from tests import reference
from tests.core import models
from tests.core.models import NAMES, WIDTH, make_batches, make_config, prune


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tiny models into many pieces, and add gradients in many portions."""
    monkeypatch.setattr(sharding, "PIECE_WEIGHTS", 24)
    monkeypatch.setattr(sharding, "HELD_BYTES", 1)
    monkeypatch.setattr(collect, "FOLD_SAMPLES", 3)


def _encoder(dtype=torch.float32):
    model = models.make_model(dtype=dtype)
    return model, models.targets_of(model, *NAMES)


def _with_less(config):
    """Leave less than half of the memory that the state takes."""
    free = plan_targets(_encoder()[1], config)
    assert free.turns == 1 and len(free.pieces) == 5
    budget = free.working_bytes + free.state_bytes * 2 // 5
    return replace(config, memory_budget=budget)


@pytest.mark.parametrize("damp", [None, 1e-3])
@pytest.mark.parametrize("selection", ["greedy", "independent"])
@pytest.mark.parametrize("update", ["joint", "independent", "row"])
def test_turns_change_no_bit(small_pieces, selection, update, damp) -> None:
    fraction = None if damp else 0.01
    options = {"damp": damp, "damp_fraction": fraction}
    config = make_config(selection=selection, update=update, **options)
    one, whole = prune(config)
    result, cut = prune(_with_less(config))
    assert result.plan.turns >= 3 and result.plan.keeps == "nothing"
    assert result.gradients == one.gradients
    assert result.damp == one.damp
    assert result.predicted_loss_increase == one.predicted_loss_increase
    assert models.equal(whole + one.masks, cut + result.masks)


def test_samples_of_all_turns_are_the_same(small_pieces) -> None:
    drawn = []

    def draw(request):  # other samples each time it is asked
        drawn.append(request.draw)
        return make_batches(seed=len(drawn))

    _, whole = prune(make_config())
    _, cut = prune(_with_less(make_config()), GradientSource(draw, models.losses))
    assert drawn == [0]
    assert models.equal(whole, cut)
    row, drawn[:] = make_config(update="row"), []
    _, again = prune(row, GradientSource(draw, models.losses))
    assert drawn == [0]
    assert models.equal(prune(row)[1], again)


def test_a_source_without_an_end_in_several_turns(small_pieces) -> None:
    """SparseML's training scripts go round and round; random numbers come back."""
    given = 0

    def draw(request):
        nonlocal given
        for batch in itertools.cycle(make_batches()):
            given += 1
            assert given < 9, "a process takes no more than its share"
            torch.rand(1)
            yield batch

    source = GradientSource(draw, models.losses)
    _, whole = prune(make_config(), source)
    given, (model, targets) = 0, _encoder()
    state = torch.get_rng_state()
    result, cut = prune(_with_less(make_config()), source, model=model, targets=targets)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.plan.turns >= 3 and result.gradients.used == 12
    assert models.equal(whole, cut)


@pytest.mark.parametrize("text", ["unstructured", "block:2x2", "2:4"])
def test_sums_parked_in_host_memory(small_pieces, text: str) -> None:
    pattern = parse_mask_type(text)
    config = make_config(pattern=pattern, num_grads=24)
    found = []
    for parked in (False, True):
        model = models.make_mixed()
        targets = models.mixed_targets(model)
        masks = models.all_kept(targets)
        layouts = [t.layout(pattern) for t in targets]
        plan = plan_event(layouts, WIDTH)
        if parked:
            limit = plan.working_bytes + plan.state_bytes * 2 // 5
            plan = plan_event(layouts, WIDTH, memory_budget=limit, host_budget=2**40)
            assert plan.keeps == "host"
        source = models.make_source(models.mixed_batches(), models.mixed_losses)
        event = PruningEvent(FisherState(model, targets, masks, plan, config, source))
        pools = make_pools([m.numel() for m in masks], [0.5] * 3, True, pattern.unit)
        outcome, _ = event.best_outcome(pools)
        found.append(outcome.masks + outcome.values)
    assert models.equal(*found)


def test_sums_in_portions_are_the_fisher(small_pieces) -> None:
    """Batches larger and smaller than a portion, and several pieces of a layer."""
    batches = make_batches(1, 8) + make_batches(3, 2, seed=5)
    model, targets = _encoder(torch.float64)
    config = make_config(damp=0.1, damp_fraction=None, num_grads=14)
    plan, masks = plan_targets(targets, config), models.all_kept(targets)
    source = models.make_source(batches)
    (fishers,) = FisherState(model, targets, masks, plan, config, source).sweep()
    assert len(fishers) == len(plan.pieces) > 2
    for i, fisher in fishers.items():
        piece = plan.pieces[i]
        parameter = model.get_parameter(NAMES[piece.target])
        grads = models.sample_gradients(model, batches, parameter).numpy()
        dense = reference.dense_fisher(grads[:, piece.start : piece.stop], 0.0)
        assert fisher.num_grads == 14
        for b in range(len(fisher.sums)):
            part = slice(b * WIDTH, min((b + 1) * WIDTH, piece.numel))
            size = part.stop - part.start
            block = unpack_blocks(fisher.sums[b : b + 1])[0]
            ours = block[:size, :size].numpy() * fisher.scale
            np.testing.assert_allclose(ours, dense[part, part], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("text", ["unstructured", "block:2x2"])
def test_long_and_short_batches_in_one_portion(text: str) -> None:
    """Those that wait as gradients, and those as inputs and output gradients."""
    pattern = parse_mask_type(text)
    batches = make_batches(3)
    batches[1] = (batches[1][0][:, :2], batches[1][1])  # two tokens
    model = models.make_model()
    targets = models.targets_of(model, NAMES[0])
    config = make_config(pattern=pattern, damp=0.1, damp_fraction=None)
    plan, masks = plan_targets(targets, config), models.all_kept(targets)
    source = models.make_source(batches)
    ((fisher,),) = (
        found.values()
        for found in FisherState(model, targets, masks, plan, config, source).sweep()
    )
    grads = models.sample_gradients(model, batches, targets[0].parameter)
    arranged = targets[0].layout(pattern).arrange(grads)
    blocks = unpack_blocks(fisher.sums)
    for ours, part in zip(blocks, arranged.split(WIDTH, dim=1), strict=True):
        torch.testing.assert_close(ours, part.T @ part, rtol=1e-10, atol=1e-15)
    if pattern.rows > 1:  # control: in the order of the parameter it is another one
        other = grads[:, :WIDTH]
        assert not torch.allclose(blocks[0], other.T @ other, rtol=1e-3)


def test_mean_gradient_against_the_oracle() -> None:
    config = make_config(first_order=True, damp=0.1, damp_fraction=None)
    result, after = prune(config, model=models.make_model())
    fresh, targets = _encoder(torch.float64)
    increase, differs = 0.0, False
    for target, new, mask in zip(targets, after, result.masks, strict=True):
        grads = models.sample_gradients(fresh, make_batches(), target.parameter).numpy()
        weights = target.parameter.detach().reshape(-1).numpy()
        kept, ours = mask.reshape(-1).numpy(), new.reshape(-1).numpy()
        for start in range(0, len(weights), WIDTH):
            part = slice(start, min(start + WIDTH, len(weights)))
            dense = reference.dense_fisher(grads[:, part], 0.1)
            gone = np.flatnonzero(~kept[part]).tolist()
            slope = grads[:, part].mean(axis=0)
            expected, added = reference.best_step_from_slope(
                dense, slope, weights[part], gone
            )
            np.testing.assert_allclose(ours[part], expected, atol=1e-9)
            increase += added
            flat, _ = reference.best_update(dense, weights[part], gone)
            differs |= not np.allclose(ours[part], flat, atol=1e-6)
    assert result.predicted_loss_increase == pytest.approx(increase, rel=1e-7)
    assert differs  # control: without the mean gradient it is another update


def test_auto_takes_the_dampening_of_lowest_held_out_loss() -> None:
    held_out = make_batches(seed=9)
    batches = {0: make_batches(), event_module._HELD_OUT_DRAWS: held_out}
    source = GradientSource(lambda request: batches[request.draw], models.losses)
    tried = []
    for fraction in DAMP_GRID:
        config = make_config(damp_fraction=fraction)
        result, weights = prune(config, source, sparsity=0.7)
        model, targets = _encoder()
        write_parameters_(targets, weights, result.masks)
        total, count = sum_losses(model, held_out, source)
        tried.append((total / count, result.damp))
    config = make_config(damp_fraction=None, damp_grid=DAMP_GRID)
    auto, _ = prune(config, source, sparsity=0.7)
    assert auto.damp == min(tried)[1]
    assert len({loss for loss, _ in tried}) > 1


@pytest.mark.parametrize("bad", [1, len(DAMP_GRID)])
def test_auto_passes_over_losses_that_are_not_numbers(bad: int) -> None:
    measured = []

    def losses(model, batch):
        found = models.losses(model, batch)
        if torch.is_grad_enabled():
            return found
        measured.append(found)
        return found * torch.nan if len(measured) <= bad else found

    batches = {0: make_batches(), event_module._HELD_OUT_DRAWS: make_batches(1)}
    source = GradientSource(lambda request: batches[request.draw], losses)
    model, targets = _encoder()
    options = {"source": source, "model": model, "targets": targets}
    auto = make_config(damp_fraction=None, damp_grid=DAMP_GRID)
    if bad == len(DAMP_GRID):
        with models.unchanged(targets), pytest.raises(FloatingPointError, match="auto"):
            prune(auto, **options)
        return
    result, _ = prune(auto, **options)
    first, _ = prune(make_config(damp_fraction=DAMP_GRID[0]))
    assert result.damp > 1.01 * first.damp  # not the one whose loss is none


def test_auto_is_refused_where_the_fisher_does_not_stay(small_pieces) -> None:
    config = make_config(damp_fraction=None, damp_grid=DAMP_GRID)
    with pytest.raises(ValueError, match="damp=auto tries several dampenings"):
        prune(_with_less(config))


def _with_weights(*weights: torch.Tensor):
    model, targets = _encoder()
    for target, values in zip(targets, weights, strict=True):
        target.parameter.data.copy_(values)
    return model


def test_a_layer_of_zeros_goes_first_at_no_cost() -> None:
    weights = torch.zeros(10, 6), torch.randn(10, 10)
    result, after = prune(
        make_config(), sparsity=60 / 160, model=_with_weights(*weights)
    )
    assert not result.masks[0].any() and result.masks[1].all()
    assert result.predicted_loss_increase == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(after[1], weights[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("selection", ["greedy", "independent"])
def test_an_already_sparse_model(selection: str) -> None:
    torch.manual_seed(3)
    masks = [torch.rand(10, 6) > 0.5, torch.rand(10, 10) > 0.5]
    config = make_config(selection=selection)
    below, weights = prune(config, sparsity=0.2, masks=masks)
    assert models.equal(below.masks, masks)
    above, _ = prune(config, sparsity=0.8, masks=masks)
    gone = [sum(int((~m).sum()) for m in of) for of in (above.masks, masks)]
    assert gone[0] == 128 > gone[1]
    for old, new, values in zip(masks, above.masks, weights, strict=True):
        assert not (new & ~old).any() and (values[~old] == 0).all()


def test_sparsity_zero_and_one() -> None:
    nothing, after = prune(make_config(), sparsity=0.0)
    assert all(mask.all() for mask in nothing.masks)
    assert nothing.predicted_loss_increase == 0.0
    assert models.equal(after, models.weights_of(_encoder()[1]))
    everything, after = prune(make_config(), sparsity=1.0)
    assert not any(mask.any() for mask in everything.masks)
    assert all((values == 0).all() for values in after)


def test_minimum_density_holds_in_an_event() -> None:
    weights = torch.randn(10, 6) * 1e-3, torch.randn(10, 10)
    free, held = (
        prune(make_config(min_density=least), model=_with_weights(*weights))[0].masks
        for least in (0.0, 0.3)
    )
    assert int(free[0].sum()) < 18
    assert int(held[0].sum()) == 18  # 30 % of 60
    assert sum(int((~m).sum()) for m in held) == 80
