"""GMP★: gradual magnitude pruning with a large first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from obert_modifiers import core
from obert_modifiers.host.bases import PyTorchModifierYAML
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._targets import ALL_ENCODER

if TYPE_CHECKING:
    from obert_modifiers.core.pruning.pruning_step import StepResult


@PyTorchModifierYAML()
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

    def __init__(
        self,
        final_sparsity: float | dict[float, list[str]],
        end_epoch: float,
        init_sparsity: float | str = 0.7,
        start_epoch: float = 2.0,
        update_frequency: float = 0.1,
        params: str | Sequence[str] | None = ALL_ENCODER,
        leave_enabled: bool = True,
        inter_func: str = "cubic",
        global_sparsity: bool = False,
        mask_type: str = "unstructured",
        min_density: float = 0.0,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            final_sparsity: Sparsity of the last event in [0, 1], or a mapping from
                sparsities to lists of parameters.
            end_epoch: Epoch of the last event.
            init_sparsity: Sparsity of the first event, or ``__FROM_PARAM__``.
            start_epoch: Epoch of the first event.
            update_frequency: Epochs from one event to the next; -1 for every step.
            params: Names, ``re:`` patterns or tokens of the parameters to prune.
            leave_enabled: True keeps the masks on after ``end_epoch``.
            inter_func: linear, cubic or inverse_cubic.
            global_sparsity: True for one threshold over all parameters.
            mask_type: Structure of the sparsity: ``unstructured``, ``block4``,
                ``block:RxC`` or ``N:M``, as in ``2:4``.
            min_density: Share of its weights that each parameter keeps at least.
        """
        super().__init__(
            params=params,
            init_sparsity=init_sparsity,
            final_sparsity=final_sparsity,
            start_epoch=start_epoch,
            end_epoch=end_epoch,
            update_frequency=update_frequency,
            leave_enabled=leave_enabled,
            inter_func=inter_func,
            global_sparsity=global_sparsity,
            mask_type=mask_type,
            min_density=min_density,
        )

    def prune_step(self, sparsities: Sequence[float]) -> StepResult:
        """Prune by magnitude to target sparsities; writes the parameters.

        Args:
            sparsities: Target of each parameter, in [0, 1].

        Returns:
            The new masks.
        """
        return core.pruning_step.magnitude_step_(
            self._masks.targets,
            self._masks.param_masks,
            sparsities,
            global_sparsity=self._global_sparsity,
            pattern=self._pattern,
            min_density=self._min_density,
        )
