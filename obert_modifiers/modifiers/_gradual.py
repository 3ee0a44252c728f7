"""What all gradual pruning modifiers share: when, how much, and the masks."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from obert_modifiers.core.distributed.memory import peak_memory
from obert_modifiers.core.distributed.parallel import world
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.pruning_step import StepResult
from obert_modifiers.core.pruning.report import PruneReport
from obert_modifiers.core.pruning.schedule import INTERPOLATIONS, interpolate_sparsity
from obert_modifiers.core.pruning.selection import make_pools
from obert_modifiers.core.pruning.targets import Target
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
from obert_modifiers.modifiers.keys import Key, Values, between
from obert_modifiers.modifiers.rules import (
    FINAL_SPARSITY,
    FLAG,
    FRACTION,
    FREQUENCY,
    FROM_PARAM,
    INIT_SPARSITY,
    MASK_TYPE,
    choice,
    read_goals,
    read_pattern,
)
from obert_modifiers.modifiers.second_order import SecondOrder
from obert_modifiers.modifiers.shared_keys import SharedKeys, starts_before_it_ends

_PATTERN_TOLERANCE = 1e-3  # 1:3 cannot be written exactly in decimals
_LOGGER = logging.getLogger(__name__)


class GradualPruningModifier(MaskingModifier, ScheduledUpdateModifier):
    """Base of the pruning modifiers; decides when, and holds no maths.

    Order of its hooks: ``initialize`` resolves the parameters; ``update``, when the
    schedule says so, prunes before the optimizer step; ``optimizer_post_step``
    applies the masks after it; ``finalize`` applies them a last time.

    Subclasses implement :meth:`prune_step`, and set ``_engine`` in :meth:`begin` where
    they take gradients.
    """

    init_sparsity = Key(
        INIT_SPARSITY,
        meaning=f"Sparsity of the first event, or {FROM_PARAM} for what each parameter "
        "has.",
    )
    final_sparsity = Key(
        FINAL_SPARSITY,
        meaning="Sparsity of the last event, or a mapping from sparsities to lists of "
        "parameters.",
        later=True,
    )
    start_epoch = SharedKeys.start_epoch.but(meaning="Epoch of the first event.")
    end_epoch = SharedKeys.end_epoch.but(meaning="Epoch of the last event.", later=True)
    update_frequency = Key(
        FREQUENCY,
        meaning="Epochs from one event to the next; -1 for every step.",
        later=True,
    )
    params = SharedKeys.params.but(
        default=ALL_ENCODER,
        meaning="Names, re: patterns or tokens of the parameters to prune.",
    )
    leave_enabled = Key(
        FLAG,
        True,
        "True keeps the masks on after end_epoch.",
        later=lambda value: value is True,
    )
    inter_func = Key(
        choice(*INTERPOLATIONS), "cubic", "Shape of the sparsity schedule.", later=True
    )
    global_sparsity = Key(
        FLAG,
        True,
        "True for one threshold over all parameters that share a target, false to "
        "bring each parameter to it.",
    )
    mask_type = Key(
        MASK_TYPE,
        "unstructured",
        "Structure of the sparsity: unstructured, block4, block:RxC (output rows x "
        "input columns) or N:M (N kept of every M weights along the input dimension, "
        "whose sparsity is (M - N) / M).",
    )
    min_density = Key(
        FRACTION,
        0.0,
        "Share of its weights that each parameter keeps at least, however cheap they "
        "are.",
        later=True,
    )

    @between("start_epoch", "end_epoch")
    def _ends(start: float, end: float) -> Iterator[Fault]:
        yield from starts_before_it_ends(start, end)
        if end < 0.0:
            yield Fault.of(
                Rule.EPOCHS,
                "end_epoch",
                f"{end:g}",
                f"lies before start_epoch={start:g}",
                "a schedule that ends after it starts",
                "raise it",
            )

    @between("params", "final_sparsity")
    def _named_once(params: Any, final: Any) -> Iterator[Fault]:
        if isinstance(final, dict) and params not in ([], "", ALL_ENCODER):
            yield Fault.of(
                Rule.BOTH,
                "params",
                params,
                "and a mapping in final_sparsity are both given",
                "the parameters in one place",
                "write params: []",
            )

    @between("init_sparsity", "final_sparsity", "mask_type")
    def _reachable(init: Any, final: Any, mask_type: str) -> Iterator[Fault]:
        pattern = read_pattern("mask_type", mask_type)
        limit, exact = pattern.limit, f"{pattern.limit:.4g}"
        goals = [goal for goal, _ in read_goals(None, final)]
        if pattern.n_m is not None:
            for goal in goals:
                if abs(goal - limit) > _PATTERN_TOLERANCE:
                    broken = f"is not the sparsity of mask_type={mask_type}"
                    key, fix = "final_sparsity", f"write {exact}"
                    yield Fault.of(Rule.SPARSITIES, key, goal, broken, exact, fix)
            if init != FROM_PARAM and init > limit + _PATTERN_TOLERANCE:
                yield Fault.of(
                    Rule.SPARSITIES,
                    "init_sparsity",
                    init,
                    f"is above the sparsity of mask_type={mask_type}",
                    f"at most {exact}",
                    f"write {exact} to reach it in one step",
                )
        elif init != FROM_PARAM and init > max(goals):
            yield Fault.of(
                Rule.SPARSITIES,
                "init_sparsity",
                f"{init:g}",
                f"is above final_sparsity={max(goals):g}",
                "a schedule that prunes more and more",
                "lower it or raise final_sparsity",
            )

    @between("min_density", "final_sparsity", "mask_type")
    def _room(density: float, final: Any, mask_type: str) -> Iterator[Fault]:
        highest = max(goal for goal, _ in read_goals(None, final))
        if density and read_pattern("mask_type", mask_type).n_m is not None:
            yield Fault.of(
                Rule.BOTH,
                "min_density",
                f"{density:g}",
                f"and mask_type={mask_type} are both given",
                "one of them: N:M prunes all parameters alike",
                "leave min_density out",
            )
        elif density > 1.0 - highest:
            yield Fault.of(
                Rule.SPARSITIES,
                "min_density",
                f"{density:g}",
                f"leaves no room for final_sparsity={highest:g}",
                f"at most {1.0 - highest:g}",
                "lower it",
            )

    @classmethod
    def derive(cls, values: Values) -> None:
        """Add the structure, and bring sparsities of N:M to the exact ones."""
        pattern = values.pattern = read_pattern("mask_type", values.mask_type)
        n_m = pattern.n_m is not None
        goals = read_goals(values.params, values.final_sparsity)
        values.goals = [
            (pattern.limit if n_m else goal, names) for goal, names in goals
        ]
        if not isinstance(values.final_sparsity, dict):
            values.final_sparsity = values.goals[0][0]
        if n_m and values.init_sparsity != FROM_PARAM:
            values.init_sparsity = min(values.init_sparsity, pattern.limit)

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
        report = PruneReport(
            modifier=type(self).__name__,
            epoch=epoch if finite else -1.0,
            step=round(epoch * steps_per_epoch) if finite else -1,
            sparsity_before=before,
            sparsity_after=masks.sparsity(),
            predicted_loss_increase=result.predicted_loss_increase,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory(masks.targets[0].parameter.device),
            num_gradients=result.gradients.used,
            skipped_gradients=result.gradients.skipped,
            damp=result.damp,
            memory_plan=result.plan.describe() if result.plan else "",
            layers=masks.counts(),
        )
        self._events.append(report)

    def _anything_to_do(self) -> bool:
        counts = self._masks.counts()
        pools = make_pools(
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
        self._events = [PruneReport.from_dict(e) for e in schedule.get("events", ())]
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
    if extras and world()[0] == 0:
        _LOGGER.warning(
            "%s prunes embeddings, pooler and head too: %s; use %s for the encoder's "
            "linear weights alone",
            ALL_PRUNABLE,
            ", ".join(extras),
            ALL_ENCODER,
        )
