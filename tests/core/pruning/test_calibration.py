"""Estimates of an event's time: what is measured, and how it is scaled."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.core.pruning.calibration import (
    TIMED_WEIGHTS,
    StepCost,
    estimate_event,
    measure_passes,
    measure_step,
)
from obert_modifiers.core.pruning.event import plan_targets
from obert_modifiers.core.pruning.targets import Target

COST = StepCost(collect=1e-3, solve=1e-1)
BLOCK4 = MaskPattern("block4", 1, 4)
TWO_OF_FOUR = MaskPattern("2:4", 1, 4, (2, 4))
TILES = MaskPattern("block:2x2", 2, 2)


def plan_of(config: SecondOrderConfig):
    targets = [Target(name, nn.Linear(8, 12).weight) for name in "ab"]
    return plan_targets(targets, config, ranks=1)


def test_an_estimate_is_the_costs_times_what_they_are_of() -> None:
    config = SecondOrderConfig(num_grads=10, fisher_block_size=8)
    found = estimate_event(COST, config, plan_of(config), sample_seconds=2.0)
    assert (found.passes, found.collect) == (20.0, pytest.approx(10 * 192 * 1e-3))
    assert found.solve == pytest.approx(192 * 1e-1)
    assert found.total == found.passes + found.collect + found.solve
    batches = replace(config, grad_granularity="batch", num_recomputations=3)
    found = estimate_event(COST, batches, plan_of(config), 2.0, batch_size=4)
    assert found.passes == 3 * 10 * 4 * 2.0
    assert found.collect == pytest.approx(3 * 10 * 192 * 1e-3)
    assert found.solve == pytest.approx(3 * 192 * 1e-1)
    grid = replace(config, damp_grid=(0.1, 1.0), damp_fraction=None)
    found = estimate_event(COST, grid, plan_of(config), 2.0)
    assert found.solve == pytest.approx(2 * 192 * 1e-1)


@pytest.mark.parametrize(
    ("keeps", "damp", "turns"),
    # Three sweeps over three turns: 0 1 2, then 1 0 from the one at hand, then 1 2.
    [("nothing", None, 7), ("nothing", 1e-7, 5), ("host", None, 3)],
)
def test_turns_that_do_not_stay_are_collected_again(keeps, damp, turns) -> None:
    config = SecondOrderConfig(num_grads=10, fisher_block_size=8, damp=damp)
    plan = replace(plan_of(config), turns=3, keeps=keeps)
    found = estimate_event(COST, config, plan, sample_seconds=2.0)
    assert found.passes == turns * 20.0
    assert found.collect == pytest.approx(turns / 3 * 10 * 192 * 1e-3)


@pytest.mark.parametrize(
    "config",
    [
        SecondOrderConfig(damp_grid=(0.1, 1.0), damp_fraction=None),
        SecondOrderConfig(pattern=BLOCK4, first_order=True),
        SecondOrderConfig(pattern=TWO_OF_FOUR, grad_granularity="batch", damp=1e-7),
        SecondOrderConfig(
            pattern=TILES, selection="independent", fisher_dtype="float32"
        ),
    ],
    ids=lambda config: config.pattern.name,
)
def test_every_kind_of_event_can_be_timed(config, monkeypatch) -> None:
    monkeypatch.setattr("obert_modifiers.core.pruning.calibration.TIMED_WEIGHTS", 768)
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        cost = measure_step(config, width=96, positions=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.0 < cost.collect < math.inf and 0.0 < cost.solve < math.inf
    assert TIMED_WEIGHTS % 4 == 0


def test_passes_are_timed_without_a_trace() -> None:
    model, sizes = nn.Linear(3, 2), []

    def batch_of(size: int) -> torch.Tensor:
        sizes.append(size)
        return torch.ones(size, 3)

    def losses(network, batch):
        return network(batch).square().sum(1)

    weight = [model.weight]
    seconds, samples = measure_passes(model, weight, batch_of, losses, 5)
    assert seconds > 0.0 and (sizes, samples) == ([1, 5], 5)
    assert model.weight.grad is None and model.weight.requires_grad
