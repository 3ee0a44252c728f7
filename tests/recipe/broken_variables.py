"""Broken recipes: variables, expressions and arguments."""

from tests.recipe.broken import Broken
from tests.recipe.samples import EPOCHS, GMP, group

ARITHMETIC = (
    "expected numbers, variables and + - * / // % ** between eval( and ); correct it"
)


VARIABLES = [
    Broken(
        "unknown name in eval",
        "num_epochs: 3\n" + group(EPOCHS.replace("3", "eval(num_epoch * 2)")),
        (
            "5: EpochRangeModifier.end_epoch: end_epoch=eval(num_epoch * 2) holds "
            "num_epoch, which is no variable; expected one of num_epochs; write "
            "num_epochs",
        ),
    ),
    Broken(
        "unknown name in eval without variables",
        group(EPOCHS.replace("3", "eval(n)")),
        (
            "4: EpochRangeModifier.end_epoch: end_epoch=eval(n) holds n, which is no "
            "variable; expected no variables; define it or remove it",
        ),
    ),
    Broken(
        "unclosed eval",
        group(EPOCHS.replace("3", "eval(3")),
        (
            "4: EpochRangeModifier.end_epoch: end_epoch=eval(3 is not closed; "
            + ARITHMETIC,
        ),
    ),
    Broken(
        "eval of more than arithmetic",
        "a: eval(__import__('os'))\nb: eval(1 / 0)\n" + group(EPOCHS),
        (
            "1: a: a=eval(__import__('os')) holds '__import__('os')', which recipes "
            "cannot compute; " + ARITHMETIC,
            "2: b: b=eval(1 / 0) cannot be computed (division by zero); " + ARITHMETIC,
        ),
    ),
    Broken(
        "eval with text",
        "a: long\n" + group(EPOCHS.replace("3", "eval(a * 2)")),
        (
            "5: EpochRangeModifier.end_epoch: end_epoch=eval(a * 2) computes with "
            "a='long', which is no number; " + ARITHMETIC,
        ),
    ),
    Broken(
        "eval in a key",
        "s: 0.5\n"
        + group(GMP.replace("0.8", "{eval(s): [b]}").replace("__ALL_PRUNABLE__", "[]")),
        (
            "5: GMPruningModifier.final_sparsity: final_sparsity has the key eval(s), "
            "which is not a plain one; expected a number or a word; write its value",
        ),
    ),
    Broken(
        "variables in a circle",
        "a: eval(b)\nb: eval(c + 1)\nc: eval(a)\n"
        + group(EPOCHS.replace("3", "eval(a)")),
        (
            "1: a: a depends on itself; expected no circle of variables; give one of "
            "them a value",
        ),
    ),
    Broken(
        "value that holds itself",
        "a: &x [*x]\n" + group(EPOCHS),
        (
            "1: a: a holds itself through a YAML alias; expected plain values; write "
            "them out",
        ),
    ),
    Broken(
        "unreadable value",
        "a: 2024-13-40\n" + group(EPOCHS),
        (
            "1: a: the value cannot be read (month must be in 1..12); expected plain "
            "YAML; correct it",
        ),
    ),
    Broken(
        "merge of no mapping",
        "a: &a 3\n" + group("  - !EpochRangeModifier\n      <<: *a\n"),
        (
            "3: EpochRangeModifier: the value cannot be read (expected a mapping or "
            "list of mappings for merging, but found scalar); expected plain YAML; "
            "correct it",
        ),
    ),
    Broken(
        "unknown recipe_args variable",
        "x: 1\nnum_epochs: 3\n" + group(EPOCHS),
        (
            "2: recipe_args.num_epoch: num_epoch is not a variable of this recipe; "
            "expected one of num_epochs, x; write num_epochs",
        ),
        {"num_epoch": 4},
    ),
    Broken(
        "recipe_args without a value",
        "num_epochs: 3\n" + group(EPOCHS),
        (
            "1: recipe_args: recipe_args item 'num_epochs' is not of the form "
            "name=value; expected name=value pairs separated by commas; use a JSON "
            "object for lists",
        ),
        "num_epochs",
    ),
    Broken(
        "recipe_args broken JSON",
        "num_epochs: 3\n" + group(EPOCHS),
        (
            "1: recipe_args: recipe_args={'a': 1} is not valid JSON (Expecting "
            "property name enclosed in double quotes: line 1 column 2 (char 1)); "
            "expected an object such as '{\"num_epochs\": 3}'; correct it",
        ),
        "{'a': 1}",
    ),
    Broken(
        "recipe_args that make a value wrong",
        "end: 3\n"
        + group(EPOCHS.replace("start_epoch: 0", "start_epoch: 2")).replace(
            "end_epoch: 3", "end_epoch: eval(end)"
        ),
        (
            "4: EpochRangeModifier.start_epoch: start_epoch=2 comes after end_epoch=1; "
            "expected the start before the end; swap them or move one",
        ),
        "end=1",
    ),
]
