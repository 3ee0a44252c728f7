"""What every modifier keeps over a break, and in the state that it ends with."""

import io
import json

import pytest
import torch

from obert_modifiers import modifiers
from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.host import state as host_state
from obert_modifiers.modifiers._states import as_tensors, from_tensors
from obert_modifiers.recipe.changes import _started
from obert_modifiers.training.state import pack, unpack
from tests.modifiers.driving import (
    STEPS,
    copied,
    drive,
    every,
    mixed_loss,
    name_of,
    same,
    start,
)
from tests.modifiers.table import ENCODER, TABLE, make_batch, make_model

QUANTIZED = [row for row in TABLE if row.cls is modifiers.QATModifier]
assert len(QUANTIZED) == 3
DISTILLED = [row for row in TABLE if row.cls is modifiers.LogitDistillationModifier]
assert len(DISTILLED) == 2
END = 15
SIZES = {name: tuple(make_model().get_parameter(name).shape) for name in ENCODER}


def on_disk(state):
    """Write a state and read it, as a checkpoint does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def in_a_checkpoint(state):
    """Write a state as text and tensors, as our checkpoints do."""
    plain, tensors = pack(state)
    return unpack(json.loads(json.dumps(plain)), on_disk(tensors))


def outcome(modifier, model, optimizer) -> tuple[dict[str, torch.Tensor], list]:
    """Everything that a run ends with: tensors, and the rest."""
    found = {f"model {k}": v for k, v in model.state_dict().items()}
    for name, one in quantizers_of(model).items():
        found |= {f"scale {name}": one.scale, f"zero {name}": one.zero_point}
    masks = getattr(modifier, "module_masks", None)
    if masks is not None:
        pairs = zip(masks.names, masks.param_masks, strict=True)
        found |= {f"mask {name}": mask for name, mask in pairs}
    for number, values in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number} {k}": v for k, v in values.items()}
    rest = [modifier.started, modifier.ended, getattr(modifier, "applied_sparsity", 0)]
    changing = ("seconds", "peak_memory_bytes", "memory_plan")
    for event in getattr(modifier, "events", ()):
        figures = event.as_dict().items()
        rest.append({k: v for k, v in figures if k not in changing})
    return found, rest


def run_with_a_break(row, stop: int, wrong=None, weights_first: bool = True):
    """Run, stop, and go on with new objects; ``wrong`` spoils the state."""
    run = start(row)
    drive(*run, stop)
    state = in_a_checkpoint(host_state.state_of(run[0]))
    weights, rates = (on_disk(one.state_dict()) for one in run[1:])
    if wrong is not None:
        wrong(state)
    # A resumed run starts from the model that the first one started from.
    run = modifier, model, optimizer = start(row)
    if weights_first:
        model.load_state_dict(weights)
    host_state.load_state(modifier, state)
    if not weights_first:
        model.load_state_dict(weights)
    optimizer.load_state_dict(rates)
    drive(*run, END, stop)
    return outcome(*run)


def equal(one, two) -> bool:
    """Whether two runs ended with the same bits, and in the same way."""
    assert one[0].keys() == two[0].keys()
    return same(one[0], two[0]) and one[1] == two[1]


WHOLE = {}


def whole_run(row):
    """Run a row of the table without a break."""
    if name_of(row) not in WHOLE:
        run = start(row)
        drive(*run, END)
        WHOLE[name_of(row)] = outcome(*run)
    return WHOLE[name_of(row)]


@every
@pytest.mark.parametrize(
    ("stop", "weights_first"),
    # Before; at the start; ranges move; they are fixed; late.
    [(0, False), (4, False), (6, True), (6, False), (8, False), (9, True), (11, False)],
)
def test_resumed_at_any_step_it_goes_on_bit_for_bit(row, stop, weights_first) -> None:
    resumed = run_with_a_break(row, stop, weights_first=weights_first)
    assert equal(resumed, whole_run(row))


@every
@pytest.mark.parametrize("stop", [0, 6, 9])
def test_a_state_is_tensors_by_name(row, stop) -> None:
    modifier, model, optimizer = start(row)
    drive(modifier, model, optimizer, stop)
    if row.cls is modifiers.EarlyStoppingModifier and stop:
        modifier.evaluated(model, {"loss": 0.5}, 1.0)  # it holds the weights now
    state = modifier.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert all(isinstance(name, str) for name in state)
    masks = getattr(modifier, "module_masks", None)
    if masks is not None:  # as in SparseML, and one entry more
        assert set(state) == {*masks.names, "__schedule__"}


def in_the_old_form(state) -> None:
    plain = from_tensors(state)
    assert not any(
        isinstance(v, torch.Tensor) and v.dtype == torch.uint8 for v in plain.values()
    )
    state.clear()
    state.update(plain)


@every
def test_a_state_in_the_old_form_goes_on_bit_for_bit(row) -> None:
    found = run_with_a_break(row, 6, in_the_old_form)
    assert equal(found, whole_run(row))


SCHEDULE = {"started": True, "ended": False}
MASKED = {name: torch.zeros(size).bool() for name, size in SIZES.items()}
RANGE = {
    "observing": True,
    "ready": True,
    "scale": torch.tensor([0.5]),
    "zero_point": torch.tensor([0], dtype=torch.int32),
    "min_val": torch.tensor(-1.0),
    "max_val": torch.tensor(2.0),
}
BEST = {"best": 0.25, "best_epoch": 1.0, "last_epoch": 1.5, "worse": 1, "ranges": {}}
LAST = {"applied_sparsity": [0.5] * 4, "last_update_epoch": 1.5}
# Written by hand as checkpoints had them that were not of tensors alone.
OLD = [
    ("FrozenParamsModifier", {**SCHEDULE, "next_epoch": 1.25}),
    ("LayerDropModifier", {**SCHEDULE, "kept": (1,)}),
    (
        "EarlyStoppingModifier",
        SCHEDULE | BEST | {"values": {"head.bias": torch.tensor([1.0, 2.0])}},
    ),
    (
        "ConstantMasksModifier",
        MASKED | {"__schedule__": SCHEDULE | {"enabled": True}},
    ),
    (
        "GMPStarPruningModifier",
        MASKED
        | {
            "__schedule__": SCHEDULE
            | LAST
            | {"enabled": True, "starts": [0.3] * 4, "events": []}
        },
    ),
    (
        "QATModifier",
        {f"head:{role}": RANGE for role in ("weight", "input")}
        | {"__schedule__": SCHEDULE | {"active": True, "frozen": False}},
    ),
]
assert len(OLD) == 6


@pytest.mark.parametrize(("name", "state"), OLD)
def test_states_from_before_are_loaded(name, state) -> None:
    row = next(row for row in TABLE if row.cls.__name__ == name)
    keys = row.keys | ({"submodules": ["head"]} if name == "QATModifier" else {})
    model, modifier = make_model(), row.cls(**keys)
    modifier.initialize(model, **row.extras)
    modifier.load_state_dict(state)
    assert modifier.started and not modifier.ended
    if getattr(modifier, "module_masks", None) is not None:
        assert not any(model.get_parameter(one).any() for one in SIZES)
    if name == "GMPStarPruningModifier":
        assert modifier.applied_sparsity == [0.5] * 4 and modifier.events == []
        assert not modifier.update_ready(1.75, STEPS) and modifier.update_ready(2, 4)
    if name == "QATModifier":
        found = quantizers_of(model)
        assert set(found) == {"head:weight", "head:input"}
        assert all(one.scale.item() == 0.5 for one in found.values())
    if name == "EarlyStoppingModifier":
        assert (modifier.best, modifier.best_epoch) == (0.25, 1.0)
    assert _started(state) and _started(modifier.state_dict())


@every
def test_a_schedule_that_has_not_begun_is_known_as_such(row) -> None:
    modifier, _, _ = start(row)
    state = modifier.state_dict()
    assert not _started(state) and not _started(from_tensors(state))


def test_a_state_that_lost_something_goes_on_otherwise() -> None:
    row = TABLE[0]

    def forget(state) -> None:
        plain = from_tensors(state)
        plain["__schedule__"]["draws"] = 0  # the samples of the first event again
        state.update(as_tensors(plain))

    assert not equal(run_with_a_break(row, 9, forget), whole_run(row))


@pytest.mark.parametrize("row", QUANTIZED, ids=name_of)
def test_the_quantization_ends_as_the_keys_say(row) -> None:
    modifier, model, optimizer = start(row)
    seen, states = [], []

    def watch(step, modifier, model) -> None:
        found = quantizers_of(model)
        states.append(copied(model))
        moving = {n for n, one in found.items() if one.observing}
        seen.append((bool(found), {n.rpartition(":")[2] for n in moving}))

    drive(modifier, model, optimizer, 16, watch=watch)
    weights = row.keys.get("freeze") == "activations"  # go on moving to epoch 3
    moves = {"weight", "input"}
    assert seen[:4] == [(False, set())] * 4
    assert seen[4:8] == [(True, moves)] * 4
    assert seen[8:12] == [(True, {"weight"} if weights else set())] * 4
    assert seen[12:] == [(True, set())] * 4
    modifier.finalize(model)
    linear = [f"layers.{i}.{j}" for i in range(2) for j in (0, 2)] + ["head"]
    kept = [name for name in linear if name not in row.keys.get("ignore", [])]
    names = [f"{name}:{role}" for name in kept for role in ("weight", "input")]
    if row.keys.get("quantize_embeddings", True):
        names.append("embedding:weight")
    at_freezing = states[11 if weights else 7]  # as the step before left them
    found = quantizers_of(model)
    assert sorted(found) == sorted(names)
    for name, one in found.items():
        assert one.ready and not one.observing
        weight = name.endswith(":weight")
        rows = row.keys.get("per_channel") and weight and "embedding" not in name
        assert not weight or (one.zero_point == 0).all()
        values = at_freezing[f"{name.rpartition(':')[0]}.weight"]
        assert one.scale.numel() == (len(values) if rows else 1)
        if weight:  # symmetric; a sum's in reduced range, where VNNI may be missing
            top = 127 if "embedding" in name else 63
            largest = values.abs().amax(dim=1) if rows else values.abs().max()
            torch.testing.assert_close(one.scale * top, largest.reshape(-1))
            shape = (-1, 1) if rows else (1, 1)
            steps = one(values, False) / one.scale.reshape(shape)
            torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("row", DISTILLED, ids=name_of)
def test_the_loss_is_distilled_when_the_keys_say(row) -> None:
    modifier, model, optimizer = start(row)
    drive(modifier, model, optimizer, 4)
    batch, mixed = make_batch(50), []
    for epoch in (0.75, 1.0, 1.75, 2.0):
        loss, found = mixed_loss(modifier, model, optimizer, epoch, batch)
        logits, teacher = (m(batch["tokens"])["logits"] for m in (model, make_model()))
        t, h = modifier.temperature, modifier.hardness
        p, q = (torch.log_softmax(one / t, dim=1) for one in (teacher, logits))
        kl = t**2 * (p.exp() * (p - q)).sum(dim=1).mean()
        expected = (1 - h) * loss + h * kl
        mixed.append(bool(torch.isclose(found, expected) and found != loss))
        assert mixed[-1] or found == loss
    inside = row.keys.get("end_epoch") == 2.0
    assert mixed == ([False, True, True, False] if inside else [True] * 4)
