"""ConstantMasksModifier: what is zero stays zero, and nothing else is touched."""

import pytest
import torch
from torch import nn

from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.modifiers import ConstantMasksModifier
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from tests.modifiers.table import ENCODER, make_batch, make_model, sample_loss

STEPS = 4
RECIPE = "modifiers:\n  - !EpochRangeModifier\n      start_epoch: 0.0\n"
RECIPE += "      end_epoch: 3.0\n  - !ConstantMasksModifier\n"
RECIPE += "      params: __ALL_ENCODER__\n"


def half_pruned(seed: int = 0) -> nn.Module:
    model = make_model(seed)
    with torch.no_grad():
        for name in ENCODER:
            flat = model.get_parameter(name).view(-1)
            flat[flat.abs().argsort()[::2]] = 0.0
    return model


def zeros(model: nn.Module) -> list[torch.Tensor]:
    return [model.get_parameter(name) == 0 for name in ENCODER]


def drive(manager, model, optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, steps):
        where = (model, optimizer, step / STEPS, STEPS)
        sample_loss(model, make_batch(step)).mean().backward()
        manager.update(*where)
        manager.pre_step(*where)
        optimizer.step()
        manager.post_step(*where)
        optimizer.zero_grad()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("more", ["", "quantized"])
def test_zeros_stay_and_the_rest_learns(more) -> None:
    qat = (
        "  - !QATModifier\n      start_epoch: 1.0\n      disable_observer_epoch: 2.0\n"
    )
    manager = RecipeManager.from_recipe(RECIPE + (qat if more else ""))
    model = half_pruned()
    before, start = zeros(model), model.get_parameter(ENCODER[0]).detach().clone()
    manager.initialize(model)
    drive(manager, model, adamw(model), 3 * STEPS)
    assert manager.sparsity() == 0.5
    manager.finalize(model)
    assert all(torch.equal(a, b) for a, b in zip(before, zeros(model), strict=True))
    assert torch.equal(model.get_parameter(ENCODER[0]) != start, ~before[0])
    assert bool(quantizers_of(model)) is bool(more)


def test_masks_are_taken_when_it_starts_and_let_go_when_it_ends() -> None:
    text = RECIPE + "      start_epoch: 1.0\n      end_epoch: 2.0\n"
    with pytest.raises(
        RecipeError, match="end_epoch=2 lets go of the masks.*write end_epoch: -1"
    ):
        RecipeManager.from_recipe(text)  # the training goes on
    text = text.replace("end_epoch: 3.0", "end_epoch: 2.0")
    manager, model = RecipeManager.from_recipe(text), half_pruned()
    manager.initialize(model)
    optimizer = adamw(model)
    drive(manager, model, optimizer, STEPS)
    assert not any(mask.any() for mask in zeros(model))  # grown before it starts
    with torch.no_grad():
        model.get_parameter(ENCODER[1])[0] = 0.0
    drive(manager, model, optimizer, 2 * STEPS, STEPS)
    held = zeros(model)
    assert held[1][0].all() and sum(int(mask.sum()) for mask in held) == 12
    drive(manager, model, optimizer, 2 * STEPS + 2, 2 * STEPS)
    assert not any(mask.any() for mask in zeros(model))


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    def start():
        manager, model = RecipeManager.from_recipe(RECIPE), half_pruned()
        manager.initialize(model)
        return manager, model, adamw(model)

    whole = start()
    drive(*whole, 3 * STEPS)
    first, again = start(), start()
    drive(*first, 5)
    again[1].load_state_dict(first[1].state_dict())
    again[2].load_state_dict(first[2].state_dict())
    again[0].load_state_dict(first[0].state_dict())
    drive(*again, 3 * STEPS, 5)
    for name, values in whole[1].state_dict().items():
        assert torch.equal(values, again[1].state_dict()[name])


def test_one_shot_changes_nothing_and_wrong_keys_are_errors() -> None:
    model = half_pruned()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ConstantMasksModifier().apply(model)
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name])
    with pytest.raises(ValueError, match="matches no parameter"):
        ConstantMasksModifier(["decoder"]).initialize(model)
    with pytest.raises(RuntimeError, match="uninitialized modifier"):
        ConstantMasksModifier().load_state_dict({})
    modifier = ConstantMasksModifier()
    modifier.initialize(model)
    with pytest.raises(IndexError, match="state has other parameters"):
        modifier.load_state_dict({"head.weight": torch.ones(1)})
