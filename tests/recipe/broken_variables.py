"""Broken recipes: variables, expressions and arguments."""

from tests.recipe.broken import Broken
from tests.recipe.samples import EPOCHS, GMP, group

VARIABLES = [
    Broken(
        "unknown name in eval",
        "num_epochs: 3\n" + group(EPOCHS.replace("3", "eval(num_epoch * 2)")),
        ("5 EpochRangeModifier.end_epoch EXPRESSION",),
    ),
    Broken(
        "unknown name in eval without variables",
        group(EPOCHS.replace("3", "eval(n)")),
        ("4 EpochRangeModifier.end_epoch EXPRESSION",),
    ),
    Broken(
        "unclosed eval",
        group(EPOCHS.replace("3", "eval(3")),
        ("4 EpochRangeModifier.end_epoch EXPRESSION",),
    ),
    Broken(
        "eval of more than arithmetic",
        "a: eval(__import__('os'))\nb: eval(1 / 0)\n" + group(EPOCHS),
        (
            "1 a EXPRESSION",
            "2 b EXPRESSION",
        ),
    ),
    Broken(
        "eval with text",
        "a: long\n" + group(EPOCHS.replace("3", "eval(a * 2)")),
        ("5 EpochRangeModifier.end_epoch EXPRESSION",),
    ),
    Broken(
        "eval in a key",
        "s: 0.5\n"
        + group(GMP.replace("0.8", "{eval(s): [b]}").replace("__ALL_PRUNABLE__", "[]")),
        ("5 GMPruningModifier.final_sparsity EXPRESSION",),
    ),
    Broken(
        "variables in a circle",
        "a: eval(b)\nb: eval(c + 1)\nc: eval(a)\n"
        + group(EPOCHS.replace("3", "eval(a)")),
        ("1 a VARIABLE",),
    ),
    Broken(
        "value that holds itself",
        "a: &x [*x]\n" + group(EPOCHS),
        ("1 a YAML",),
    ),
    Broken(
        "unreadable value",
        "a: 2024-13-40\n" + group(EPOCHS),
        ("1 a YAML",),
    ),
    Broken(
        "merge of no mapping",
        "a: &a 3\n" + group("  - !EpochRangeModifier\n      <<: *a\n"),
        ("3 EpochRangeModifier YAML",),
    ),
    Broken(
        "unknown recipe_args variable",
        "x: 1\nnum_epochs: 3\n" + group(EPOCHS),
        ("2 recipe_args.num_epoch VARIABLE",),
        {"num_epoch": 4},
    ),
    Broken(
        "recipe_args without a value",
        "num_epochs: 3\n" + group(EPOCHS),
        ("1 recipe_args VARIABLE",),
        "num_epochs",
    ),
    Broken(
        "recipe_args broken JSON",
        "num_epochs: 3\n" + group(EPOCHS),
        ("1 recipe_args VARIABLE",),
        "{'a': 1}",
    ),
    Broken(
        "recipe_args that make a value wrong",
        "end: 3\n"
        + group(EPOCHS.replace("start_epoch: 0", "start_epoch: 2")).replace(
            "end_epoch: 3", "end_epoch: eval(end)"
        ),
        ("4 EpochRangeModifier.start_epoch EPOCHS",),
        "end=1",
    ),
]
