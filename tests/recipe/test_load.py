"""Recipes load as SparseML loads them, and are written as they are run."""

from pathlib import Path

import pytest

from obert_modifiers.host import ONLY_SPARSEML
from obert_modifiers.host.bases import ScheduledModifierManager, modifier_classes
from obert_modifiers.recipe import load_recipe
from tests.hosts import needs_sparseml, on_sparseml
from tests.recipe.broken import briefs_of
from tests.recipe.samples import (
    EPOCHS,
    GMP,
    HERE,
    SAMPLES,
    STAGED,
    group,
    one_modifier,
    same_modifiers,
)


def flat(text_or_path, recipe_args=None) -> list:
    return load_recipe(text_or_path, recipe_args).groups[""]


@on_sparseml
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


@on_sparseml
def test_text_has_every_value_worked_out_and_keeps_lines_and_comments():
    loaded = load_recipe(VARIABLES, {"num_epochs": 20, "empty": [1, "x\ny", None]})
    pairs = zip(loaded.text.split("\n"), VARIABLES.split("\n"), strict=True)
    lines = enumerate(pairs, start=1)
    changed = {number: line for number, (line, before) in lines if line != before}
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


@on_sparseml
def test_a_variable_of_many_lines_is_replaced():
    text = "names:\n  - a\n  - b\n\nnext: 1\n" + group(GMP).replace(
        "__ALL_PRUNABLE__", "eval(names)"
    )
    loaded = load_recipe(text, '{"names": ["c", "re:d"]}')
    assert loaded.text.startswith("names:\n  [c, 're:d']\n\nnext: 1\n")
    assert loaded.groups[""][0].params == ["c", "re:d"]
    assert same_modifiers(flat(loaded.text), loaded.groups[""])


@on_sparseml
def test_values_shared_by_reference_are_not_shared_objects():
    named = GMP.replace("__ALL_PRUNABLE__", "eval(names)")
    later = named.replace("end_epoch: 2.0", "end_epoch: 3.0")
    later = later.replace("start_epoch: 0.0", "start_epoch: 2.0")
    one, two = flat("names: [a]\n" + group(named, later))
    one.params.append("b")
    assert two.params == ["a"]


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
        group(GMP.replace("init_sparsity: 0.0", "init_sparsity: eval(s)")) + "s: 0.0\n",
        "s=0",
    ),
    **{name: (one_modifier(name, SAMPLES[name]), None) for name in HERE},
}


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
@pytest.mark.parametrize(
    "name",
    [k for k, (text, _) in LOADED_BY_SPARSEML.items() if not needs_sparseml(text)],
)
def test_modifiers_are_those_that_sparseml_loads(name):
    text, recipe_args = LOADED_BY_SPARSEML[name]
    host = ScheduledModifierManager.from_yaml(text, recipe_variables=recipe_args)
    loaded = load_recipe(text, recipe_args)
    groups = loaded.groups if loaded.staged else loaded.groups[""]
    ours = ScheduledModifierManager(modifiers=groups)
    assert ours.num_stages() == host.num_stages()
    if loaded.staged:
        assert list(ours.modifiers) == list(host.modifiers)
    one, two = list(ours.iter_modifiers()), list(host.iter_modifiers())
    assert list(map(type, one)) == list(map(type, two)) and same_modifiers(one, two)
    again = load_recipe(loaded.text).groups
    assert list(again) == list(loaded.groups)
    for stage, modifiers in again.items():
        assert same_modifiers(modifiers, loaded.groups[stage])


def test_table_of_samples_is_whole():
    assert len(SAMPLES) == 37
    assert set(HERE) == set(modifier_classes())
    assert set(SAMPLES) >= ONLY_SPARSEML and len(ONLY_SPARSEML) == 19
    assert len(LOADED_BY_SPARSEML) == len(HERE) + 9


@on_sparseml
def test_stages_see_the_variables_of_the_whole_recipe():
    text = STAGED.replace("later: eval(num_epochs)", "later: eval(num_epochs * 2)")
    loaded = load_recipe(text, "rate=0.25")
    assert loaded.staged
    assert loaded.groups["dense"][0].end_epoch == 4.0
    assert loaded.groups["sparse"][0].end_epoch == 12.0
    assert loaded.groups["sparse"][1].final_sparsity == 0.25


@on_sparseml
def test_alias_with_two_values_in_two_stages_is_refused():
    text = STAGED.replace("end_epoch: eval(num", "end_epoch: &e eval(num")
    text = text.replace("end_epoch: eval(later)", "end_epoch: *e")
    assert briefs_of(text) == ["8 EpochRangeModifier.end_epoch YAML"]


def test_merged_keys_count_as_given():
    text = "base: &base {start_epoch: 0, end_epoch: 3}\n" + group(
        "  - !EpochRangeModifier\n      <<: *base\n      end_epoch: 5\n"
    )
    assert flat(text)[0].end_epoch == 5.0


def test_front_matter_below_a_licence_keeps_its_lines(tmp_path):
    path = tmp_path / "card.md"
    card = f"<!-- one\ntwo --> \n\n<!-- three -->\n---\n{group(EPOCHS)}---\n# A model\n"
    path.write_text(card)
    ((modifier,),) = load_recipe(path).groups.values()
    assert modifier.end_epoch == 3.0
    path.write_text(card.replace("end_epoch: 3", "end_epoch: x"))
    assert briefs_of(path) == ["9 EpochRangeModifier.end_epoch NUMBER"]
