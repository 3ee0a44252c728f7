"""Broken recipes, marked where they are broken: text, values, variables, one modifier.

A mark ``#! RULE`` says that a rule is broken by the key on its line, in the modifier
that the line belongs to; ``#! key RULE`` names another key, ``-`` neither.
"""

import re

import pytest

from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe_text.problems import Problem, RecipeError
from tests.recipe.samples import EPOCHS, GMP, OBERT, group

_TAG = re.compile(r"( *)- !(\w+)")


def marks_of(text: str) -> list[str]:
    """Return what a text is marked with, as :func:`brief` has it."""
    found, modifier, dash = [], "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        content, _, marks = line.partition("#! ")
        if tag := _TAG.match(line):
            modifier, dash = tag[2], len(tag[1])
        inside = tag or len(line) - len(line.lstrip()) > dash
        own = "" if tag else content.partition(":")[0].strip()
        for mark in filter(None, marks.split(", ")):
            key, _, rule = mark.rpartition(" ")
            where = [modifier if inside else "", key or own]
            place = key if key == "-" else ".".join(filter(None, where))
            found.append(f"{number} {place} {rule}")
    return found


def brief(problem: Problem) -> str:
    """Return line, modifier and key, and rule."""
    where = ".".join(part for part in (problem.modifier, problem.key) if part)
    return f"{problem.line} {where or '-'} {problem.fault.rule.name}"


def error_of(source, recipe_args=None) -> RecipeError:
    """Load a broken recipe; return its error."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, recipe_args)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return caught.value


def briefs_of(source, recipe_args=None) -> list[str]:
    """Load a broken recipe; return its problems as :func:`brief` has them."""
    return [brief(problem) for problem in error_of(source, recipe_args).problems]


def also(*lines: str) -> str:
    """Return further keys of a modifier."""
    return "".join(f"      {line}\n" for line in lines)


def gmp(old: str, new: str) -> str:
    return group(GMP.replace(old, new))


def obert(old: str, new: str, *more: str) -> str:
    return group(OBERT.replace(old, new), also(*more))


def epochs(old: str, new: str) -> str:
    return group(EPOCHS.replace(old, new))


N_M = "  - !NMPruningModifier\n      start_epoch: 1.0\n"
DROP = "  - !LayerDropModifier\n"
DISTIL = "  - !LogitDistillationModifier\n"
CYCLIC = """\
  - !LearningRateFunctionModifier
      {lr_func: cyclic_linear, init_lr: 0.1, final_lr: 0.0, start_epoch: 0.0,
       cycle_epochs: 0, end_epoch: 1.0}  #! cycle_epochs POSITIVE
"""

VALUES = {
    "a schedule that falls": obert("y: 0.0", "y: 0.9  #! SPARSITIES"),
    "a number in place of parameters": group(OBERT, also("params: 3  #! NAMES")),
    "a mapping without sparsities": obert("0.8", "{}  #! MAPPING", "params: []"),
    "a sparsity without names": obert("0.8", "{0.8: }  #! NAMES", "params: []"),
    "a batch that is no number of samples": group(
        OBERT, also("grad_sampler_kwargs: {batch_size: -1}  #! COUNT")
    ),
    "cycles without length": group(CYCLIC),
    "distillation without time": group(
        DISTIL, also("start_epoch: 1", "end_epoch: 1  #! EPOCHS")
    ),
    "unknown modifier": gmp("GMPruningModifier", "GMPrunningModifier  #! UNKNOWN"),
    "unknown modifier unlike any": group(
        EPOCHS, "  - !Qqq  #! UNKNOWN\n", also("a: 1")
    ),
    "unknown key": group(EPOCHS, also("end_epochs: 4  #! UNKNOWN")),
    "unknown key of ours": group(
        DISTIL, also("hardnes: 0.5  #! UNKNOWN", "qqq: 1  #! UNKNOWN")
    ),
    "missing keys": group(
        "  - !EpochRangeModifier  #! end_epoch MISSING, start_epoch MISSING\n"
    ),
    "percent": obert("0.8", "80  #! FRACTION"),
    "percent sign, with SparseML's modifier": gmp("0.8", "87.5%  #! FRACTION"),
    "percent as a key": gmp("0.8", "{0.5: [a], 90: [b]}  #! FRACTION").replace(
        "__ALL_PRUNABLE__", "[]"
    ),
    "negative sparsity": gmp("y: 0.0", "y: -0.1  #! FRACTION"),
    "sparsity above any percentage": gmp("0.8", "800  #! FRACTION"),
    "sparsity that is no number": gmp("0.8", "high  #! FRACTION"),
    "start after end": epochs("start_epoch: 0", "start_epoch: 4  #! EPOCHS"),
    "epoch that is no number": epochs("3", "last  #! NUMBER"),
    "epoch that is not a number at all": epochs("3", ".nan  #! NUMBER"),
    "unknown inter_func": group(OBERT, also("inter_func: cubik  #! CHOICE")),
    "unknown mask_type": group(GMP, also("mask_type: blok4  #! MASK_TYPE")),
    "N:M without quotes, which YAML reads in base 60": group(
        GMP, also("mask_type: 2:4  #! MASK_TYPE")
    ),
    "mask_type of ours": group(OBERT, also("mask_type: tensorrt  #! MASK_TYPE")),
    "groups that straddle Fisher blocks": group(
        OBERT, also("mask_type: block4", "fisher_block_size: 50  #! BLOCK_SIZE")
    ),
    "sparsity that is not the one of N:M": obert(
        "0.8", "0.8  #! SPARSITIES", "mask_type: 2:4"
    ),
    "bad regular expression": group(OBERT, also("params: ['re:a(']  #! PATTERN")),
    "what our constructors refuse, all of it": group(
        OBERT, also("num_grads: 0  #! COUNT", "fisher_block_size: 4.5  #! COUNT")
    ),
    "what SparseML's constructors refuse": gmp(
        "__ALL_PRUNABLE__", "encoder  #! REFUSED"
    ),
    "a scalar where a list belongs": group(
        "  - !LayerPruningModifier\n", also("layers: 3  #! REFUSED")
    ),
    "no N:M": group(N_M, also("mask_type: block4  #! MASK_TYPE")),
    "gradual without time": group(N_M, also("gradual: by_n  #! EPOCHS")),
    "keys of the other score": group(
        N_M, also("num_grads: 64  #! NEEDS", "fisher_block_size: 48  #! NEEDS")
    ),
    "layers in no order": group(DROP, also("keep: [6, 0]  #! LAYERS")),
    "six layers cannot be first, middle and last": group(
        DROP, also("keep: 6", "choice: first_middle_last  #! LAYERS")
    ),
    "a layer map without a weight": group(DISTIL, also("layer_map: last  #! NEEDS")),
}
assert len(VALUES) == 37

VARIABLES = {
    "unknown name in eval": "num_epochs: 3\n"
    + epochs("3", "eval(num_epoch * 2)  #! EXPRESSION"),
    "unknown name in eval without variables": epochs("3", "eval(n)  #! EXPRESSION"),
    "unclosed eval": epochs("3", "eval(3  #! EXPRESSION"),
    "eval of more than arithmetic": "a: eval(__import__('os'))  #! EXPRESSION\n"
    "b: eval(1 / 0)  #! EXPRESSION\n" + group(EPOCHS),
    "eval with text": "a: long\n" + epochs("3", "eval(a * 2)  #! EXPRESSION"),
    "eval in a key": "s: 0.5\n"
    + gmp("0.8", "{eval(s): [b]}  #! EXPRESSION").replace("__ALL_PRUNABLE__", "[]"),
    "variables in a circle": "a: eval(b)  #! VARIABLE\nb: eval(c + 1)\nc: eval(a)\n"
    + epochs("3", "eval(a)"),
    "value that holds itself": "a: &x [*x]  #! YAML\n" + group(EPOCHS),
    "unreadable value": "a: 2024-13-40  #! YAML\n" + group(EPOCHS),
    "merge of no mapping": "a: &a 3\n"
    + group("  - !EpochRangeModifier  #! YAML\n", also("<<: *a")),
    "unknown recipe_args variable": "x: 1\n"
    "num_epochs: 3  #! recipe_args.num_epoch VARIABLE\n" + group(EPOCHS),
    "recipe_args without a value": "num_epochs: 3  #! recipe_args VARIABLE\n"
    + group(EPOCHS),
    "recipe_args broken JSON": "num_epochs: 3  #! recipe_args VARIABLE\n"
    + group(EPOCHS),
    "recipe_args that make a value wrong": "end: 3\n"
    + epochs("start_epoch: 0", "start_epoch: 2  #! EPOCHS").replace(
        "end_epoch: 3", "end_epoch: eval(end)"
    ),
}
ARGS = {
    "unknown recipe_args variable": {"num_epoch": 4},
    "recipe_args without a value": "num_epochs",
    "recipe_args broken JSON": "{'a': 1}",
    "recipe_args that make a value wrong": "end=1",
}
assert len(VARIABLES) == 14

ARRANGEMENT = {
    "repeated key": group(GMP, also("final_sparsity: 0.9  #! REPEATED")),
    "repeated variable": "a: 1\na: 2  #! REPEATED\n" + group(EPOCHS),
    "pruning modifier repeated": group(
        GMP, EPOCHS, GMP.replace("Modifier", "Modifier  #! REPEATED")
    ),
    "misspelt group": "pruning_modifers:\n"
    + GMP.replace("Modifier", "Modifier  #! ARRANGEMENT"),
    "group without the word": group(EPOCHS)
    + "later:\n"
    + GMP.replace("Modifier", "Modifier  #! ARRANGEMENT"),
    "entry without a tag": group(
        EPOCHS, "  - start_epoch: 0  #! modifiers ARRANGEMENT\n"
    ),
    "modifiers without dashes": "modifiers:  #! ARRANGEMENT\n  start_epoch: 0\n",
    "llm-compressor's format": """\
test_stage:
  sparsity_modifiers:  #! ARRANGEMENT
    SparseGPTModifier:
      sparsity: 0.5
    ConstantPruningModifier:
      targets: ['re:.*weight']
  quant_modifiers:  #! ARRANGEMENT
    GPTQModifier:
      bits: 4
""",
    "modifier with a value in place of keys": group(
        "  - !EpochRangeModifier 3  #! YAML\n"
    ),
    "no modifiers": "num_epochs: 3  #! - ARRANGEMENT\n",
    "empty group": "modifiers:  #! - ARRANGEMENT\n",
    "empty text": "#! - YAML\n",
    "list without a group": EPOCHS.replace("Modifier", "Modifier  #! - YAML"),
    "YAML syntax": "a: 1\nb: [1, 2\nmodifiers:  #! - YAML\n" + EPOCHS,
    "brackets without end": f"a: {'[' * 3000}{']' * 3000}  #! - YAML\n{group(EPOCHS)}",
    "character that YAML forbids": "a: 1\nb: \x07  #! - YAML\n",
    "stage beside a group": f"{group(EPOCHS)}stage:  #! ARRANGEMENT\n"
    f"  stage_modifiers:\n  {EPOCHS}",
    "stage without modifiers": "one:\n  one_modifiers:\n"
    + EPOCHS
    + "two:\n  two_modifiers: []  #! two ARRANGEMENT\n",
}
assert len(ARRANGEMENT) == 18
