"""Gradients of single samples, or of batches, without disturbing training.

Per-sample gradients of a Linear layer come from its inputs x and the gradients dy of
its outputs, all samples in one backward pass: ``G_i = sum_t dy_it x_it^T``. What is
handed on are x and dy: who adds the gradients up forms them, a piece at a time.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.single import count_rows, join_positions, take_sample

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
    than Linear their batch mates may go with them. Where samples share the rows of a
    Linear layer, or are not its first dimension, a batch is computed one sample at a
    time, which the first batch tells. The model is in eval mode meanwhile. ``.grad`` of
    every parameter, the train or eval mode of every submodule, ``requires_grad`` and
    the random state are as before when this returns or raises.

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
        ValueError: If the granularity is unknown, or the samples of a batch cannot be
            told apart.
    """  # noqa: DOC502  raised by what is called too
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


@dataclass
class _Plan:
    parameters: Sequence[nn.Parameter]
    linear: dict[nn.Module, int]  # module -> position of its weight
    other: list[int]  # positions that go the slow way
    # What batches have told:
    apart: bool = False  # rows belong to samples, as far as that was tested
    single: bool = False  # samples share rows: one at a time
    copied: set[nn.Module] = field(default_factory=set)  # changed after they have run


class _SharedRows(Exception):
    """Samples of a batch share the rows of a layer."""

    def __init__(self, losses: Tensor, rows: int) -> None:
        super().__init__(rows)
        self.losses, self.rows = losses.detach(), rows
        if _is_mean(losses):
            self.losses = torch.full_like(self.losses, torch.nan)


class _ChangedInPlace(Exception):
    """Inputs or outputs of layers are changed after the layers have run."""

    def __init__(self, modules: set[nn.Module]) -> None:
        super().__init__()
        self.modules = modules


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
    shared = None
    if not plan.single:
        try:
            wanted, found = _measure(model, plan, batch, losses, left)
        except _SharedRows as error:
            plan.single, shared = True, error
    if plan.single:
        wanted, found = _one_at_a_time(model, plan, batch, losses, left, shared)
    used = found.size if found is not None else 0
    count.used += used
    count.skipped += wanted - used
    if found is not None:
        consume(found)


def _measure(
    model: nn.Module,
    plan: _Plan,
    batch: Any,
    losses: Callable[[nn.Module, Any], Tensor],
    left: int | None,
) -> tuple[int, BatchGradients | None]:
    """Compute a batch, once more with copies where layers' outputs are changed.

    Returns:
        Samples asked for, and the finite ones among them.
    """
    try:
        return _gradients_of(model, plan, batch, losses, left)
    except _ChangedInPlace as error:
        plan.copied |= error.modules
    return _gradients_of(model, plan, batch, losses, left)


def _gradients_of(
    model: nn.Module,
    plan: _Plan,
    batch: Any,
    losses: Callable[[nn.Module, Any], Tensor],
    left: int | None,
) -> tuple[int, BatchGradients | None]:
    others = [plan.parameters[i] for i in plan.other]
    with _requiring_grad(model, others), _captured(plan) as calls:
        sample_losses = losses(model, batch)
        size = sample_losses.shape[0]
        wanted = size if left is None else min(size, left)
        finite = torch.isfinite(sample_losses.detach())
        _check_calls(calls, sample_losses)
        if not plan.apart and size > 1 and finite.any():
            _check_rows(calls, sample_losses, int(finite.nonzero()[0]))
            plan.apart = True
        total = torch.where(finite, sample_losses, 0.0).sum()
        for call, grad in zip(calls, _output_grads(total, calls, others), strict=True):
            call.output_grad = grad
            finite &= _finite_samples(call, size)
        finite[wanted:] = False
        slow, slow_finite = _one_by_one(sample_losses, others, finite)
    rows = finite.nonzero().flatten()[slow_finite]
    if len(rows) == 0:
        return wanted, None
    parts: dict[int, Signals | Tensor] = _signals(plan, calls, rows)
    for position, values in zip(plan.other, slow, strict=True):
        parts[position] = values[slow_finite]
    ordered = tuple(parts[position] for position in range(len(plan.parameters)))
    return wanted, BatchGradients(len(rows), ordered)


def _one_at_a_time(
    model: nn.Module,
    plan: _Plan,
    batch: Any,
    losses: Callable[[nn.Module, Any], Tensor],
    left: int | None,
    shared: _SharedRows | None,
) -> tuple[int, BatchGradients | None]:
    """Compute a batch sample by sample, in which all of a layer is that sample's.

    Returns:
        Samples asked for, and the finite ones among them, put together.

    Raises:
        ValueError: If the batch cannot be taken apart.
    """
    size = count_rows(batch)
    if size is None or (shared is not None and size != len(shared.losses)):
        rows, samples = (shared.rows, len(shared.losses)) if shared else ("no", "some")
        raise ValueError(
            f"layer input has {rows} rows for {samples} samples; expected the sample "
            "as first dimension; use grad_granularity: batch"
        )
    wanted = size if left is None else min(size, left)
    found = []
    for row in range(wanted):
        whole = None if shared is None else shared.losses[row]
        one = take_sample(batch, row, size)
        found.append(_measure(model, plan, one, _alone(losses, whole), None)[1])
    return wanted, _joined([one for one in found if one is not None])


def _alone(
    losses: Callable[[nn.Module, Any], Tensor], whole: Tensor | None
) -> Callable[[nn.Module, Any], Tensor]:
    """Check that a sample has the loss that it has in its batch.

    Args:
        losses: Gives the losses.
        whole: The loss in the batch, not finite where it is not known; None checks
            their number alone.

    Returns:
        What gives the loss of that sample.
    """

    def loss(model: nn.Module, one: Any) -> Tensor:
        found = losses(model, one)
        same = len(found) == 1
        if same and whole is not None and torch.isfinite(whole):
            same = torch.allclose(found.detach()[0], whole, rtol=1e-2, atol=1e-3)
        if not same:
            raise ValueError(
                "loss of a sample is another one without the rest of its batch; "
                "expected one that depends on the sample alone; use "
                "grad_granularity: batch"
            )
        return found

    return loss


def _joined(found: list[BatchGradients]) -> BatchGradients | None:
    if not found:
        return None
    known: dict[tuple[Any, ...], Tensor] = {}

    def join(values: list[Tensor]) -> Tensor:
        # Layers with the same inputs share their memory.
        key = tuple((one.data_ptr(), one.shape) for one in values)
        if key not in known:
            known[key] = join_positions(values)
        return known[key]

    parts: list[Signals | Tensor] = []
    for of_samples in zip(*(one.parts for one in found), strict=True):
        signals = [one for one in of_samples if isinstance(one, Signals)]
        if signals:
            parts.append(
                Signals(
                    join([one.inputs for one in signals]),
                    join([one.output_grads for one in signals]),
                )
            )
        else:
            parts.append(torch.cat(of_samples))
    return BatchGradients(len(found), tuple(parts))


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
def _captured(plan: _Plan) -> Iterator[list[_Call]]:
    calls: list[_Call] = []

    def begin(module: nn.Module, args: tuple) -> tuple:
        # No output is a leaf, which could not be changed in place.
        if args[0].requires_grad or not torch.is_grad_enabled():
            return args
        return (args[0].detach().requires_grad_(True), *args[1:])

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # first pass of a reentrant checkpoint
            raise ValueError(
                "gradient checkpointing with use_reentrant=True hides the layers' "
                "outputs; expected a plain forward pass; use use_reentrant=False"
            )
        copied = module in plan.copied
        inputs = args[0].detach()
        calls.append(_Call(module, inputs.clone() if copied else inputs, output))
        return output.clone() if copied else output

    handles = [module.register_forward_pre_hook(begin) for module in plan.linear]
    handles += [module.register_forward_hook(keep) for module in plan.linear]
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


def _check_calls(calls: list[_Call], sample_losses: Tensor) -> None:
    """Check that layers' inputs and outputs are as they were, a row for each sample.

    Raises:
        _ChangedInPlace: If they are not as they were.
        _SharedRows: If a layer has other rows than samples.
    """
    changed = {call.module for call in calls if call.changed}
    if changed:
        raise _ChangedInPlace(changed)
    size = len(sample_losses)
    for call in calls:
        if size > 1 and call.inputs.shape[0] != size:
            raise _SharedRows(sample_losses, call.inputs.shape[0])


def _check_rows(calls: list[_Call], sample_losses: Tensor, row: int) -> None:
    """Check that the loss of one sample depends on its own row of each layer alone.

    A layer may have as many rows as there are samples by chance. A loss that is a mean
    over the batch cannot be asked.

    Raises:
        _SharedRows: If a layer's rows are not those of the samples.
    """
    if not calls or _is_mean(sample_losses):
        return
    outputs = [call.output for call in calls]
    grads = torch.autograd.grad(
        sample_losses[row], outputs, retain_graph=True, allow_unused=True
    )
    for grad in grads:
        if grad is not None:
            rest = torch.cat([grad[:row], grad[row + 1 :]])
            # Samples that are not finite make zeros NaN.
            if (torch.isfinite(rest) & (rest != 0)).any():
                raise _SharedRows(sample_losses, grad.shape[0])


def _is_mean(sample_losses: Tensor) -> bool:
    """Tell whether all losses are one, the mean over the batch.

    Returns:
        False where there is one sample.
    """
    return len(sample_losses) > 1 and sample_losses.stride(0) == 0


def _finite_samples(call: _Call, size: int) -> Tensor:
    if size == 1:  # all of it is this sample's, wherever a layer has the sample
        call.inputs = call.inputs.reshape(1, -1, call.inputs.shape[-1])
        if call.output_grad is not None:
            wide = call.output_grad.shape[-1]
            call.output_grad = call.output_grad.reshape(1, -1, wide)
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
    if parameters and _is_mean(sample_losses):
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
