"""What SparseML asks of a modifier and of its manager, for each of ours.

Written from the documented behaviour of SparseML 1.8.0's ``Modifier``,
``ScheduledModifier``, ``ScheduledUpdateModifier`` and ``ScheduledModifierManager``.
"""

import io
from functools import partial
from typing import Any

import pytest
import torch

from obert_modifiers import modifiers
from obert_modifiers.host import bases
from tests.hosts import on_sparseml
from tests.modifiers.driving import (
    STEPS,
    copied,
    drive,
    every,
    mixed_loss,
    pruners,
    recipe_of,
    same,
    start,
)
from tests.modifiers.table import TABLE, make_batch, make_model

Manager = bases.ScheduledModifierManager
UNINITIALIZED = "must be initialized first"


def calls(modifier, model) -> dict[str, Any]:
    """Every call of the lifecycle that needs an initialized modifier."""
    when = (1.0, STEPS)
    where = (model, torch.optim.SGD(model.parameters(), lr=0.1), *when)
    given = dict.fromkeys(("start_pending", "end_pending", "update_ready"), when)
    steps = ("scheduled_update", "scheduled_log_update")
    steps += ("optimizer_pre_step", "optimizer_post_step")
    given |= dict.fromkeys(steps, where)
    given |= {"loss_update": (torch.ones(()), *where), "finalize": (model,)}
    return {name: partial(getattr(modifier, name), *of) for name, of in given.items()}


@every
def test_no_call_comes_before_initialize(row) -> None:
    modifier, model = row.cls(**row.keys), make_model()
    found = calls(modifier, model)
    assert len(found) == 9
    for name, call in found.items():
        with pytest.raises(RuntimeError, match=UNINITIALIZED):
            call()
        assert not modifier.initialized, name
    for call in (modifier.update, modifier.log_update):
        with pytest.raises(RuntimeError):
            call(model, None, epoch=1.0, steps_per_epoch=STEPS)


@every
def test_what_the_manager_calls_is_not_called_directly(row) -> None:
    modifier, model, optimizer = start(row)
    assert modifier.initialized and modifier.loggers_initialized
    where = {"epoch": 1.0, "steps_per_epoch": STEPS}
    with pytest.raises(RuntimeError, match="call scheduled_update instead"):
        modifier.update(model, optimizer, **where)
    with pytest.raises(RuntimeError, match="call scheduled_log_update instead"):
        modifier.log_update(model, optimizer, **where)
    for epoch in (e for e in (0.5, 1.0) if not modifier.update_ready(e, STEPS)):
        with pytest.raises(RuntimeError, match="update_ready returns False"):
            modifier.scheduled_update(model, optimizer, epoch, STEPS)
    modifier.finalize(model)
    assert not modifier.initialized and not modifier.loggers_initialized
    with pytest.raises(RuntimeError, match=UNINITIALIZED):
        modifier.finalize(model)


@every
def test_a_disabled_modifier_does_nothing(row) -> None:
    modifier, model, optimizer = start(row)
    before = copied(model)
    modifier.enabled = False
    assert not any(modifier.update_ready(epoch / 2, STEPS) for epoch in range(8))
    found = calls(modifier, model)
    steps = ("optimizer_pre_step", "optimizer_post_step")
    for name in ("scheduled_log_update", "loss_update", *steps):
        with pytest.raises(RuntimeError, match="must be enabled"):
            found[name]()
    manager = Manager([modifier])
    manager._initialized = True
    for step in range(4 * STEPS):
        where = (model, optimizer, step / STEPS, STEPS)
        manager.update(*where)
        manager.optimizer_pre_step(*where)
        manager.optimizer_post_step(*where)
    assert same(model, before)
    modifier.enabled = True


def own_keys(row) -> set[str]:
    found = [pair for cls in row.cls.__mro__ for pair in vars(cls).items()]
    props = [pair for pair in found if isinstance(pair[1], bases.ModifierProp)]
    return {name for name, prop in props if prop.serializable}


@every
def test_keys_are_read_from_outside_and_written_in_the_recipe_alone(row) -> None:
    modifier, model = row.cls(**row.keys), make_model()
    keys = own_keys(row)
    assert {"start_epoch", "end_epoch"} <= keys
    for key in keys - {"start_epoch", "end_epoch", "update_frequency"}:
        getattr(modifier, key)
        with pytest.raises(AttributeError):
            setattr(modifier, key, row.keys.get(key))
        with pytest.raises(AttributeError):
            delattr(modifier, key)
    modifier.end_epoch = modifier.end_epoch  # SparseML's own may be set until then
    modifier.initialize(model, **row.extras)
    for key in ("start_epoch", "end_epoch"):
        with pytest.raises(AttributeError, match=f"Cannot change {key}"):
            setattr(modifier, key, 1.0)
    for key in ("initialized", "loggers_initialized", "sparsification_types"):
        with pytest.raises(AttributeError):
            setattr(modifier, key, True)
    modifier.enabled = False
    modifier.enabled = True


@every
def test_text_and_identifier_say_the_same_as_the_keys(row) -> None:
    modifier = row.cls(**row.keys)
    assert str(modifier).startswith(f"!{row.cls.__name__}\n")
    shown = modifier.props(only_serializable=True, format_str=True)
    assert all(isinstance(value, str) for value in shown.values())
    for key in row.keys:
        assert f"    {key}: {shown[key]}" in str(modifier)
    assert repr(modifier).startswith(f"{row.cls.__name__}({{")
    assert modifier.identifier() == row.cls(**row.keys).identifier()
    assert modifier.identifier("x") == f"{modifier.identifier()}-x"
    everything = modifier.props(only_serializable=False)
    assert set(shown) <= set(everything) | {"update"}
    others = {row.cls(**one.keys).identifier() for one in TABLE if one.cls is row.cls}
    assert len(others) == sum(one.cls is row.cls for one in TABLE)


@every
def test_loggers_come_and_go(row) -> None:
    logged: list[tuple[str, float, int]] = []

    def keep(tag, value, values, step, wall_time, level) -> bool:
        logged.append((tag, value, step))
        return True

    loggers = bases.LoggerManager([bases.LambdaLogger(keep)], log_python=False)
    model, modifier = make_model(), row.cls(**row.keys)
    assert not modifier.loggers_initialized and not modifier.loggers
    modifier.initialize_loggers(loggers)
    assert modifier.loggers_initialized and modifier.loggers is loggers
    modifier.initialize(model, loggers=loggers, **row.extras)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    drive(modifier, model, optimizer, STEPS + 2)
    modifier.scheduled_log_update(model, optimizer, 1.0, STEPS)
    found = {tag: (value, step) for tag, value, step in logged if "/" in tag}
    masks = modifier.module_masks if hasattr(modifier, "module_masks") else None
    if masks is None:
        assert not found
    else:
        shares = {f"ParamPruning/{c.name}": c.pruned / c.numel for c in masks.counts()}
        assert {tag: value for tag, (value, _) in found.items()} == shares
        assert {step for _, step in found.values()} == {STEPS}
    modifier.finalize(model, reset_loggers=False)
    assert modifier.loggers is loggers


@every
def test_a_deleted_modifier_leaves_quietly(row) -> None:
    modifier, model, optimizer = start(row)
    drive(modifier, model, optimizer, 6)
    modifier.__del__()
    assert not modifier.initialized
    row.cls(**row.keys).__del__()


def due(begin: float, end: float, often: float, steps: int, total: int) -> list[float]:
    """Epochs of a schedule's updates, as SparseML documents them."""
    found: list[float] = []
    for step in range(total):
        epoch = step / steps
        if found and (found[-1] >= end or epoch < begin):
            continue
        first = not found and epoch >= begin
        again = found and (often == -1.0 or epoch >= found[-1] + often)
        if first or again or (found and epoch >= end):
            found.append(epoch)
    return found


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize(
    ("begin", "end", "often"),
    [(0.0, 2.0, 0.5), (0.5, 1.5, -1.0), (1.0, 3.0, 0.3), (0.0, 1.0, 5.0), (1, 1, 1)],
)
def test_the_frequency_of_updates(begin, end, often, steps) -> None:
    keys = {"final_sparsity": 0.7, "init_sparsity": 0.1}
    span = {"start_epoch": begin, "end_epoch": end, "update_frequency": often}
    modifier, model = modifiers.GMPStarPruningModifier(**keys, **span), make_model()
    modifier.initialize(model)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(4 * steps + 1):
        if modifier.update_ready(step / steps, steps):
            found.append(step / steps)
            modifier.scheduled_update(model, optimizer, step / steps, steps)
    assert found == due(begin, end, often, steps, 4 * steps + 1)
    assert modifier.ended and not modifier.update_ready(9.0, steps)


def managed(row, seed: int = 0) -> tuple[Any, Any, Any]:
    """A manager of SparseML with the modifier of a row, on a model."""
    model = make_model(seed)
    manager = Manager.from_yaml(recipe_of(row))
    if row.drops:
        manager.apply_structure(model, **row.extras)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    span = {"steps_per_epoch": STEPS, "epoch": 0.0}
    given = {"loggers": bases.silent_loggers(), **row.extras}
    return manager, model, manager.modify(model, optimizer, **span, **given)


def train(manager, model, wrapped, steps: int) -> None:
    for step in range(steps):
        where = model, wrapped, step / STEPS
        mixed_loss(manager, *where, make_batch(step))[1].backward()
        wrapped.step()
        wrapped.zero_grad()


@every
def test_sparsemls_manager_modifies_and_saves(row, tmp_path) -> None:
    manager, model, wrapped = managed(row)
    assert type(wrapped).__name__ == "RecipeManagerStepWrapper"
    manager.save(str(tmp_path / "recipe.yaml"))
    again = Manager.from_yaml(str(tmp_path / "recipe.yaml"))
    one, two = next(manager.iter_modifiers()), next(again.iter_modifiers())
    assert type(two) is row.cls and one.identifier() == two.identifier()
    train(manager, model, wrapped, 3 * STEPS + 1)
    assert wrapped.wrapped_epoch == 3.25
    modifier = next(manager.iter_modifiers())
    if row.prunes:
        assert [event.epoch for event in modifier.events] == list(row.epochs)
    manager.finalize(model)
    assert not manager.initialized and not modifier.initialized


@pruners
def test_sparsemls_manager_prunes_in_one_shot(row) -> None:
    model = make_model()
    manager = Manager([row.cls(**row.keys)])
    manager.apply(model, loggers=bases.silent_loggers(), **row.extras)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert zeros == row.final * 384
    assert not next(manager.iter_modifiers()).initialized


@every
def test_sparsemls_manager_keeps_the_state(row) -> None:
    manager, model, wrapped = managed(row)
    train(manager, model, wrapped, 6)
    file = io.BytesIO()
    torch.save(manager.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    modifier = next(manager.iter_modifiers())
    assert set(state) == {modifier.identifier()}
    other, _, _ = managed(row)
    other.load_state_dict(state)
    fresh = next(other.iter_modifiers())
    assert (fresh.started, fresh.ended) == (modifier.started, modifier.ended)
    for broken in ({}, {**state, "other": {}}):
        with pytest.raises(IndexError, match="extra keys"):
            other.load_state_dict(broken)
    other.load_state_dict({"other": {}}, strict=False)


BASE = "modifiers:\n    - !EpochRangeModifier\n        start_epoch: 0.0\n"
BASE += "        end_epoch: 4.0\n"


@on_sparseml
@every
def test_recipes_are_composed_in_stages(row, tmp_path) -> None:
    text = recipe_of(row)
    path = tmp_path / "both.yaml"
    manager = Manager.compose_staged(BASE, text, save_path=str(path))
    assert manager.num_stages() == 2
    loaded = Manager.from_yaml(str(path))
    (moved,) = loaded.modifiers["stage_1"]
    assert type(moved) is row.cls
    alone = row.cls(**row.keys)
    before, after = (m.props(only_serializable=True) for m in (alone, moved))
    assert before.keys() == after.keys()
    for key, value in before.items():
        shifted = value
        if key.endswith("_epoch") and value is not None and not row.drops:
            at_start = max(value, 0.0) + 4.0
            shifted = value if key == "end_epoch" and value == -1 else at_start
        assert after[key] == shifted, key
    kept = Manager.compose_staged(BASE, text, keep_original_epochs=True)
    (same,) = kept.modifiers["stage_1"]
    assert same.identifier() == alone.identifier()
    with pytest.raises(ValueError, match="must not share any stage names"):
        Manager.compose_staged(str(path), str(path))


def test_structure_is_changed_by_those_that_change_it() -> None:
    for row in TABLE:
        modifier, model = row.cls(**row.keys), make_model()
        modifier.apply_structure(model, **row.extras)
        assert modifier.initialized is row.drops
        assert len(model.layers) == (1 if row.drops else 2)
