"""What all gradual pruning modifiers share: when, how much, and the masks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.schedule import interpolate_sparsity
from obert_modifiers.faults import Fault, FaultError, Rule
from obert_modifiers.host.bases import SCHEDULE_KEY, ScheduledUpdateModifier
from obert_modifiers.modifiers import _targets
from obert_modifiers.modifiers._masks import MaskingModifier, ParameterMasks
from obert_modifiers.modifiers.pruning_keys import PruningKeys
from obert_modifiers.modifiers.rules import FROM_PARAM
from obert_modifiers.modifiers.second_order import SecondOrder

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.pruning.pruning_step import StepResult
    from obert_modifiers.core.pruning.report import PruneReport
    from obert_modifiers.core.pruning.targets import Target

_LOGGER = logging.getLogger(__name__)


class GradualPruningModifier(PruningKeys, MaskingModifier, ScheduledUpdateModifier):
    """Base of the pruning modifiers; decides when, and holds no maths.

    Order of its hooks: ``initialize`` resolves the parameters and, where gradients are
    needed, takes their source; ``update``, when the schedule says so, prunes before the
    optimizer step; ``optimizer_post_step`` applies the masks after it; ``finalize``
    applies them a last time.

    It prunes by magnitude; subclasses set ``_engine`` in :meth:`begin` where they take
    gradients.

    Attributes:
        applied_sparsity: Latest target sparsity of each parameter; None before the
            first event.
        events: Reports of the pruning events so far, in order.
    """

    # SparseML looks for each public attribute in the class too.
    applied_sparsity: list[float] | None = None
    events: Sequence[PruneReport] = ()

    def begin(self) -> None:
        """Set up what changes from event to event."""
        self._engine: SecondOrder | None = None
        self._model: nn.Module | None = None
        self._starts: list[float] = []
        self._ends: list[float] = []
        self.events = []

    @property
    def goals(self) -> list[tuple[float, list[str]]]:
        """Final sparsities, each with names, patterns or tokens of its parameters."""
        return self._goals

    @property
    def second_order(self) -> SecondOrderConfig | None:
        """How its events take gradients; None for pruning by magnitude."""
        return None if self._engine is None else self._engine.config

    def prune_step(self, sparsities: Sequence[float]) -> StepResult:
        """Prune the selected parameters to target sparsities in [0, 1]; writes them."""
        masks = self._masks
        how = {"global_sparsity": self.global_sparsity, "pattern": self._pattern}
        if self._engine is not None:
            return self._engine.prune(self._model, masks, sparsities, **how)
        step = core.pruning.pruning_step.magnitude_step_
        how["min_density"] = self.min_density
        return step(masks.targets, masks.param_masks, sparsities, **how)

    def sparsities_at(self, epoch: float) -> list[float]:
        """Ask the schedule for the target of each parameter; ``inf`` for the end."""
        begin = max(self.start_epoch, 0.0)  # -1 is the start of the training
        span = epoch, begin, self.end_epoch
        return [
            interpolate_sparsity(*span, start, end, self.inter_func)
            for start, end in zip(self._starts, self._ends, strict=True)
        ]

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters that this modifier would prune, of a wrapped model too.

        An error if the groups of ``mask_type`` do not divide one of them.
        """
        return [target.name for target, _ in self._targets_of(_targets.unwrap(model))]

    def _targets_of(self, model: nn.Module) -> list[tuple[Target, float]]:
        """Find the parameters, each with its final sparsity; the first match counts."""
        goals: dict[str, float] = {}
        for sparsity, patterns in self._goals:
            for name in _targets.match_weights(model, patterns):
                goals.setdefault(name, sparsity)
            if _targets.ALL_PRUNABLE in patterns:
                _warn_of_extras(model, goals)
        targets = _targets.find_targets(model, list(goals))
        for target in targets:
            with _faults_of("mask_type"):
                target.layout(self._pattern)
        if self._engine is not None:
            with _faults_of("update"):
                self._engine.check_layers(model, targets)
        return list(zip(targets, goals.values(), strict=True))

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        """Resolve the parameters; an infinite epoch prunes to the end at once.

        With gradients, takes ``gradient_source`` or SparseML's ``grad_sampler``.
        """
        if self._engine is not None:
            self._engine.connect(kwargs)
        super().initialize(module, epoch, loggers, **kwargs)
        self._model = _targets.unwrap(module)
        pairs = self._targets_of(self._model)  # fails now rather than at an event
        targets, self._ends = [one for one, _ in pairs], [goal for _, goal in pairs]
        self._masks = ParameterMasks(self._model, targets)
        self._starts = [
            min(_zero_fraction(t.parameter), self._pattern.limit)
            if self.init_sparsity == FROM_PARAM
            # Of several goals one may lie below: it is reached in the first event.
            else min(self.init_sparsity, goal)
            for t, goal in pairs
        ]
        if math.isinf(epoch):
            self._event(epoch, 1)
        if self._engine is not None:
            self._engine.log_plan(targets)

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Prune to the sparsity of this epoch; called by the host when it is time."""
        super().update(module, optimizer, epoch, steps_per_epoch)
        if self.started or self.start_pending(epoch, steps_per_epoch):
            self._event(epoch, steps_per_epoch)
        # Not end_pending: a schedule of a single event starts and ends in one call.
        if epoch >= self.end_epoch and not self.leave_enabled:
            self._masks.enabled = False

    def _event(self, epoch: float, steps_per_epoch: int) -> None:
        masks = self._masks
        masks.enabled = True
        if self._engine is not None:
            self._engine.reached = self.applied_sparsity
        self.applied_sparsity = self.sparsities_at(epoch)
        if not self._anything_to_do():
            return
        started, before = time.perf_counter(), masks.sparsity()
        result = self.prune_step(self.applied_sparsity)
        masks.set_param_masks(result.masks)
        finite = math.isfinite(epoch)
        report = core.pruning.report.PruneReport(
            modifier=type(self).__name__,
            epoch=epoch if finite else -1.0,
            step=round(epoch * steps_per_epoch) if finite else -1,
            sparsity_before=before,
            sparsity_after=masks.sparsity(),
            predicted_loss_increase=result.predicted_loss_increase,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=core.distributed.memory.peak_memory(
                masks.targets[0].parameter.device
            ),
            num_gradients=result.gradients.used,
            skipped_gradients=result.gradients.skipped,
            damp=result.damp,
            memory_plan=result.plan.describe() if result.plan else "",
            layers=masks.counts(),
        )
        self.events.append(report)

    def _anything_to_do(self) -> bool:
        counts = self._masks.counts()
        sizes, unit = [c.numel for c in counts], self._pattern.unit
        pools = core.pruning.selection.make_pools(
            sizes, self.applied_sparsity, self.global_sparsity, unit
        )
        return any(
            pool.count > sum(counts[i].pruned for i in pool.members) for pool in pools
        )

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Apply the masks a last time; let go of the model and its gradients."""
        super().finalize(module, reset_loggers, **kwargs)
        self._model = None
        if self._engine is not None:
            self._engine.release()

    def own_state(self) -> dict[str, Any]:
        """Return masks by parameter name, schedule, reports, and draws of samples."""
        state = super().own_state()
        state[SCHEDULE_KEY] |= {
            "last_update_epoch": self._last_update_epoch,
            "applied_sparsity": self.applied_sparsity,
            "starts": self._starts,
            "events": [event.as_dict() for event in self.events],
        }
        if self._engine is not None:
            state[SCHEDULE_KEY]["draws"] = self._engine.draws
        return state

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up masks, schedule, reports and draws; writes the parameters."""
        super().load_own_state(state)
        schedule = state[SCHEDULE_KEY]
        self._last_update_epoch = schedule["last_update_epoch"]
        self.applied_sparsity = schedule["applied_sparsity"]
        self._starts = schedule["starts"]
        read = core.pruning.report.PruneReport.from_dict
        self.events = [read(event) for event in schedule.get("events", ())]
        if self._engine is not None:
            self._engine.draws = schedule["draws"]

    def move_schedule(self, last_event: float, ended: bool) -> None:
        """Go on after another event than the last, for an edited schedule."""
        self._last_update_epoch, self._ended = last_event, ended


@contextmanager
def _faults_of(key: str) -> Iterator[None]:
    """Say of a ValueError in the body that the key does not fit the model."""
    try:
        yield
    except ValueError as error:
        raise FaultError(Fault(Rule.MODEL, key, broken=str(error))) from error


def _zero_fraction(parameter: nn.Parameter) -> float:
    return float((parameter.detach() == 0).sum() / parameter.numel())


def _warn_of_extras(model: nn.Module, names: dict[str, float]) -> None:
    encoder = set(_targets.encoder_weights(model))
    extras = [name for name in names if name not in encoder]
    if extras and core.distributed.parallel.world()[0] == 0:
        _LOGGER.warning(
            "%s prunes embeddings, pooler and head too: %s; use %s for the encoder's "
            "linear weights",
            _targets.ALL_PRUNABLE,
            ", ".join(extras),
            _targets.ALL_ENCODER,
        )
