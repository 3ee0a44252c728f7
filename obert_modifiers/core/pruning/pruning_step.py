"""Prune once, from gradients to parameters."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, cuda, nn

from obert_modifiers.core.distributed.parallel import ran_out_of_memory, world
from obert_modifiers.core.distributed.sharding import MemoryPlan
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import UNSTRUCTURED, MaskPattern
from obert_modifiers.core.pruning.event import PruningEvent, plan_targets
from obert_modifiers.core.pruning.fisher_state import FisherState
from obert_modifiers.core.pruning.gradients import GradientCount
from obert_modifiers.core.pruning.rows import fit_rows
from obert_modifiers.core.pruning.saliency import magnitude_candidates
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.selection import choose, make_pools, make_quotas
from obert_modifiers.core.pruning.targets import (
    Target,
    group_masks,
    restore_shapes,
    restored,
    write_parameters_,
)

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """New mask of each target, True = kept, and figures of the event.

    The loss increase is in units of the loss. Magnitude pruning has none, and neither
    dampening nor a plan of where the Fisher state lived.
    """

    masks: list[Tensor]
    predicted_loss_increase: float | None = None
    gradients: GradientCount = field(default_factory=GradientCount)
    damp: float | None = None
    plan: MemoryPlan | None = None


def magnitude_step_(
    targets: Sequence[Target],
    masks: Sequence[Tensor],
    sparsities: Sequence[float],
    *,
    global_sparsity: bool,
    pattern: MaskPattern = UNSTRUCTURED,
    min_density: float = 0.0,
) -> StepResult:
    """Prune the weights or groups of smallest magnitude; writes the parameters.

    Takes what :func:`second_order_step_` takes. Every process does the same on the same
    weights; nothing is exchanged.

    Returns:
        The new masks.
    """
    layouts = [t.layout(pattern) for t in targets]
    kept = group_masks(layouts, masks)
    candidates = {
        i: magnitude_candidates(layout.groups(t.parameter.detach()), mask, pattern)
        for i, (layout, t, mask) in enumerate(zip(layouts, targets, kept, strict=True))
    }
    pools = make_pools(_numels(masks), sparsities, global_sparsity, pattern.unit)
    quotas = make_quotas(pools, kept, pattern, min_density=min_density)
    chosen = choose(candidates, range(len(targets)), quotas)
    left = [
        mask.reshape(-1) & ~candidates[i].pruned(chosen[i], mask.numel())
        for i, mask in enumerate(kept)
    ]
    fresh = restore_shapes(layouts, left, masks)
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
    reached: Sequence[float] | None = None,
) -> StepResult:
    """Prune by second-order saliency and update what remains; writes the parameters.

    oBERT sections 3.1 and 3.2, in the steps that :mod:`obert_modifiers.core.pruning`
    lists. Every process of a distributed run has to call it; each contributes its share
    of the gradients and works on its part of the blocks, and all end with the same
    bits. If it raises, the parameters are as they were; if memory ran out, it starts
    again with more turns.

    Args:
        model: Model that holds the targets, not wrapped for distributed training.
        targets: Parameters to prune.
        masks: Current mask of each, True = kept.
        sparsities: Target sparsity of each, in [0, 1].
        global_sparsity: True for one threshold over all that share a target.
        config: How to do it.
        source: Where the gradients come from.
        draw: Number of this event, so that each draws samples of its own.
        reached: Target sparsity of each at the event before, from which sub-steps
            start; None for what the masks have.

    Returns:
        The new masks and figures. The predicted loss increase is summed over
        sub-steps.

    Raises:
        FloatingPointError: If more than a tenth of the gradients is not finite, or a
            Fisher block is not positive definite.
        ValueError: If there is no gradient, or all are zero, or the groups do not
            divide a parameter or the Fisher blocks, or the memory does not suffice.
        RuntimeError: If another process failed.
    """
    plan = plan_targets(targets, config)  # step 1
    start = reached or _present_sparsities(masks, sparsities, global_sparsity)
    count = config.num_recomputations
    # The way from one sparsity to the other, in equal parts.
    goals = [
        [s + (t - s) * (nth / count) for s, t in zip(start, sparsities, strict=True)]
        for nth in range(1, count)
    ]
    goals.append(list(sparsities))  # exactly, as those that share one are a pool
    state = FisherState(model, targets, masks, plan, config, source, draw * count)
    while True:
        try:
            with restored(targets, after_success=False):
                return _prune_(state, goals, global_sparsity)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            state = _with_half_of_the_memory(state, error)
        cuda.empty_cache()  # does nothing where CUDA was not used


def _prune_(
    first: FisherState, goals: Sequence[Sequence[float]], global_sparsity: bool
) -> StepResult:
    """Prune in sub-steps, each with a Fisher and a draw of its own."""
    masks, total, gradients, damp = list(first.masks), 0.0, GradientCount(), 0.0
    unit = first.config.pattern.unit
    for nth, sparsities in enumerate(goals):
        # A copy: the first one's Fisher would stay in memory, as it starts again.
        event = PruningEvent(replace(first, masks=masks, draw=first.draw + nth))
        pools = make_pools(_numels(masks), sparsities, global_sparsity, unit)
        found, damp = event.best_outcome(pools)
        values = found.values
        if first.config.update == "row":
            values = fit_rows(event.state, found.masks, values)
        write_parameters_(first.targets, values, found.masks)  # step 7
        masks = found.masks
        total += found.predicted_loss_increase
        gradients.used += event.state.count.used
        gradients.skipped += event.state.count.skipped
    return StepResult(masks, total, gradients, damp, first.plan)


def _with_half_of_the_memory(state: FisherState, error: Exception) -> FisherState:
    # The masks are the same under every plan.
    less = state.plan.working_bytes + state.plan.state_bytes // 2
    config = replace(state.config, memory_budget=less)
    try:
        plan = plan_targets(state.targets, config)
    except ValueError as too_small:
        raise too_small from error
    if world()[0] == 0:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _LOGGER.warning(
            "out of memory in the pruning event (%s); starting it again with less: %s",
            reason,
            plan.describe(),
        )
    return replace(state, plan=plan, config=config)


def _numels(masks: Sequence[Tensor]) -> list[int]:
    return [mask.numel() for mask in masks]


def _present_sparsities(
    masks: Sequence[Tensor], sparsities: Sequence[float], global_sparsity: bool
) -> list[float]:
    present = [0.0] * len(masks)
    for pool in make_pools(_numels(masks), sparsities, global_sparsity):
        total = sum(masks[i].numel() for i in pool.members)
        kept = sum(int(masks[i].sum()) for i in pool.members)
        for i in pool.members:
            present[i] = 1.0 - kept / total
    return present
