"""The comparison finds a resume that forgets something."""

import pytest

from tests.faults import planted, world
from tests.faults.conftest import log
from tests.faults.kills import Kill

STEP = "training.stepper:RecipeStepper.step"
HOW = {"save_strategy": "steps", "save_steps": 3, "resume_from_checkpoint": "last"}


def check(bug, runs, compare, folder) -> None:
    recipe, number = planted.BUGS[bug]
    whole = runs.whole(recipe)
    assert runs.start(folder, recipe, Kill(STEP, number), **HOW) == [-9], log(folder)
    codes = runs.start(folder, recipe, plant=[bug.__name__], **HOW)
    assert codes == [0], log(folder)
    with pytest.raises(AssertionError):
        compare(folder, whole)


def test_a_last_update_epoch_that_is_not_saved_is_found(
    runs, compare, tmp_path
) -> None:
    check(planted.last_update_epoch_not_saved, runs, compare, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("bug", planted.BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug, runs, compare, tmp_path) -> None:
    check(bug, runs, compare, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["none", "hosts"])
def test_without_a_bug_nothing_is_found(recipe, runs, compare, tmp_path) -> None:
    whole = runs.whole(recipe)
    assert runs.start(tmp_path, recipe, Kill(STEP, 8), **HOW) == [-9]
    assert runs.start(tmp_path, recipe, **HOW) == [0], log(tmp_path)
    compare(tmp_path, whole)


@pytest.mark.slow
def test_a_loss_scaler_goes_on_where_it_was(runs, compare, tmp_path) -> None:
    """As in fp16, on a CPU: some optimizer steps are skipped and do not count."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert runs.start(whole, "gmp", plant=["loss_scaler"]) == [0], log(whole)
    made = (whole / "steps-0").read_text().split("\n")
    steps = [int(line.split()[0]) for line in made if line]
    skipped = len(steps) - len(set(steps))
    assert skipped >= 3
    how = {**HOW, "save_steps": 2}
    kill = Kill(STEP, 13)
    assert runs.start(folder, "gmp", kill, plant=["loss_scaler"], **how) == [-9]
    assert runs.start(folder, "gmp", plant=["loss_scaler"], **how) == [0], log(folder)
    results = [(f / "result-0.json").read_text() for f in (whole, folder)]
    assert results[0] == results[1]
    assert world.records_of(folder) == world.records_of(whole)
    again = tmp_path / "forgotten"
    assert runs.start(again, "gmp", kill, plant=["loss_scaler"], **how) == [-9]
    assert runs.start(again, "gmp", plant=["scaler_forgotten"], **how) == [0]
    assert (again / "result-0.json").read_text() != results[0]
