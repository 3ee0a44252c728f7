"""Everything that is wrong with a recipe is said at once, with its line."""

import pickle
from pathlib import Path

import pytest

from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.clock import event_epochs
from obert_modifiers.recipe.environment import step_faults
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.recipe_text.problems import RecipeError
from tests.hosts import needs_sparseml, on_sparseml
from tests.recipe.broken import brief, error_of, problems_of
from tests.recipe.broken_arrangement import ARRANGEMENT
from tests.recipe.broken_cross import CROSS, LOGITS, NOTED, SOUND, obert, one
from tests.recipe.broken_modifiers import MODIFIERS
from tests.recipe.broken_values import VALUES
from tests.recipe.broken_variables import VARIABLES
from tests.recipe.samples import EPOCHS, GMP, OBERT, group

BROKEN = [*VALUES, *VARIABLES, *ARRANGEMENT, *MODIFIERS, *CROSS]
SAID_HERE = [broken for broken in BROKEN if not needs_sparseml(broken.text)]


@pytest.mark.parametrize("broken", SAID_HERE, ids=lambda broken: broken.name)
def test_everything_wrong_with_a_recipe_is_said(broken):
    error = error_of(broken.text, broken.args)
    assert tuple(map(brief, error.problems)) == broken.problems
    for problem in error.problems:  # what is wrong; what is expected; what to do
        assert len(problem.message.split("; ")) >= 2


def test_table_of_broken_recipes_is_whole():
    assert len(BROKEN) == 92
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


@on_sparseml
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


LATE = group(
    EPOCHS.replace("end_epoch: 3", "end_epoch: 2"),
    "  - !GMPStarPruningModifier\n"
    "      final_sparsity: {0.8: [a.weight], 0.9: [b.weight]}\n"
    "      start_epoch: 0.0\n"
    "      end_epoch: 1.9\n"
    "  - !QATModifier\n"
    "      start_epoch: 1.95\n",
)


def refused(steps: int) -> list[str]:
    """What managers and plans say of the steps of an epoch, the same."""
    found = []
    for check in (
        lambda: RecipeManager.from_recipe(LATE).check_steps(steps),
        lambda: plan_recipe(load_recipe(LATE), steps_per_epoch=steps),
    ):
        try:
            check()
            found.append([])
        except RecipeError as error:
            found.append([str(problem) for problem in error.problems])
    assert found[0] == found[1]
    return found[0]


def test_what_comes_after_the_last_step_is_said_when_the_steps_are_known() -> None:
    assert refused(4) == [
        "<recipe text>:8: GMPStarPruningModifier.end_epoch: end_epoch=1.9 comes after "
        "the last optimizer step, at epoch 1.75 with 4 steps an epoch: "
        "final_sparsity=0.8, 0.9 is not reached; expected a step there or later; lower "
        "end_epoch, or train more epochs or smaller batches",
        "<recipe text>:10: QATModifier.start_epoch: start_epoch=1.95 comes after the "
        "last optimizer step, at epoch 1.75 with 4 steps an epoch: nothing is "
        "quantized; expected a step there or later; lower start_epoch, or train "
        "more epochs or smaller batches",
    ]
    # With ten steps the last one is at 1.9: it prunes, and does not quantize.
    assert [one.split(": ")[1] for one in refused(10)] == ["QATModifier.start_epoch"]
    assert refused(20) == refused(1000) == []


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 20])
@pytest.mark.parametrize("end", [0.5, 1.0, 1.3, 1.5, 1.65, 1.9, 1.95])
def test_the_steps_are_enough_where_the_plan_reaches_the_goal(steps, end) -> None:
    text = group(
        EPOCHS.replace("end_epoch: 3", "end_epoch: 2"),
        "  - !GMPStarPruningModifier\n"
        "      final_sparsity: 0.8\n"
        "      start_epoch: 0.25\n"
        f"      end_epoch: {end}\n"
        "      update_frequency: 0.2\n",
    )
    (modifier,) = RecipeManager.from_recipe(text).pruning
    epochs = event_epochs(modifier, 2.0, steps)
    reaches = bool(epochs) and epochs[-1] >= end
    assert reaches == (not list(step_faults(modifier, steps, 2.0)))
