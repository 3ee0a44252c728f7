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
from obert_modifiers.recipe.plan import PruningPlan, plan_recipe
from obert_modifiers.recipe_text.problems import RecipeError
from obert_modifiers.training.stepper import RecipeStepper
from tests import tiny
from tests.modifiers.table import ENCODER, make_model
from tests.recipe.samples import EPOCHS, HERE, SAMPLES, one_modifier

OBERT = "OBERTPruningModifier"


def recipe(*modifiers: str, epochs: float = 10.0, init_lr: float = 1e-4):
    head = f"""\
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: {epochs}}}
  - !LearningRateFunctionModifier
      {{lr_func: cyclic_linear, cycle_epochs: 2.0, init_lr: {init_lr},
       final_lr: 0.0, start_epoch: 0.0, end_epoch: {epochs}}}
"""
    return load_recipe(head + "".join(f"  - !{one}\n" for one in modifiers))


def alone(modifier: str):
    """Load a recipe of nothing else, which does not say how long training lasts."""
    return load_recipe(f"modifiers:\n  - !{modifier}\n")


def pruning(name: str = "GMPStarPruningModifier", **keys: object) -> str:
    values = {
        "init_sparsity": 0.7,
        "final_sparsity": 0.9,
        "start_epoch": 2.0,
        "end_epoch": 8.0,
        "update_frequency": 0.5,
    } | keys
    return f"{name} {{{', '.join(f'{k}: {v}' for k, v in values.items())}}}"


def planned(modifier: str, model: nn.Module | None = None) -> PruningPlan:
    """Plan the only pruning modifier of a recipe."""
    (found,) = plan_recipe(recipe(modifier), model=model or make_model()).pruning
    return found


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
    events = {0: 0, 1: 0, 2: 2, 6: 2, 7: 1, 7.5: 1, 8: 0}
    assert {start: by_start[start].events for start in events} == events
    target = interpolate_sparsity(2.5, 2.0, 7.5, 0.7, 0.9)
    for start, sparsities in {1.0: None, 2.0: (target,), 9.0: (0.9,)}.items():
        assert by_start[start].sparsities == (sparsities,)
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
    # SparseML's cycle ends a step early.
    assert first[1] == pytest.approx(5e-4, rel=2e-3)
    rate = "LearningRateFunctionModifier {lr_func: linear, init_lr: 0.5, final_lr: 0.25"
    half = alone(f"{rate}, start_epoch: 1.0, end_epoch: 2.0}}")
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
    text = pruning(update_frequency=frequency, end_epoch=3.5)
    plan = plan_recipe(recipe(text, epochs=4), steps_per_epoch=steps)
    (modifier,) = plan.pruning
    found = [event.epoch for event in modifier.events]
    assert found == run_events(recipe(text, epochs=4), steps)
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
    late = plan_recipe(alone(pruning(end_epoch=10.0)))
    assert late.num_events == 16 and not late.pruning[0].reaches_goal
    (note,) = late.notes
    assert "does not reach final_sparsity=0.9" in note and "epoch 10" in note
    every = plan_recipe(recipe(pruning(update_frequency=-1)))
    assert every.num_events is None and "needs the training samples" in every.notes[0]


def test_nothing_is_known_of_a_first_sparsity_that_is_loaded():
    *before, last = planned(pruning(init_sparsity="__FROM_PARAM__")).events
    assert {event.sparsities for event in before} == {(None,)}
    assert last.sparsities == (0.9,)


def test_one_shot_has_no_epochs():
    loaded = alone(pruning(start_epoch=0.0, end_epoch=0.0, init_sparsity=0.9))
    for steps in (None, 10):
        plan = plan_recipe(loaded, steps_per_epoch=steps)
        assert plan.num_epochs is None and plan.end == 0.0
        (event,) = plan.pruning[0].events
        assert (event.epoch, event.sparsities) == (0.0, (0.9,))
        (phase,) = plan.phases
        assert phase.events == 1 and phase.first_rate is None


def test_counts_are_exact():
    parameters = dict(make_model().named_parameters())
    sizes = {name: parameters[name].numel() for name in ENCODER}
    assert {p.names: (p.numel, p.pruned) for p in planned(pruning()).pools} == {
        (name,): (numel, sparsity_to_count(0.9, numel)) for name, numel in sizes.items()
    }
    (pool,) = planned(pruning(global_sparsity=True, mask_type="block4")).pools
    assert pool.names == tuple(ENCODER)
    assert pool.pruned == sparsity_to_count(0.9, sum(sizes.values()), 4)
    keys = {"mask_type": "'2:4'", "final_sparsity": 0.5, "init_sparsity": 0.5}
    halves = planned(pruning(global_sparsity=True, **keys)).pools
    assert [pool.pruned * 2 for pool in halves] == list(sizes.values())
    goals = r"{0.8: ['re:layers\.0.*weight'], 0.9: ['re:layers.*weight']}"
    plan = planned(pruning(params="[]", final_sparsity=goals))
    assert plan.goals == (0.8, 0.9)
    counts = {pool.names[0]: pool.pruned for pool in plan.pools}
    assert counts["layers.0.0.weight"] == sparsity_to_count(0.8, 96)
    assert counts["layers.1.0.weight"] == sparsity_to_count(0.9, 96)


def test_the_fisher_is_planned_on_shapes_alone():
    keys = {"num_grads": 100, "num_recomputations": 3, "fisher_block_size": 20}
    with torch.device("meta"):
        model = make_model()
    found = planned(pruning(OBERT, **keys), model)
    assert (found.num_grads, found.grad_granularity) == (300, "sample")
    assert found.first_grads == 300
    other = planned(pruning(OBERT, first_recomputations=5, **keys), model)
    assert (other.num_grads, other.first_grads) == (300, 500)
    blocks = sum(math.ceil(96 / 20) for _ in ENCODER)
    assert found.memory.state_bytes == blocks * (20 * 21 // 2) * 8
    first_order = planned(pruning(), model)
    assert first_order.memory is None and first_order.num_grads == 0
    with pytest.raises(ValueError, match="memory_budget=1000 is below"):
        planned(pruning(OBERT, memory_budget=1000), model)
    with pytest.raises(ValueError, match="matches no parameter"):
        planned(pruning(OBERT, **keys), nn.Linear(2, 2))


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
    def notes(**keys):
        loaded = recipe(pruning(OBERT, **keys))
        return plan_recipe(loaded, model=make_model()).notes

    assert notes(fisher_block_size=4) == ()  # rows of 8 and 12 weights
    (note,) = notes(fisher_block_size=8)
    assert note.startswith(f"{OBERT} (line 6): Fisher blocks of fisher_block_size=8 ")
    assert "rows of layers.0.2.weight (12 weights) and 1 more parameters" in note
    assert "layers.0.0.weight (8 weights) and 3 more" in notes(fisher_block_size=50)[0]
    # Two rows of 12 have 3 blocks.
    assert not notes(mask_type="'block:2x2'", fisher_block_size=8, num_grads=2)


def test_n_m_by_second_order_is_planned():
    keys = "{start_epoch: 1.0, score: obs, fisher_block_size: 8, num_grads: 24}"
    found = planned(f"NMPruningModifier {keys}")
    assert (found.num_grads, found.grad_granularity) == (24, "sample")
    assert found.memory.state_bytes == 48 * (8 * 9 // 2) * 8
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
    known = (OBERT, "OBSPruningModifier", "RigLPruningModifier")
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
