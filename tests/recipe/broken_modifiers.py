"""Recipes with faults of N:M pruning, layer dropping and distillation."""

from tests.recipe.broken import Broken
from tests.recipe.samples import group

N_M = "  - !NMPruningModifier\n      start_epoch: 1.0\n"
DROP = "  - !LayerDropModifier\n"
DISTIL = "  - !LogitDistillationModifier\n"

MODIFIERS = [
    Broken(
        "no N:M",
        group(N_M, "      mask_type: block4\n"),
        ("4 NMPruningModifier.mask_type MASK_TYPE",),
    ),
    Broken(
        "gradual without time",
        group(N_M, "      gradual: by_n\n"),
        ("4 NMPruningModifier.gradual EPOCHS",),
    ),
    Broken(
        "keys of the other score",
        group(N_M, "      num_grads: 64\n      fisher_block_size: 48\n"),
        (
            "4 NMPruningModifier.num_grads NEEDS",
            "5 NMPruningModifier.fisher_block_size NEEDS",
        ),
    ),
    Broken(
        "layers in no order",
        group(DROP, "      keep: [6, 0]\n"),
        ("3 LayerDropModifier.keep LAYERS",),
    ),
    Broken(
        "six layers cannot be first, middle and last",
        group(DROP, "      keep: 6\n      choice: first_middle_last\n"),
        ("4 LayerDropModifier.choice LAYERS",),
    ),
    Broken(
        "a layer map without a weight",
        group(DISTIL, "      layer_map: last\n"),
        ("3 LogitDistillationModifier.layer_map NEEDS",),
    ),
]
assert len(MODIFIERS) == 6
