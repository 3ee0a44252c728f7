"""What all gradual pruning modifiers share: when, how much, and the masks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.report import PruneReport
from obert_modifiers.core.pruning.schedule import (
    INTERPOLATIONS,
    interpolate_sparsity,
)
from obert_modifiers.host.bases import (
    SCHEDULE_KEY,
    ScheduledUpdateModifier,
    recipe_key,
)
from obert_modifiers.modifiers._goals import read_goals
from obert_modifiers.modifiers._masking import MaskingModifier
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers._second_order import SecondOrder
from obert_modifiers.modifiers._states import from_tensors
from obert_modifiers.modifiers._targets import (
    ALL_ENCODER,
    ALL_PRUNABLE,
    encoder_weights,
    find_targets,
    match_weights,
    unwrap,
)
from obert_modifiers.modifiers._validate import (
    as_choice,
    as_density,
    as_flag,
    as_float,
    as_fraction,
    as_frequency,
    as_pattern,
    as_pattern_sparsity,
    check_range,
    check_rising,
)

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.pruning.pruning_step import StepResult

FROM_PARAM = "__FROM_PARAM__"

_LOGGER = logging.getLogger(__name__)


class GradualPruningModifier(MaskingModifier, ScheduledUpdateModifier):
    """Base of the pruning modifiers; decides when, and holds no maths.

    Order of its hooks: ``initialize`` resolves the parameters; ``update``, when the
    schedule says so, prunes before the optimizer step; ``optimizer_post_step``
    applies the masks after it; ``finalize`` applies them a last time.

    Subclasses implement :meth:`prune_step`.
    """

    params = recipe_key("params", "Names, re: patterns or a token.")
    init_sparsity = recipe_key("init_sparsity", "Sparsity of the first event.")
    final_sparsity = recipe_key("final_sparsity", "Sparsity of the last event.")
    inter_func = recipe_key("inter_func", "Shape of the sparsity schedule.")
    global_sparsity = recipe_key("global_sparsity", "One threshold for all.")
    mask_type = recipe_key("mask_type", "Structure of the sparsity.")
    leave_enabled = recipe_key("leave_enabled", "Keep masking after end_epoch.")
    min_density = recipe_key("min_density", "Share that each parameter keeps.")

    def __init__(
        self,
        *,
        params: str | Sequence[str] | None,
        init_sparsity: float | str,
        final_sparsity: float | dict[float, list[str]],
        start_epoch: float,
        end_epoch: float,
        update_frequency: float,
        leave_enabled: bool,
        inter_func: str,
        global_sparsity: bool,
        mask_type: str,
        min_density: float,
    ) -> None:
        """Check and keep the keys that the pruning modifiers share.

        Args:
            params: Names, ``re:`` patterns or tokens of the parameters to prune.
            init_sparsity: Sparsity of the first event, or ``__FROM_PARAM__`` for what
                each parameter has.
            final_sparsity: Sparsity of the last event, or a mapping from sparsities
                to lists of parameters.
            start_epoch: Epoch of the first event.
            end_epoch: Epoch of the last event.
            update_frequency: Epochs from one event to the next; -1 for every step.
            leave_enabled: True keeps the masks on after ``end_epoch``.
            inter_func: linear, cubic or inverse_cubic.
            global_sparsity: True for one threshold over all parameters that share a
                target, False to bring each parameter to it.
            mask_type: Structure of the sparsity: ``unstructured``, ``block4``,
                ``block:RxC`` (output rows x input columns) or ``N:M`` (N kept of
                every M along the input dimension, whose sparsity is (M - N) / M).
            min_density: Share of its weights that each parameter keeps at least,
                however cheap they are.

        Raises:
            ValueError: If a value breaks its rule; the message says which and how to
                fix it.
        """
        start, end = (
            as_float("start_epoch", start_epoch),
            as_float("end_epoch", end_epoch),
        )
        check_range(start, end)
        super().__init__(
            start_epoch=start,
            end_epoch=end,
            end_comparator=-1,
            update_frequency=as_frequency("update_frequency", update_frequency),
            min_frequency=-1.0,
        )
        self._pattern = as_pattern("mask_type", mask_type)
        self._mask_type = self._pattern.name
        self._goals = [
            (as_pattern_sparsity("final_sparsity", goal, self._pattern), names)
            for goal, names in read_goals(params, final_sparsity)
        ]
        self._params = params if params is not None else []
        self._init_sparsity = init_sparsity
        if init_sparsity != FROM_PARAM:
            self._init_sparsity = as_pattern_sparsity(
                "init_sparsity",
                as_fraction("init_sparsity", init_sparsity),
                self._pattern,
            )
            check_rising(self._init_sparsity, max(goal for goal, _ in self._goals))
        self._final_sparsity = (
            final_sparsity if isinstance(final_sparsity, dict) else self._goals[0][0]
        )
        self._inter_func = as_choice("inter_func", inter_func, INTERPOLATIONS)
        self._global_sparsity = as_flag("global_sparsity", global_sparsity)
        self._leave_enabled = as_flag("leave_enabled", leave_enabled)
        self._min_density = as_density(
            min_density, max(goal for goal, _ in self._goals), self._pattern
        )
        self._engine: SecondOrder | None = None  # set by those that take gradients
        self._model: nn.Module | None = None
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._applied_sparsity: list[float] | None = None
        self._events: list[PruneReport] = []

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
        """Prune the selected parameters to target sparsities; writes them.

        Args:
            sparsities: Target of each parameter, in [0, 1].
        """
        raise NotImplementedError(f"{type(self).__name__} has to define prune_step")

    def sparsities_at(self, epoch: float) -> list[float]:
        """Ask the schedule for the targets of an event.

        Args:
            epoch: Progress in epochs; ``inf`` for the end.

        Returns:
            Target of each parameter, in [0, 1].
        """
        begin = max(self.start_epoch, 0.0)  # -1 is the start of the training
        return [
            interpolate_sparsity(
                epoch, begin, self.end_epoch, start, end, self._inter_func
            )
            for start, end in zip(self._starts, self._ends, strict=True)
        ]

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters that this modifier would prune.

        Args:
            model: The model, wrapped or not.

        Returns:
            Full names in the unwrapped model; an error if the groups of ``mask_type``
            do not divide one of them.
        """
        model = unwrap(model)
        names = [name for name, _ in self._resolve(model)]
        for target in find_targets(model, names):
            target.layout(self._pattern)
        return names

    def _resolve(self, model: nn.Module) -> list[tuple[str, float]]:
        found: dict[str, float] = {}
        for sparsity, patterns in self._goals:
            for name in match_weights(model, patterns):
                found.setdefault(name, sparsity)
            if ALL_PRUNABLE in patterns:
                _warn_of_extras(model, found)
        return list(found.items())

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Resolve the parameters; with an infinite epoch, prune at once.

        Args:
            module: The model.
            epoch: Epoch to start from; ``inf`` prunes to the final sparsity now.
            loggers: SparseML loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().initialize(module, epoch, loggers, **kwargs)
        self._model = unwrap(module)
        resolved = self._resolve(self._model)
        targets = find_targets(self._model, [name for name, _ in resolved])
        for target in targets:
            target.layout(self._pattern)  # fails now rather than at the first event
        self._masks = ParameterMasks(self._model, targets)
        self._ends = [sparsity for _, sparsity in resolved]
        self._starts = [
            min(_zero_fraction(t.parameter), self._pattern.limit)
            if self._init_sparsity == FROM_PARAM
            else self._init_sparsity
            for t in targets
        ]
        if math.isinf(epoch):
            self._event(epoch, 1)

    def update(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Prune to the sparsity of this epoch; called by SparseML when it is time.

        Args:
            module: The model.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        super().update(module, optimizer, epoch, steps_per_epoch)
        if self.started or self.start_pending(epoch, steps_per_epoch):
            self._event(epoch, steps_per_epoch)
        # Not end_pending: a schedule of a single event starts and ends in one call.
        if epoch >= self.end_epoch and not self._leave_enabled:
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
        report = PruneReport(
            modifier=type(self).__name__,
            epoch=epoch if finite else -1.0,
            step=round(epoch * steps_per_epoch) if finite else -1,
            sparsity_before=before,
            sparsity_after=masks.sparsity(),
            predicted_loss_increase=result.predicted_loss_increase,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=core.memory.peak_memory(
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
        pools = core.selection.make_pools(
            [c.numel for c in counts],
            self._applied_sparsity,
            self._global_sparsity,
            self._pattern.unit,
        )
        return any(
            pool.count > sum(counts[i].pruned for i in pool.members) for pool in pools
        )

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Apply the masks a last time; let go of the model and its gradients.

        Args:
            module: The model; None leaves its weights as they are.
            reset_loggers: True forgets the loggers.
            **kwargs: What the caller offers to all modifiers.
        """
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
        """Continue where :meth:`state_dict` was taken; writes the parameters.

        Args:
            state_dict: As from :meth:`state_dict`.
            strict: Ignored: a missing or extra name is always an error.

        Raises:
            RuntimeError: If the modifier is not initialized.
            IndexError: If the names differ from the selected parameters.
        """  # noqa: DOC502  raised by what is called
        state_dict = from_tensors(state_dict)
        super().load_state_dict(state_dict, strict)
        schedule = state_dict[SCHEDULE_KEY]
        self._last_update_epoch = schedule["last_update_epoch"]
        self._applied_sparsity = schedule["applied_sparsity"]
        self._starts = schedule["starts"]
        self._events = [PruneReport.from_dict(e) for e in schedule.get("events", ())]
        if self._engine is not None:
            self._engine.draws = schedule["draws"]

    def move_schedule(self, last_event: float, ended: bool) -> None:
        """Go on after another event than the last one, for an edited schedule.

        Args:
            last_event: Epoch from which the next event is counted.
            ended: Whether no event is left.
        """
        self._last_update_epoch, self._ended = last_event, ended


def _zero_fraction(parameter: nn.Parameter) -> float:
    return float((parameter.detach() == 0).sum() / parameter.numel())


def _warn_of_extras(model: nn.Module, names: dict[str, float]) -> None:
    encoder = set(encoder_weights(model))
    extras = [name for name in names if name not in encoder]
    if extras and core.parallel.world()[0] == 0:
        _LOGGER.warning(
            "%s prunes embeddings, pooler and head too: %s; use %s for the encoder's "
            "linear weights alone",
            ALL_PRUNABLE,
            ", ".join(extras),
            ALL_ENCODER,
        )
