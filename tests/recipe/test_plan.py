"""The plan of a recipe: its events, sparsities, rates, counts and bytes."""

import math

import pytest
import torch
from torch import nn

from obert_modifiers.core.pruning.schedule import (
    interpolate_sparsity,
    sparsity_to_count,
)
from obert_modifiers.host.bases import ScheduledModifierManager, silent_loggers
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.clock import epoch_at
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.recipe_text.problems import RecipeError
from obert_modifiers.training.stepper import RecipeStepper
from tests import tiny
from tests.modifiers.table import ENCODER, make_model
from tests.recipe.samples import EPOCHS, HERE, SAMPLES, one_modifier


def recipe(*modifiers: str, epochs: float = 10.0, init_lr: float = 1e-4):
    head = f"""\
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: {epochs}}}
  - !LearningRateFunctionModifier
      {{lr_func: cyclic_linear, cycle_epochs: 2.0, init_lr: {init_lr},
       final_lr: 0.0, start_epoch: 0.0, end_epoch: {epochs}}}
"""
    return load_recipe(head + "".join(f"  - !{one}\n" for one in modifiers))


def pruning(name: str = "GMPStarPruningModifier", **keys: object) -> str:
    values = {
        "init_sparsity": 0.7,
        "final_sparsity": 0.9,
        "start_epoch": 2.0,
        "end_epoch": 8.0,
        "update_frequency": 0.5,
    } | keys
    return f"{name} {{{', '.join(f'{k}: {v}' for k, v in values.items())}}}"


@pytest.mark.parametrize("steps", [None, 10, 8])
def test_events_come_with_the_schedule(steps):
    plan = plan_recipe(recipe(pruning()), steps_per_epoch=steps)
    (modifier,) = plan.pruning
    epochs = [2.0 + number / 2 for number in range(13)]
    assert [event.epoch for event in modifier.events] == epochs
    assert plan.num_events == 13 and not plan.notes and modifier.reaches_goal
    for event in modifier.events:
        wanted = interpolate_sparsity(event.epoch, 2.0, 8.0, 0.7, 0.9)
        assert event.sparsities == (wanted,)
    assert modifier.events[0].sparsities == (0.7,)
    assert modifier.events[-1].sparsities == (0.9,)


def test_phases_sum_up_the_epochs():
    loaded = recipe(
        pruning(end_epoch=7.5),
        "LogitDistillationModifier {start_epoch: 1.0, end_epoch: 8.0}",
        "ConstantPruningModifier {start_epoch: 9.0, params: ['re:x']}",
    )
    plan = plan_recipe(loaded)
    bounds = [phase.start for phase in plan.phases] + [plan.end]
    assert bounds == sorted([*map(float, range(11)), 7.5])
    by_start = {phase.start: phase for phase in plan.phases}
    assert [by_start[e].events for e in (0, 1, 2, 6, 7, 7.5, 8)] == [
        0,
        0,
        2,
        2,
        1,
        1,
        0,
    ]
    assert by_start[1.0].sparsities == (None,)
    assert by_start[2.0].sparsities == (
        (interpolate_sparsity(2.5, 2.0, 7.5, 0.7, 0.9),),
    )
    assert by_start[9.0].sparsities == ((0.9,),)
    distilled = {start for start, phase in by_start.items() if phase.distillation}
    assert distilled == {start for start in by_start if 1.0 <= start < 8.0}
    (span,) = by_start[9.0].others
    assert span.modifier == "ConstantPruningModifier" and not by_start[8.0].others


def test_the_rate_is_that_of_the_modifiers_and_rewinds_begin_phases():
    plan = plan_recipe(recipe(epochs=5, init_lr=1e-3))
    assert [p.start for p in plan.phases] == [0.0, 1.0, 2.0, 3.0, 4.0]
    first = [phase.first_rate for phase in plan.phases]
    assert first[0] == first[2] == first[4] == 1e-3
    assert plan.phases[1].last_rate == pytest.approx(0.0, abs=1e-9)
    assert first[1] == pytest.approx(
        5e-4, rel=2e-3
    )  # SparseML's cycle ends a step early
    half = load_recipe(
        "modifiers:\n  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.5,"
        " final_lr: 0.25, start_epoch: 1.0, end_epoch: 2.0}"
    )
    before, after = plan_recipe(half).phases
    assert before.first_rate is None and after.first_rate == 0.5
    assert after.last_rate == pytest.approx(0.25, rel=1e-3)


def run_events(loaded, steps_per_epoch: int) -> list[float]:
    """Return the epochs at which a real run of the recipe prunes."""
    (group,) = loaded.groups.values()
    model, found = make_model(), []
    host = ScheduledModifierManager(modifiers=group)
    host.initialize(model, epoch=0.0, loggers=silent_loggers())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(host.max_epochs * steps_per_epoch):
        epoch = epoch_at(step, steps_per_epoch)
        if any(m.update_ready(epoch, steps_per_epoch) for m in host.pruning_modifiers):
            found.append(epoch)
        host.update(model, optimizer, epoch, steps_per_epoch, log_updates=False)
    return found


@pytest.mark.parametrize("frequency", [0.1, 0.3, 1.7, -1])
@pytest.mark.parametrize("steps", [3, 7, 33])
def test_with_steps_the_events_are_those_of_a_run(frequency, steps):
    keys = {"update_frequency": frequency, "end_epoch": 3.5}
    plan = plan_recipe(recipe(pruning(**keys), epochs=4), steps_per_epoch=steps)
    (modifier,) = plan.pruning
    found = [event.epoch for event in modifier.events]
    assert found == run_events(recipe(pruning(**keys), epochs=4), steps)
    assert found[0] == pytest.approx(2.0) and modifier.reaches_goal


def test_steps_are_counted_as_the_training_loop_counts():
    stepper = RecipeStepper(None, None, None, 7)
    for step in range(30):
        stepper.steps = step
        assert stepper.epoch == epoch_at(step, 7)


def test_what_will_not_happen_is_said():
    with pytest.raises(RecipeError, match="end_epoch=10 has its last pruning event"):
        recipe(pruning(end_epoch=10.0))
    # Where nothing says how long training lasts, it may go on.
    late = plan_recipe(load_recipe(f"modifiers:\n  - !{pruning(end_epoch=10.0)}\n"))
    assert late.num_events == 16 and not late.pruning[0].reaches_goal
    (note,) = late.notes
    assert "does not reach final_sparsity=0.9" in note and "epoch 10" in note
    every = plan_recipe(recipe(pruning(update_frequency=-1)))
    assert every.num_events is None and "needs the training samples" in every.notes[0]


def test_nothing_is_known_of_a_first_sparsity_that_is_loaded():
    plan = plan_recipe(recipe(pruning(init_sparsity="__FROM_PARAM__")))
    assert {event.sparsities for event in plan.pruning[0].events[:-1]} == {(None,)}
    assert plan.pruning[0].events[-1].sparsities == (0.9,)


def test_one_shot_has_no_epochs():
    loaded = load_recipe(
        "modifiers:\n  - !" + pruning(start_epoch=0.0, end_epoch=0.0, init_sparsity=0.9)
    )
    for steps in (None, 10):
        plan = plan_recipe(loaded, steps_per_epoch=steps)
        assert plan.num_epochs is None and plan.end == 0.0
        (event,) = plan.pruning[0].events
        assert (event.epoch, event.sparsities) == (0.0, (0.9,))
        (phase,) = plan.phases
        assert phase.events == 1 and phase.first_rate is None


def test_counts_are_exact():
    model = make_model()
    sizes = {n: p.numel() for n, p in model.named_parameters() if n in ENCODER}
    uniform = plan_recipe(recipe(pruning()), model=model).pruning[0].pools
    assert {p.names: (p.numel, p.pruned) for p in uniform} == {
        (name,): (numel, sparsity_to_count(0.9, numel)) for name, numel in sizes.items()
    }
    keys = {"global_sparsity": True, "mask_type": "block4"}
    (pool,) = plan_recipe(recipe(pruning(**keys)), model=model).pruning[0].pools
    assert pool.names == tuple(ENCODER)
    assert pool.pruned == sparsity_to_count(0.9, sum(sizes.values()), 4)
    keys = {"global_sparsity": True, "mask_type": "'2:4'", "final_sparsity": 0.5}
    keys["init_sparsity"] = 0.5
    halves = plan_recipe(recipe(pruning(**keys)), model=model).pruning[0].pools
    assert [pool.pruned * 2 for pool in halves] == list(sizes.values())
    goals = {"params": "[]", "final_sparsity": "{0.8: ['re:layers.0'], 0.9: ['re:l']}"}
    text = pruning(**goals).replace("re:layers.0", r"re:layers\.0.*weight")
    text = text.replace("re:l'", r"re:layers.*weight'")
    plan = plan_recipe(recipe(text), model=model).pruning[0]
    assert plan.goals == (0.8, 0.9)
    counts = {pool.names[0]: pool.pruned for pool in plan.pools}
    assert counts["layers.0.0.weight"] == sparsity_to_count(0.8, 96)
    assert counts["layers.1.0.weight"] == sparsity_to_count(0.9, 96)


def test_the_fisher_is_planned_on_shapes_alone():
    keys = {"num_grads": 100, "num_recomputations": 3, "fisher_block_size": 20}
    loaded = recipe(pruning("OBERTPruningModifier", **keys))
    with torch.device("meta"):
        model = make_model()
    (found,) = plan_recipe(loaded, model=model).pruning
    assert (found.num_grads, found.grad_granularity) == (300, "sample")
    blocks = sum(math.ceil(96 / 20) for _ in ENCODER)
    assert found.memory.state_bytes == blocks * 20 * 20 * 8
    (first_order,) = plan_recipe(recipe(pruning()), model=model).pruning
    assert first_order.memory is None and first_order.num_grads == 0
    small = recipe(pruning("OBERTPruningModifier", memory_budget=1000))
    with pytest.raises(ValueError, match="memory_budget=1000 is below"):
        plan_recipe(small, model=model)
    with pytest.raises(ValueError, match="matches no parameter"):
        plan_recipe(loaded, model=nn.Linear(2, 2))


def test_planning_leaves_the_recipe_as_it_is():
    loaded = recipe(pruning())
    first = plan_recipe(loaded, steps_per_epoch=10)
    assert plan_recipe(loaded, steps_per_epoch=10) == first
    assert not any(m.initialized for m in loaded.groups[""])


def test_the_samples_recipe():
    plan = plan_recipe(load_recipe(tiny.RECIPE), steps_per_epoch=6)
    assert [event.epoch for event in plan.pruning[0].events] == [0.5, 1.0, 1.5]
    assert plan.pruning[0].line == 11


def test_blocks_that_straddle_rows_are_a_note():
    model = make_model()  # rows of 8 and 12 weights
    notes = {}
    for width in (4, 8, 50):
        keys = {"fisher_block_size": width}
        plan = plan_recipe(recipe(pruning("OBERTPruningModifier", **keys)), model=model)
        notes[width] = plan.notes
    assert notes[4] == ()
    assert notes[8] == (
        "OBERTPruningModifier (line 6): Fisher blocks of fisher_block_size=8 straddle "
        "the rows of layers.0.2.weight (12 weights) and 1 more parameters; legal, since"
        " a block is any run of weights; a divisor of the row keeps to one output",
    )
    assert "layers.0.0.weight (8 weights) and 3 more" in notes[50][0]
    keys = {"mask_type": "'block:2x2'", "fisher_block_size": 8, "num_grads": 2}
    text = recipe(pruning("OBERTPruningModifier", **keys))
    assert plan_recipe(text, model=model).notes == ()  # two rows of 12 have 3 blocks


def test_n_m_by_second_order_is_planned():
    keys = "{start_epoch: 1.0, score: obs, fisher_block_size: 8, num_grads: 24}"
    loaded = recipe(f"NMPruningModifier {keys}")
    (found,) = plan_recipe(loaded, model=make_model()).pruning
    assert (found.num_grads, found.grad_granularity) == (24, "sample")
    assert found.memory.state_bytes == 384 * 8 * 8
    assert [pool.pruned for pool in found.pools] == [48] * 4


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
@pytest.mark.parametrize("name", HERE)
def test_every_modifier_that_there_is_can_be_planned(name):
    # An epoch more than it takes, as no step is made where the last one ends; masks
    # that end are to end with the recipe.
    longer = EPOCHS.replace("end_epoch: 3", "end_epoch: 31")
    longer = "" if name == "ConstantMasksModifier" else longer
    loaded = load_recipe(one_modifier(name, SAMPLES[name]) + longer)
    plan = plan_recipe(loaded, steps_per_epoch=4)
    assert plan.file == "<recipe text>" and plan.end >= 0.0
    ours = [p for p in plan.pruning if p.num_grads]
    known = ("OBERTPruningModifier", "OBSPruningModifier", "RigLPruningModifier")
    assert len(ours) == (name in known)


def test_events_beyond_counting_depend_on_the_steps():
    loaded = recipe(pruning(update_frequency=1e-9))
    assert plan_recipe(loaded).num_events is None
    assert plan_recipe(loaded, steps_per_epoch=3).num_events == 6 * 3 + 1


def test_minus_one_is_the_start_of_the_training():
    loaded = recipe(pruning(start_epoch=-1, end_epoch=4.0))
    events = plan_recipe(loaded, steps_per_epoch=4).pruning[0].events
    assert (events[0].epoch, events[0].sparsities) == (0.0, (0.7,))
    modifier = loaded.groups[""][-1]
    modifier.initialize(make_model())
    assert modifier.sparsities_at(0.0) == [0.7] * 4


def test_groups_that_do_not_divide_are_found_without_training():
    loaded = recipe(pruning(mask_type="'block:1x3'"))
    wrong = "mask_type=block:1x3 does not divide the 8 input columns of layers.0.0"
    with pytest.raises(ValueError, match=wrong):
        plan_recipe(loaded, model=make_model())
    manager = RecipeManager.from_recipe(loaded.text)
    with pytest.raises(RecipeError, match="6: GMPStar.*mask_type: " + wrong):
        manager.check_model(make_model())
