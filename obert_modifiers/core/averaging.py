"""Averages of a model's weights over training, and the model with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from obert_modifiers.core.quantization.scheme import hold_weights_
from obert_modifiers.core.snapshot import restore_snapshot_, take_snapshot


@dataclass
class Average:
    """Averaged parameters by name, in float32 at least, and how many states they hold.

    Buffers and the ranges of activations are not averaged.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0


@torch.no_grad()
def add_state_(average: Average, model: nn.Module, decay: float | None = None) -> None:
    r"""Take a model's parameters as they are now into an average, in place.

    The mean of all states, :math:`m_n = m_{n-1} + (w_n - m_{n-1}) / n`, or where there
    is a decay :math:`d` the exponential average
    :math:`m_n = d\,m_{n-1} + (1 - d)\,w_n`; :math:`m_1 = w_1` for both.

    Args:
        average: What has been averaged so far; changed in place.
        model: The unwrapped model, the same each time.
        decay: Share of the average that stays, in (0, 1); None for the mean.
    """
    average.count += 1
    share = 1.0 / average.count if decay is None else 1.0 - decay
    for name, parameter in model.named_parameters():
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if average.count == 1:
            average.values[name] = parameter.detach().to(dtype, copy=True)
        else:
            own = average.values[name].to(parameter.device)  # after a resume
            # Not in place: a state that was saved or loaded holds these tensors.
            average.values[name] = own.lerp(parameter.to(dtype), share)


@torch.no_grad()
def write_average_(model: nn.Module, average: Average) -> None:
    """Give a model the averaged weights; writes the parameters.

    A weight that is zero in the model stays zero, so that masks hold, whatever was
    added while the optimizer had moved pruned weights. Weights keep to fixed 8-bit
    ranges.
    """
    for name, parameter in model.named_parameters():
        value = average.values[name].to(parameter.device, parameter.dtype)
        parameter.copy_(value.masked_fill(parameter == 0, 0.0))
    hold_weights_(model)


@contextmanager
def averaged(model: nn.Module, average: Average) -> Iterator[None]:
    """Have the averaged weights in the model in the body, and its own again after it.

    Quantization ranges come back too. Takes a copy of the model on the CPU.
    """
    own = take_snapshot(model)
    try:
        write_average_(model, average)
        yield
    finally:
        restore_snapshot_(model, own)
