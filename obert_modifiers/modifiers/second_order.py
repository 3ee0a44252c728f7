"""What the modifiers that prune by second order share: keys, gradients, the engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core import options
from obert_modifiers.core.patterns import MaskPattern, check_block_size
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers._sampling import find_source
from obert_modifiers.modifiers.keys import Key, KeyedModifier, Values, between
from obert_modifiers.modifiers.rules import choice

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

    num_grads = Key(rules.COUNT, 1024, later=True).means(
        "Gradients m of the Fisher approximation, over all processes."
    )
    damp = Key(rules.either(AUTO, rules.POSITIVE), None, later=True).means(
        "Absolute dampening as in oBERT equation (2), or auto for the fraction of the "
        "mean diagonal that leaves the lowest loss on 256 training samples drawn for "
        "it, at each event."
    )
    damp_fraction = Key(rules.POSITIVE, None, later=True).means(
        "Dampening as a fraction of the mean Fisher diagonal over the unpruned "
        f"weights; {DEFAULT_DAMP_FRACTION} where neither is given."
    )
    fisher_block_size = Key(rules.COUNT, 48, later=True).means(
        "Width B of a Fisher block."
    )
    grad_sampler_kwargs = Key(rules.OPTIONS, None, later=True).means(
        "Options of the loader of gradient samples, such as batch_size."
    )
    num_recomputations = Key(rules.COUNT, 1, later=True).means(
        "Sub-steps of an event, each with a fresh Fisher."
    )
    first_recomputations = Key(rules.COUNT, None, later=True, silent=True).means(
        "Sub-steps of the first event; those of all where it is not given."
    )
    grad_granularity = Key(choice("sample", "batch"), "sample", later=True).means(
        "sample for the gradient of each sample, batch for that of a batch's mean "
        "loss, as in SparseML."
    )
    selection = Key(choice(*options.SELECTIONS), "greedy", later=True).means(
        "How weights are chosen."
    )
    _update_rule = Key(
        choice(*options.UPDATES), "joint", later=True, name="update"
    ).means(
        "How the remaining weights are updated; row fits them again after joint, over "
        "whole output rows of Linear layers, to the layers' outputs."
    )
    fisher_dtype = Key(choice(*options.FISHER_DTYPES), "float64", later=True).means(
        "Precision of the Fisher's sums: float64, or float32 for half the memory and "
        "less time, where the dampening is not far below the gradients."
    )
    fisher_loss = Key(choice(*FISHER_LOSSES), "task", later=True).means(
        "Loss whose gradients are taken: task, distillation, or train for the mix of "
        "both that is trained at the time."
    )
    first_order = Key(rules.FLAG, False, later=True).means(
        "True takes the mean gradient into account, for a model that is not at a "
        "minimum."
    )
    memory_budget = Key(rules.BYTES, None, later=True).means(
        "Memory that an event may take beside the model, in bytes or as in 8GB, per "
        "process; where the Fisher does not fit, it is collected in several passes, "
        "with the same masks. Nine tenths of what is free where it is not given."
    )

    @between("damp", "damp_fraction")
    def _one_dampening(damp: Any, fraction: float | None) -> Iterator[Fault]:
        if damp is not None and fraction is not None:
            broken = f"and damp_fraction={fraction} are both given"
            said = broken, "one of them", "leave damp out"
            yield Fault.of(Rule.BOTH, "damp", damp, *said)

    @between("update", "first_order")
    def _one_aim(update: str, first_order: bool) -> Iterator[Fault]:
        if update == "row" and first_order:
            said = "and first_order=true are both given", "one of them", "write joint"
            yield Fault.of(Rule.BOTH, "update", update, *said)

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
        check_block_size(width, rules.read_pattern("mask_type", mask_type))
    except ValueError as error:
        yield Fault(Rule.BLOCK_SIZE, "fisher_block_size", broken=str(error))


class SecondOrder:
    """A source of gradients, and how the second-order step uses it.

    Attributes:
        config: How an event works.
        draws: Draws of samples made so far.
        reached: Targets of the event before, from which sub-steps start; None before
            the first.
    """

    def __init__(self, modifier: Any, pattern: MaskPattern) -> None:
        """Take the settings of a modifier with :class:`SecondOrderKeys`."""
        values = {n: getattr(modifier, key.slot) for n, key in modifier.KEYS.items()}
        known = {field.name for field in fields(options.SecondOrderConfig)}
        config = {name: value for name, value in values.items() if name in known}
        if values["damp"] == AUTO:
            config |= {"damp": None, "damp_grid": options.DAMP_GRID}
        if values["memory_budget"] is not None:
            config["memory_budget"] = rules.read_bytes(values["memory_budget"])
        config["options"] = tuple((values["grad_sampler_kwargs"] or {}).items())
        self.config = options.SecondOrderConfig(**config, pattern=pattern)
        self.draws = 0
        self.reached: list[float] | None = None
        self._fisher_loss = values["fisher_loss"]
        self._first = values["first_recomputations"] or self.config.num_recomputations
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
        if source.probes:
            self._check_probes()
        self._source = source.of_loss(self._fisher_loss)

    def _check_probes(self) -> None:
        """Refuse keys that need a loss, where the Fisher is that of the outputs."""
        config, loss = self.config, self._fisher_loss
        for said, wrong, expected in (
            (f"fisher_loss={loss}", loss == "train", "task or distillation; use task"),
            ("damp=auto", config.damp_grid, "a fraction; use damp_fraction: 0.01"),
            ("first_order=True", config.first_order, "False; leave it out"),
        ):
            if wrong:
                raise ValueError(
                    f"{said}: embeddings have no loss of their own; expected {expected}"
                )

    def check_layers(self, model: nn.Module, targets: Sequence[Target]) -> None:
        """Check that what ``update: row`` fits are linear layers."""
        if self.config.update == "row":
            core.pruning.rows.check_linear(model, targets)

    def recomputations(self, event: int) -> int:
        """Return the sub-steps of an event, counted from 0."""
        return self.config.num_recomputations if event else self._first

    def plan(self, targets: Sequence[Target], ranks: int | None = None) -> MemoryPlan:
        """Plan the Fisher state of an event; an error if the budget is too small.

        ``ranks`` is the number of processes; None asks torch, and every process has to
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

        ``sparsities`` are the targets of the parameters of ``masks``; with
        ``global_sparsity`` all that share one have the same threshold. ``pattern`` is
        the structure of this event.
        """
        count, draw = self.recomputations(self.draws), self.draws
        if draw:  # behind the draws of the first event's sub-steps
            draw += -(-self._first // count) - 1
        config = replace(self.config, pattern=pattern, num_recomputations=count)
        result = core.pruning.pruning_step.second_order_step_(
            model,
            masks.targets,
            masks.param_masks,
            sparsities,
            global_sparsity=global_sparsity,
            config=config,
            source=self._source,
            draw=draw,
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
