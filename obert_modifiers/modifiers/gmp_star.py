"""GMP★: gradual magnitude pruning with a large first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from obert_modifiers import core
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers.keys import recipe_modifier

if TYPE_CHECKING:
    from obert_modifiers.core.pruning.pruning_step import StepResult


@recipe_modifier(
    defaults={
        "init_sparsity": 0.7,
        "start_epoch": 2.0,
        "update_frequency": 0.1,
        "global_sparsity": False,
    }
)
class GMPStarPruningModifier(GradualPruningModifier):
    """Prune the weights of smallest magnitude, gradually.

    Kurtic and Alistarh 2022 (GMP★), section 2.1 and Appendix B: a first step to 70 %
    sparsity, then a cubic schedule with ten events per epoch from epoch 2 to two
    epochs before the end, each parameter pruned to the same sparsity. Groups of
    ``mask_type`` compete by the sum of their magnitudes.

    Hooks run in the order of
    :class:`~obert_modifiers.modifiers._gradual.GradualPruningModifier`.

    Sample YAML::

        !GMPStarPruningModifier
            init_sparsity: 0.7
            final_sparsity: 0.9
            start_epoch: 2.0
            end_epoch: 8.0
            update_frequency: 0.1
            params: __ALL_ENCODER__
    """

    def prune_step(self, sparsities: Sequence[float]) -> StepResult:
        """Prune by magnitude to target sparsities in [0, 1]; writes the parameters."""
        return core.pruning.pruning_step.magnitude_step_(
            self._masks.targets,
            self._masks.param_masks,
            sparsities,
            global_sparsity=self.global_sparsity,
            pattern=self._pattern,
            min_density=self.min_density,
        )
