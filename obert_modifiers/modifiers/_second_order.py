"""What the modifiers that prune by second order share: gradients and the engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers._sampling import find_source
from obert_modifiers.modifiers._validate import as_positive

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.distributed.sharding import MemoryPlan
    from obert_modifiers.core.pruning.pruning_step import StepResult
    from obert_modifiers.core.pruning.sampling import GradientSource
    from obert_modifiers.core.pruning.targets import Target

AUTO = "auto"
DEFAULT_DAMP_FRACTION = 0.01

_LOGGER = logging.getLogger(__name__)


def read_damping(
    damp: float | str | None, damp_fraction: float | None
) -> tuple[float | str | None, float | None]:
    """Read a recipe's dampening, with its default.

    Args:
        damp: Absolute dampening, ``auto`` or None.
        damp_fraction: Dampening over the mean diagonal, or None.

    Returns:
        Both, exactly one of them not None.

    Raises:
        ValueError: If both are given, or one is not positive.
    """
    if damp is not None and damp_fraction is not None:
        raise ValueError(
            f"damp={damp} and damp_fraction={damp_fraction} are both given; "
            "expected one of them; leave damp out"
        )
    if damp is not None:
        return (AUTO if damp == AUTO else as_positive("damp", damp)), None
    if damp_fraction is None:
        damp_fraction = DEFAULT_DAMP_FRACTION
    return None, as_positive("damp_fraction", damp_fraction)


class SecondOrder:
    """A source of gradients, and how the second-order step uses it.

    Attributes:
        config: How an event works.
        draws: Draws of samples made so far.
        reached: Targets of the event before, from which sub-steps start; None before
            the first.
    """

    def __init__(self, config: SecondOrderConfig, fisher_loss: str = "task") -> None:
        """Keep the settings; there is no source of gradients yet.

        Args:
            config: How an event works.
            fisher_loss: Loss whose gradients are taken.
        """
        self.config = config
        self.draws = 0
        self.reached: list[float] | None = None
        self._fisher_loss = fisher_loss
        self._source: GradientSource | None = None

    def connect(self, offered: Mapping[str, Any]) -> None:
        """Take the source of gradients.

        Args:
            offered: What the caller offers to all modifiers: ``gradient_source`` or
                SparseML's ``grad_sampler`` among it.

        Raises:
            RuntimeError: If there is no source of gradients.
        """
        source = find_source(offered)
        if source is None:
            raise RuntimeError(
                "gradient_source and grad_sampler are both missing; expected a source "
                "of gradients; pass grad_sampler with data_loader_builder and "
                "loss_function to initialize GradSampler"
            )
        self._source = source.of_loss(self._fisher_loss)

    def plan(self, targets: Sequence[Target], ranks: int | None = None) -> MemoryPlan:
        """Plan the Fisher state of an event.

        Args:
            targets: Parameters to prune.
            ranks: Number of processes; None asks torch, and every process has to
                call it.

        Returns:
            The plan; an error if the budget is too small.
        """
        return core.event.plan_targets(targets, self.config, ranks)

    def log_plan(self, targets: Sequence[Target]) -> None:
        """Plan the Fisher state before training, so that too little memory fails now.

        Args:
            targets: Parameters to prune.
        """
        plan = self.plan(targets)
        if core.parallel.world()[0] == 0:
            _LOGGER.info("%s", plan.describe())

    def prune(
        self,
        model: nn.Module,
        masks: ParameterMasks,
        sparsities: Sequence[float],
        *,
        global_sparsity: bool,
        pattern: MaskPattern,
    ) -> StepResult:
        """Collect gradients, prune, and update what remains; writes the parameters.

        Args:
            model: Model that holds the parameters.
            masks: The parameters and their masks.
            sparsities: Target of each parameter, in [0, 1].
            global_sparsity: True for one threshold over all that share a target.
            pattern: Structure of the sparsity of this event.

        Returns:
            The new masks and the figures of the event.
        """
        config = replace(self.config, pattern=pattern)
        result = core.pruning_step.second_order_step_(
            model,
            masks.targets,
            masks.param_masks,
            sparsities,
            global_sparsity=global_sparsity,
            config=config,
            source=self._source,
            draw=self.draws,
            reached=self.reached,
        )
        self.draws += 1
        wanted = config.num_grads * config.num_recomputations
        if result.gradients.used < wanted:
            _LOGGER.warning(
                "num_grads=%d: only %d gradients could be used, %d were not finite; "
                "the Fisher is normalised by those used",
                wanted,
                result.gradients.used,
                result.gradients.skipped,
            )
        return result

    def release(self) -> None:
        """Let go of the source of gradients."""
        self._source = None
