"""Seconds that the second-order events of a recipe take, from what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.pruning.calibration import (
    EventSeconds,
    estimate_event,
    measure_passes,
    measure_step,
)
from obert_modifiers.recipe.counts import fisher_memory, second_order, targets_of
from obert_modifiers.recipe.load import LoadedRecipe

DEFAULT_BATCH = 32  # as gradients are sampled where the recipe gives no batch_size


@dataclass(frozen=True)
class Timing:
    """An estimate for a modifier, and what was measured for it.

    Attributes:
        line: Line of the modifier in the recipe.
        seconds: Of one event.
        samples: Samples that were timed.
        tokens: Their length.
    """

    line: int
    seconds: EventSeconds
    samples: int
    tokens: int


def estimate_recipe(
    recipe: LoadedRecipe,
    model: nn.Module,
    batch_of: Callable[[int], Any],
    losses: Callable[[nn.Module, Any], Tensor],
    tokens: int,
) -> list[Timing]:
    """Time a few samples and blocks, and scale them to each modifier's events.

    Args:
        recipe: A checked recipe.
        model: A model with weights, on the device to measure.
        batch_of: Called with a number of samples; gives a batch.
        losses: Called with model and batch; gives the loss of each sample.
        tokens: Tokens of a sample.

    Returns:
        An estimate for each modifier of the second order.
    """
    found = []
    for placed in recipe.placed:
        config = second_order(placed.modifier)
        if config is None:
            continue
        targets = targets_of(placed.modifier, model)
        plan = fisher_memory(placed.modifier, model)
        assert plan is not None
        parameters = [target.parameter for target in targets]
        widths = [t.layout(config.pattern).shape[1] for t in targets]
        largest = max(range(len(targets)), key=lambda i: parameters[i].numel())
        device = parameters[0].device
        batch = int(dict(config.options).get("batch_size", DEFAULT_BATCH))
        with torch.random.fork_rng(devices=[]):
            each, samples = measure_passes(
                model, parameters, batch_of, losses, batch, config.grad_granularity
            )
            cost = measure_step(config, widths[largest], tokens, device)
        seconds = estimate_event(cost, config, plan, each, batch)
        found.append(Timing(placed.line, seconds, samples, tokens))
    return found
