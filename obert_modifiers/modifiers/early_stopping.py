"""Early stopping on a metric of the evaluations."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.faults import Fault, Rule, nearest_word
from obert_modifiers.host.bases import ScheduledModifier
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers.keys import (
    Key,
    KeyedModifier,
    Values,
    between,
    recipe_modifier,
)
from obert_modifiers.modifiers.shared_keys import SharedKeys

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.snapshot import Snapshot

_LOGGER = logging.getLogger(__name__)


@recipe_modifier()
class EarlyStoppingModifier(KeyedModifier, ScheduledModifier):
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

    best: float | None = None  # of the evaluations that count
    best_epoch = -1.0

    metric = Key(rules.name("a metric of the evaluations")).means(
        "Name of a metric of the evaluations, such as accuracy."
    )
    mode = Key(rules.choice("max", "min"), "max").means(
        "max if larger is better, min for a loss."
    )
    patience = Key(rules.COUNT, 1).means(
        "Evaluations in a row that are not better, after which the training ends."
    )
    min_delta = Key(rules.NOT_NEGATIVE, 0.0).means(
        "Smallest improvement that counts as better."
    )
    start_epoch = SharedKeys.start_epoch.but(default=0.0).means(
        "Epoch of the first evaluation that counts."
    )
    restore_best = Key(rules.FLAG, True).means(
        "True ends with the weights of the best evaluation, false with the last ones."
    )

    @between("metric", "given")
    def _which_way(metric: str, given: Mapping[str, Any]) -> Iterator[Fault]:
        if metric.endswith(("loss", "perplexity")) and "mode" not in given:
            broken = "comes without mode, of which max keeps the largest"
            yield Fault.of(
                Rule.NEEDS, "metric", metric, broken, "one", "write mode: min"
            )

    @classmethod
    def derive(cls, values: Values) -> None:
        """It has no end to choose."""
        values.end_epoch = -1.0

    def begin(self) -> None:
        """Know of no evaluation yet."""
        self._last_epoch = -1.0
        self._worse = 0
        self._snapshot: Snapshot | None = None

    @property
    def stopped(self) -> bool:
        """Whether the patience is over."""
        return self._worse >= self._patience

    def evaluated(
        self, module: nn.Module, metrics: Mapping[str, float], epoch: float
    ) -> bool:
        """Take the figures of an evaluation; copies the weights if it is the best."""
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
        value = float(metrics[self._metric])
        if self._better(value):
            self.best, self.best_epoch, self._worse = value, epoch, 0
            if self._restore_best:
                self._snapshot = core.snapshot.take_snapshot(unwrap(module))
        else:
            self._worse += 1
        return self.stopped

    def _better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best
        return (gain if self._mode == "max" else -gain) > self._min_delta

    def restore(self, module: nn.Module) -> bool:
        """Go back to the weights of the best evaluation; writes the parameters."""
        snapshot, self._snapshot = self._snapshot, None
        return snapshot is not None and core.snapshot.restore_snapshot_(
            unwrap(module), snapshot
        )

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Go back to the best weights, unless :meth:`restore` has done so."""
        super().finalize(module, reset_loggers, **kwargs)
        if self._last_epoch < 0.0:
            _LOGGER.warning(
                "EarlyStoppingModifier was told of no evaluation from epoch %g on: "
                "nothing could stop the training",
                self.start_epoch,
            )
        if module is not None:
            self.restore(module)

    def own_state(self) -> dict[str, Any]:
        """Return the best evaluation so far, with its weights."""
        best = self._snapshot
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "last_epoch": self._last_epoch,
            "worse": self._worse,
            "values": None if best is None else best.values,
            "ranges": None if best is None else best.ranges,
        }

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up the best evaluation."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._last_epoch, self._worse = state["last_epoch"], state["worse"]
        weights = state["values"], state["ranges"]
        made = core.snapshot.Snapshot
        self._snapshot = None if weights[0] is None else made(*weights)
