"""N:M sparsity in one modifier: by magnitude or second order, at once or gradually."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.core.options import (
    DAMP_GRID,
    SELECTIONS,
    UPDATES,
    SecondOrderConfig,
)
from obert_modifiers.core.patterns import MaskPattern, check_block_size
from obert_modifiers.host.bases import PyTorchModifierYAML, recipe_key
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._second_order import AUTO, SecondOrder, read_damping
from obert_modifiers.modifiers._targets import ALL_ENCODER
from obert_modifiers.modifiers._validate import (
    as_bytes,
    as_choice,
    as_count,
    as_float,
    as_frequency,
    as_pattern,
    check_range,
)

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.pruning.pruning_step import StepResult

SCORES = ("magnitude", "obs")
ONE_SHOT, BY_FRACTION, BY_N = "one_shot", "by_fraction", "by_n"
GRADUAL = (ONE_SHOT, BY_FRACTION, BY_N)
_ROUNDING = 1e-9  # of an epoch that is a sum of fractions


@PyTorchModifierYAML()
class NMPruningModifier(GradualPruningModifier):
    """Keep N of every M weights along the input dimension.

    A preset: patterns, prices, selection and update are those of
    ``OBERTPruningModifier`` (``score: obs``) and ``GMPStarPruningModifier``
    (``score: magnitude``) with the same ``mask_type``. ``gradual`` is one of

    - ``one_shot``: everything at ``start_epoch``;
    - ``by_fraction``: at each event the same number of groups comes into the pattern,
      the cheapest first, the last ones at ``end_epoch``;
    - ``by_n``: each group loses one weight more at each step, 4:4 -> 3:4 -> 2:4. Every
      step is an exact pattern; the first is at ``start_epoch``, the last at
      ``end_epoch``, and the others are spread evenly between them.

    Beside ``OBERTPruningModifier`` rather than below it: that one's schedule, mask
    types and granularity are not this one's, so what the two share is in
    :class:`~obert_modifiers.modifiers._second_order.SecondOrder`. Hooks run in the
    order of :class:`~obert_modifiers.modifiers._gradual.GradualPruningModifier`.

    Sample YAML::

        !NMPruningModifier
            mask_type: "2:4"
            start_epoch: 1.0
            end_epoch: 3.0
            update_frequency: 0.5
            gradual: by_n
            score: obs
            num_grads: 1024
    """

    score = recipe_key("score", "magnitude or obs.")
    gradual = recipe_key("gradual", "one_shot, by_fraction or by_n.")
    num_grads = recipe_key("num_grads", "Gradients m of the Fisher approximation.")
    fisher_block_size = recipe_key("fisher_block_size", "Width B of a Fisher block.")
    damp = recipe_key("damp", "Absolute dampening.")
    damp_fraction = recipe_key("damp_fraction", "Dampening over the mean diagonal.")
    selection = recipe_key("selection", "independent or greedy.")
    memory_budget = recipe_key("memory_budget", "Memory that an event may take.")

    def __init__(
        self,
        start_epoch: float,
        end_epoch: float | None = None,
        update_frequency: float | None = None,
        mask_type: str = "2:4",
        params: str | Sequence[str] | None = ALL_ENCODER,
        leave_enabled: bool = True,
        score: str = "magnitude",
        gradual: str = ONE_SHOT,
        num_grads: int | None = None,
        fisher_block_size: int | None = None,
        damp: float | str | None = None,
        damp_fraction: float | None = None,
        selection: str | None = None,
        update: str | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            start_epoch: Epoch of the first event.
            end_epoch: Epoch of the last event; ``start_epoch`` for ``one_shot``.
            update_frequency: Epochs from one event to the next, or -1 for every step;
                left out for ``one_shot``, and for ``by_n`` where each step is to
                happen at the exact epoch.
            mask_type: ``N:M``, as in ``2:4``.
            params: Names, ``re:`` patterns or tokens of the parameters to prune.
            leave_enabled: True keeps the masks on after ``end_epoch``.
            score: ``magnitude``, or ``obs`` for the second-order saliency.
            gradual: ``one_shot``, ``by_fraction`` or ``by_n``.
            num_grads: Gradients m, over all processes; 1024 for ``obs``. This key and
                those below go with ``score: obs`` alone.
            fisher_block_size: Width B of a Fisher block, a multiple of M; 48.
            damp: Absolute dampening, or ``auto``.
            damp_fraction: Dampening over the mean Fisher diagonal; 0.01.
            selection: ``independent`` or ``greedy``, the default.
            update: ``joint``, the default, or ``independent``.
            memory_budget: Memory that an event may take, as in ``8GB``.

        Raises:
            ValueError: If a value breaks its rule.
        """
        self._score = as_choice("score", score, SCORES)
        self._gradual = as_choice("gradual", gradual, GRADUAL)
        final = _as_n_m(mask_type)
        start, end, often = self._schedule(
            start_epoch, end_epoch, update_frequency, final
        )
        span = end - start
        first = often / (span + often) if 0.0 < often < math.inf else 0.0
        super().__init__(
            params=params,
            init_sparsity=final.limit * first if gradual == BY_FRACTION else 0.0,
            final_sparsity=final.limit,
            start_epoch=start,
            end_epoch=end,
            update_frequency=often,
            leave_enabled=leave_enabled,
            inter_func="linear",
            # Only on the way: at the end every group is in the pattern.
            global_sparsity=self._score == "obs",
            mask_type=mask_type,
            min_density=0.0,
        )
        self._end_pattern = self._pattern
        keys = {
            "num_grads": num_grads,
            "fisher_block_size": fisher_block_size,
            "damp": damp,
            "damp_fraction": damp_fraction,
            "selection": selection,
            "update": update,
            "memory_budget": memory_budget,
        }
        if self._score == "obs":
            keys = _read_obs(keys, self._pattern)
            self._engine = SecondOrder(_config(keys, self._pattern))
        else:
            _refuse(keys)
        self._num_grads = keys["num_grads"]
        self._fisher_block_size = keys["fisher_block_size"]
        self._damp, self._damp_fraction = keys["damp"], keys["damp_fraction"]
        self._selection, self._update_rule = keys["selection"], keys["update"]
        self._memory_budget = keys["memory_budget"]

    def _schedule(
        self, start: Any, end: Any, often: Any, final: MaskPattern
    ) -> tuple[float, float, float]:
        """Read the three keys of the schedule.

        Returns:
            Epochs of the first and last event, and from one to the next.

        Raises:
            ValueError: If they do not go with ``gradual``.
        """
        first = as_float("start_epoch", start)
        last = first if end is None else as_float("end_epoch", end)
        check_range(first, last)
        if self._gradual == ONE_SHOT:
            if last != first:
                raise ValueError(
                    f"end_epoch={last:g} is after start_epoch={first:g} with gradual: "
                    "one_shot; expected one event; leave end_epoch out or write "
                    "gradual: by_n"
                )
            return first, last, -1.0 if often is None else self._often(often)
        if last == first:
            raise ValueError(
                f"gradual={self._gradual} has no time between start_epoch={first:g} "
                f"and end_epoch={last:g}; expected a later end_epoch; raise it or "
                "write gradual: one_shot"
            )
        if often is not None:
            return first, last, self._often(often)
        if self._gradual == BY_N:
            return first, last, (last - first) / max(final.unit - 1, 1)
        raise ValueError(
            "gradual=by_fraction comes without update_frequency; expected the epochs "
            "between two events; write update_frequency: 0.5"
        )

    @staticmethod
    def _often(value: Any) -> float:
        return as_frequency("update_frequency", value)

    @property
    def needs_gradients(self) -> bool:
        """Whether its events need a source of gradients."""  # noqa: DOC201 property
        return self._engine is not None

    def props(self, only_serializable: bool, **kwargs: bool) -> dict[str, Any]:
        """Collect the recipe's keys, which are fewer than the base class has.

        Args:
            only_serializable: True for the keys that go into YAML alone.
            **kwargs: SparseML's choice of format.

        Returns:
            Value by key.
        """
        found = super().props(only_serializable, **kwargs)
        found["update"] = self._update_rule
        if not only_serializable:
            return found
        keys = inspect.signature(type(self).__init__).parameters
        return {k: v for k, v in found.items() if k in keys and v is not None}

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Resolve the parameters; for ``score: obs``, take the source of gradients.

        Args:
            module: The model.
            epoch: Epoch to start from; ``inf`` prunes to the pattern now.
            loggers: SparseML loggers.
            **kwargs: ``gradient_source`` or ``grad_sampler``, and what the caller
                offers to other modifiers.
        """
        if self._engine is not None:
            self._engine.connect(kwargs)
        super().initialize(module, epoch, loggers, **kwargs)
        if self._engine is not None:
            self._engine.log_plan(self._masks.targets)

    def sparsities_at(self, epoch: float) -> list[float]:
        """Ask the schedule for the targets of an event.

        With ``gradual: by_n`` it sets the pattern of the event too: the sparsity of
        n:M is (M - n) / M, which every group has to have.

        Args:
            epoch: Progress in epochs; ``inf`` for the end.

        Returns:
            Target of each parameter, in [0, 1].
        """
        if self._gradual != BY_N:
            return super().sparsities_at(epoch)
        final = self._end_pattern
        lost = final.unit
        if epoch < self.end_epoch:
            share = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
            lost = 1 + math.floor((final.unit - 1) * max(share, 0.0) + _ROUNDING)
        kept = final.group_size - lost
        self._pattern = replace(
            final, name=f"{kept}:{final.group_size}", n_m=(kept, final.group_size)
        )
        return [self._pattern.limit] * len(self._ends)

    def prune_step(self, sparsities: Sequence[float]) -> StepResult:
        """Prune by magnitude or by second order; writes the parameters.

        Args:
            sparsities: Target of each parameter, in [0, 1].

        Returns:
            The new masks and the figures of the event.
        """
        how = {"global_sparsity": self._global_sparsity, "pattern": self._pattern}
        masks = self._masks
        if self._engine is not None:
            return self._engine.prune(self._model, masks, sparsities, **how)
        return core.pruning_step.magnitude_step_(
            masks.targets, masks.param_masks, sparsities, **how
        )


def _as_n_m(mask_type: Any) -> MaskPattern:
    pattern = as_pattern("mask_type", mask_type)
    if pattern.n_m is None:
        raise ValueError(
            f"mask_type={pattern.name} is not N:M; expected N kept of every M weights, "
            "as in 2:4; use OBERTPruningModifier or GMPStarPruningModifier for it"
        )
    return pattern


def _refuse(keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        if value is not None:
            raise ValueError(
                f"{key}={value} is a key of score: obs; expected none of them with "
                "score: magnitude; leave it out or write score: obs"
            )


def _read_obs(keys: dict[str, Any], pattern: MaskPattern) -> dict[str, Any]:
    given = {key: value for key, value in keys.items() if value is not None}
    damp, fraction = read_damping(keys["damp"], keys["damp_fraction"])
    width = as_count("fisher_block_size", given.get("fisher_block_size", 48))
    check_block_size(width, pattern)
    if "memory_budget" in given:
        as_bytes("memory_budget", given["memory_budget"])
    return {
        "num_grads": as_count("num_grads", given.get("num_grads", 1024)),
        "fisher_block_size": width,
        "damp": damp,
        "damp_fraction": fraction,
        "selection": as_choice(
            "selection", given.get("selection", "greedy"), SELECTIONS
        ),
        "update": as_choice("update", given.get("update", "joint"), UPDATES),
        "memory_budget": given.get("memory_budget"),
    }


def _config(keys: dict[str, Any], pattern: MaskPattern) -> SecondOrderConfig:
    auto = keys["damp"] == AUTO
    budget = keys["memory_budget"]
    return SecondOrderConfig(
        num_grads=keys["num_grads"],
        fisher_block_size=keys["fisher_block_size"],
        damp=None if auto else keys["damp"],
        damp_fraction=keys["damp_fraction"],
        damp_grid=DAMP_GRID if auto else (),
        selection=keys["selection"],
        update=keys["update"],
        memory_budget=None if budget is None else as_bytes("memory_budget", budget),
        pattern=pattern,
    )
