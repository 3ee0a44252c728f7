"""Gradients of single samples, all of a batch in one backward pass where it can be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.pruning.layer_signals import (
    Call,
    ChangedInPlace,
    SharedRows,
    Signals,
    captured,
    check_calls,
    check_rows,
    finite_samples,
    is_mean,
    signals_of,
    take_output_grads_,
)
from obert_modifiers.core.pruning.single import count_rows, join_positions, take_sample

Losses = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class BatchGradients:
    """Gradients of the samples of one batch.

    Attributes:
        size: Samples k, all finite.
        parts: Of each parameter, what they are made of, or the gradients themselves,
            ``(k, d)``.
    """

    size: int
    parts: tuple[Signals | Tensor, ...]


# How many samples were asked for, and the gradients of those that are finite.
Collected = tuple[int, BatchGradients | None]


class SampleGradients:
    """Gradients of the samples of a batch, by parameter.

    Weights of Linear layers get theirs from one backward pass, other parameters from
    one for each sample. Batches in which samples share a layer's rows are computed one
    sample at a time, which the first such batch tells.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], losses: Losses
    ) -> None:
        """Look up the parameters' layers."""
        self._model, self._parameters, self._losses = model, parameters, losses
        self._layers = _linear_layers(model, parameters)  # layer -> its weight's place
        linear = set(self._layers.values())
        self._others = [i for i in range(len(parameters)) if i not in linear]
        # What batches have told:
        self._apart = False  # rows belong to samples, as far as that was tested
        self._single = False  # samples share rows: one at a time
        self._copied: set[nn.Module] = set()  # changed after they have run

    def __call__(self, batch: Any, left: int | None) -> Collected:
        """Compute the gradients of a batch, of its first ``left`` samples at most."""
        shared = None
        if not self._single:
            try:
                return self._whole_batch(batch, self._losses, left)
            except SharedRows as error:
                self._single, shared = True, error
        return self._one_at_a_time(batch, left, shared)

    def _whole_batch(self, batch: Any, losses: Losses, left: int | None) -> Collected:
        try:
            return self._backward(batch, losses, left)
        except ChangedInPlace as error:
            self._copied |= error.layers
        return self._backward(batch, losses, left)

    def _backward(self, batch: Any, losses: Losses, left: int | None) -> Collected:
        others = [self._parameters[i] for i in self._others]
        with (
            requiring_grad(self._model, others),
            captured(self._layers, self._copied) as calls,
        ):
            sample_losses = losses(self._model, batch)
            size = sample_losses.shape[0]
            wanted = size if left is None else min(size, left)
            finite = torch.isfinite(sample_losses.detach())
            check_calls(calls, sample_losses)
            if not self._apart and size > 1 and finite.any():
                check_rows(calls, sample_losses, int(finite.nonzero()[0]))
                self._apart = True
            total = torch.where(finite, sample_losses, 0.0).sum()
            take_output_grads_(calls, total, bool(others))
            for call in calls:
                finite &= finite_samples(call, size)
            finite[wanted:] = False
            slow, good = _sample_by_sample(sample_losses, others, finite)
        rows = finite.nonzero().flatten()[good]
        if len(rows) == 0:
            return wanted, None
        parts: dict[int, Signals | Tensor] = {
            i: values[good] for i, values in zip(self._others, slow, strict=True)
        }
        by_layer: dict[nn.Module, list[Call]] = {layer: [] for layer in self._layers}
        for call in calls:
            by_layer[call.layer].append(call)
        for layer, i in self._layers.items():
            parts[i] = signals_of(self._parameters[i], by_layer[layer], rows)
        ordered = tuple(parts[i] for i in range(len(self._parameters)))
        return wanted, BatchGradients(len(rows), ordered)

    def _one_at_a_time(
        self, batch: Any, left: int | None, shared: SharedRows | None
    ) -> Collected:
        size = count_rows(batch)
        if size is None or (shared is not None and size != len(shared.losses)):
            rows, samples = "no", "some"
            if shared is not None:
                rows, samples = str(shared.rows), str(len(shared.losses))
            raise ValueError(
                f"layer input has {rows} rows for {samples} samples; expected the "
                "sample as first dimension; use grad_granularity: batch"
            )
        wanted = size if left is None else min(size, left)
        batches = []
        for row in range(wanted):
            known = None if shared is None else shared.losses[row]
            sample = take_sample(batch, row, size)
            losses = _checked(self._losses, known)
            gradients = self._whole_batch(sample, losses, None)[1]
            if gradients is not None:
                batches.append(gradients)
        return wanted, _joined(batches)


def _linear_layers(
    model: nn.Module, parameters: Sequence[nn.Parameter]
) -> dict[nn.Module, int]:
    positions = {id(p): i for i, p in enumerate(parameters)}
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for param in module.parameters(recurse=False):
            if id(param) in positions:
                owners.setdefault(positions[id(param)], []).append(module)
    # A weight tied between modules gets gradients from all of them: the slow way.
    return {
        owners[i][0]: i
        for i in sorted(owners)
        if len(owners[i]) == 1
        and type(owners[i][0]) is nn.Linear
        and owners[i][0].weight is parameters[i]
    }


def _sample_by_sample(
    sample_losses: Tensor, parameters: list[nn.Parameter], finite: Tensor
) -> tuple[list[Tensor], Tensor]:
    # Gradients of the finite samples by parameter, and which of them are finite.
    if parameters and is_mean(sample_losses):
        raise ValueError(
            "loss=scalar gives single gradients of Linear weights only; expected one "
            "loss per sample, shape (k,); or use grad_granularity: batch"
        )
    rows = finite.nonzero().flatten().tolist()
    good = torch.ones(len(rows), dtype=torch.bool, device=sample_losses.device)
    if not parameters:
        return [], good
    found: list[list[Tensor]] = [[] for _ in parameters]
    for nth, row in enumerate(rows):
        grads = torch.autograd.grad(
            sample_losses[row], parameters, retain_graph=True, allow_unused=True
        )
        for kept, grad, param in zip(found, grads, parameters, strict=True):
            grad = torch.zeros_like(param) if grad is None else grad
            good[nth] &= torch.isfinite(grad).all()
            kept.append(grad.detach().reshape(-1))
    return [torch.stack(kept) if kept else torch.empty(0) for kept in found], good


def _checked(losses: Losses, known: Tensor | None) -> Losses:
    # A sample has the loss that it has in its batch, where that is known and finite.
    def loss(model: nn.Module, sample: Any) -> Tensor:
        found = losses(model, sample)
        same = len(found) == 1
        if same and known is not None and torch.isfinite(known):
            same = torch.allclose(found.detach()[0], known, rtol=1e-2, atol=1e-3)
        if not same:
            raise ValueError(
                "loss of a sample is another one without the rest of its batch; "
                "expected one that only depends on the sample; use "
                "grad_granularity: batch"
            )
        return found

    return loss


def _joined(batches: list[BatchGradients]) -> BatchGradients | None:
    if not batches:
        return None
    known: dict[tuple[Any, ...], Tensor] = {}

    def join(values: list[Tensor]) -> Tensor:
        # Layers with the same inputs share their memory.
        key = tuple((tensor.data_ptr(), tensor.shape) for tensor in values)
        if key not in known:
            known[key] = join_positions(values)
        return known[key]

    parts: list[Signals | Tensor] = []
    for of_samples in zip(*(batch.parts for batch in batches), strict=True):
        signals = [part for part in of_samples if isinstance(part, Signals)]
        if signals:
            inputs = join([part.inputs for part in signals])
            output_grads = join([part.output_grads for part in signals])
            parts.append(Signals(inputs, output_grads))
        else:
            parts.append(torch.cat(of_samples))
    return BatchGradients(len(batches), tuple(parts))


@contextmanager
def requiring_grad(
    model: nn.Module, parameters: Sequence[nn.Parameter]
) -> Iterator[None]:
    """Have only these parameters require gradients in the body."""
    before = [(param, param.requires_grad) for param in model.parameters()]
    wanted = {id(param) for param in parameters}
    try:
        for param, _ in before:
            param.requires_grad_(id(param) in wanted)
        yield
    finally:
        for param, flag in before:
            param.requires_grad_(flag)
