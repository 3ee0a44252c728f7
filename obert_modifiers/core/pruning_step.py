"""One pruning event, from gradients to parameters, with a report of what it did."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.blocks import (
    UNSTRUCTURED,
    GroupLayout,
    MaskPattern,
    check_block_size,
    make_layout,
    to_blocks,
)
from obert_modifiers.core.fisher import BlockFisher, resolve_damp
from obert_modifiers.core.gradients import (
    MAX_SKIPPED_SHARE,
    GradientCount,
    GradientSource,
    SampleRequest,
    collect_gradients,
)
from obert_modifiers.core.parallel import all_reduce_count, share_of, world
from obert_modifiers.core.saliency import (
    living_blocks,
    magnitude_candidates,
    obs_candidates,
    running_maximum,
)
from obert_modifiers.core.selection import (
    Pool,
    make_pools,
    select_candidates,
    select_ranked,
)
from obert_modifiers.core.update import UPDATES
from obert_modifiers.kernels import eliminate_greedily

SELECTIONS = ("independent", "greedy")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
FISHER_DTYPES = tuple(_DTYPES)


@dataclass(frozen=True)
class Target:
    """One parameter that is pruned.

    Attributes:
        name: Full name of the parameter in the unwrapped model.
        parameter: The parameter.
        transposed: True for ``(in, out)`` weights, as of GPT-2's Conv1D layers.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False

    def layout(self, pattern: MaskPattern) -> GroupLayout:
        """Lay the parameter out in groups.

        Args:
            pattern: Structure of the sparsity.

        Returns:
            The order of the weights; an error if the groups do not divide its shape.
        """
        return make_layout(pattern, self.name, self.parameter.shape, self.transposed)


@dataclass(frozen=True)
class LayerCount:
    """Weights of one parameter after an event.

    Attributes:
        name: Full name of the parameter.
        numel: Number of weights.
        pruned: Number of pruned weights.
    """

    name: str
    numel: int
    pruned: int


@dataclass(frozen=True)
class PruneReport:
    """What one pruning event did.

    Attributes:
        modifier: Class name of the modifier.
        epoch: Progress in epochs.
        step: Optimizer step before which it happened, counted from 0.
        sparsity_before: Fraction of pruned weights before, over all targets.
        sparsity_after: The same afterwards.
        predicted_loss_increase: In units of the loss; None for magnitude pruning.
        seconds: Wall-clock time of the event.
        peak_memory_bytes: Highest memory of the process (CPU) or device so far.
        num_gradients: Gradients used, over all processes.
        skipped_gradients: Gradients left out because they were not finite.
        damp: Dampening used; None for magnitude pruning.
        layers: Count of each target.
    """

    modifier: str
    epoch: float
    step: int
    sparsity_before: float
    sparsity_after: float
    predicted_loss_increase: float | None
    seconds: float
    peak_memory_bytes: int
    num_gradients: int = 0
    skipped_gradients: int = 0
    damp: float | None = None
    layers: tuple[LayerCount, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain Python values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SecondOrderConfig:
    """How a second-order pruning event works.

    Attributes:
        num_grads: Gradients m of the Fisher approximation, over all processes.
        fisher_block_size: Width B of a Fisher block.
        damp: Absolute dampening, or None.
        damp_fraction: Dampening as a fraction of the mean Fisher diagonal, or None.
        grad_granularity: ``"sample"`` or ``"batch"``.
        selection: ``"independent"`` or ``"greedy"``.
        update: ``"joint"`` or ``"independent"``.
        num_recomputations: Sub-steps with a fresh Fisher each.
        fisher_dtype: Precision of the sums, ``"float32"`` or ``"float64"``.
        options: ``grad_sampler_kwargs`` of the recipe.
        pattern: Structure of the sparsity.
    """

    num_grads: int = 1024
    fisher_block_size: int = 48
    damp: float | None = None
    damp_fraction: float | None = 0.01
    grad_granularity: str = "sample"
    selection: str = "greedy"
    update: str = "joint"
    num_recomputations: int = 1
    fisher_dtype: str = "float32"
    options: tuple[tuple[str, Any], ...] = ()
    pattern: MaskPattern = UNSTRUCTURED


@dataclass(frozen=True)
class StepResult:
    """Masks and figures of one event, before it becomes a :class:`PruneReport`.

    Attributes:
        masks: New mask of each target, True = kept.
        predicted_loss_increase: In units of the loss; None for magnitude pruning.
        gradients: Gradients used and skipped.
        damp: Dampening used; None for magnitude pruning.
    """

    masks: list[Tensor]
    predicted_loss_increase: float | None = None
    gradients: GradientCount = field(default_factory=GradientCount)
    damp: float | None = None


def magnitude_step_(
    targets: Sequence[Target],
    masks: Sequence[Tensor],
    sparsities: Sequence[float],
    *,
    global_sparsity: bool,
    pattern: MaskPattern = UNSTRUCTURED,
) -> StepResult:
    """Prune the weights or groups of smallest magnitude; writes the parameters.

    Args:
        targets: Parameters to prune.
        masks: Current mask of each, True = kept.
        sparsities: Target sparsity of each, in [0, 1].
        global_sparsity: True for one threshold over all that share a target.
        pattern: Structure of the sparsity.

    Returns:
        The new masks.
    """
    layouts = [t.layout(pattern) for t in targets]
    kept = [layout.groups(m) for layout, m in zip(layouts, masks, strict=True)]
    candidates = [
        magnitude_candidates(layout.groups(t.parameter.detach()), mask, pattern)
        for layout, t, mask in zip(layouts, targets, kept, strict=True)
    ]
    pools = make_pools(
        [m.numel() for m in masks], sparsities, global_sparsity, pattern.unit
    )
    found = select_candidates(candidates, kept, pools, pattern.unit)
    fresh = _restore(layouts, found, masks)
    write_parameters_(targets, [t.parameter.detach() for t in targets], fresh)
    return StepResult(fresh)


def second_order_step_(
    model: nn.Module,
    targets: Sequence[Target],
    masks: Sequence[Tensor],
    sparsities: Sequence[float],
    *,
    global_sparsity: bool,
    config: SecondOrderConfig,
    source: GradientSource,
    draw: int = 0,
) -> StepResult:
    """Prune by second-order saliency and update what remains; writes the parameters.

    oBERT sections 3.1 and 3.2: gradients, block Fisher, saliency, selection, update.
    Every process of a distributed run has to call it; each contributes its share of
    the gradients, and all end with the same bits. If it raises, the parameters are as
    they were.

    Args:
        model: Model that holds the targets, not wrapped for distributed training.
        targets: Parameters to prune.
        masks: Current mask of each, True = kept.
        sparsities: Target sparsity of each, in [0, 1].
        global_sparsity: True for one threshold over all that share a target.
        config: How to do it.
        source: Where the gradients come from.
        draw: Number of this event, so that each draws samples of its own.

    Returns:
        The new masks and figures. The predicted loss increase is summed over
        sub-steps.

    Raises:
        FloatingPointError: If more than a tenth of the gradients is not finite, or a
            Fisher block is not positive definite.
        ValueError: If no gradient could be had, or all are zero, or the groups do not
            divide a parameter or the Fisher blocks.
    """
    check_block_size(config.fisher_block_size, config.pattern)
    layouts = [t.layout(config.pattern) for t in targets]
    before = [t.parameter.detach().clone() for t in targets]
    start = _present_sparsities(masks, sparsities, global_sparsity)
    current, total, gradients = list(masks), 0.0, GradientCount()
    damp = 0.0
    try:
        for nth in range(1, config.num_recomputations + 1):
            share = nth / config.num_recomputations
            goals = [
                s + (t - s) * share for s, t in zip(start, sparsities, strict=True)
            ]
            request = draw * config.num_recomputations + nth - 1
            kept = [
                layout.groups(mask)
                for layout, mask in zip(layouts, current, strict=True)
            ]
            fishers, count = _collect(
                model, targets, layouts, kept, config, source, request
            )
            damp = resolve_damp(fishers, kept, config.damp, config.damp_fraction)
            weights = [
                layout.groups(t.parameter.detach())
                for layout, t in zip(layouts, targets, strict=True)
            ]
            pools = make_pools(
                [f.numel for f in fishers],
                goals,
                global_sparsity,
                config.pattern.unit,
            )
            fresh = _select(weights, kept, fishers, pools, damp, config)
            values, increase = _update(weights, fresh, fishers, damp, config)
            total += increase
            current = _restore(layouts, fresh, masks)
            write_parameters_(targets, _restore(layouts, values, masks), current)
            gradients.used += count.used
            gradients.skipped += count.skipped
    except BaseException:
        with torch.no_grad():
            for target, old in zip(targets, before, strict=True):
                target.parameter.copy_(old)
        raise
    return StepResult(current, total, gradients, damp)


def write_parameters_(
    targets: Sequence[Target], values: Sequence[Tensor], masks: Sequence[Tensor]
) -> None:
    """Write pruned parameters in place, exactly zero where the mask is False.

    Args:
        targets: Parameters to write.
        values: New values of each, any float dtype, same number of elements.
        masks: Mask of each, True = kept.
    """
    with torch.no_grad():
        for target, value, mask in zip(targets, values, masks, strict=True):
            shaped = value.reshape(target.parameter.shape)
            target.parameter.copy_(torch.where(mask, shaped, 0.0))


def _restore(
    layouts: Sequence[GroupLayout], values: Sequence[Tensor], like: Sequence[Tensor]
) -> list[Tensor]:
    # From the order of the groups into the parameters' shapes.
    return [
        layout.restore(value.reshape(-1)).reshape(model.shape)
        for layout, value, model in zip(layouts, values, like, strict=True)
    ]


def _present_sparsities(
    masks: Sequence[Tensor], sparsities: Sequence[float], global_sparsity: bool
) -> list[float]:
    present = [0.0] * len(masks)
    for pool in make_pools([m.numel() for m in masks], sparsities, global_sparsity):
        total = sum(masks[i].numel() for i in pool.members)
        kept = sum(int(masks[i].sum()) for i in pool.members)
        for i in pool.members:
            present[i] = 1.0 - kept / total
    return present


def _collect(
    model: nn.Module,
    targets: Sequence[Target],
    layouts: Sequence[GroupLayout],
    masks: Sequence[Tensor],
    config: SecondOrderConfig,
    source: GradientSource,
    draw: int,
) -> tuple[list[BlockFisher], GradientCount]:
    parameters = [t.parameter for t in targets]
    # In the order of the groups, as the Fisher is.
    kept = [None if bool(mask.all()) else mask.reshape(-1) for mask in masks]
    fishers = [
        BlockFisher(
            p.numel(),
            config.fisher_block_size,
            device=p.device,
            dtype=torch.promote_types(p.dtype, _DTYPES[config.fisher_dtype]),
        )
        for p in parameters
    ]
    rank, ranks = world()
    share = share_of(config.num_grads, rank, ranks)
    options = dict(config.options)
    request = SampleRequest(
        config.num_grads, share, draw, options, config.grad_granularity
    )
    count = collect_gradients(
        model,
        parameters,
        source.batches(request),
        source.sample_losses,
        lambda i, grads: fishers[i].add_(layouts[i].arrange(grads), kept[i]),
        granularity=config.grad_granularity,
        limit=None if source.divides else share,
    )
    count.used = all_reduce_count(count.used, parameters[0].device)
    count.skipped = all_reduce_count(count.skipped, parameters[0].device)
    if count.skipped > MAX_SKIPPED_SHARE * (count.used + count.skipped):
        raise FloatingPointError(
            f"{count.skipped} of {count.used + count.skipped} sampled gradients are "
            f"not finite; expected at most {MAX_SKIPPED_SHARE:.0%}; lower the learning "
            "rate or check the data; nothing was pruned"
        )
    for fisher in fishers:
        fisher.reduce_()
    return fishers, count


def _select(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    fishers: Sequence[BlockFisher],
    pools: Sequence[Pool],
    damp: float,
    config: SecondOrderConfig,
) -> list[Tensor]:
    pattern = config.pattern
    if config.selection == "independent":
        candidates = [
            obs_candidates(weight, mask, fisher, damp, pattern)
            for weight, mask, fisher in zip(weights, masks, fishers, strict=True)
        ]
        return select_candidates(candidates, masks, pools, pattern.unit)
    keys, orders = [], []
    for weight, mask, fisher in zip(weights, masks, fishers, strict=True):
        width = fisher.fisher_block_size
        greedy = eliminate_greedily(
            fisher.sums,
            fisher.scale,
            damp,
            to_blocks(weight.reshape(-1), width),
            living_blocks(mask, width),
            group_size=1 if pattern.n_m else pattern.group_size,
            n_m=pattern.n_m,
        )
        keys.append(running_maximum(greedy.costs))
        orders.append(greedy.order)
    return select_ranked(keys, orders, masks, pools, pattern)


def _update(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    fishers: Sequence[BlockFisher],
    damp: float,
    config: SecondOrderConfig,
) -> tuple[list[Tensor], float]:
    update = UPDATES[config.update]
    total, values = 0.0, []
    for weight, mask, fisher in zip(weights, masks, fishers, strict=True):
        size = config.pattern.group_size
        value, increase = update(weight, fisher, damp, mask, size)
        values.append(value)
        total += increase
    return values, total
