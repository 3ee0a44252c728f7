"""Gradients of single samples, or of batches, without disturbing training.

Per-sample gradients of a Linear layer come from its inputs x and the gradients dy of
its outputs, all samples in one backward pass: ``G_i = sum_t dy_it x_it^T``. What is
handed on are x and dy: who adds the gradients up forms them, a piece at a time.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.sampling import GradientSource

MAX_SKIPPED_SHARE = 0.1


@dataclass
class GradientCount:
    """Gradients used and left out in one collection.

    Attributes:
        used: Gradients handed on.
        skipped: Gradients left out because they or their loss were not finite.
    """

    used: int = 0
    skipped: int = 0


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


@dataclass(frozen=True)
class BatchGradients:
    """Gradients of the samples of one batch.

    Attributes:
        size: Samples k, all finite.
        parts: Of each parameter, what they are made of, or the gradients themselves,
            ``(k, numel)``.
    """

    size: int
    parts: tuple[Signals | Tensor, ...]


Consume = Callable[[BatchGradients], None]


def collect_gradients(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Any],
    losses: Callable[[nn.Module, Any], Tensor],
    consume: Consume,
    *,
    granularity: str = "sample",
    limit: int | None = None,
) -> GradientCount:
    """Hand the gradients of parameters to a consumer, batch by batch.

    The gradient of sample i is that of its own loss, not divided by the batch size.
    With ``granularity="batch"`` it is the gradient of the batch's mean loss, as
    SparseML takes it. Non-finite samples are left out; for parameters of other layers
    than Linear their batch mates may go with them. The model is in eval mode
    meanwhile. ``.grad`` of every parameter, the train or eval mode of every submodule,
    ``requires_grad`` and the random state are as before when this returns or raises.

    Args:
        model: The model, not wrapped for distributed training.
        parameters: Parameters of the model whose gradients are wanted.
        batches: Batches for ``losses``.
        losses: Called with model and batch; gives the loss of each sample, ``(k,)``.
        consume: Called once for each batch that has a finite sample.
        granularity: ``"sample"`` or ``"batch"``.
        limit: Stop after this many gradients, finite or not; None takes all batches.

    Returns:
        How many gradients were handed on and how many left out.

    Raises:
        ValueError: If the granularity is unknown.
    """
    if granularity not in ("sample", "batch"):
        raise ValueError(
            f"grad_granularity={granularity} is unknown; expected sample or batch; "
            "use sample"
        )
    collect = _sample_gradients if granularity == "sample" else _batch_gradient
    count = GradientCount()
    with undisturbed(model):
        plan = _plan(model, parameters)
        for batch in batches:
            left = None if limit is None else limit - count.used - count.skipped
            if left is not None and left <= 0:
                break
            collect(model, plan, batch, losses, consume, count, left)
    return count


def sum_losses(
    model: nn.Module,
    batches: Iterable[Any],
    source: GradientSource,
    limit: int | None = None,
) -> tuple[float, int]:
    """Sum the loss over samples, without disturbing training.

    Args:
        model: The model; in eval mode meanwhile.
        batches: Batches of the source.
        source: Tells the losses.
        limit: Stop after this many samples; None takes all batches.

    Returns:
        Sum of the losses and number of samples.
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


@dataclass(frozen=True)
class _Plan:
    parameters: Sequence[nn.Parameter]
    linear: dict[nn.Module, int]  # module -> position of its weight
    other: list[int]  # positions that go the slow way


def _plan(model: nn.Module, parameters: Sequence[nn.Parameter]) -> _Plan:
    positions = {id(p): i for i, p in enumerate(parameters)}
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for param in module.parameters(recurse=False):
            if id(param) in positions:
                owners.setdefault(positions[id(param)], []).append(module)
    linear, other = {}, []
    for position in range(len(parameters)):
        modules = owners.get(position, [])
        # A weight tied between modules gets gradients from all of them.
        if len(modules) == 1 and _is_linear_weight(modules[0], parameters[position]):
            linear[modules[0]] = position
        else:
            other.append(position)
    return _Plan(parameters, linear, other)


def _is_linear_weight(module: nn.Module, parameter: nn.Parameter) -> bool:
    return type(module) is nn.Linear and module.weight is parameter


def _sample_gradients(
    model: nn.Module,
    plan: _Plan,
    batch: Any,
    losses: Callable[[nn.Module, Any], Tensor],
    consume: Consume,
    count: GradientCount,
    left: int | None,
) -> None:
    others = [plan.parameters[i] for i in plan.other]
    with _requiring_grad(model, others), _captured(plan.linear) as calls:
        sample_losses = losses(model, batch)
        size = sample_losses.shape[0]
        wanted = size if left is None else min(size, left)
        finite = torch.isfinite(sample_losses.detach())
        total = torch.where(finite, sample_losses, 0.0).sum()
        for call, grad in zip(calls, _output_grads(total, calls, others), strict=True):
            call.output_grad = grad
            finite &= _finite_samples(call, size)
        finite[wanted:] = False
        slow, slow_finite = _one_by_one(sample_losses, others, finite)
    rows = finite.nonzero().flatten()[slow_finite]
    count.used += len(rows)
    count.skipped += wanted - len(rows)
    if len(rows) == 0:
        return
    parts: dict[int, Signals | Tensor] = _signals(plan, calls, rows)
    for position, values in zip(plan.other, slow, strict=True):
        parts[position] = values[slow_finite]
    ordered = tuple(parts[position] for position in range(len(plan.parameters)))
    consume(BatchGradients(len(rows), ordered))


@dataclass(eq=False)
class _Call:
    module: nn.Module
    inputs: Tensor
    output: Tensor
    output_grad: Tensor | None = None

    def __post_init__(self) -> None:
        # They count changes in place.
        self.versions = self.inputs._version, self.output._version

    @property
    def changed(self) -> bool:
        """Whether input or output were changed after the layer has run."""
        return (self.inputs._version, self.output._version) != self.versions


@contextmanager
def _captured(linear: dict[nn.Module, int]) -> Iterator[list[_Call]]:
    calls: list[_Call] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # first pass of a reentrant checkpoint
            raise ValueError(
                "gradient checkpointing with use_reentrant=True hides the layers' "
                "outputs; expected a plain forward pass; use use_reentrant=False"
            )
        if not output.requires_grad:
            output.requires_grad_(True)
        calls.append(_Call(module, args[0].detach(), output))
        return output

    handles = [module.register_forward_hook(keep) for module in linear]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _output_grads(
    total: Tensor, calls: list[_Call], others: list[nn.Parameter]
) -> Sequence[Tensor | None]:
    if not calls:
        return ()
    outputs = [call.output for call in calls]
    return torch.autograd.grad(
        total, outputs, retain_graph=bool(others), allow_unused=True
    )


def _finite_samples(call: _Call, size: int) -> Tensor:
    if call.inputs.shape[0] != size:
        raise ValueError(
            f"layer input has {call.inputs.shape[0]} rows for {size} samples; "
            "expected the sample as first dimension; use grad_granularity: batch"
        )
    if call.changed:
        raise ValueError(
            "input or output of a layer is changed in place after the layer has run; "
            "expected tensors that stay; use grad_granularity: batch"
        )
    finite = torch.isfinite(call.inputs).reshape(size, -1).all(dim=1)
    if call.output_grad is not None:
        finite &= torch.isfinite(call.output_grad).reshape(size, -1).all(dim=1)
    return finite


def _signals(
    plan: _Plan, calls: list[_Call], rows: Tensor
) -> dict[int, Signals | Tensor]:
    by_module: dict[nn.Module, list[_Call]] = {}
    for call in calls:
        if call.output_grad is not None:
            by_module.setdefault(call.module, []).append(call)
    return {
        position: _signals_of(
            plan.parameters[position], by_module.get(module, []), rows
        )
        for module, position in plan.linear.items()
    }


def _signals_of(weight: nn.Parameter, calls: list[_Call], rows: Tensor) -> Signals:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    out, width = weight.shape
    inputs = [weight.new_empty(len(rows), 0, width, dtype=dtype)]
    output_grads = [weight.new_empty(len(rows), 0, out, dtype=dtype)]
    for call in calls:
        assert call.output_grad is not None
        x, dy = _rows(call.inputs, rows), _rows(call.output_grad, rows)
        inputs.append(x.to(dtype).reshape(len(rows), -1, width))
        output_grads.append(dy.to(dtype).reshape(len(rows), -1, out))
    # The sum over several calls of a layer is one over all their positions.
    return Signals(
        inputs[-1] if len(inputs) <= 2 else torch.cat(inputs, dim=1),
        output_grads[-1] if len(inputs) <= 2 else torch.cat(output_grads, dim=1),
    )


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    # Layers with the same inputs share their memory, unless a sample is left out.
    return values.contiguous() if len(rows) == len(values) else values[rows]


def _one_by_one(
    sample_losses: Tensor, parameters: list[nn.Parameter], finite: Tensor
) -> tuple[list[Tensor], Tensor]:
    if parameters and len(sample_losses) > 1 and sample_losses.stride(0) == 0:
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


def _batch_gradient(
    model: nn.Module,
    plan: _Plan,
    batch: Any,
    losses: Callable[[nn.Module, Any], Tensor],
    consume: Consume,
    count: GradientCount,
    left: int | None,
) -> None:
    with _requiring_grad(model, plan.parameters):
        loss = losses(model, batch).mean()
        grads = torch.autograd.grad(loss, list(plan.parameters), allow_unused=True)
    found = [
        torch.zeros_like(param) if grad is None else grad
        for param, grad in zip(plan.parameters, grads, strict=True)
    ]
    if not all(torch.isfinite(t).all() for t in (loss.detach(), *found)):
        count.skipped += 1
        return
    count.used += 1
    consume(BatchGradients(1, tuple(grad.reshape(1, -1) for grad in found)))


@contextmanager
def _requiring_grad(
    model: nn.Module, parameters: Sequence[nn.Parameter]
) -> Iterator[None]:
    before = [(param, param.requires_grad) for param in model.parameters()]
    wanted = {id(param) for param in parameters}
    try:
        for param, _ in before:
            param.requires_grad_(id(param) in wanted)
        yield
    finally:
        for param, flag in before:
            param.requires_grad_(flag)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, and leave no other trace.

    Args:
        model: The model. Mode of every submodule and random state of all devices come
            back.

    Yields:
        Once, with gradients enabled.
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
