"""The comparison finds a resume that forgets something."""

import pytest

from tests.faults import planted, world
from tests.faults.kills import Kill

STEP = "training.stepper:RecipeStepper.step"
HOW = {"save_strategy": "steps", "save_steps": 3, "resume_from_checkpoint": "last"}


QUICK = planted.last_update_epoch_not_saved
SLOW = [pytest.param(b, marks=pytest.mark.slow) for b in planted.BUGS if b is not QUICK]


@pytest.mark.parametrize("bug", [QUICK, *SLOW], ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug, runs, tmp_path) -> None:
    recipe, number = planted.BUGS[bug]
    whole = runs.whole(recipe)
    runs.end(tmp_path, recipe, Kill(STEP, number), plant=[bug.__name__], **HOW)
    with pytest.raises(AssertionError):
        world.compare(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["none", "hosts"])
def test_without_a_bug_nothing_is_found(recipe, runs, tmp_path) -> None:
    runs.end(tmp_path, recipe, Kill(STEP, 8), **HOW)
    world.compare(tmp_path, runs.whole(recipe))


@pytest.mark.slow
def test_a_loss_scaler_goes_on_where_it_was(runs, tmp_path) -> None:
    """As in fp16, on a CPU: some optimizer steps are skipped and do not count."""
    whole, folder, again = (tmp_path / name for name in ("whole", "killed", "lost"))
    scaled, how = ["loss_scaler"], {**HOW, "save_steps": 2}
    runs.end(whole, "gmp", plant=scaled)
    steps = [line.split()[0] for line in (whole / "steps-0").read_text().splitlines()]
    skipped = len(steps) - len(set(steps))
    assert skipped >= 3
    for run, bug in ((folder, "loss_scaler"), (again, "scaler_forgotten")):
        assert runs.start(run, "gmp", Kill(STEP, 13), plant=scaled, **how) == [-9]
        runs.end(run, "gmp", plant=[bug], **how)
    assert world.result_of(whole) == world.result_of(folder)
    assert world.records_of(folder) == world.records_of(whole)
    assert world.result_of(again) != world.result_of(whole)
