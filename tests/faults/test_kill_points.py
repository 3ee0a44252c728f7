"""Killed anywhere and resumed: the same bits as a run that was not killed."""

from dataclasses import dataclass

import pytest

from tests.faults import world
from tests.faults.kills import Kill, owner_of


@dataclass(frozen=True)
class Point:
    """A run that is killed, several times in turn, and resumed after each."""

    recipe: str  # name in `world.RECIPES`
    phase: str  # what the kill falls into
    kills: tuple[Kill, ...]  # one for each start but the last
    ranks: int = 1
    quick: bool = False  # among the quick tests
    strategy: str = "steps"  # when the run saves


EVENT = "modifiers._gradual:GradualPruningModifier._event"
SOLVE = "core.pruning.pruning_step:second_order_step_"
WRITE = "core.pruning.pruning_step:write_parameters_"
COLLECT = "core.pruning.gradients:GradientCount"
BLOCKS = "core.pruning.fisher_state:collect_blocks"
MASKS = "modifiers._masks:ParameterMasks.set_param_masks"
MICRO = "training.loop:_Run._micro_batch"
STEP = "training.stepper:RecipeStepper.step"
POST = "recipe.manager:RecipeManager.post_step"
UPDATE = "recipe.manager:RecipeManager.update"
BEFORE = "recipe.manager:RecipeManager.pre_step"
EVALUATE = "training.loop:_Run._evaluate"
AFTER_EPOCH = "training.saving:Saver.after_epoch"
AFTER_STEP = "training.saving:Saver.after_step"
STATE = "training.checkpoint:save_file"
SAVING = "training.saving:write_state"
SEAL = "training.saving:seal"
OLD = "training.saving:remove_old"
RESTORE = "training.saving:restore_"
JOURNAL = "training.journal:Journal.open"
QUANTIZE = "core.quantization.scheme:quantize_"
ATTACH = "core.quantization.scheme:attach_"
FREEZE = "core.quantization.scheme:freeze_"
STRUCTURE = "recipe.manager:RecipeManager.apply_structure"


def one(recipe: str, phase: str, *kills: Kill, **more) -> Point:
    return Point(recipe, phase, kills, **more)


POINTS = [
    # Before, in and after a pruning event.
    one("obert", "before an event", Kill(EVENT, 3), quick=True),
    one("obert", "gradients of an event", Kill(BLOCKS, 3)),
    one("obert", "in an event, before weights", Kill(WRITE, 2)),
    one("obert", "in an event, after weights", Kill(SOLVE, 2, "after"), quick=True),
    one("obert", "in an event, before masks", Kill(MASKS, 4)),
    one("obert", "after an event", Kill(EVENT, 3, "after")),
    one("obert", "after the last event", Kill(EVENT, 5, "after")),
    one("obert", "after the first event", Kill(EVENT, 1, "after")),
    one("gmp", "before an event", Kill(EVENT, 2)),
    one("gmp", "in an event", Kill(MASKS, 3)),
    one("gmp", "after an event", Kill(EVENT, 3, "after")),
    one("nm", "before an event", Kill(EVENT, 2)),
    one("nm", "in an event", Kill(SOLVE, 2, "after")),
    one("nm", "after an event", Kill(EVENT, 2, "after"), quick=True),
    one("staged", "in an event", Kill(WRITE, 3)),
    one("hosts", "in an event", Kill(UPDATE, 5, "after")),
    # Between the micro-batches of a step, and around the optimizer.
    one("obert", "between micro-batches", Kill(MICRO, 8)),
    one("obert", "after a backward pass", Kill(MICRO, 15, "after")),
    one("gmp", "between micro-batches", Kill(MICRO, 18)),
    one("drop", "between micro-batches", Kill(MICRO, 9, "after")),
    one("none", "between micro-batches", Kill(MICRO, 13), quick=True),
    one("obert", "before the optimizer", Kill(BEFORE, 9)),
    one("gmp", "after the optimizer, before masks", Kill(POST, 8)),
    one("hosts", "after a step", Kill(STEP, 11, "after")),
    one("none", "after a step", Kill(STEP, 7, "after"), strategy="epoch"),
    # While a checkpoint is written, or old ones are removed.
    one("obert", "writing, before", Kill(AFTER_STEP, 6)),
    one("obert", "writing the first file", Kill(SAVING, 5)),
    one("obert", "writing, half of the weights", Kill(STATE, 5, "torn")),
    one("gmp", "writing, half of the optimizer", Kill(STATE, 6, "torn")),
    one("gmp", "writing, half of the masks", Kill(STATE, 7, "torn")),
    one("gmp", "writing, before the manifest", Kill(SEAL, 2)),
    one("nm", "writing, in a flush", Kill("os:fsync", 17)),
    one("drop", "writing, before its name", Kill("os:fsync", 25, "after")),
    one("qat", "writing, half of the weights", Kill(STATE, 9, "torn"), quick=True),
    one("obert", "complete, before old ones go", Kill(OLD, 3)),
    one("gmp", "after old ones are gone", Kill(OLD, 4, "after")),
    one("none", "writing the first one", Kill(SAVING, 2)),
    # Quantization-aware training with fixed masks.
    one("qat", "before quantization", Kill(QUANTIZE)),
    one("qat", "half of the layers quantized", Kill(ATTACH, 4)),
    one("qat", "after quantization", Kill(QUANTIZE, 1, "after")),
    one("qat", "ranges move", Kill(STEP, 7)),
    one("qat", "before ranges are fixed", Kill(FREEZE)),
    one("qat", "after ranges are fixed", Kill(FREEZE, 1, "after")),
    one("qat", "ranges fixed", Kill(MICRO, 27)),
    one("staged", "quantized in the second stage", Kill(STEP, 8)),
    # An epoch's end.
    one("obert", "before an evaluation", Kill(EVALUATE, 1), quick=True),
    one("drop", "after an evaluation", Kill(EVALUATE, 2, "after")),
    one("gmp", "at an epoch's end", Kill(AFTER_EPOCH, 1, "after")),
    one("obert", "epochs", Kill(EVALUATE, 2), strategy="epoch"),
    one("qat", "epochs", Kill(AFTER_EPOCH, 2, "after"), strategy="epoch"),
    one("hosts", "epochs", Kill(AFTER_EPOCH, 1, "after"), strategy="epoch"),
    one("staged", "the last evaluation", Kill(EVALUATE, 2)),
    # LayerDrop, and SparseML's own modifiers at each of their turns.
    one("drop", "layers dropped", Kill(STRUCTURE, 1, "after")),
    one("drop", "after the schedule", Kill(STEP, 13)),
    one("hosts", "parameters frozen", Kill(STEP, 6)),
    one("hosts", "learning rate set", Kill(STEP, 9)),
    one("hosts", "parameters free again", Kill(STEP, 13)),
    one("early", "stopped early", Kill(AFTER_EPOCH, 2, "after"), strategy="epoch"),
    one("early", "before it is told", Kill(EVALUATE, 2)),
    one("average", "averaging", Kill(STEP, 13), quick=True),
    one("average", "in an evaluation", Kill("core.snapshot:restore_snapshot_")),
    one("texts", "between micro-batches", Kill(MICRO, 15)),
    # Killed again while it resumes, and several times.
    one("obert", "while resuming", Kill(STEP, 8), Kill(RESTORE)),
    one("qat", "while resuming", Kill(STEP, 11), Kill(RESTORE, 1, "after")),
    one("gmp", "journal of a resumed run", Kill(STEP, 8), Kill(JOURNAL, 1, "after")),
    one("obert", "three times", Kill(STEP, 5), Kill(STEP, 4), Kill(EVENT, 2, "after")),
    one("nm", "twice in one place", Kill(STEP, 8), Kill(STEP, 2)),
    one("staged", "three times", Kill(STEP, 4), Kill(STATE, 6, "torn"), Kill(MICRO, 4)),
    # Two processes.
    one("obert", "before an event", Kill(EVENT, 3, rank=1), ranks=2),
    one("obert", "in an event", Kill(SOLVE, 3, "after", rank=0), ranks=2),
    one("obert", "between micro-batches", Kill(MICRO, 9, rank=1), ranks=2),
    one("obert", "writing, half of the weights", Kill(STATE, 5, "torn"), ranks=2),
    one("obert", "writing, the other process", Kill(SAVING, 3, rank=1), ranks=2),
    one("gmp", "writing, before the manifest", Kill(SEAL, 2), ranks=2),
    one("gmp", "at an epoch's end", Kill(EVALUATE, 2, rank=1), ranks=2),
    one("qat", "ranges move", Kill(STEP, 7, rank=1), ranks=2),
    one("qat", "after ranges are fixed", Kill(FREEZE, 1, "after", rank=0), ranks=2),
    one("drop", "epochs", Kill(EVALUATE, 2), ranks=2, strategy="epoch"),
]
assert len(POINTS) >= 60
assert sum(point.quick for point in POINTS) == 7


def parameter(point: Point):
    ranks = f", {point.ranks} processes" if point.ranks > 1 else ""
    marks = [] if point.quick else [pytest.mark.slow]
    return pytest.param(point, id=f"{point.recipe}: {point.phase}{ranks}", marks=marks)


def test_the_functions_are_where_the_points_say() -> None:
    for point in POINTS:
        for kill in point.kills:
            owner, name = owner_of(kill.target)
            assert hasattr(owner, name), kill.target


@pytest.mark.parametrize("point", [parameter(point) for point in POINTS])
def test_a_killed_run_ends_with_the_same_bits(point, runs, tmp_path) -> None:
    """Run, kill, resume; and compare with the run that was not interrupted."""
    how = {"ranks": point.ranks, "save_strategy": point.strategy, "save_steps": 2}
    how |= {"save_total_limit": 2, "resume_from_checkpoint": "last"}
    runs.end(tmp_path, point.recipe, *point.kills, **how)
    world.compare(tmp_path, runs.whole(point.recipe, point.ranks), point.ranks)


@pytest.mark.slow
# torch's DDP refuses parameters that are frozen after it wrapped the model: `hosts`.
@pytest.mark.parametrize("recipe", sorted(set(world.RECIPES) - {"hosts"}))
def test_two_processes_end_with_the_same_bits_and_figures(recipe, runs) -> None:
    whole = runs.whole(recipe, 2)
    assert world.result_of(whole, 0) == world.result_of(whole, 1)
