"""Early stopping on a metric of the evaluations."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.host.bases import (
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledModifier,
    SparsificationTypes,
    check_initialized,
    recipe_key,
)
from obert_modifiers.modifiers._states import as_tensors, from_tensors
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers._validate import (
    as_choice,
    as_count,
    as_flag,
    as_float,
    nearest_word,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.snapshot import Snapshot

MODES = ("max", "min")

_LOGGER = logging.getLogger(__name__)


@PyTorchModifierYAML()
class EarlyStoppingModifier(ScheduledModifier):
    """End the training when a metric gets no better, and go back to its best weights.

    oBERT section 5 employs early stopping "to prevent overfitting on smaller GLUE
    tasks" (Table 5). An evaluation is better than the best one so far if its metric
    exceeds it by more than ``min_delta`` (lies below it, with ``mode: min``). The
    training ends after ``patience`` evaluations in a row that are not better.

    Order of its hooks: the training loop calls :meth:`evaluated` after each
    evaluation, through ``RecipeManager.evaluated``, and ends if it returns True;
    before ``finalize`` it calls :meth:`restore`, which ``finalize`` does otherwise.
    A loop that does not tell of its evaluations, such as SparseML's own, is not
    stopped; ``finalize`` then warns.

    ``start_epoch`` has to lie after the last pruning event and the beginning of
    quantization, as weights from before would bring pruned weights back; a recipe
    that breaks this is refused when it is loaded. The best weights are a copy on the
    CPU.

    Sample YAML::

        !EarlyStoppingModifier
            metric: accuracy
            mode: max
            patience: 2
            min_delta: 0.0
            start_epoch: 1.0
            restore_best: true
    """

    metric = recipe_key("metric", "Name of a figure of the evaluations.")
    mode = recipe_key("mode", "max or min.")
    patience = recipe_key("patience", "Evaluations without a better one.")
    min_delta = recipe_key("min_delta", "What counts as better.")
    restore_best = recipe_key("restore_best", "Go back to the best weights.")

    def __init__(
        self,
        metric: str,
        mode: str = "max",
        patience: int = 1,
        min_delta: float = 0.0,
        start_epoch: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            metric: Name of a figure of the evaluations, such as ``accuracy``.
            mode: ``max`` where a larger figure is better, ``min`` for a loss.
            patience: Evaluations in a row that are not better, after which the
                training ends; at least 1.
            min_delta: By how much a better figure exceeds the best so far; 0 or more.
            start_epoch: Epoch of the first evaluation that counts.
            restore_best: True ends with the weights of the best evaluation, False
                with the last ones.

        Raises:
            ValueError: If a value breaks its rule.
        """
        super().__init__(
            start_epoch=as_float("start_epoch", start_epoch),
            end_epoch=-1.0,
            end_comparator=-1,
        )
        if not isinstance(metric, str) or not metric.strip():
            raise ValueError(
                f"metric={metric} is not a name; expected a figure of the evaluations; "
                "write accuracy or loss"
            )
        self._metric = metric
        self._mode = as_choice("mode", mode, MODES)
        self._patience = as_count("patience", patience)
        self._min_delta = as_float("min_delta", min_delta)
        if self._min_delta < 0.0:
            raise ValueError(
                f"min_delta={min_delta} is negative; expected 0 or more; write 0.0"
            )
        self._restore_best = as_flag("restore_best", restore_best)
        self._best: float | None = None
        self._best_epoch = -1.0
        self._last_epoch = -1.0
        self._worse = 0
        self._snapshot: Snapshot | None = None

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        """Kinds of compression that this modifier applies."""  # noqa: DOC201 property
        return [SparsificationTypes.general]

    @property
    def best(self) -> float | None:
        """The metric's best value; None before the first evaluation that counts."""
        return self._best

    @property
    def best_epoch(self) -> float:
        """Epoch of the best evaluation; -1 before there is one."""
        return self._best_epoch

    @property
    def stopped(self) -> bool:
        """Whether the patience is over."""
        return self._worse >= self._patience

    def props(self, only_serializable: bool, **kwargs: bool) -> dict[str, Any]:
        """Collect the recipe's keys; it has no end to choose.

        Args:
            only_serializable: True for the keys that go into YAML alone.
            **kwargs: SparseML's choice of format.

        Returns:
            Value by key.
        """
        found = super().props(only_serializable, **kwargs)
        if only_serializable:
            found.pop("end_epoch", None)
        return found

    def evaluated(
        self, module: nn.Module, metrics: Mapping[str, float], epoch: float
    ) -> bool:
        """Take the figures of an evaluation; copies the weights if they are the best.

        Args:
            module: The model as it was evaluated.
            metrics: Figures by name, equal on all processes.
            epoch: Progress in epochs.

        Returns:
            True if the training should end now.

        Raises:
            RuntimeError: If the modifier is not initialized.
            ValueError: If there is no such figure.
        """
        if not self.initialized:
            raise RuntimeError("modifier must be initialized first")
        if self._metric not in metrics:
            raise ValueError(
                f"metric={self._metric} is no figure of the evaluation; expected one "
                f"of {', '.join(sorted(metrics))}; write "
                f"{nearest_word(self._metric, sorted(metrics))}"
            )
        if epoch < self.start_epoch:
            return False
        self._last_epoch = epoch
        if self._better(float(metrics[self._metric])):
            self._best, self._best_epoch = float(metrics[self._metric]), epoch
            self._worse = 0
            if self._restore_best:
                self._snapshot = core.snapshot.take_snapshot(unwrap(module))
        else:
            self._worse += 1
        return self.stopped

    def _better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best
        return (gain if self._mode == "max" else -gain) > self._min_delta

    def restore(self, module: nn.Module) -> bool:
        """Go back to the weights of the best evaluation; writes the parameters.

        Args:
            module: The model.

        Returns:
            True if the model had other weights.
        """
        snapshot, self._snapshot = self._snapshot, None
        return snapshot is not None and core.snapshot.restore_snapshot_(
            unwrap(module), snapshot
        )

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Go back to the best weights, unless :meth:`restore` has done so.

        Args:
            module: The model.
            reset_loggers: True forgets the loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().finalize(module, reset_loggers, **kwargs)
        if self._last_epoch < 0.0:
            _LOGGER.warning(
                "EarlyStoppingModifier was told of no evaluation from epoch %g on: "
                "nothing could stop the training",
                self.start_epoch,
            )
        if module is not None:
            self.restore(module)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the best evaluation so far, with its weights, and the schedule."""
        return as_tensors({
            "started": self._started,
            "ended": self._ended,
            "best": self._best,
            "best_epoch": self._best_epoch,
            "last_epoch": self._last_epoch,
            "worse": self._worse,
            "values": self._snapshot.values if self._snapshot else None,
            "ranges": self._snapshot.ranges if self._snapshot else None,
        })

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state_dict: As from :meth:`state_dict`.
            strict: Ignored: a missing entry is always an error.

        Raises:
            RuntimeError: If the modifier is not initialized.
        """
        check_initialized(self)
        state_dict = from_tensors(state_dict)
        self._started, self._ended = state_dict["started"], state_dict["ended"]
        self._best = state_dict["best"]
        self._best_epoch = state_dict["best_epoch"]
        self._last_epoch = state_dict["last_epoch"]
        self._worse = state_dict["worse"]
        values, ranges = state_dict["values"], state_dict["ranges"]
        self._snapshot = (
            None if values is None else core.snapshot.Snapshot(values, ranges)
        )
