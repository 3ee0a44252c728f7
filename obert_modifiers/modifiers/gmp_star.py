"""GMP★: gradual magnitude pruning with a large first step."""

from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers.keys import recipe_modifier


@recipe_modifier()
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

    init_sparsity = GradualPruningModifier.KEYS["init_sparsity"].but(default=0.7)
    start_epoch = GradualPruningModifier.KEYS["start_epoch"].but(default=2.0)
    update_frequency = GradualPruningModifier.KEYS["update_frequency"].but(default=0.1)
    global_sparsity = GradualPruningModifier.KEYS["global_sparsity"].but(default=False)
