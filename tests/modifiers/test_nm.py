"""N:M pruning: exact at every step, along the input, by either score."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from obert_modifiers.modifiers import (
    GMPStarPruningModifier,
    NMPruningModifier,
    OBERTPruningModifier,
)
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe_text.problems import RecipeError
from tests.modifiers.table import ENCODER, make_model, make_source

BY_N = {"start_epoch": 1.0, "end_epoch": 3.0, "gradual": "by_n"}
OBS = {"score": "obs", "num_grads": 24, "fisher_block_size": 24}


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is input x output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values @ self.weight


def per_group(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Count what is kept of each group along the input of an (out, in) weight."""
    return (weight.detach().unfold(1, size, size) != 0).sum(dim=-1)


def steps(modifier, model, epochs, **extras):
    """Yield after each event; the weights move in between."""
    modifier.initialize(model, **extras)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in epochs:
        if modifier.update_ready(epoch, 4):
            modifier.scheduled_update(model, optimizer, epoch, 4)
        yield epoch
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        modifier.optimizer_post_step(model, optimizer, epoch, 4)


@pytest.mark.parametrize("score", [{}, OBS], ids=["magnitude", "obs"])
@pytest.mark.parametrize(
    ("mask_type", "kept"),
    [
        ("2:4", {0.75: 4, 1.0: 3, 2.0: 3, 2.75: 3, 3.0: 2, 4.0: 2}),
        ("1:4", {0.75: 4, 1.0: 3, 1.75: 3, 2.0: 2, 2.75: 2, 3.0: 1, 4.0: 1}),
        ("3:4", {0.75: 4, 1.0: 3, 3.0: 3}),
    ],
)
def test_by_n_is_exact_at_every_step(score, mask_type, kept) -> None:
    model = make_model()
    modifier = NMPruningModifier(mask_type=mask_type, **BY_N, **score)
    seen = set()
    for epoch in steps(
        modifier, model, [i / 4 for i in range(17)], gradient_source=make_source()
    ):
        if epoch in kept:
            seen.add(epoch)
            for name in ENCODER:
                found = per_group(model.get_parameter(name), 4)
                assert (found == kept[epoch]).all(), (epoch, name)
    assert seen == set(kept)
    for one, two in itertools.pairwise(modifier.events):
        assert one.sparsity_after == two.sparsity_before < two.sparsity_after


@pytest.mark.parametrize("gradual", ["by_n", "by_fraction"])
def test_the_start_of_the_training_is_epoch_0(gradual) -> None:
    keys = {"mask_type": "1:4", "end_epoch": 2.0, "gradual": gradual}
    keys |= {"update_frequency": 0.5} if gradual == "by_fraction" else {}
    one, other = (NMPruningModifier(start_epoch=at, **keys) for at in (-1.0, 0.0))
    assert one.update_frequency == other.update_frequency
    for epoch in (0.0, 0.5, 1.0, 1.5, 2.0):
        found = []
        for modifier in (one, other):
            modifier.initialize(make_model())
            found.append(modifier.sparsities_at(epoch))
            modifier.finalize()
        assert found[0] == found[1]


def test_by_n_of_a_transposed_weight_is_along_its_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(8, 6))
    modifier = NMPruningModifier(params=["0.weight"], **BY_N)
    wanted = {1.0: 3, 3.0: 2}
    for epoch in steps(modifier, model, wanted):
        weight = model[0].weight
        assert (per_group(weight.T, 4) == wanted[epoch]).all()
        # Control: along the stored rows it is no pattern.
        assert len(per_group(weight[:, :4], 4).unique()) > 1
    with pytest.raises(ValueError, match="does not divide the 6 input columns"):
        modifier = NMPruningModifier(start_epoch=0.0, params=["0.weight"])
        modifier.initialize(nn.Sequential(Conv1D(6, 8)))


def test_by_fraction_brings_as_many_groups_in_at_each_event() -> None:
    model = make_model()
    modifier = NMPruningModifier(
        start_epoch=1.0, end_epoch=3.0, update_frequency=0.5, gradual="by_fraction"
    )
    shares = []
    for _ in steps(modifier, model, [1.0, 1.5, 2.0, 2.5, 3.0]):
        groups = torch.cat([
            per_group(model.get_parameter(n), 4).flatten() for n in ENCODER
        ])
        assert set(groups.tolist()) <= {2, 4}
        shares.append(float((groups == 2).float().mean()))
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.6, 0.8, 1.0], atol=0.03)
    assert shares[-1] == 1.0


def test_by_magnitude_the_largest_of_each_group_stay() -> None:
    """By brute force over every group, and with the rule turned round as control."""
    model, dense = make_model(), make_model()
    NMPruningModifier(start_epoch=0.0, mask_type="1:4").apply(model)
    for name in ENCODER:
        before = dense.get_parameter(name).detach().reshape(-1, 4)
        after = model.get_parameter(name).detach().reshape(-1, 4)
        for old, new in zip(before, after, strict=True):
            best = max(range(4), key=lambda i: abs(old[i]))
            worst = min(range(4), key=lambda i: abs(old[i]))
            assert new[best] == old[best] and (new != 0).sum() == 1
            assert new[worst] == 0


@pytest.mark.parametrize("selection", ["independent", "greedy"])
def test_it_is_the_engine_of_the_other_modifiers(selection) -> None:
    """One-shot, the masks and weights are those of the modifiers it is a preset of."""
    shared = {"num_grads": 24, "fisher_block_size": 24, "selection": selection}
    span = {"start_epoch": 0.0, "end_epoch": 0.0, "update_frequency": 1.0}
    other = {**span, "init_sparsity": 0.5, "final_sparsity": 0.5, "mask_type": "2:4"}
    for preset, full in (
        ({}, GMPStarPruningModifier(**other)),
        ({"score": "obs", **shared}, OBERTPruningModifier(**other, **shared)),
    ):
        ours, theirs = make_model(), make_model()
        NMPruningModifier(start_epoch=0.0, **preset).apply(
            ours, gradient_source=make_source()
        )
        full.apply(theirs, gradient_source=make_source())
        for name in ENCODER:
            assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name))


def test_zeros_of_a_loaded_model_stay_where_they_are() -> None:
    sparse, model = make_model(), make_model(1)
    NMPruningModifier(start_epoch=0.0).apply(sparse)
    model.load_state_dict(sparse.state_dict())
    NMPruningModifier(start_epoch=0.0).apply(model)
    for name in ENCODER:
        assert torch.equal(model.get_parameter(name), sparse.get_parameter(name))


RECIPE = """\
modifiers:
  - !NMPruningModifier
      mask_type: 2:4
      start_epoch: 0.0
      end_epoch: 1.0
      gradual: by_n
      score: obs
      num_grads: 2000
      fisher_block_size: 32
"""


def test_recipes_check_it() -> None:
    manager = RecipeManager.from_recipe(RECIPE)
    (modifier,) = manager.modifiers
    assert modifier.mask_type == "2:4"
    assert modifier.props(only_serializable=True)["update"] == "joint"
    with pytest.raises(RecipeError, match="num_grads=2000 is more than the 100 train"):
        manager.check_data(100)
    RecipeManager.from_recipe(
        RECIPE.replace(
            "score: obs\n      num_grads: 2000\n", "score: magnitude\n"
        ).replace("      fisher_block_size: 32\n", "")
    ).check_data(1)
    with pytest.raises(RecipeError, match="fisher_block_size=50 is not a multiple"):
        RecipeManager.from_recipe(RECIPE.replace("32", "50"))
    with pytest.raises(RecipeError, match="inter_func is not a key of NMPruning"):
        RecipeManager.from_recipe(RECIPE.replace("gradual:", "inter_func:"))
