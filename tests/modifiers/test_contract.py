"""What every modifier has to keep, over the table of all modifiers."""

from dataclasses import replace

import pytest
import torch

from obert_modifiers import modifiers
from obert_modifiers.core.quantization.layers import Quantized
from obert_modifiers.host import bases
from tests.core.models import remove_quantization_
from tests.hosts import on_sparseml
from tests.modifiers.driving import (
    STEPS,
    count_zeros,
    drive,
    every,
    name_of,
    pruners,
    same,
    start,
)
from tests.modifiers.table import ENCODER, PRUNERS, TABLE, make_model


def test_every_exported_modifier_has_a_row() -> None:
    assert {row.cls for row in TABLE} == {
        getattr(modifiers, name) for name in modifiers.__all__
    }


@on_sparseml
@every
def test_name_does_not_replace_one_of_sparsemls(row) -> None:
    import sparseml.pytorch.optim

    assert not hasattr(sparseml.pytorch.optim, row.cls.__name__)
    assert bases.modifier_classes()[row.cls.__name__] is row.cls


@every
def test_yaml_round_trip(row) -> None:
    modifier = row.cls(**row.keys)
    again = bases.Modifier.load_obj(str(modifier))
    assert type(again) is row.cls
    assert again.props(only_serializable=True) == modifier.props(only_serializable=True)
    assert again.identifier() == modifier.identifier()
    for key, value in row.keys.items():
        assert again.props(only_serializable=True)[key] == value


@every
def test_sample_yaml_of_the_docstring_loads(row) -> None:
    text = row.cls.__doc__.split("Sample YAML::")[1]
    assert type(bases.Modifier.load_obj(text.strip("\n "))) is row.cls


HOOKS = {key for key in vars(torch.nn.Module()) if "hook" in key}
assert len(HOOKS) == 12


@every
def test_nothing_is_left_on_the_model(row) -> None:
    before = dict(make_model().named_modules())
    modifier, model, optimizer = start(row)
    before_optimizer = set(vars(optimizer))
    drive(modifier, model, optimizer, 14)
    modifier.finalize(model)
    assert all(p.requires_grad and not p._backward_hooks for p in model.parameters())
    assert set(vars(optimizer)) == before_optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    names, dense = model.state_dict().keys(), make_model().state_dict().keys()
    assert names < dense if row.drops else names == dense
    assert not list(model.buffers())
    quantized = row.cls is modifiers.QATModifier
    if quantized:  # what stays of it by its contract: other classes and their scales
        found = [m for m in model.modules() if isinstance(m, Quantized)]
        assert len(found) == len(modifier.resolve_targets(make_model()))
        assert all(set(one.quantizers) <= {"weight", "input"} for one in found)
        remove_quantization_(model)
    for name, module in model.named_modules():
        assert not any(getattr(module, hooks) for hooks in HOOKS)
        plain = module if row.drops and name not in before else before[name]
        assert type(module) is type(plain) and not hasattr(module, "parametrizations")
        assert set(vars(module)) == set(vars(plain))


@pruners
def test_sparsity_is_exact_nested_and_kept(row) -> None:
    modifier, model, optimizer = start(row)
    seen = []

    def watch(step, modifier, model) -> None:
        masks = modifier.module_masks.param_masks
        seen.append([m.clone() for m in masks])
        for name, mask in zip(ENCODER, masks, strict=True):
            assert (model.get_parameter(name)[~mask] == 0).all()
        if len(seen) > 1:
            for old, new in zip(seen[-2], masks, strict=True):
                assert not (new & ~old).any()

    drive(modifier, model, optimizer, 16, watch=watch)
    assert modifier.module_masks.names == ENCODER
    assert modifier.module_masks.sparsity() == row.final
    assert modifier.applied_sparsity == [row.final] * 4
    assert tuple(event.epoch for event in modifier.events) == row.epochs
    assert [e.step for e in modifier.events] == [STEPS * at for at in row.epochs]
    assert modifier.events[0].sparsity_before == 0.0
    assert modifier.events[-1].sparsity_after == row.final
    for before, after in zip(modifier.events, modifier.events[1:], strict=False):
        assert before.sparsity_after == after.sparsity_before
    modifier.finalize(model)
    assert count_zeros(model) == row.final * 384


@pruners
def test_state_comes_back_in_mid_schedule(row) -> None:
    modifier, model, optimizer = start(row)
    drive(modifier, model, optimizer, 8)
    state = modifier.state_dict()
    masks = [m.clone() for m in modifier.module_masks.param_masks]
    other, fresh, _ = start(row, seed=0)
    other.load_state_dict(state)
    found = other.module_masks.param_masks
    assert all(torch.equal(*pair) for pair in zip(found, masks, strict=True))
    for name, mask in zip(ENCODER, masks, strict=True):
        assert (fresh.get_parameter(name)[~mask] == 0).all()
    for epoch in (step / STEPS for step in range(8, 13)):
        ready = other.update_ready(epoch, STEPS)
        assert ready == modifier.update_ready(epoch, STEPS)
    with pytest.raises(IndexError, match="state has other parameters"):
        other.load_state_dict({**state, "head.weight": masks[0]})
    with pytest.raises(RuntimeError, match="uninitialized modifier"):
        row.cls(**row.keys).load_state_dict(state)


@pruners
def test_a_state_loaded_after_the_masks_are_off_writes_nothing(row) -> None:
    row = replace(row, keys={**row.keys, "leave_enabled": False})
    modifier, model, optimizer = start(row)
    drive(modifier, model, optimizer, 16)
    other, fresh, _ = start(row)
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(modifier.state_dict())
    assert same(model, fresh)


@pruners
def test_one_shot(row) -> None:
    model = make_model()
    modifier = row.cls(**row.keys)
    modifier.apply(model, **row.extras)
    assert count_zeros(model) == row.final * 384
    assert (model.head.weight != 0).all() and (model.embedding.weight != 0).all()


@pytest.mark.parametrize(
    "row", [row for row in PRUNERS if "init_sparsity" in row.keys], ids=name_of
)
def test_reloaded_zeros_are_taken_up(row) -> None:
    sparse, model = make_model(), make_model(1)
    row.cls(**row.keys).apply(sparse, **row.extras)
    model.load_state_dict(sparse.state_dict())
    keys = {**row.keys, "init_sparsity": "__FROM_PARAM__"}
    modifier = row.cls(**keys)
    modifier.initialize(model, **row.extras)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modifier.scheduled_update(model, optimizer, row.keys["start_epoch"], STEPS)
    for name, mask in zip(ENCODER, modifier.module_masks.param_masks, strict=True):
        assert torch.equal(mask, sparse.get_parameter(name) != 0)
        assert torch.equal(model.get_parameter(name), sparse.get_parameter(name))


@pruners
def test_leave_enabled_false_lets_weights_grow_back(row) -> None:
    modifier, model, optimizer = start(
        replace(row, keys={**row.keys, "leave_enabled": False})
    )
    drive(modifier, model, optimizer, 16)
    assert count_zeros(model) < row.final * 384


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own
@pruners
def test_wrapped_models_have_the_same_names(row) -> None:
    class Wrapper(torch.nn.parallel.DataParallel):
        pass

    modifier = row.cls(**row.keys)
    assert modifier.resolve_targets(Wrapper(make_model())) == ENCODER
    assert modifier.resolve_targets(torch.compile(make_model())) == ENCODER
