"""Gradients of single samples, or of batches, without disturbing training.

Per-sample gradients of a Linear layer come from its inputs x and the gradients dy of
its outputs, all samples in one backward pass: ``G_i = sum_t dy_it x_it^T``. What is
passed on are x and dy, where they are smaller than G: whoever adds the gradients up
forms them, a piece at a time. The gradient of a batch's mean loss is that of a sample
whose positions are those of all.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from obert_modifiers.core.pruning.per_sample import (
    BatchGradients,
    Losses,
    SampleGradients,
)
from obert_modifiers.core.pruning.sampling import GradientSource


@dataclass
class GradientCount:
    """Gradients used in a collection, and skipped, as they were not finite."""

    used: int = 0
    skipped: int = 0


def collect_gradients(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Any],
    losses: Losses,
    consume: Callable[[BatchGradients], None],
    *,
    granularity: str = "sample",
    limit: int | None = None,
) -> GradientCount:
    """Stream gradients of parameters to a callback, batch by batch.

    The gradient of sample i is that of its own loss, not divided by the batch size.
    With ``granularity="batch"`` it is the gradient of the batch's mean loss, as
    SparseML takes it. Non-finite samples are left out; for parameters of other layers
    than Linear their batch mates may go with them. Where samples share the rows of a
    Linear layer, or are not its first dimension, a batch is computed one sample at a
    time. The model is in eval mode meanwhile. ``.grad`` of every parameter, the train
    or eval mode of every submodule, ``requires_grad`` and the random state of Python
    and torch are as before when this returns or raises.

    Args:
        model: The model, not wrapped for distributed training.
        parameters: Parameters of the model whose gradients are wanted.
        batches: Batches for ``losses``.
        losses: Called with model and batch; gives the loss of each sample, ``(k,)``.
        consume: Called once for each batch that has a finite sample.
        granularity: ``"sample"`` or ``"batch"``.
        limit: Stop after this many gradients, finite or not; None takes all batches.

    Returns:
        How many gradients were passed on and how many left out.

    Raises:
        ValueError: If the granularity is unknown, or the samples of a batch cannot be
            told apart.
    """
    if granularity not in ("sample", "batch"):
        raise ValueError(
            f"grad_granularity={granularity} is unknown; expected sample or batch; "
            "use sample"
        )
    count = GradientCount()
    if granularity == "batch":
        losses = _mean_of(losses)
    with undisturbed(model):
        gradients = SampleGradients(model, parameters, losses)
        for batch in batches:
            left = None if limit is None else limit - count.used - count.skipped
            if left is not None and left <= 0:
                break
            wanted, found = gradients(batch, left)
            used = found.size if found is not None else 0
            count.used += used
            count.skipped += wanted - used
            if found is not None:
                consume(found)
    return count


def _mean_of(losses: Losses) -> Losses:
    # A batch as a single sample: its rows are the positions of one gradient.
    return lambda model, batch: losses(model, batch).mean().reshape(1)


def sum_losses(
    model: nn.Module,
    batches: Iterable[Any],
    source: GradientSource,
    limit: int | None = None,
) -> tuple[float, int]:
    """Return the loss summed over samples, ``limit`` at most, and their number.

    The model is in eval mode meanwhile; training is not disturbed.
    """
    total, count = 0.0, 0
    with undisturbed(model), torch.no_grad():
        for batch in batches:
            losses = source.sample_losses(model, batch)
            losses = losses[: None if limit is None else limit - count]
            total += float(losses.sum(dtype=torch.float64))
            count += len(losses)
            if count == limit:
                break
    return total, count


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, with gradients enabled, and leave no other trace.

    The mode of every submodule and the random state of all devices come back.
    """
    modes = [(module, module.training) for module in model.modules()]
    python_state = random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            model.eval()
            yield
    finally:
        random.setstate(python_state)
        for module, mode in modes:
            module.training = mode
