"""Fit the weights that stay again, over whole output rows, to a layer's outputs.

A Fisher block sees B weights of a row; here the kept weights of a row make up for all
that the row has lost, on the inputs of the layer.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.parallel import (
    all_reduce_,
    raise_on_all_ranks,
    world,
)
from obert_modifiers.core.pruning.fisher_state import FisherState
from obert_modifiers.core.pruning.gradients import undisturbed
from obert_modifiers.core.pruning.layer_signals import input_of
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.targets import Target, is_conv1d

DAMP = 0.01  # of the mean diagonal of the Gram matrix
ITERATIONS = 100
TOLERANCE = 1e-6  # of the gradient at the start, or at the weights before pruning


def solve_rows(
    gram: Tensor, before: Tensor, start: Tensor, mask: Tensor, damp: float = DAMP
) -> Tensor:
    r"""Return the kept weights of each row that leave the least output error.

    Minimises :math:`(w - w_0) H (w - w_0)^T` with :math:`H = X^T X + \lambda I` over
    the weights w of a row that are zero where it is pruned, by conjugate gradients on
    its kept weights (Hestenes and Stiefel 1952), preconditioned with the diagonal of
    H, all rows at once. :math:`\lambda` is ``damp`` times the mean diagonal of
    :math:`X^T X`. The error falls in every step, so that it is never larger than that
    of the start.

    Args:
        gram: :math:`X^T X` of the layer's inputs, ``(in, in)``, float32 or float64.
        before: Weights :math:`w_0` before pruning, ``(out, in)``.
        start: Weights to start from, ``(out, in)``.
        mask: True = kept, ``(out, in)``.
        damp: Dampening as a share, 0 or more.

    Returns:
        ``(out, in)`` in the precision of ``gram``, zero where pruned. It takes at most
        ``ITERATIONS`` products of ``(out, in)`` with ``(in, in)``, and 7 ``(out, in)``.
    """
    before, kept = before.to(gram.dtype), mask.to(gram.dtype)
    ridge = damp * float(gram.diagonal().double().mean())
    diagonal = gram.diagonal() + ridge
    inverse = torch.where(diagonal > 0.0, 1.0 / diagonal, 0.0)

    def pull(change: Tensor) -> Tensor:
        return (change @ gram).add_(change, alpha=ridge).mul_(kept)

    weights = start.to(gram.dtype) * kept
    residual = pull(before - weights)
    most = pull(before * (1.0 - kept))
    step = residual * inverse
    size = (residual * step).sum(1)  # (out,)
    # A row that has lost nothing has only its start's gradient to compare with.
    enough = TOLERANCE**2 * torch.maximum(most.square_() @ inverse, size)
    for _ in range(ITERATIONS):
        going = size > enough
        if not bool(going.any()):
            break
        pulled = pull(step)
        length = torch.where(going, size / (step * pulled).sum(1), 0.0)[:, None]
        weights += length * step
        residual -= length * pulled
        scaled = residual * inverse
        now = (residual * scaled).sum(1)
        turn = torch.where(going, now / size, 0.0)[:, None]
        step, size = scaled + turn * step, now
    return weights


def check_linear(model: nn.Module, targets: Sequence[Target]) -> None:
    """Raise if a parameter is not the weight of linear layers only."""
    for target in targets:
        owners = _owners(model, target)
        kinds = [
            type(one).__name__
            for one in owners
            if not (isinstance(one, nn.Linear) or is_conv1d(one))
        ]
        if kinds or not owners:
            kind = kinds[0] if kinds else "no layer"
            raise ValueError(
                f"update=row fits linear layers' outputs, and {target.name} is of "
                f"{kind}; expected Linear weights; leave it out of params or write "
                "update: joint"
            )


def fit_rows(
    state: FisherState, masks: Sequence[Tensor], values: Sequence[Tensor]
) -> list[Tensor]:
    """Return new weights of an event, fitted row by row; nothing is written.

    The inputs are those of the model as it is, on the samples of the event's Fisher,
    without padding. The Fisher's sums are let go of, and Gram matrices take no more
    than their memory, but one matrix at least: where not all fit, the samples are run
    again. Every process has to call it, and all get the same bits.

    Args:
        state: The Fisher of the event, of which samples and memory are taken.
        masks: New mask of each target, True = kept.
        values: Weights that the Fisher's update left, where it starts.

    Returns:
        The weights in the shapes of the parameters.

    Raises:
        FloatingPointError: If an input of a layer is not finite.
    """
    state.release()
    found = list(values)
    (rank, ranks), device = world(), state.device
    for group in _groups(
        state.targets, state.plan.state_bytes, state.plan.fisher_dtype
    ):
        with raise_on_all_ranks(device):
            grams = _collect(state, group)
        for gram in grams:
            all_reduce_(gram)
        with raise_on_all_ranks(device):
            for number, (place, gram) in enumerate(zip(group, grams, strict=True)):
                target, start = state.targets[place], values[place]
                if number % ranks == rank:
                    _check_finite(gram, target)
                    before, first, mask = (
                        one.T if target.transposed else one
                        for one in (target.parameter.detach(), start, masks[place])
                    )
                    fitted = solve_rows(gram, before, first, mask)
                    fitted = fitted.T if target.transposed else fitted
                    found[place] = fitted.to(start.dtype).contiguous()
                else:  # each comes from one process; the others add zero
                    found[place] = torch.zeros_like(start)
        for place in group:
            found[place] = all_reduce_(found[place])
    return found


def _check_finite(gram: Tensor, target: Target) -> None:
    if not bool(torch.isfinite(gram).all()):
        raise FloatingPointError(
            f"inputs of {target.name} are not finite on the sampled texts; expected "
            "finite ones; lower the learning rate or check the data; nothing was pruned"
        )


def _width(target: Target) -> int:
    return target.parameter.shape[0 if target.transposed else 1]


def _groups(
    targets: Sequence[Target], room: int, dtype: torch.dtype
) -> list[list[int]]:
    # Neighbours whose Gram matrices fit into memory together.
    groups: list[list[int]] = []
    left = 0
    for place, target in enumerate(targets):
        size = _width(target) ** 2 * dtype.itemsize
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(place)
        left -= size
    return groups


def _owners(model: nn.Module, target: Target) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if any(one is target.parameter for one in module._parameters.values())
    ]


def _collect(state: FisherState, group: Sequence[int]) -> list[Tensor]:
    """Return the Gram matrices of some layers on this process's share of samples."""
    grams = [
        torch.zeros(
            (_width(state.targets[place]),) * 2,
            dtype=state.plan.fisher_dtype,
            device=state.device,
        )
        for place in group
    ]
    places: dict[nn.Module, Tensor] = {
        owner: gram
        for place, gram in zip(group, grams, strict=True)
        for owner in _owners(state.model, state.targets[place])
    }
    words: Tensor | None = None  # True where a batch has no padding, (k, T)
    # Layers with the same inputs share a product.
    last: tuple[Tensor, int, Tensor] | None = None

    def see(module: nn.Module, args: tuple, named: dict) -> None:
        # Batches that are no mappings of inputs show their mask to the model alone.
        nonlocal words, last
        for given in (named, *args[:1]):
            found = _mask(given)
            if found is not None:
                words, last = found, None

    def add(layer: nn.Module, args: tuple, named: dict) -> None:
        nonlocal last
        given = input_of(args, named)
        inputs = given.detach()
        if last is None or last[0] is not given or last[1] != given._version:
            if words is not None and inputs.shape[:-1] == words.shape:
                inputs = inputs[words]
            rows = inputs.reshape(-1, inputs.shape[-1]).to(places[layer].dtype)
            last = given, given._version, rows.T @ rows
        places[layer] += last[2]

    outer = [m for m in state.model.modules() if next(m.children(), None) is not None]
    handles = [one.register_forward_pre_hook(see, with_kwargs=True) for one in outer]
    handles += [one.register_forward_pre_hook(add, with_kwargs=True) for one in places]
    try:
        with undisturbed(state.model), torch.no_grad():
            batches, limit = state.batches()
            used = 0
            for batch in batches:
                if limit is not None and used >= limit:
                    break
                words, last = _words(state.source, batch), None
                losses = state.source.sample_losses(state.model, batch)
                whole = state.config.grad_granularity == "batch"
                used += 1 if whole else len(losses)
    finally:
        for handle in handles:
            handle.remove()
    return grams


def _words(source: GradientSource, batch: object) -> Tensor | None:
    return _mask(batch if source.inputs is None else source.inputs(batch))


def _mask(inputs: object) -> Tensor | None:
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
