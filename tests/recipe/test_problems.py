"""Everything that is wrong with a recipe is said at once, with its line."""

import pickle
from pathlib import Path

import pytest

from obert_modifiers.recipe import RecipeError, load_recipe
from tests.recipe.broken import problems_of
from tests.recipe.broken_arrangement import ARRANGEMENT
from tests.recipe.broken_cross import CROSS, LOGITS, NOTED, SOUND, obert, one
from tests.recipe.broken_modifiers import MODIFIERS
from tests.recipe.broken_values import VALUES
from tests.recipe.broken_variables import VARIABLES
from tests.recipe.samples import EPOCHS, GMP, OBERT, group

BROKEN = [*VALUES, *VARIABLES, *ARRANGEMENT, *MODIFIERS, *CROSS]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_everything_wrong_with_a_recipe_is_said(broken):
    expected = [f"<recipe text>:{problem}" for problem in broken.problems]
    assert problems_of(broken.text, broken.args) == expected


def test_table_of_broken_recipes_is_whole():
    assert len(BROKEN) == 91
    assert len({broken.name for broken in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize("name", SOUND)
def test_what_comes_near_to_a_fault_loads(name):
    load_recipe(SOUND[name])


@pytest.mark.parametrize("name", NOTED)
def test_what_may_not_be_meant_is_a_note(name):
    text, notes = NOTED[name]
    found = [str(note) for note in load_recipe(text).notes]
    assert found == [f"<recipe text>:{note}" for note in notes]


def test_nothing_is_missed_where_it_may_be_among_the_broken():
    text = group(obert(0, 4, fisher_loss="train"), one(LOGITS, hardness=70))
    (problem,) = problems_of(text)
    assert "LogitDistillationModifier.hardness" in problem


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
    name = "x" * 5000
    assert problems_of(name) == [
        f"{name}:1: cannot be opened (File name too long); expected a path; check it"
    ]
    with pytest.raises(TypeError, match="recipe=3 is a int; expected a path"):
        load_recipe(3)
