"""oBERT: gradual second-order pruning with an update of the remaining weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers.keys import recipe_modifier
from obert_modifiers.modifiers.second_order import SecondOrder, SecondOrderKeys

if TYPE_CHECKING:
    from obert_modifiers.core.distributed.sharding import MemoryPlan


@recipe_modifier()
class OBERTPruningModifier(SecondOrderKeys, GradualPruningModifier):
    """Prune by second-order saliency, gradually, and update what remains.

    Kurtic et al. 2022 (oBERT), sections 3.1 to 3.4. The recipe keys are those of
    SparseML's ``OBSPruningModifier`` and some of our own. With ``batch`` gradients,
    ``independent`` selection and update, and an absolute ``damp`` it is that method;
    the defaults here prune to a lower loss. ``fisher_block_size`` is a multiple of the
    group size of ``mask_type``.

    Needs at ``initialize`` either ``gradient_source``, a
    :class:`~obert_modifiers.core.pruning.sampling.GradientSource`, or SparseML's
    ``grad_sampler`` dict. Hooks run in the order of
    :class:`~obert_modifiers.modifiers._gradual.GradualPruningModifier`.

    Sample YAML::

        !OBERTPruningModifier
            init_sparsity: 0.7
            final_sparsity: 0.9
            start_epoch: 2.0
            end_epoch: 26.0
            update_frequency: 4.0
            params: __ALL_ENCODER__
            num_grads: 1024
            fisher_block_size: 48
            damp_fraction: 0.01
            grad_sampler_kwargs:
                batch_size: 32
    """

    def begin(self) -> None:
        """Make the engine; there is no source of gradients yet."""
        super().begin()
        self._engine = SecondOrder(self, self._pattern)

    def memory_plan(self, ranks: int | None = None) -> MemoryPlan:
        """Plan the Fisher state of an event for the selected parameters.

        ``ranks`` is the number of processes; None asks torch, and every process has to
        call it. An error if the budget is too small.
        """
        return self._engine.plan(self._masks.targets, ranks)
