"""The average of the weights on fixed masks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.host.bases import ScheduledModifier
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers.keys import Key, KeyedModifier, Values, recipe_modifier
from obert_modifiers.modifiers.shared_keys import SharedKeys

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.averaging import Average

_CLOSE = 1e-6  # of a step; far above a sum's rounding
_LOGGER = logging.getLogger(__name__)


@recipe_modifier()
class WeightAveragingModifier(KeyedModifier, ScheduledModifier):
    """Evaluate and save the average of the weights, and train on with the weights.

    With ``decay`` the exponential average over the steps from ``start_epoch`` on,
    without it the mean of the states at the ends of the epochs after ``start_epoch``:
    for the last k of n epochs write ``start_epoch`` n - k.

    Order of its hooks: ``optimizer_post_step`` takes the weights into the average;
    :meth:`averaged` is around each evaluation, through ``RecipeManager.averaged``; and
    ``finalize`` leaves the average in the model, which is what is saved. Zeros of the
    model stay zeros, and weights keep to fixed 8-bit ranges. Checkpoints hold the
    weights and the average.

    ``start_epoch`` must not lie before the last pruning event or the beginning of
    quantization, as the states before it have other masks; a recipe that breaks this
    is refused when it is loaded. The average takes the memory of the weights, and an
    evaluation another copy on the CPU.

    Sample YAML::

        !WeightAveragingModifier
            start_epoch: 7.0
            decay: 0.99
    """

    start_epoch = SharedKeys.start_epoch.but(
        meaning="Epoch of the first step whose weights count."
    )
    decay = Key(rules.INSIDE, None).means(
        "Share of the average that each step leaves; none for the mean of the weights "
        "at the ends of epochs."
    )

    @classmethod
    def derive(cls, values: Values) -> None:
        """It has no end to choose."""
        values.end_epoch = -1.0

    def begin(self) -> None:
        """Have averaged nothing yet."""
        self._average: Average | None = None
        self._left = False

    def optimizer_post_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Take the weights into the average, where they count."""
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        step = epoch * steps_per_epoch
        early = step < self.start_epoch * steps_per_epoch - _CLOSE
        if early or getattr(optimizer, "step_was_skipped", False):
            return
        if self._decay is None and round(step + 1) % steps_per_epoch:
            return
        if self._average is None:
            self._average = core.averaging.Average()
        core.averaging.add_state_(self._average, unwrap(module), self._decay)

    def averaged(self, module: nn.Module) -> AbstractContextManager[None]:
        """Have the average in the model for an evaluation, where there is one yet."""
        if self._average is None:
            return nullcontext()
        return core.averaging.averaged(unwrap(module), self._average)

    def leave(self, module: nn.Module) -> None:
        """End with the average in the model, once; writes the parameters."""
        if self._average is not None:
            core.averaging.write_average_(unwrap(module), self._average)
        elif not self._left:
            _LOGGER.warning(
                "start_epoch=%g was not reached: no weights are averaged",
                self.start_epoch,
            )
        self._average, self._left = None, True

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Leave the average in the model, unless :meth:`leave` has done so."""
        super().finalize(module, reset_loggers, **kwargs)
        if module is not None:
            self.leave(module)
        self._average = None

    def own_state(self) -> dict[str, Any]:
        """Return the average so far."""
        average = self._average
        if average is None:
            return {"count": 0, "values": None}
        return {"count": average.count, "values": dict(average.values)}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up the average."""
        made = core.averaging.Average
        values, count = state["values"], state["count"]
        self._average = made(dict(values), count) if count else None


@contextmanager
def averaged(modifiers: Iterable[Any], module: nn.Module) -> Iterator[None]:
    """Have the average of the weights in the model in the body, where any is taken."""
    with ExitStack() as stack:
        for modifier in modifiers:
            if isinstance(modifier, WeightAveragingModifier):
                stack.enter_context(modifier.averaged(module))
        yield
