"""Gradients of single samples, all of a batch in one backward pass where it can be.

A layer that all samples of a batch share (positions of DeBERTa), or that has the sample
in another place than first (Longformer), does not tell whose gradient is whose. In a
batch of one sample all of it is that sample's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from obert_modifiers.core.pruning.layer_signals import (
    Call,
    ChangedInPlace,
    SharedRows,
    Signals,
    captured,
    check_calls,
    check_rows,
    is_mean,
    output_grads,
    signals_of,
)

Losses = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class BatchGradients:
    """Gradients of the ``size`` samples of one batch, all finite.

    ``parts`` are, of each parameter, what they are made of, or the gradients
    themselves, ``(k, d)``.
    """

    size: int
    parts: tuple[Signals | Tensor, ...]


class NotCalled(Exception):
    """Layers are not called, whose weights may be used all the same."""

    def __init__(self, layers: list[nn.Module]) -> None:
        """Keep the layers."""
        super().__init__()
        self.layers = layers


# How many samples were asked for, and the gradients of those that are finite.
Collected = tuple[int, BatchGradients | None]


class SampleGradients:
    """Gradients of the samples of a batch, by parameter.

    Weights of Linear layers get theirs from one backward pass, other parameters, and
    weights that a model uses without a call of their layer, from one for each sample.
    Batches in which samples share a layer's rows are computed one sample at a time,
    which the first such batch tells.
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
        self._called = False  # layers that are not called were looked at
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
        while True:
            try:
                return self._backward(batch, losses, left)
            except ChangedInPlace as error:
                self._copied |= error.layers
            except NotCalled as error:
                used = self._used(batch, losses, error.layers)
                self._others += [self._layers.pop(layer) for layer in used]
                self._called = True

    def _backward(self, batch: Any, losses: Losses, left: int | None) -> Collected:
        others = [self._parameters[i] for i in self._others]
        with (
            requiring_grad(self._model, others),
            captured(self._layers, self._copied) as seen,
        ):
            sample_losses = losses(self._model, batch)
            calls = list(seen)  # a checkpoint runs its layers again when it goes back
            called = {call.layer for call in calls}
            quiet = [layer for layer in self._layers if layer not in called]
            if quiet and not self._called:
                raise NotCalled(quiet)
            size = sample_losses.shape[0]
            wanted = size if left is None else min(size, left)
            finite = torch.isfinite(sample_losses.detach())
            check_calls(calls, sample_losses)
            if not self._apart and size > 1 and finite.any():
                check_rows(calls, sample_losses, int(finite.nonzero()[0]))
                self._apart = True
            total = torch.where(finite, sample_losses, 0.0).sum()
            grads = output_grads(calls, total, keep_graph=bool(others))
            for call, grad in zip(calls, grads, strict=True):
                call.output_grad = grad
                finite &= call.finite_samples(size)
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

    def _used(
        self, batch: Any, losses: Losses, layers: list[nn.Module]
    ) -> list[nn.Module]:
        """Return those of some layers whose weights have a part in the loss."""
        weights = [self._parameters[self._layers[layer]] for layer in layers]
        with requiring_grad(self._model, weights):
            total = losses(self._model, batch).sum()
            if not total.requires_grad:
                return []
            grads = torch.autograd.grad(total, weights, allow_unused=True)
        pairs = zip(layers, grads, strict=True)
        return [layer for layer, grad in pairs if grad is not None]

    def _one_at_a_time(
        self, batch: Any, left: int | None, shared: SharedRows | None
    ) -> Collected:
        size = _count_rows(batch)
        if size is None or (shared is not None and size != len(shared.losses)):
            rows = "no" if shared is None else shared.rows
            samples = "some" if shared is None else len(shared.losses)
            raise ValueError(
                f"layer input has {rows} rows for {samples} samples; expected the "
                "sample as first dimension; use grad_granularity: batch"
            )
        wanted = size if left is None else min(size, left)
        batches = []
        for row in range(wanted):
            known = None if shared is None else shared.losses[row]
            losses = _checked(self._losses, known)
            _, found = self._whole_batch(_take_sample(batch, row, size), losses, None)
            if found is not None:
                batches.append(found)
        return wanted, _joined(batches) if batches else None


def _linear_layers(
    model: nn.Module, parameters: Sequence[nn.Parameter]
) -> dict[nn.Module, int]:
    owners: dict[int, list[nn.Module]] = {id(p): [] for p in parameters}
    for module in model.modules():
        for param in module.parameters(recurse=False):
            if id(param) in owners:
                owners[id(param)].append(module)
    # A weight tied between modules gets gradients from all of them: the slow way.
    return {
        of[0]: i
        for i, of in enumerate(owners[id(p)] for p in parameters)
        if len(of) == 1 and type(of[0]) is nn.Linear and of[0].weight is parameters[i]
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
    if not parameters or not rows:
        return [good for _ in parameters], good
    found = [
        gradients_of(sample_losses[row], parameters, keep_graph=True) for row in rows
    ]
    for grads in zip(*found, strict=True):
        good &= torch.stack([torch.isfinite(grad).all() for grad in grads])
    return [torch.cat(grads) for grads in zip(*found, strict=True)], good


def gradients_of(
    loss: Tensor, parameters: Sequence[nn.Parameter], keep_graph: bool = False
) -> list[Tensor]:
    """Return the gradient ``(1, d)`` of each parameter, zero where it has no part."""
    grads = torch.autograd.grad(
        loss, list(parameters), retain_graph=keep_graph, allow_unused=True
    )
    return [
        (torch.zeros_like(param) if grad is None else grad).detach().reshape(1, -1)
        for param, grad in zip(parameters, grads, strict=True)
    ]


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


def _joined(batches: list[BatchGradients]) -> BatchGradients:
    known: dict[tuple[Any, ...], Tensor] = {}

    def join(values: list[Tensor]) -> Tensor:
        # Layers with the same inputs share their memory. Fewer positions are filled up
        # with zeros, which add nothing to a gradient: (1, T, n) each, (k, T, n) all.
        key = tuple((tensor.data_ptr(), tensor.shape) for tensor in values)
        if key not in known:
            known[key] = pad_sequence([one[0] for one in values], batch_first=True)
        return known[key]

    parts: list[Signals | Tensor] = []
    for of_samples in zip(*(batch.parts for batch in batches), strict=True):
        signals = [part for part in of_samples if isinstance(part, Signals)]
        if len(signals) == len(of_samples):
            x = join([part.inputs for part in signals])
            parts.append(Signals(x, join([part.output_grads for part in signals])))
        else:
            # Of long samples they are formed already.
            formed = [
                p.gradients() if isinstance(p, Signals) else p for p in of_samples
            ]
            parts.append(torch.cat(formed))
    return BatchGradients(len(batches), tuple(parts))


def _count_rows(batch: Any) -> int | None:
    # Samples of tensors in mappings and sequences: rows of the first that has any.
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    items = batch.values() if isinstance(batch, Mapping) else batch
    known = isinstance(batch, (Mapping, list, tuple))
    rows = (_count_rows(item) for item in items) if known else ()
    return next((count for count in rows if count is not None), None)


def _take_sample(batch: Any, row: int, size: int) -> Any:
    # Its row of each tensor that has as many rows as there are samples.
    if isinstance(batch, Tensor):
        per_sample = batch.ndim > 0 and batch.shape[0] == size
        return batch[row : row + 1] if per_sample else batch
    if isinstance(batch, Mapping):
        return {name: _take_sample(item, row, size) for name, item in batch.items()}
    if isinstance(batch, (list, tuple)):
        found = [_take_sample(item, row, size) for item in batch]
        return tuple(found) if isinstance(batch, tuple) else found
    return batch


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
