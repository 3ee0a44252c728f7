"""Everything that is wrong with a recipe is said at once, with its line."""

import pickle
import sys
from pathlib import Path

import pytest

from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.clock import event_epochs
from obert_modifiers.recipe.environment import step_faults
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.recipe_text.problems import RecipeError
from tests.hosts import needs_sparseml, on_sparseml
from tests.recipe.broken import (
    ARGS,
    ARRANGEMENT,
    VALUES,
    VARIABLES,
    also,
    brief,
    briefs_of,
    error_of,
    marks_of,
)
from tests.recipe.broken_cross import CROSS, LOGITS, NOTED, SOUND, gmp, obert, one, qat
from tests.recipe.samples import EPOCHS, GMP, OBERT, group

BROKEN = {**VALUES, **VARIABLES, **ARRANGEMENT, **CROSS}
assert len(BROKEN) == 91
OLD_PATHLIB = sys.version_info < (3, 14)


@pytest.mark.parametrize(
    "name", [name for name, text in BROKEN.items() if not needs_sparseml(text)]
)
def test_everything_wrong_with_a_recipe_is_said(name):
    problems = error_of(BROKEN[name], ARGS.get(name)).problems
    assert [brief(problem) for problem in problems] == marks_of(BROKEN[name])
    for problem in problems:  # what is wrong; what is expected; what to do
        assert len(problem.message.split("; ")) >= 2


@pytest.mark.parametrize("name", SOUND)
def test_what_comes_near_to_a_fault_loads(name):
    load_recipe(SOUND[name])


@pytest.mark.parametrize("name", NOTED)
def test_what_may_not_be_meant_is_a_note(name):
    notes = load_recipe(NOTED[name]).notes
    assert [brief(note) for note in notes] == marks_of(NOTED[name])


def test_nothing_is_missed_where_it_may_be_among_the_broken():
    text = group(obert(0, 4, fisher_loss="train"), one(LOGITS, hardness=70))
    assert briefs_of(text) == ["10 LogitDistillationModifier.hardness FRACTION"]


@on_sparseml
def test_problems_of_several_modifiers_come_together_by_line():
    text = "s: 80\n" + group(
        OBERT.replace("0.8", "eval(s)  #! FRACTION").replace(
            "start_epoch: 0.0", "start_epoch: 9  #! EPOCHS"
        ),
        also("inter_func: cube  #! CHOICE", "num_grads: none  #! NUMBER"),
        also("blocks: 3  #! UNKNOWN"),
        one(LOGITS, hardness="70  #! FRACTION"),
        GMP.replace("      params: __ALL_PRUNABLE__\n", "").replace(
            "Modifier", "Modifier  #! params MISSING"
        ),
    )
    assert briefs_of(text) == marks_of(text)


def test_error_survives_pickling():
    error = error_of("a: 1\n")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.problems, str(copy)) == (error.problems, str(error))


def test_files_that_hold_no_recipe(tmp_path: Path):
    (tmp_path / "quick.yaml").write_text(group(EPOCHS))
    (tmp_path / "other.yml").write_text(group(EPOCHS))
    (tmp_path / "README.md").write_text("# Title\n")
    (tmp_path / "open.md").write_text("\n---\nmodifiers:\n" + EPOCHS)
    (tmp_path / "list.json").write_text("{}")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.md").write_text("---\nmodifiers:\n  - !Epoch\n---\n")
    every = "binary.yaml or empty.yaml or other.yml or quick.yaml"
    expected = {  # the line, the rule, and what is to be used instead
        "quik.yaml": ("1 - FILE", "use quick.yaml"),
        "zzz.yaml": ("1 - FILE", f"use {every}"),
        "none/zzz.yaml": ("1 - FILE", "use the path of a .yaml file"),
        "": ("1 - FILE", "binary.yaml or deep.md or empty.yaml or open.md"),
        "README.md": ("1 - FILE", "put it there"),
        "open.md": ("2 - FILE", "add it after the recipe"),
        "list.json": ("1 - FILE", "rename the file"),
        "empty.yaml": ("1 - YAML", "write 'modifiers:' above them"),
        "binary.yaml": ("1 - FILE", "make it readable"),
        "deep.md": ("3 Epoch UNKNOWN", "remove it"),
        # From Python 3.14 on pathlib says of a name that is too long: no such file.
        "x" * 5000: ("1 - FILE", "check it" if OLD_PATHLIB else f"use {every}"),
    }
    assert len(expected) == 11
    for name, (where, fix) in expected.items():
        path = tmp_path / name
        (problem,) = error_of(path).problems
        assert (problem.file, brief(problem)) == (str(path), where)
        assert problem.message.endswith(fix)
    (problem,) = error_of("zoo:nlp/text_classification/bert").problems
    assert str(problem).startswith(f"{problem.file}:1: zoo: stubs cannot be loaded")
    assert briefs_of("+++\n" + group(EPOCHS)) == ["1 - FILE"]  # of text, not closed
    with pytest.raises(TypeError, match="recipe=3 is a int; expected a path"):
        load_recipe(3)


TWO_EPOCHS = EPOCHS.replace("end_epoch: 3", "end_epoch: 2")
TWO_GOALS = "{0.8: [a.weight], 0.9: [b.weight]}"
LATE = group(TWO_EPOCHS, gmp(0.0, 1.9).replace(": 0.9", f": {TWO_GOALS}"), qat(1.95))


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
            found.append(error.problems)
    assert found[0] == found[1]
    return [brief(problem) for problem in found[0]]


def test_what_comes_after_the_last_step_is_said_when_the_steps_are_known() -> None:
    pruning = "8 GMPStarPruningModifier.end_epoch STEPS"
    quantizing = "10 QATModifier.start_epoch STEPS"
    assert refused(4) == [pruning, quantizing]
    # With ten steps the last one is at 1.9: it prunes, and does not quantize.
    assert refused(10) == [quantizing]
    assert refused(20) == refused(1000) == []


@pytest.mark.parametrize("tag", ["LogitDistillation", "ConstantMasks", "FrozenParams"])
def test_what_begins_where_the_recipe_ends_is_said(tag) -> None:
    """Without EpochRangeModifier the last epoch that is named is the end."""
    params = ["params: [a]"] if tag == "FrozenParams" else []
    text = f"modifiers:\n  - !{tag}Modifier\n      start_epoch: 2.0\n" + also(*params)
    with pytest.raises(RecipeError) as caught:
        RecipeManager.from_recipe(text).check_steps(10)
    found = [brief(problem) for problem in caught.value.problems]
    assert found == [f"3 {tag}Modifier.start_epoch STEPS"]
    RecipeManager.from_recipe(text + EPOCHS).check_steps(10)


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 20])
@pytest.mark.parametrize("end", [0.5, 1.0, 1.3, 1.5, 1.65, 1.9, 1.95])
def test_the_steps_are_enough_where_the_plan_reaches_the_goal(steps, end) -> None:
    text = group(TWO_EPOCHS, gmp(0.25, end, update_frequency=0.2))
    (modifier,) = RecipeManager.from_recipe(text).pruning
    epochs = event_epochs(modifier, 2.0, steps)
    reaches = bool(epochs) and epochs[-1] >= end
    assert reaches == (not list(step_faults(modifier, steps, 2.0)))
