"""How many weights a pruning modifier will prune, from the shapes of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.modifiers._goals import read_goals
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._targets import find_targets, match_names, unwrap
from obert_modifiers.modifiers._validate import as_pattern

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.distributed.sharding import MemoryPlan
    from obert_modifiers.core.pruning.targets import Target


@dataclass(frozen=True)
class PoolCount:
    """Parameters that share a count.

    Attributes:
        names: Their names; one where the distribution is uniform.
        numel: Their weights.
        pruned: How many of them are pruned in the end.
    """

    names: tuple[str, ...]
    numel: int
    pruned: int


def pool_counts(modifier: Any, model: nn.Module) -> tuple[PoolCount, ...]:
    """Count what a modifier will have pruned after its last event.

    Args:
        modifier: One of ours; of others nothing is known.
        model: The model; its shapes alone are read.

    Returns:
        The exact counts: one for each parameter, or for all that compete with each
        other, whose split is decided by their saliencies.
    """
    if not isinstance(modifier, GradualPruningModifier):
        return ()
    goals = _goals(modifier, model)
    names = list(goals)
    pattern = as_pattern("mask_type", modifier.mask_type)
    targets = find_targets(unwrap(model), names)
    numels = [target.layout(pattern).numel for target in targets]
    # N:M leaves nothing to compete for: it takes the same share of every group.
    together = modifier.global_sparsity and pattern.n_m is None
    pools = core.selection.make_pools(
        numels, list(goals.values()), together, pattern.unit
    )
    return tuple(
        PoolCount(
            tuple(names[i] for i in pool.members),
            sum(numels[i] for i in pool.members),
            pool.count,
        )
        for pool in pools
    )


def fisher_memory(modifier: Any, model: nn.Module) -> MemoryPlan | None:
    """Plan the Fisher state of a second-order event on one process.

    Args:
        modifier: Any pruning modifier.
        model: The model; its shapes and dtypes alone are read.

    Returns:
        The plan, limited by the recipe's ``memory_budget`` alone; None for a modifier
        of the first order.
    """
    config = second_order(modifier)
    if config is None:
        return None
    return core.event.plan_targets(targets_of(modifier, model), config, ranks=1)


def second_order(modifier: Any) -> SecondOrderConfig | None:
    """Tell how a modifier's events take gradients.

    Args:
        modifier: Any modifier.

    Returns:
        How; None for one of the first order, or that is not ours.
    """
    ours = isinstance(modifier, GradualPruningModifier)
    return modifier.second_order if ours else None


def targets_of(modifier: GradualPruningModifier, model: nn.Module) -> list[Target]:
    """Find the parameters that a modifier prunes.

    Args:
        modifier: The modifier; it is not initialized.
        model: The model.

    Returns:
        The parameters in their order.
    """
    return find_targets(unwrap(model), list(_goals(modifier, model)))


def _goals(modifier: GradualPruningModifier, model: nn.Module) -> dict[str, float]:
    """Return the final sparsity of each parameter; the first that matches counts."""
    found: dict[str, float] = {}
    for goal, patterns in read_goals(modifier.params, modifier.final_sparsity):
        for name in match_names(unwrap(model), patterns):
            found.setdefault(name, goal)
    return found
