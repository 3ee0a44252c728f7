"""Masks of a model that is sparse already, kept while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obert_modifiers.host.bases import ModifierProp
from obert_modifiers.modifiers import _targets
from obert_modifiers.modifiers._masks import MaskingModifier, ParameterMasks
from obert_modifiers.modifiers.keys import recipe_modifier
from obert_modifiers.modifiers.rules import listed
from obert_modifiers.modifiers.shared_keys import SharedKeys, ends_later

if TYPE_CHECKING:
    from torch import nn


@recipe_modifier()
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

    params = SharedKeys.params.but(default=_targets.ALL_ENCODER)
    start_epoch = SharedKeys.start_epoch.but(default=-1.0).means(
        "Epoch from which zeros stay; -1 for the start."
    )
    end_epoch = SharedKeys.end_epoch.but(default=-1.0).means(
        "Epoch from which they may grow back; -1 for never."
    )
    _ends = ends_later()

    @ModifierProp(serializable=False)
    def leave_enabled(self) -> bool:
        """Whether masks stay on after ``end_epoch``: they do not."""
        return False

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters whose zeros stay, of a wrapped model too."""
        patterns = listed("params", self.params or _targets.ALL_ENCODER)
        return _targets.match_weights(_targets.unwrap(model), patterns)

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        """Find the parameters; an infinite epoch takes the masks at once."""
        super().initialize(module, epoch, loggers, **kwargs)
        model = _targets.unwrap(module)
        targets = _targets.find_targets(model, self.resolve_targets(model))
        self._masks = ParameterMasks(model, targets)
        if epoch == float("inf"):
            self._take()

    def _take(self) -> None:
        self._masks.replace([data != 0 for data in self._masks.params_data])
        self._masks.enabled = True

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Take the masks, or let go of them; called by the host when it is time."""
        super().update(module, optimizer, epoch, steps_per_epoch)
        if self.start_pending(epoch, steps_per_epoch):
            self._take()
        if 0.0 <= self.end_epoch <= epoch:
            self._masks.enabled = False
