"""Constant masks, ours and SparseML's: what is zero stays zero."""

import pytest
import torch

from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.modifiers import ConstantMasksModifier
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from tests.modifiers.driving import (
    STEPS,
    adamw,
    copied,
    count_zeros,
    half_pruned,
    same,
    train,
    zeros,
)
from tests.modifiers.table import ENCODER, make_model

RECIPE = """\
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 3.0}
"""
MASKS = {
    "ours": "  - !ConstantMasksModifier\n      params: __ALL_ENCODER__\n",
    "SparseML's": "  - !ConstantPruningModifier\n      params: ['re:layers.*weight']\n"
    "      start_epoch: 0.0\n",
}
QAT = "  - !QATModifier {start_epoch: 1.0, disable_observer_epoch: 2.0}\n"
each = pytest.mark.parametrize("whose", MASKS)


def started(text: str, seed: int = 0):
    manager, model = RecipeManager.from_recipe(text), half_pruned(seed)
    manager.initialize(model)
    return manager, model, adamw(model)


def equal(before: list[torch.Tensor], model: torch.nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(before, zeros(model), strict=True))


@each
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "quantized"])
def test_zeros_stay_and_the_rest_learns(whose, quantized) -> None:
    manager, model, optimizer = started(
        RECIPE + MASKS[whose] + (QAT if quantized else "")
    )
    before, begin = zeros(model), copied(model)[ENCODER[0]]
    train(manager, model, optimizer, 3 * STEPS)
    assert manager.sparsity() == 0.5
    manager.finalize(model)
    assert equal(before, model)
    assert torch.equal(model.get_parameter(ENCODER[0]) != begin, ~before[0])
    assert bool(quantizers_of(model)) is quantized
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_without_constant_masks_the_zeros_grow_back() -> None:
    manager, model, optimizer = started(RECIPE)
    train(manager, model, optimizer, STEPS)
    assert not count_zeros(model)  # the negative control


def test_masks_are_taken_when_it_starts_and_let_go_when_it_ends() -> None:
    text = RECIPE + MASKS["ours"] + "      start_epoch: 1.0\n      end_epoch: 2.0\n"
    said = "end_epoch=2 lets go of the masks.*write end_epoch: -1"
    with pytest.raises(RecipeError, match=said):
        RecipeManager.from_recipe(text)  # the training goes on
    run = _, model, _ = started(text.replace("end_epoch: 3.0", "end_epoch: 2.0"))
    train(*run, STEPS)
    assert not count_zeros(model)  # grown before it starts
    with torch.no_grad():
        model.get_parameter(ENCODER[1])[0] = 0.0
    train(*run, 2 * STEPS, STEPS)
    assert zeros(model)[1][0].all() and count_zeros(model) == 12
    train(*run, 2 * STEPS + 2, 2 * STEPS)
    assert not count_zeros(model)


@each
def test_a_resumed_run_ends_with_the_same_bits(whose) -> None:
    text = RECIPE + MASKS[whose]
    whole, first, again = started(text), started(text), started(text, 1)
    before = zeros(whole[1])
    train(*whole, 3 * STEPS)
    train(*first, 5)
    for place in (1, 2, 0):
        again[place].load_state_dict(first[place].state_dict())
    train(*again, 3 * STEPS, 5)
    assert same(whole[1], again[1]) and equal(before, again[1])


def test_one_shot_changes_nothing_and_wrong_keys_are_errors() -> None:
    model = half_pruned()
    before = copied(model)
    ConstantMasksModifier().apply(model)
    assert same(model, before)
    with pytest.raises(ValueError, match="matches no parameter"):
        ConstantMasksModifier(["decoder"]).initialize(model)
    with pytest.raises(RuntimeError, match="uninitialized modifier"):
        ConstantMasksModifier().load_state_dict({})
    modifier = ConstantMasksModifier()
    modifier.initialize(make_model())
    with pytest.raises(IndexError, match="state has other parameters"):
        modifier.load_state_dict({"head.weight": torch.ones(1)})
