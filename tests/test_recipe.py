"""Recipes that load, and what is said about those that do not."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_samples import SAMPLES, one_modifier

from obert_modifiers.modifiers._host import ScheduledModifierManager, modifier_classes
from obert_modifiers.recipe import RecipeError, load_recipe
from obert_modifiers.recipe.arguments import parse_recipe_args
from obert_modifiers.recipe.expression import UnknownNameError, evaluate
from obert_modifiers.recipe.writing import flow

EPOCHS = "  - !EpochRangeModifier\n      start_epoch: 0\n      end_epoch: 3\n"
GMP = """\
  - !GMPruningModifier
      init_sparsity: 0.0
      final_sparsity: 0.8
      start_epoch: 0.0
      end_epoch: 3.0
      update_frequency: 1.0
      params: __ALL_PRUNABLE__
"""
OBERT = """\
  - !OBERTPruningModifier
      init_sparsity: 0.0
      final_sparsity: 0.8
      start_epoch: 0.0
      end_epoch: 3.0
      update_frequency: 1.0
"""
ARITHMETIC = (
    "expected numbers, variables and + - * / // % ** between eval( and ); correct it"
)
NO_MODIFIERS = (
    "the recipe has no modifiers; expected at least one in a list under a key such as "
    "'modifiers'; add '- !EpochRangeModifier' there"
)


@dataclass(frozen=True)
class Broken:
    """A recipe and everything that is wrong with it."""

    name: str
    text: str
    problems: tuple[str, ...]
    args: object = field(default=None)


def group(*modifiers: str) -> str:
    return "modifiers:\n" + "".join(modifiers)


BROKEN = [
    Broken(
        "unknown modifier",
        group(GMP.replace("GMPruning", "GMPrunning")),
        (
            "2: GMPrunningModifier: there is no modifier GMPrunningModifier; expected "
            "one of SparseML's or obert_modifiers' modifiers; write "
            "!GMPruningModifier",
        ),
    ),
    Broken(
        "unknown modifier unlike any",
        group(EPOCHS, "  - !Qqq\n      a: 1\n"),
        (
            "5: Qqq: there is no modifier Qqq; expected one of SparseML's or "
            "obert_modifiers' modifiers; remove it",
        ),
    ),
    Broken(
        "unknown key",
        group(EPOCHS, "      end_epochs: 4\n"),
        (
            "5: EpochRangeModifier.end_epochs: end_epochs is not a key of "
            "EpochRangeModifier; expected one of end_epoch, start_epoch; write "
            "end_epoch",
        ),
    ),
    Broken(
        "unknown key of ours",
        group(
            "  - !LogitDistillationModifier\n      hardnes: 0.5\n      qqq: 1\n",
        ),
        (
            "3: LogitDistillationModifier.hardnes: hardnes is not a key of "
            "LogitDistillationModifier; expected one of end_epoch, hardness, "
            "start_epoch, temperature; write hardness",
            "4: LogitDistillationModifier.qqq: qqq is not a key of "
            "LogitDistillationModifier; expected one of end_epoch, hardness, "
            "start_epoch, temperature; remove it",
        ),
    ),
    Broken(
        "missing keys",
        group("  - !EpochRangeModifier\n"),
        (
            "2: EpochRangeModifier.end_epoch: end_epoch is missing; expected a value, "
            "since it has no default; add 'end_epoch: ...' to the modifier on this "
            "line",
            "2: EpochRangeModifier.start_epoch: start_epoch is missing; expected a "
            "value, since it has no default; add 'start_epoch: ...' to the modifier "
            "on this line",
        ),
    ),
    Broken(
        "percent",
        group(OBERT.replace("0.8", "80")),
        (
            "4: OBERTPruningModifier.final_sparsity: final_sparsity=80 is outside "
            "[0, 1]; expected a fraction; write 0.8, not 80",
        ),
    ),
    Broken(
        "percent sign, with SparseML's modifier",
        group(GMP.replace("0.8", "87.5%")),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=87.5% is a "
            "percentage; expected a fraction; write 0.875, not 87.5%",
        ),
    ),
    Broken(
        "percent as a key",
        group(
            GMP.replace("0.8", "{0.5: [a], 90: [b]}").replace("__ALL_PRUNABLE__", "[]")
        ),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=90 is outside [0, 1]; "
            "expected a fraction; write 0.9, not 90",
        ),
    ),
    Broken(
        "negative sparsity",
        group(GMP.replace("init_sparsity: 0.0", "init_sparsity: -0.1")),
        (
            "3: GMPruningModifier.init_sparsity: init_sparsity=-0.1 is outside [0, 1]; "
            "expected a fraction; write a number from 0 to 1",
        ),
    ),
    Broken(
        "sparsity above any percentage",
        group(GMP.replace("0.8", "800")),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=800 is outside "
            "[0, 1]; expected a fraction; write a number from 0 to 1",
        ),
    ),
    Broken(
        "sparsity that is no number",
        group(GMP.replace("0.8", "high")),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=high is not a "
            "number; expected a fraction; write one in [0, 1]",
        ),
    ),
    Broken(
        "start after end",
        group(EPOCHS.replace("start_epoch: 0", "start_epoch: 4")),
        (
            "3: EpochRangeModifier.start_epoch: start_epoch=4 comes after end_epoch=3; "
            "expected the start before the end; swap them or move one",
        ),
    ),
    Broken(
        "epoch that is no number",
        group(EPOCHS.replace("end_epoch: 3", "end_epoch: last")),
        (
            "4: EpochRangeModifier.end_epoch: end_epoch=last is not a number; expected "
            "an epoch; write one",
        ),
    ),
    Broken(
        "unknown inter_func",
        group(OBERT, "      inter_func: cubik\n"),
        (
            "8: OBERTPruningModifier.inter_func: inter_func=cubik is unknown; expected "
            "one of linear, cubic, inverse_cubic; write cubic",
        ),
    ),
    Broken(
        "unknown mask_type",
        group(GMP, "      mask_type: blok4\n"),
        (
            "9: GMPruningModifier.mask_type: mask_type=blok4 is unknown; expected one "
            "of unstructured, block4, tensorrt, filter, channel, N:M or a list of two "
            "numbers; write block4",
        ),
    ),
    Broken(
        "bad regular expression",
        group(OBERT, "      params: ['re:a(']\n"),
        (
            "8: OBERTPruningModifier.params: params=re:a( is not a regular expression "
            "(missing ), unterminated subpattern at position 1); expected one after "
            "re:; correct it",
        ),
    ),
    Broken(
        "what our constructors refuse, all of it",
        group(OBERT, "      num_grads: 0\n      fisher_block_size: 4.5\n"),
        (
            "8: OBERTPruningModifier.num_grads: num_grads=0 is not a positive whole "
            "number; expected 1 or more; write a count",
            "9: OBERTPruningModifier.fisher_block_size: fisher_block_size=4.5 is not a "
            "positive whole number; expected 1 or more; write a count",
        ),
    ),
    Broken(
        "what SparseML's constructors refuse",
        group(GMP.replace("__ALL_PRUNABLE__", "encoder")),
        (
            "8: GMPruningModifier.params: GMPruningModifier refuses its values "
            "(unsupported string (encoder) given in GMPruningModifier for params); "
            "expected values as in its documentation; correct them",
        ),
    ),
    Broken(
        "a scalar where a list belongs",
        group("  - !LayerPruningModifier\n      layers: 3\n"),
        (
            "3: LayerPruningModifier.layers: LayerPruningModifier refuses its values "
            "(unsupported type (3) given in LayerPruningModifier for layers); expected "
            "values as in its documentation; correct them",
        ),
    ),
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
            "4: EpochRangeModifier.end_epoch: end_epoch=eval(a * 2) computes with "
            "a='long', which is no number; ".replace("4:", "5:")
            + ARITHMETIC,
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


def problems_of(source, recipe_args=None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, recipe_args)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return str(caught.value).split("\n")


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_everything_wrong_with_a_recipe_is_said(broken):
    expected = [f"<recipe text>:{problem}" for problem in broken.problems]
    assert problems_of(broken.text, broken.args) == expected


def test_table_of_broken_recipes_is_whole():
    assert len(BROKEN) == 49
    assert len({broken.name for broken in BROKEN}) == len(BROKEN)


def test_problems_of_several_modifiers_come_together_by_line():
    text = "s: 80\n" + group(
        OBERT.replace("0.8", "eval(s)").replace("start_epoch: 0.0", "start_epoch: 9"),
        "      inter_func: cube\n      num_grads: none\n      blocks: 3\n",
        "  - !LogitDistillationModifier\n      hardness: 70\n",
        GMP.replace("      params: __ALL_PRUNABLE__\n", ""),
    )
    found = problems_of(text)
    keys = [line.split(": ")[1] for line in found]
    lines = [int(line.split(":")[1]) for line in found]
    assert keys == [
        "OBERTPruningModifier.final_sparsity",
        "OBERTPruningModifier.start_epoch",
        "OBERTPruningModifier.inter_func",
        "OBERTPruningModifier.num_grads",
        "OBERTPruningModifier.blocks",
        "LogitDistillationModifier.hardness",
        "GMPruningModifier.params",
    ]
    assert lines == [5, 6, 9, 10, 11, 13, 14]


def test_error_survives_pickling():
    with pytest.raises(RecipeError) as caught:
        load_recipe("a: 1\n")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.problems == caught.value.problems
    assert str(copy) == str(caught.value)


def test_files_that_hold_no_recipe(tmp_path: Path):
    (tmp_path / "quick.yaml").write_text(group(EPOCHS))
    (tmp_path / "other.yml").write_text(group(EPOCHS))
    (tmp_path / "README.md").write_text("# Title\n")
    (tmp_path / "open.md").write_text("\n---\nmodifiers:\n" + EPOCHS)
    (tmp_path / "list.json").write_text("{}")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.md").write_text("---\nmodifiers:\n  - !Epoch\n---\n")
    expected = {
        "quik.yaml": "1: there is no such file; expected a recipe; use quick.yaml",
        "zzz.yaml": "1: there is no such file; expected a recipe; use binary.yaml or "
        "empty.yaml or other.yml or quick.yaml",
        "none/zzz.yaml": "1: there is no such file; expected a recipe; use the path of "
        "a .yaml file",
        "": "1: is a directory; expected a recipe file; use README.md or binary.yaml "
        "or deep.md or empty.yaml or open.md",
        "README.md": "1: the file does not begin with front matter; expected the "
        "recipe between two lines of ---; put it there",
        "open.md": "2: the front matter that begins here is not closed; expected a "
        "second line of ---; add it after the recipe",
        "list.json": "1: suffix=.json is not a recipe's; expected one of .yaml, .yml, "
        ".md; rename the file",
        "empty.yaml": "1: the recipe is empty; expected modifiers in a list under a "
        "key such as 'modifiers'; write 'modifiers:' above them",
        "binary.yaml": "1: cannot be read ('utf-8' codec can't decode byte 0xff in "
        "position 0: invalid start byte); expected UTF-8 text; make it readable",
        "deep.md": "3: Epoch: there is no modifier Epoch; expected one of SparseML's "
        "or obert_modifiers' modifiers; remove it",
    }
    assert len(expected) == 10
    for name, problem in expected.items():
        path = tmp_path / name
        assert problems_of(path) == [f"{path}:{problem}"]
    assert problems_of("zoo:nlp/text_classification/bert") == [
        "zoo:nlp/text_classification/bert:1: zoo: stubs cannot be loaded, since "
        "SparseZoo is gone; expected a local file; save the recipe and pass its path"
    ]
    with pytest.raises(TypeError, match="recipe=3 is a int; expected a path"):
        load_recipe(3)


def same_modifiers(one, two) -> bool:
    return [m.identifier() for m in one] == [m.identifier() for m in two]


def flat(text_or_path, recipe_args=None) -> list:
    return load_recipe(text_or_path, recipe_args).groups[""]


def test_front_matter_and_file_kinds_give_the_same_modifiers(tmp_path: Path):
    text = group(EPOCHS, GMP)
    matter = f"---\n{text}---\n\n# Card\n---\nmore\n"
    wanted = flat(text)
    for name, content in {
        "a.yaml": text,
        "b.yml": "\ufeff" + text,
        "c.yaml": "---\n" + text,
        "d.md": matter,
        "e.md": matter.replace("---", "+++"),
        "f.yaml": text.replace("\n", "\r\n"),
    }.items():
        path = tmp_path / name
        path.write_bytes(content.encode())
        assert same_modifiers(flat(path), wanted)
        assert same_modifiers(flat(str(path)), wanted)
        assert same_modifiers(flat(content.removeprefix("\ufeff")), wanted)


VARIABLES = """\
# A comment that stays.
num_epochs: 10
half: eval(num_epochs / 2)  # computed
targets: &targets
  - re:.*\\.weight
  - "a: b, c"
shared: &shared eval(half - 1)
small: 1e-3
text: one
empty:
training_modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: eval( num_epochs )
  - !LearningRateFunctionModifier
      lr_func: linear
      init_lr: eval(small)
      final_lr: 0.0
      start_epoch: 0
      end_epoch: eval(max(num_epochs - 2, 1) ** 1)
pruning_modifiers:
  - !MagnitudePruningModifier
      init_sparsity: eval(1 - 0.95)
      final_sparsity: {0.8: eval(targets), 0.7: ['x']}
      params: []
      start_epoch: 0
      end_epoch: *shared
      update_frequency: eval(-(-half) // 5 % 3)

"""


def test_text_has_every_value_worked_out_and_keeps_lines_and_comments():
    loaded = load_recipe(VARIABLES, {"num_epochs": 20, "empty": [1, "x\ny", None]})
    changed = {
        number: line
        for number, (line, before) in enumerate(
            zip(loaded.text.split("\n"), VARIABLES.split("\n"), strict=True), start=1
        )
        if line != before
    }
    names = r"['re:.*\.weight', 'a: b, c']"
    assert changed == {
        2: "num_epochs: 20",
        3: "half: 10.0  # computed",
        7: "shared: &shared 9.0",
        10: 'empty: [1, "x\\ny", null]',
        14: "      end_epoch: 20",
        17: "      init_lr: 0.001",
        20: "      end_epoch: 18",
        23: "      init_sparsity: 0.050000000000000044",
        24: "      final_sparsity: {0.8: " + names + ", 0.7: ['x']}",
        28: "      update_frequency: 2.0",
    }
    again = load_recipe(loaded.text)
    assert same_modifiers(again.groups[""], loaded.groups[""])
    assert again.text == loaded.text


def test_a_variable_of_many_lines_is_replaced():
    text = "names:\n  - a\n  - b\n\nnext: 1\n" + group(GMP).replace(
        "__ALL_PRUNABLE__", "eval(names)"
    )
    loaded = load_recipe(text, '{"names": ["c", "re:d"]}')
    assert loaded.text.startswith("names:\n  [c, 're:d']\n\nnext: 1\n")
    assert loaded.groups[""][0].params == ["c", "re:d"]
    assert same_modifiers(flat(loaded.text), loaded.groups[""])


def test_values_shared_by_reference_are_not_shared_objects():
    text = "names: [a]\n" + group(
        GMP.replace("__ALL_PRUNABLE__", "eval(names)"),
        GMP.replace("__ALL_PRUNABLE__", "eval(names)").replace("0.8", "0.9"),
    )
    one, two = flat(text)
    one.params.append("b")
    assert two.params == ["a"]


STAGED = """\
num_epochs: 6
rate: 0.5
dense:
  num_epochs: 4
  dense_modifiers:
    - !EpochRangeModifier
        start_epoch: 0.0
        end_epoch: eval(num_epochs)
sparse:
  later: eval(num_epochs)
  sparse_modifiers:
    - !EpochRangeModifier
        start_epoch: 0.0
        end_epoch: eval(later)
    - !GMPruningModifier
        init_sparsity: eval(rate / 2)
        final_sparsity: eval(rate)
        start_epoch: 4.0
        end_epoch: 5.0
        update_frequency: 0.5
        params: ['re:.*']
"""
# SparseML leaves 1e-3 a text, and fails on a minus sign before a value.
PLAIN_VARIABLES = VARIABLES.replace("1e-3", "0.001").replace("-(-half)", "half")
# SparseML's own loader reads these, and gives what has to be given here.
LOADED_BY_SPARSEML = {
    "flat": (PLAIN_VARIABLES, None),
    "flat with dict": (PLAIN_VARIABLES, {"num_epochs": 8}),
    "flat with JSON": (PLAIN_VARIABLES, '{"num_epochs": 8}'),
    "flat with pairs": (PLAIN_VARIABLES, "num_epochs=8,text: x"),
    "staged": (STAGED, None),
    "staged with dict": (STAGED, {"num_epochs": 8}),
    "old key": (group(EPOCHS, "      log_types: __ALL__\n"), None),
    "legacy quantization": (
        one_modifier("QuantizationModifier", {"submodules": ["a"], "start_epoch": 1}),
        None,
    ),
    "whole sparsity": (
        group(
            GMP.replace("init_sparsity: 0.0", "init_sparsity: s").replace(
                "sparsity: s", "sparsity: eval(s)"
            )
        )
        + "s: 0.0\n",
        "s=0",
    ),
    **{name: (one_modifier(name, SAMPLES[name]), None) for name in SAMPLES},
}


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
@pytest.mark.parametrize("name", LOADED_BY_SPARSEML)
def test_modifiers_are_those_that_sparseml_loads(name):
    text, recipe_args = LOADED_BY_SPARSEML[name]
    host = ScheduledModifierManager.from_yaml(text, recipe_variables=recipe_args)
    loaded = load_recipe(text, recipe_args)
    groups = loaded.groups if loaded.staged else loaded.groups[""]
    ours = ScheduledModifierManager(modifiers=groups)
    assert ours.num_stages() == host.num_stages()
    assert list(ours.modifiers) == list(host.modifiers) if loaded.staged else True
    one, two = list(ours.iter_modifiers()), list(host.iter_modifiers())
    assert [type(modifier) for modifier in one] == [type(modifier) for modifier in two]
    assert same_modifiers(one, two)
    again = load_recipe(loaded.text).groups
    assert {stage: len(group) for stage, group in again.items()} == {
        stage: len(group) for stage, group in loaded.groups.items()
    }
    for stage, modifiers in again.items():
        assert same_modifiers(modifiers, loaded.groups[stage])


def test_table_of_samples_is_whole():
    assert len(SAMPLES) == 29
    assert set(SAMPLES) == set(modifier_classes())
    assert len(LOADED_BY_SPARSEML) == 38


def test_stages_see_the_variables_of_the_whole_recipe():
    text = STAGED.replace("later: eval(num_epochs)", "later: eval(num_epochs * 2)")
    loaded = load_recipe(text, "rate=0.25")
    assert loaded.staged
    assert loaded.groups["dense"][0].end_epoch == 4.0
    assert loaded.groups["sparse"][0].end_epoch == 12.0
    assert loaded.groups["sparse"][1].final_sparsity == 0.25


def test_alias_with_two_values_in_two_stages_is_refused():
    text = STAGED.replace(
        "end_epoch: eval(num_epochs)", "end_epoch: &e eval(num_epochs)"
    ).replace("end_epoch: eval(later)", "end_epoch: *e")
    assert problems_of(text) == [
        "<recipe text>:8: EpochRangeModifier.end_epoch: end_epoch has two values, in "
        "two stages that share it by a YAML alias; expected one; write it out in each "
        "stage"
    ]


def test_merged_keys_count_as_given():
    text = "base: &base {start_epoch: 0, end_epoch: 3}\n" + group(
        "  - !EpochRangeModifier\n      <<: *base\n      end_epoch: 5\n"
    )
    assert flat(text)[0].end_epoch == 5.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": 1, "b": [1, 2], "c": 1e-7}', {"a": 1, "b": [1, 2], "c": 1e-7}),
        ("a=1", {"a": 1}),
        ("a=1.0, b:2,c = x=y", {"a": 1.0, "b": 2, "c": "x=y"}),
        ("a=1e-7,b=.5,c=True,d=null", {"a": 1e-7, "b": 0.5, "c": True, "d": None}),
        ("p=re:.*weight", {"p": "re:.*weight"}),
    ],
)
def test_recipe_args_keep_their_types(given, expected):
    found = parse_recipe_args(given)
    assert found == expected
    assert [type(value) for value in found.values()] == [
        type(value) for value in expected.values()
    ]


@pytest.mark.parametrize("given", ["a=1,a=2", "=3", "a=1,", "x"])
def test_recipe_args_of_no_known_form_are_refused(given):
    with pytest.raises(ValueError, match="recipe_args item"):
        parse_recipe_args(given)


def test_recipe_args_of_another_type_are_refused():
    with pytest.raises(TypeError, match="recipe_args=3.5 is a float"):
        parse_recipe_args(3.5)


NAMES = {"n": 10, "f": 0.5, "word": "text", "items": [1]}


def lookup(name: str):
    if name not in NAMES:
        raise UnknownNameError(name)
    return NAMES[name]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1", 1),
        ("n", 10),
        ("items", [1]),
        ("n // 3 % 2", 1),
        ("-n ** 2", -100),
        ("+n - -f", 10.5),
        ("(n + 2) * f", 6.0),
        ("max(n, 3) / min(4, n)", 2.5),
        ("round(2.7) + int(3.9) + abs(-1) + float(1)", 8.0),
        ("1e-3 * n", 0.01),
    ],
)
def test_expressions_are_computed(expression, value):
    found = evaluate(expression, lookup)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "n +",
        "n; n",
        "word * 2",
        "items[0]",
        "n.real",
        "lambda: 1",
        "[n]",
        "'a'",
        "True",
        "n if f else 1",
        "n < 3",
        "open('x')",
        "max(n, key=abs)",
        "(-8) ** 0.5",
        "2 ** 10000",
        "1 % 0",
        "int(1e999)",
        "9.9 ** 999",
        "n" + " + n" * 100_000,
    ],
)
def test_anything_but_arithmetic_is_refused(expression):
    with pytest.raises(ValueError, match=r"^(is|holds|computes|cannot|has) "):
        evaluate(expression, lookup)


def test_unknown_names_are_named():
    with pytest.raises(UnknownNameError) as caught:
        evaluate("n * (m + 1)", lookup)
    assert caught.value.name == "m"


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")),
    st.sampled_from(["1e-7", "yes", "a: b", "a, b", "[x", "#c", "eval(x)", "&a", "\n"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(scalars, inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_written_values_read_back_wherever_they_stand(value):
    written = flow(value)
    assert "\n" not in written
    for text, wanted in (
        (f"a: {written}\nb: 1\n", {"a": value, "b": 1}),
        (f"a: {{b: {written}, c: 1}}\n", {"a": {"b": value, "c": 1}}),
    ):
        assert yaml.safe_load(text) == wanted
