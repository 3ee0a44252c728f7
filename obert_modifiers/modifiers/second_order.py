"""What the modifiers that prune by second order share: keys, gradients, the engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import (
    DAMP_GRID,
    FISHER_DTYPES,
    SELECTIONS,
    UPDATES,
    SecondOrderConfig,
)
from obert_modifiers.core.patterns import MaskPattern, check_block_size
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers._sampling import find_source
from obert_modifiers.modifiers.keys import Key, KeyedModifier, Values, between
from obert_modifiers.modifiers.rules import (
    BYTES,
    COUNT,
    FLAG,
    OPTIONS,
    POSITIVE,
    choice,
    either,
    read_bytes,
    read_pattern,
)

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.distributed.sharding import MemoryPlan
    from obert_modifiers.core.pruning.pruning_step import StepResult
    from obert_modifiers.core.pruning.sampling import GradientSource
    from obert_modifiers.core.pruning.targets import Target

AUTO = "auto"
FISHER_LOSSES = ("task", "distillation", "train")
DEFAULT_DAMP_FRACTION = 0.01

_LOGGER = logging.getLogger(__name__)


class SecondOrderKeys(KeyedModifier):
    """The keys of pruning by second order; a mixin beside the base of pruning."""

    num_grads = Key(
        COUNT,
        1024,
        "Gradients m of the Fisher approximation, over all processes.",
        later=True,
    )
    damp = Key(
        either(AUTO, POSITIVE),
        None,
        "Absolute dampening as in oBERT equation (2), or auto for the fraction of the "
        "mean diagonal that leaves the lowest loss on 256 other training samples, at "
        "each event.",
        later=True,
    )
    damp_fraction = Key(
        POSITIVE,
        None,
        "Dampening as a fraction of the mean Fisher diagonal over the living weights; "
        f"{DEFAULT_DAMP_FRACTION} where neither is given.",
        later=True,
    )
    fisher_block_size = Key(COUNT, 48, "Width B of a Fisher block.", later=True)
    grad_sampler_kwargs = Key(
        OPTIONS,
        None,
        "Options of the loader of gradient samples, such as batch_size.",
        later=True,
    )
    num_recomputations = Key(
        COUNT, 1, "Sub-steps of an event, each with a fresh Fisher.", later=True
    )
    grad_granularity = Key(
        choice("sample", "batch"),
        "sample",
        "sample for the gradient of each sample, batch for that of a batch's mean "
        "loss, as in SparseML.",
        later=True,
    )
    selection = Key(
        choice(*SELECTIONS), "greedy", "How weights are chosen.", later=True
    )
    _update_rule = Key(
        choice(*UPDATES),
        "joint",
        "How the remaining weights are updated.",
        later=True,
        name="update",
    )
    fisher_dtype = Key(
        choice(*FISHER_DTYPES),
        "float64",
        "Precision of the Fisher's sums: float64, or float32 for half the memory and "
        "less time, where the dampening is not far below the gradients.",
        later=True,
    )
    fisher_loss = Key(
        choice(*FISHER_LOSSES),
        "task",
        "Loss whose gradients are taken: task, distillation, or train for the mix of "
        "both that is trained at the time.",
        later=True,
    )
    first_order = Key(
        FLAG,
        False,
        "True takes the mean gradient into account, for a model that is not at a "
        "minimum.",
        later=True,
    )
    memory_budget = Key(
        BYTES,
        None,
        "Memory that an event may take beside the model, in bytes or as in 8GB, per "
        "process; where the Fisher does not fit, it is collected in several passes, "
        "with the same masks. Nine tenths of what is free where it is not given.",
        later=True,
    )

    @between("damp", "damp_fraction")
    def _one_dampening(damp: Any, fraction: float | None) -> Iterator[Fault]:
        if damp is not None and fraction is not None:
            yield Fault.of(
                Rule.BOTH,
                "damp",
                damp,
                f"and damp_fraction={fraction} are both given",
                "one of them",
                "leave damp out",
            )

    @between("fisher_block_size", "mask_type")
    def _whole_groups(width: int, mask_type: str) -> Iterator[Fault]:
        yield from block_size_faults(width, mask_type)

    @classmethod
    def derive(cls, values: Values) -> None:
        """Add the default of the dampening."""
        super().derive(values)
        if values.damp is None and values.damp_fraction is None:
            values.damp_fraction = DEFAULT_DAMP_FRACTION


def block_size_faults(width: int, mask_type: str) -> Iterator[Fault]:
    """Find Fisher blocks that groups of weights would straddle."""
    try:
        check_block_size(width, read_pattern("mask_type", mask_type))
    except ValueError as error:
        yield Fault(Rule.BLOCK_SIZE, "fisher_block_size", broken=str(error))


def engine_of(modifier: Any, pattern: MaskPattern) -> SecondOrder:
    """Make the engine of a modifier with :class:`SecondOrderKeys`."""
    values = {name: getattr(modifier, key.slot) for name, key in modifier.KEYS.items()}
    known = {field.name for field in fields(SecondOrderConfig)}
    config = {name: value for name, value in values.items() if name in known}
    if values["damp"] == AUTO:
        config |= {"damp": None, "damp_grid": DAMP_GRID}
    if values["memory_budget"] is not None:
        config["memory_budget"] = read_bytes(values["memory_budget"])
    options = tuple((values["grad_sampler_kwargs"] or {}).items())
    made = SecondOrderConfig(**config, options=options, pattern=pattern)
    return SecondOrder(made, values["fisher_loss"])


class SecondOrder:
    """A source of gradients, and how the second-order step uses it.

    Attributes:
        config: How an event works.
        draws: Draws of samples made so far.
        reached: Targets of the event before, from which sub-steps start; None before
            the first.
    """

    def __init__(self, config: SecondOrderConfig, fisher_loss: str = "task") -> None:
        """Keep the settings; there is no source of gradients yet."""
        self.config = config
        self.draws = 0
        self.reached: list[float] | None = None
        self._fisher_loss = fisher_loss
        self._source: GradientSource | None = None

    def connect(self, offered: Mapping[str, Any]) -> None:
        """Take the source of gradients out of what the caller offers to all modifiers.

        An error if there is neither ``gradient_source`` nor SparseML's
        ``grad_sampler``.
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
        """Plan the Fisher state of an event; an error if the budget is too small.

        Args:
            targets: Parameters to prune.
            ranks: Number of processes; None asks torch, and every process has to
                call it.
        """
        return core.pruning.event.plan_targets(targets, self.config, ranks)

    def log_plan(self, targets: Sequence[Target]) -> None:
        """Plan the Fisher state before training: too little memory fails now."""
        plan = self.plan(targets)
        if core.distributed.parallel.world()[0] == 0:
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
        result = core.pruning.pruning_step.second_order_step_(
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
