"""Inputs and output gradients of Linear layers, captured while a model runs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Signals:
    """What the gradients of a Linear weight are made of, for the samples of a batch.

    The gradient of sample i is ``sum_t dy_it x_it^T``, ``(out, in)``.

    Attributes:
        inputs: x, ``(k, T, in)``. T is 0 where the layer took no part in the loss.
        output_grads: dy, ``(k, T, out)``.
    """

    inputs: Tensor
    output_grads: Tensor

    def __getitem__(self, rows: slice) -> "Signals":
        """Return those of some samples."""
        return Signals(self.inputs[rows], self.output_grads[rows])

    def gradients(self) -> Tensor:
        """Return the gradients themselves, ``(k, d)``."""
        products = torch.bmm(self.output_grads.transpose(1, 2), self.inputs)
        return products.reshape(len(products), -1)


def input_of(args: tuple, named: Mapping[str, Any]) -> Tensor:
    """Return what a layer is called with, ``layer(x)`` or ``layer(input=x)``."""
    return args[0] if args else next(iter(named.values()))


class SharedRows(Exception):
    """Samples of a batch share the rows of a layer."""

    def __init__(self, losses: Tensor, rows: int) -> None:
        """Keep the samples' losses, NaN where they are not known, and the rows."""
        super().__init__(rows)
        known = not is_mean(losses)
        self.losses = losses.detach() if known else torch.full_like(losses, torch.nan)
        self.rows = rows


class ChangedInPlace(Exception):
    """Inputs or outputs of layers are changed after the layers have run."""

    def __init__(self, layers: set[nn.Module]) -> None:
        """Keep the layers."""
        super().__init__()
        self.layers = layers


def is_mean(sample_losses: Tensor) -> bool:
    """Tell whether the losses of several samples are all the mean over the batch."""
    return len(sample_losses) > 1 and sample_losses.stride(0) == 0


@dataclass(eq=False)
class Call:
    """One call of a layer: ``(k, ..., in)`` inputs, ``(k, ..., out)`` output."""

    layer: nn.Module
    inputs: Tensor
    output: Tensor
    output_grad: Tensor | None = None

    def __post_init__(self) -> None:
        """Remember the versions, which count changes in place."""
        self._versions = self.inputs._version, self.output._version

    @property
    def changed(self) -> bool:
        """Whether input or output were changed after the layer has run."""
        return (self.inputs._version, self.output._version) != self._versions

    def finite_samples(self, size: int) -> Tensor:
        """Return which samples have finite inputs and output gradients, ``(k,)``.

        With one sample all of a call is that sample's, wherever the layer has the
        sample: the call's tensors get it as their first dimension.
        """
        dy = self.output_grad
        if size == 1:
            self.inputs = self.inputs.reshape(1, -1, self.inputs.shape[-1])
            dy = None if dy is None else dy.reshape(1, -1, dy.shape[-1])
            self.output_grad = dy
        finite = _finite_rows(self.inputs, size)
        return finite if dy is None else finite & _finite_rows(dy, size)


def _finite_rows(values: Tensor, size: int) -> Tensor:
    # A sum is finite only if all of it is, and takes a fiftieth of the time; on a GPU
    # it would be waited for.
    if values.is_cpu and torch.isfinite(values.sum()):
        return torch.ones(size, dtype=torch.bool)
    return torch.isfinite(values).reshape(size, -1).all(dim=1)


@contextmanager
def captured(
    layers: Collection[nn.Module], copied: Collection[nn.Module]
) -> Iterator[list[Call]]:
    """List the calls of Linear layers in the body; their hooks are gone afterwards."""
    calls: list[Call] = []

    def begin(layer: nn.Module, args: tuple, named: dict) -> tuple[tuple, dict]:
        # No output is a leaf, which could not be changed in place.
        given = input_of(args, named)
        if given.requires_grad or not torch.is_grad_enabled():
            return args, named
        given = given.detach().requires_grad_(True)
        if args:
            return (given, *args[1:]), named
        return args, named | {next(iter(named)): given}

    def keep(layer: nn.Module, args: tuple, named: dict, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # first pass of a reentrant checkpoint
            raise ValueError(
                "gradient checkpointing with use_reentrant=True hides the layers' "
                "outputs; expected a plain forward pass; use use_reentrant=False"
            )
        inputs = input_of(args, named).detach()
        copy = layer in copied  # as inputs or outputs are changed later
        calls.append(Call(layer, inputs.clone() if copy else inputs, output))
        return output.clone() if copy else output

    named = {"with_kwargs": True}
    handles = [layer.register_forward_pre_hook(begin, **named) for layer in layers]
    # Before the hooks of others, which may give another output than the layer's own.
    handles += [
        layer.register_forward_hook(keep, prepend=True, **named) for layer in layers
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_calls(calls: list[Call], sample_losses: Tensor) -> None:
    """Raise if inputs or outputs were changed, or a layer's rows are no samples."""
    changed = {call.layer for call in calls if call.changed}
    if changed:
        raise ChangedInPlace(changed)
    size = len(sample_losses)
    for call in calls:
        if size > 1 and call.inputs.shape[0] != size:
            raise SharedRows(sample_losses, call.inputs.shape[0])


def check_rows(calls: list[Call], sample_losses: Tensor, row: int) -> None:
    """Raise if the loss of a sample depends on more than its own row of each layer."""
    # A layer may have as many rows as there are samples by chance.
    if is_mean(sample_losses):  # which cannot be asked
        return
    for grad in output_grads(calls, sample_losses[row], keep_graph=True):
        if grad is not None:
            rest = torch.cat([grad[:row], grad[row + 1 :]])
            # Samples that are not finite make zeros NaN.
            if (torch.isfinite(rest) & (rest != 0)).any():
                raise SharedRows(sample_losses, grad.shape[0])


def output_grads(
    calls: list[Call], loss: Tensor, keep_graph: bool
) -> Sequence[Tensor | None]:
    """Differentiate a loss by the output of each call; None where it has no part."""
    if not calls:
        return ()
    outputs = [call.output for call in calls]
    return torch.autograd.grad(
        loss, outputs, retain_graph=keep_graph, allow_unused=True
    )


def signals_of(
    weight: nn.Parameter, calls: list[Call], rows: Tensor
) -> Signals | Tensor:
    """Return the calls of a weight's layer as one, some rows, in float32 or wider.

    The gradient of a layer that runs several times is a sum over all their positions.
    Where these are so many that the gradients themselves, ``(k, d)``, are smaller, they
    are formed here.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    out, width = weight.shape
    xs = [weight.new_empty(len(rows), 0, width, dtype=dtype)]
    dys = [weight.new_empty(len(rows), 0, out, dtype=dtype)]
    for call in calls:
        if call.output_grad is not None:
            x, dy = _take(call.inputs, rows), _take(call.output_grad, rows)
            xs.append(x.to(dtype).reshape(len(rows), -1, width))
            dys.append(dy.to(dtype).reshape(len(rows), -1, out))
    x, dy = (xs[-1], dys[-1]) if len(xs) <= 2 else (torch.cat(xs, 1), torch.cat(dys, 1))
    found = Signals(x, dy)
    smaller = x.shape[1] * (out + width) < out * width
    return found if smaller else found.gradients()


def _take(values: Tensor, rows: Tensor) -> Tensor:
    # Layers with the same inputs share their memory, unless a sample is left out.
    return values.contiguous() if len(rows) == len(values) else values[rows]
