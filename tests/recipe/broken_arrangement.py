"""Broken recipes: the recipe as a whole."""

from tests.recipe.broken import Broken
from tests.recipe.samples import EPOCHS, GMP, group

ARRANGEMENT = [
    Broken(
        "repeated key",
        group(GMP, "      final_sparsity: 0.9\n"),
        ("9 GMPruningModifier.final_sparsity REPEATED",),
    ),
    Broken(
        "repeated variable",
        "a: 1\na: 2\n" + group(EPOCHS),
        ("2 a REPEATED",),
    ),
    Broken(
        "pruning modifier repeated",
        group(GMP, EPOCHS, GMP),
        ("12 GMPruningModifier REPEATED",),
    ),
    Broken(
        "misspelt group",
        "pruning_modifers:\n" + GMP,
        ("2 GMPruningModifier ARRANGEMENT",),
    ),
    Broken(
        "group without the word",
        group(EPOCHS) + "later:\n" + GMP,
        ("6 GMPruningModifier ARRANGEMENT",),
    ),
    Broken(
        "entry without a tag",
        group(EPOCHS, "  - start_epoch: 0\n"),
        ("5 modifiers ARRANGEMENT",),
    ),
    Broken(
        "modifiers without dashes",
        group("  start_epoch: 0\n"),
        ("1 modifiers ARRANGEMENT",),
    ),
    Broken(
        "llm-compressor's format",
        "test_stage:\n"
        "  sparsity_modifiers:\n"
        "    SparseGPTModifier:\n"
        "      sparsity: 0.5\n"
        "    ConstantPruningModifier:\n"
        "      targets: ['re:.*weight']\n"
        "  quant_modifiers:\n"
        "    GPTQModifier:\n"
        "      bits: 4\n",
        (
            "2 sparsity_modifiers ARRANGEMENT",
            "7 quant_modifiers ARRANGEMENT",
        ),
    ),
    Broken(
        "modifier with a value in place of keys",
        group("  - !EpochRangeModifier 3\n"),
        ("2 EpochRangeModifier YAML",),
    ),
    Broken("no modifiers", "num_epochs: 3\n", ("1 - ARRANGEMENT",)),
    Broken("empty group", "modifiers:\n", ("1 - ARRANGEMENT",)),
    Broken(
        "empty text",
        "\n",
        ("1 - YAML",),
    ),
    Broken(
        "list without a group",
        EPOCHS,
        ("1 - YAML",),
    ),
    Broken(
        "YAML syntax",
        "a: 1\nb: [1, 2\nmodifiers:\n" + EPOCHS,
        ("3 - YAML",),
    ),
    Broken(
        "brackets without end",
        f"a: {'[' * 3000}{']' * 3000}\n" + group(EPOCHS),
        ("1 - YAML",),
    ),
    Broken(
        "character that YAML forbids",
        "a: 1\nb: \x07\n",
        ("2 - YAML",),
    ),
    Broken(
        "front matter of text not closed",
        "+++\n" + group(EPOCHS),
        ("1 - FILE",),
    ),
    Broken(
        "stage beside a group",
        group(EPOCHS) + "stage:\n  stage_modifiers:\n  " + EPOCHS,
        ("5 stage ARRANGEMENT",),
    ),
    Broken(
        "stage without modifiers",
        "one:\n  one_modifiers:\n" + EPOCHS + "two:\n  two_modifiers: []\n",
        ("7 two ARRANGEMENT",),
    ),
]
