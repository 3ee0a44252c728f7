"""Masks of a model that is sparse already, kept while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers.host.bases import (
    ModifierProp,
    PyTorchModifierYAML,
    recipe_key,
)
from obert_modifiers.modifiers._masking import MaskingModifier
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers._targets import (
    ALL_ENCODER,
    find_targets,
    match_weights,
    unwrap,
)
from obert_modifiers.modifiers._validate import as_float, check_end

if TYPE_CHECKING:
    from torch import nn


@PyTorchModifierYAML()
class ConstantMasksModifier(MaskingModifier):
    """Keep the zeros of parameters at zero while the other weights train.

    oBERT section 4.2, "sparse transfer": the masks of a model pruned upstream stay as
    they are downstream. What is zero at ``start_epoch`` is what stays zero. SparseML's
    ``ConstantPruningModifier`` does the same with hooks on layers and gradients; here
    no hook is left on the model, names are those of the unwrapped model, and the state
    can be saved.

    Order of its hooks: ``initialize`` finds the parameters; ``update`` takes the masks
    at ``start_epoch`` and lets go of them at ``end_epoch``; ``optimizer_post_step``
    applies them, as the optimizer may have moved zeros; ``finalize`` applies them a
    last time.

    Sample YAML::

        !ConstantMasksModifier
            params: __ALL_ENCODER__
            start_epoch: 0.0
            end_epoch: -1.0
    """

    params = recipe_key("params", "Names, re: patterns or a token.")

    def __init__(
        self,
        params: str | Sequence[str] = ALL_ENCODER,
        start_epoch: float = -1.0,
        end_epoch: float = -1.0,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            params: Names, ``re:`` patterns or tokens of the parameters.
            start_epoch: Epoch from which on zeros stay; -1 for the start.
            end_epoch: Epoch from which on they may grow back; -1 for never.

        Raises:
            ValueError: If a value breaks its rule.
        """
        start, end = (
            as_float("start_epoch", start_epoch),
            as_float("end_epoch", end_epoch),
        )
        check_end(start, end)
        super().__init__(start_epoch=start, end_epoch=end, end_comparator=-1)
        self._params = params if isinstance(params, str) else list(params)

    @ModifierProp(serializable=False)
    def leave_enabled(self) -> bool:
        """Whether masks stay on after ``end_epoch``: they do not."""  # noqa: DOC201 property
        return False

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters whose zeros stay.

        Args:
            model: The model, wrapped or not.

        Returns:
            Full names in the unwrapped model.
        """
        names = [self._params] if isinstance(self._params, str) else self._params
        return match_weights(unwrap(model), names or [ALL_ENCODER])

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Find the parameters; masks are taken at ``start_epoch``.

        Args:
            module: The model.
            epoch: Epoch to start from; ``inf`` takes the masks now.
            loggers: SparseML loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().initialize(module, epoch, loggers, **kwargs)
        model = unwrap(module)
        targets = find_targets(model, self.resolve_targets(model))
        self._masks = ParameterMasks(model, targets)
        if epoch == float("inf"):
            self._take()

    def _take(self) -> None:
        self._masks.replace([data != 0 for data in self._masks.params_data])
        self._masks.enabled = True

    def update(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Take the masks, or let go of them; called by SparseML when it is time.

        Args:
            module: The model.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        super().update(module, optimizer, epoch, steps_per_epoch)
        if self.start_pending(epoch, steps_per_epoch):
            self._take()
        if 0.0 <= self.end_epoch <= epoch:
            self._masks.enabled = False
