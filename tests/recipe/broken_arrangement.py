"""Broken recipes: the recipe as a whole."""

from tests.recipe.broken import Broken
from tests.recipe.samples import EPOCHS, GMP, group

NO_MODIFIERS = (
    "the recipe has no modifiers; expected at least one in a list under a key such as "
    "'modifiers'; add '- !EpochRangeModifier' there"
)
NEWER = (
    ", as recipes of llm-compressor and of SparseML's one-shot framework do; expected a"
    " list of modifiers with tags, the format that trains an encoder; run this file "
    "with llm-compressor, or begin from a "
)


ARRANGEMENT = [
    Broken(
        "repeated key",
        group(GMP, "      final_sparsity: 0.9\n"),
        (
            "9: GMPruningModifier.final_sparsity: final_sparsity is given again after "
            "line 4; expected each key once; remove one of the two",
        ),
    ),
    Broken(
        "repeated variable",
        "a: 1\na: 2\n" + group(EPOCHS),
        (
            "2: a: a is given again after line 1; expected each key once; remove one "
            "of the two",
        ),
    ),
    Broken(
        "pruning modifier repeated",
        group(GMP, EPOCHS, GMP),
        (
            "12: GMPruningModifier: the modifier repeats the one on line 2; expected "
            "pruning modifiers that differ, since their state is kept by their "
            "settings; remove one",
        ),
    ),
    Broken(
        "misspelt group",
        "pruning_modifers:\n" + GMP,
        (
            "2: GMPruningModifier: the modifier stands under 'pruning_modifers', where "
            "SparseML does not look for any; expected a list under a key with "
            "'modifiers' in its name; rename the key to pruning_modifiers",
        ),
    ),
    Broken(
        "group without the word",
        group(EPOCHS) + "later:\n" + GMP,
        (
            "6: GMPruningModifier: the modifier stands under 'later', where SparseML "
            "does not look for any; expected a list under a key with 'modifiers' in "
            "its name; rename the key to later_modifiers",
        ),
    ),
    Broken(
        "entry without a tag",
        group(EPOCHS, "  - start_epoch: 0\n"),
        (
            "5: modifiers: an entry of the list is not a modifier; expected a tag such "
            "as !EpochRangeModifier; put it after the dash",
        ),
    ),
    Broken(
        "modifiers without dashes",
        group("  start_epoch: 0\n"),
        (
            "1: modifiers: modifiers is a mapping; expected a list of modifiers; begin "
            "each with a dash",
        ),
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
            "2: sparsity_modifiers: sparsity_modifiers names modifiers by keys "
            "(SparseGPTModifier, ConstantPruningModifier)"
            + NEWER
            + "recipe here with !OBERTPruningModifier, !ConstantMasksModifier "
            "(docs/recipes.md lists them)",
            "7: quant_modifiers: quant_modifiers names modifiers by keys (GPTQModifier)"
            + NEWER
            + "recipe here with !QATModifier (docs/recipes.md lists them)",
        ),
    ),
    Broken(
        "modifier with a value in place of keys",
        group("  - !EpochRangeModifier 3\n"),
        (
            "2: EpochRangeModifier: the modifier holds a scalar; expected keys with "
            "values; write them indented below the modifier, one a line",
        ),
    ),
    Broken("no modifiers", "num_epochs: 3\n", (f"1: {NO_MODIFIERS}",)),
    Broken("empty group", "modifiers:\n", (f"1: {NO_MODIFIERS}",)),
    Broken(
        "empty text",
        "\n",
        (
            "1: the recipe is empty; expected modifiers in a list under a key such as "
            "'modifiers'; write 'modifiers:' above them",
        ),
    ),
    Broken(
        "list without a group",
        EPOCHS,
        (
            "1: the recipe is a sequence, not a mapping; expected modifiers in a list "
            "under a key such as 'modifiers'; write 'modifiers:' above them",
        ),
    ),
    Broken(
        "YAML syntax",
        "a: 1\nb: [1, 2\nmodifiers:\n" + EPOCHS,
        (
            "3: expected ',' or ']', but got ':' while parsing a flow sequence; "
            "expected valid YAML; correct this line or the one above it",
        ),
    ),
    Broken(
        "brackets without end",
        f"a: {'[' * 3000}{']' * 3000}\n" + group(EPOCHS),
        (
            "1: the recipe holds lists inside of lists that never seem to end; expected"
            " plain values; write fewer brackets",
        ),
    ),
    Broken(
        "character that YAML forbids",
        "a: 1\nb: \x07\n",
        (
            "2: special characters are not allowed (character #x07); expected valid "
            "YAML; correct this line or the one above it",
        ),
    ),
    Broken(
        "front matter of text not closed",
        "+++\n" + group(EPOCHS),
        (
            "1: the front matter that begins here is not closed; expected a second "
            "line of +++; add it after the recipe",
        ),
    ),
    Broken(
        "stage beside a group",
        group(EPOCHS) + "stage:\n  stage_modifiers:\n  " + EPOCHS,
        (
            "5: stage: a stage stands beside modifiers of the whole recipe; expected "
            "either stages or groups of modifiers; move those modifiers into a stage",
        ),
    ),
    Broken(
        "stage without modifiers",
        "one:\n  one_modifiers:\n" + EPOCHS + "two:\n  two_modifiers: []\n",
        (
            "7: two: the stage has no modifiers; expected at least one; add it or "
            "remove the stage",
        ),
    ),
]
