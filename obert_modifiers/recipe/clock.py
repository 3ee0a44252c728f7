"""When modifiers act, asked of SparseML's own clock without a model or data."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

from obert_modifiers.host.bases import (
    Modifier,
    ScheduledModifierManager,
    ScheduledUpdateModifier,
    silent_loggers,
)

GRID = 1024  # points of an epoch at which the learning rate is read, at most
EVERY_STEP = -1.0
MANY = 100_000  # events, beyond which their epochs are not listed
CLOSE = 1e-9  # of an epoch; far below a step, far above a sum's rounding

Rates = list[tuple[float, float | None]]  # epochs and learning rates


def learning_rates(
    modifiers: Sequence[Modifier], num_epochs: float, steps_per_epoch: int | None
) -> Rates:
    """Read the learning rate over the epochs, by running its modifiers."""
    import torch
    from torch import nn

    if not modifiers:
        return []
    per_epoch = min(steps_per_epoch or GRID, GRID)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=math.nan)
    host = ScheduledModifierManager(modifiers=copy.deepcopy(list(modifiers)))
    host.initialize(model, epoch=0.0, loggers=silent_loggers())
    found: Rates = []
    for step in range(steps_of(num_epochs, per_epoch)):
        epoch = epoch_at(step, per_epoch)
        with warnings.catch_warnings():
            # torch says that no step of the optimizer was made; none is.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            host.update(model, optimizer, epoch, per_epoch, log_updates=False)
        rate = float(optimizer.param_groups[0]["lr"])
        found.append((epoch, None if math.isnan(rate) else rate))
    return found


def rewinds(rates: Rates) -> list[float]:
    """Find where a falling learning rate goes up again."""
    triples = zip(rates, rates[1:], rates[2:], strict=False)
    return [
        epoch
        for (_, before), (_, last), (epoch, rate) in triples
        if None not in (before, last, rate) and before > last < rate
    ]


def steps_of(num_epochs: float, steps_per_epoch: int) -> int:
    """Count the optimizer steps of a training, at least one."""
    return max(1, round(num_epochs * steps_per_epoch))


def epoch_at(step: int, steps_per_epoch: int) -> float:
    """Turn a step into an epoch, as the training loop does."""
    whole, rest = divmod(step, steps_per_epoch)
    return whole + rest / steps_per_epoch


def event_epochs(
    modifier: Any, num_epochs: float | None, steps_per_epoch: int | None
) -> list[float] | None:
    """List the epochs at which a modifier with a frequency acts.

    With the steps of an epoch these are the steps that SparseML's clock gives, on
    which an event that falls between two steps waits for the second, and so do all
    after it. Without them they are the epochs that the recipe names, or None where
    these depend on the steps.
    """
    if steps_per_epoch is not None:
        return _on_steps(modifier, num_epochs, steps_per_epoch)
    start, end, frequency = _schedule(modifier)
    if frequency == EVERY_STEP and end > start:
        return None
    last = end if num_epochs is None else min(end, num_epochs)
    if last - start > MANY * frequency > 0.0:  # far more than there are steps
        return None
    count = 1 if end <= start else math.floor((last - start) / frequency + CLOSE) + 1
    found = [start + number * frequency for number in range(count)]
    if end < math.inf and found[-1] < end - CLOSE:
        found.append(end)  # the last event comes at the end, whatever the frequency
    return [e for e in found if num_epochs is None or e < num_epochs - CLOSE]


def _schedule(modifier: Any) -> tuple[float, float, float]:
    end = modifier.end_epoch if modifier.end_epoch >= 0.0 else math.inf
    return max(0.0, modifier.start_epoch), end, modifier.update_frequency


def _on_steps(
    modifier: Any, num_epochs: float | None, steps_per_epoch: int
) -> list[float]:
    from torch import nn

    start, end, frequency = _schedule(modifier)
    if num_epochs is None:
        total = math.ceil(end * steps_per_epoch) + 1
    else:
        total = steps_of(num_epochs, steps_per_epoch)
    clock = ScheduledUpdateModifier(
        start_epoch=modifier.start_epoch,
        end_epoch=modifier.end_epoch,
        update_frequency=frequency,
        end_comparator=-1,
    )
    model = nn.Linear(1, 1)
    clock.initialize(model, loggers=silent_loggers())
    found: list[float] = []
    step = _just_before(start, steps_per_epoch)
    while step < total and not clock.ended:
        epoch = epoch_at(step, steps_per_epoch)
        step += 1
        if clock.update_ready(epoch, steps_per_epoch):
            clock.scheduled_update(model, None, epoch, steps_per_epoch)
            found.append(epoch)
            if frequency != EVERY_STEP:  # nothing is due before
                due = min(epoch + frequency, end)
                step = max(step, _just_before(due, steps_per_epoch))
    return found


def _just_before(epoch: float, steps_per_epoch: int) -> int:
    return max(0, math.floor(epoch * steps_per_epoch) - 1)
