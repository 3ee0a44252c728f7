"""What all gradual pruning modifiers share: when, how much, and the masks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.schedule import interpolate_sparsity
from obert_modifiers.faults import Fault, FaultError, Rule
from obert_modifiers.host.bases import SCHEDULE_KEY, ScheduledUpdateModifier
from obert_modifiers.modifiers._masks import MaskingModifier, ParameterMasks
from obert_modifiers.modifiers._states import from_tensors
from obert_modifiers.modifiers._targets import (
    ALL_ENCODER,
    ALL_PRUNABLE,
    encoder_weights,
    find_targets,
    match_weights,
    unwrap,
)
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

    Order of its hooks: ``initialize`` resolves the parameters; ``update``, when the
    schedule says so, prunes before the optimizer step; ``optimizer_post_step``
    applies the masks after it; ``finalize`` applies them a last time.

    Subclasses implement :meth:`prune_step`, and set ``_engine`` in :meth:`begin` where
    they take gradients.
    """

    def begin(self) -> None:
        """Set up what changes from event to event."""
        self._engine: SecondOrder | None = None
        self._model: nn.Module | None = None
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._applied_sparsity: list[float] | None = None
        self._events: list[PruneReport] = []

    @property
    def goals(self) -> list[tuple[float, list[str]]]:
        """Final sparsities, each with names, patterns or tokens of its parameters."""
        return self._goals

    @property
    def applied_sparsity(self) -> list[float] | None:
        """Latest target sparsity of each parameter; None before the first event."""
        return self._applied_sparsity

    @property
    def events(self) -> list[PruneReport]:
        """Reports of the pruning events so far, in order."""
        return self._events

    @property
    def second_order(self) -> SecondOrderConfig | None:
        """How its events take gradients; None for pruning by magnitude."""
        return None if self._engine is None else self._engine.config

    def prune_step(self, sparsities: Sequence[float]) -> StepResult:
        """Prune the selected parameters to target sparsities in [0, 1]; writes them."""
        raise NotImplementedError(f"{type(self).__name__} has to define prune_step")

    def sparsities_at(self, epoch: float) -> list[float]:
        """Ask the schedule for the target of each parameter; ``inf`` for the end."""
        begin = max(self.start_epoch, 0.0)  # -1 is the start of the training
        return [
            interpolate_sparsity(
                epoch, begin, self.end_epoch, start, end, self.inter_func
            )
            for start, end in zip(self._starts, self._ends, strict=True)
        ]

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters that this modifier would prune, of a wrapped model too.

        An error if the groups of ``mask_type`` do not divide one of them.
        """
        model = unwrap(model)
        names = list(self.goals_by_name(model))
        self._check_layouts(find_targets(model, names))
        return names

    def goals_by_name(self, model: nn.Module) -> dict[str, float]:
        """Return the final sparsity of each parameter; the first that matches counts.

        Args:
            model: Unwrapped model.
        """
        found: dict[str, float] = {}
        for sparsity, patterns in self._goals:
            for name in match_weights(model, patterns):
                found.setdefault(name, sparsity)
            if ALL_PRUNABLE in patterns:
                _warn_of_extras(model, found)
        return found

    def _check_layouts(self, targets: Sequence[Target]) -> None:
        for target in targets:
            try:
                target.layout(self._pattern)
            except ValueError as error:
                fault = Fault(Rule.MODEL, "mask_type", broken=str(error))
                raise FaultError(fault) from error

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Resolve the parameters; an infinite epoch prunes to the end at once."""
        super().initialize(module, epoch, loggers, **kwargs)
        self._model = unwrap(module)
        goals = self.goals_by_name(self._model)
        targets = find_targets(self._model, list(goals))
        self._check_layouts(targets)  # fails now rather than at the first event
        self._masks = ParameterMasks(self._model, targets)
        self._ends = list(goals.values())
        self._starts = [
            min(_zero_fraction(t.parameter), self._pattern.limit)
            if self.init_sparsity == FROM_PARAM
            else self.init_sparsity
            for t in targets
        ]
        if math.isinf(epoch):
            self._event(epoch, 1)

    def update(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
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
            self._engine.reached = self._applied_sparsity
        self._applied_sparsity = self.sparsities_at(epoch)
        if not self._anything_to_do():
            return
        started, before = time.perf_counter(), masks.sparsity()
        result = self.prune_step(self._applied_sparsity)
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
        self._events.append(report)

    def _anything_to_do(self) -> bool:
        counts = self._masks.counts()
        pools = core.pruning.selection.make_pools(
            [c.numel for c in counts],
            self._applied_sparsity,
            self.global_sparsity,
            self._pattern.unit,
        )
        return any(
            pool.count > sum(counts[i].pruned for i in pool.members) for pool in pools
        )

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Apply the masks a last time; let go of the model and its gradients."""
        super().finalize(module, reset_loggers, **kwargs)
        self._model = None
        if self._engine is not None:
            self._engine.release()

    def _state(self) -> dict[str, Any]:
        """Return masks by parameter name, schedule, reports, and draws of samples."""
        state = super()._state()
        state[SCHEDULE_KEY] |= {
            "last_update_epoch": self._last_update_epoch,
            "applied_sparsity": self._applied_sparsity,
            "starts": self._starts,
            "events": [event.as_dict() for event in self._events],
        }
        if self._engine is not None:
            state[SCHEDULE_KEY]["draws"] = self._engine.draws
        return state

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Continue where :meth:`state_dict` was taken; writes the parameters."""
        state_dict = from_tensors(state_dict)
        super().load_state_dict(state_dict, strict)
        schedule = state_dict[SCHEDULE_KEY]
        self._last_update_epoch = schedule["last_update_epoch"]
        self._applied_sparsity = schedule["applied_sparsity"]
        self._starts = schedule["starts"]
        self._events = [
            core.pruning.report.PruneReport.from_dict(e)
            for e in schedule.get("events", ())
        ]
        if self._engine is not None:
            self._engine.draws = schedule["draws"]

    def move_schedule(self, last_event: float, ended: bool) -> None:
        """Go on after another event than the last, for an edited schedule."""
        self._last_update_epoch, self._ended = last_event, ended


def _zero_fraction(parameter: nn.Parameter) -> float:
    return float((parameter.detach() == 0).sum() / parameter.numel())


def _warn_of_extras(model: nn.Module, names: dict[str, float]) -> None:
    encoder = set(encoder_weights(model))
    extras = [name for name in names if name not in encoder]
    if extras and core.distributed.parallel.world()[0] == 0:
        _LOGGER.warning(
            "%s prunes embeddings, pooler and head too: %s; use %s for the encoder's "
            "linear weights alone",
            ALL_PRUNABLE,
            ", ".join(extras),
            ALL_ENCODER,
        )
