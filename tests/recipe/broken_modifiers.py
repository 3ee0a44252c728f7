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
        (
            "4: NMPruningModifier.mask_type: mask_type=block4 is not N:M; expected N "
            "kept of every M weights, as in 2:4; use OBERTPruningModifier or "
            "GMPStarPruningModifier for it",
        ),
    ),
    Broken(
        "gradual without time",
        group(N_M, "      gradual: by_n\n"),
        (
            "4: NMPruningModifier.gradual: gradual=by_n has no time between "
            "start_epoch=1 and end_epoch=1; expected a later end_epoch; raise it or "
            "write gradual: one_shot",
        ),
    ),
    Broken(
        "keys of the other score",
        group(N_M, "      num_grads: 64\n      fisher_block_size: 48\n"),
        (
            "4: NMPruningModifier.num_grads: num_grads=64 is a key of score: obs; "
            "expected none of them with score: magnitude; leave it out or write "
            "score: obs",
            "5: NMPruningModifier.fisher_block_size: fisher_block_size=48 is a key of "
            "score: obs; expected none of them with score: magnitude; leave it out or "
            "write score: obs",
        ),
    ),
    Broken(
        "layers in no order",
        group(DROP, "      keep: [6, 0]\n"),
        (
            "3: LayerDropModifier.keep: keep=[6, 0] is not a list of layers; expected "
            "different indices from 0 on, in increasing order; write [0, 6, 11]",
        ),
    ),
    Broken(
        "six layers cannot be first, middle and last",
        group(DROP, "      keep: 6\n      choice: first_middle_last\n"),
        (
            "4: LayerDropModifier.choice: choice=first_middle_last is for three "
            "layers, not keep=6; expected keep: 3; write choice: interleaved",
        ),
    ),
    Broken(
        "a layer map without a weight",
        group(DISTIL, "      layer_map: last\n"),
        (
            "3: LogitDistillationModifier.layer_map: layer_map=last is given without "
            "hidden_weight; expected both or none; write hidden_weight: 1.0",
        ),
    ),
]
assert len(MODIFIERS) == 6
