"""How many weights a pruning modifier will prune, and the memory and time it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from obert_modifiers import core
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._targets import find_targets, match_names, unwrap
from obert_modifiers.modifiers.rules import read_pattern
from obert_modifiers.recipe.load import LoadedRecipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.distributed.sharding import MemoryPlan
    from obert_modifiers.core.pruning.calibration import EventSeconds
    from obert_modifiers.core.pruning.targets import Target

DEFAULT_BATCH = 32  # as gradients are sampled where the recipe gives no batch_size


class PoolCount(NamedTuple):
    """Parameters that share a count, one where the distribution is uniform."""

    names: tuple[str, ...]
    numel: int
    pruned: int  # in the end


def pool_counts(modifier: Any, model: nn.Module) -> tuple[PoolCount, ...]:
    """Count what a modifier will have pruned after its last event.

    Exact counts: one for each parameter, or for all that compete with each other, whose
    split is decided by their saliencies. None for modifiers that are not ours.
    """
    if not isinstance(modifier, GradualPruningModifier):
        return ()
    goals = _goals(modifier, model)
    names = list(goals)
    pattern = read_pattern("mask_type", modifier.mask_type)
    targets = find_targets(unwrap(model), names)
    numels = [target.layout(pattern).numel for target in targets]
    # N:M leaves nothing to compete for: it takes the same share of every group.
    compete = modifier.global_sparsity and pattern.n_m is None
    pools = core.pruning.selection.make_pools(
        numels, list(goals.values()), compete, pattern.unit
    )
    return tuple(
        PoolCount(
            tuple(names[i] for i in pool.members),
            sum(numels[i] for i in pool.members),
            pool.count,
        )
        for pool in pools
    )


def second_order(modifier: Any) -> SecondOrderConfig | None:
    """Tell how a modifier's events take gradients; None where they take none."""
    ours = isinstance(modifier, GradualPruningModifier)
    return modifier.second_order if ours else None


def fisher_memory(modifier: Any, model: nn.Module) -> MemoryPlan | None:
    """Plan the Fisher state of an event on one process, None without a Fisher.

    The recipe's ``memory_budget`` is the only limit.
    """
    config = second_order(modifier)
    if config is None:
        return None
    return core.pruning.event.plan_targets(targets_of(modifier, model), config, ranks=1)


def targets_of(modifier: GradualPruningModifier, model: nn.Module) -> list[Target]:
    """Find the parameters that a modifier prunes; it is not initialized."""
    return find_targets(unwrap(model), list(_goals(modifier, model)))


def _goals(modifier: GradualPruningModifier, model: nn.Module) -> dict[str, float]:
    """Return the final sparsity of each parameter; the first that matches counts."""
    found: dict[str, float] = {}
    for goal, patterns in modifier.goals:
        for name in match_names(unwrap(model), patterns):
            found.setdefault(name, goal)
    return found


class Timing(NamedTuple):
    """An estimate for a modifier, and what was measured for it."""

    line: int
    seconds: EventSeconds
    samples: int
    tokens: int  # of a sample


def estimate_recipe(
    recipe: LoadedRecipe,
    model: nn.Module,
    batch_of: Callable[[int], Any],
    losses: Callable[[nn.Module, Any], Tensor],
    tokens: int,
) -> list[Timing]:
    """Time a few samples and blocks, and scale them to each modifier's events.

    ``model`` has weights and is on the device to measure; ``batch_of`` gives a batch of
    so many samples of ``tokens`` tokens, ``losses`` the loss of each of its samples.
    """
    import torch

    measure = core.pruning.calibration
    found = []
    for placed in recipe.placed:
        config, plan = (
            second_order(placed.modifier),
            fisher_memory(placed.modifier, model),
        )
        if config is None or plan is None:
            continue
        targets = targets_of(placed.modifier, model)
        parameters = [target.parameter for target in targets]
        largest = max(targets, key=lambda target: target.parameter.numel())
        width = largest.layout(config.pattern).shape[1]
        batch = int(dict(config.options).get("batch_size", DEFAULT_BATCH))
        with torch.random.fork_rng(devices=[]):
            each, samples = measure.measure_passes(
                model, parameters, batch_of, losses, batch, config.grad_granularity
            )
            cost = measure.measure_step(config, width, tokens, parameters[0].device)
        seconds = measure.estimate_event(cost, config, plan, each, batch)
        found.append(Timing(placed.line, seconds, samples, tokens))
    return found
