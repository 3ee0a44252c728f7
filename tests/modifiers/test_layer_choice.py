"""Layers chosen by the loss without the others, against brute force."""

import itertools
import math

import pytest
import torch
from torch import nn

from obert_modifiers.core.layer_drop import measure_layers
from obert_modifiers.modifiers import LayerDropModifier
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import TrainConfig, train
from tests.training.toy import make_task


class Stack(nn.Module):
    """Layers that add to a sum, the one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(count))
        self.head = nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + self.scale * torch.tanh(layer(hidden))
        return {"logits": self.head(hidden.mean(dim=1))}


def problem(count: int, seed: int):
    torch.manual_seed(seed)
    model = Stack(count)
    tokens, labels = torch.randint(0, 11, (30, 5)), torch.randint(0, 2, (30,))

    @torch.no_grad()
    def loss(trial: nn.Module) -> float:
        logits = trial(tokens)["logits"]
        return float(nn.functional.cross_entropy(logits, labels))

    return model, loss


def by_hand(model: Stack, loss, kept) -> float:
    """The loss of a model that is built of some of the layers."""
    other = Stack(len(kept))
    own = dict(model.state_dict())
    state = {k: v for k, v in own.items() if not k.startswith("layers.")}
    for place, index in enumerate(kept):
        for name in ("weight", "bias"):
            state[f"layers.{place}.{name}"] = own[f"layers.{index}.{name}"]
    other.load_state_dict(state)
    return loss(other)


def greedy(model, keep, loss) -> tuple[int, ...]:
    kept = tuple(range(len(model.layers)))
    while len(kept) > keep:
        subsets = itertools.combinations(kept, len(kept) - 1)
        kept = min(subsets, key=lambda one: by_hand(model, loss, one))
    return kept


def highest(model, keep, loss) -> tuple[int, ...]:
    """Planted: the layer goes whose absence hurts most."""
    return measure_layers(model, keep, lambda trial: -loss(trial))


def test_one_layer_goes_as_by_brute_force_and_more_one_by_one() -> None:
    wrong = 0
    for seed in range(6):
        model, loss = problem(5, seed)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        one = measure_layers(model, 4, loss)
        subsets = itertools.combinations(range(5), 4)
        assert one == min(subsets, key=lambda kept: by_hand(model, loss, kept))
        assert measure_layers(model, 2, loss) == greedy(model, 2, loss)
        wrong += highest(model, 2, loss) != greedy(model, 2, loss)
        assert len(model.layers) == 5
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    assert wrong == 6


def test_ties_and_losses_that_are_no_numbers() -> None:
    model, _ = problem(4, 0)
    assert measure_layers(model, 2, lambda trial: 1.0) == (2, 3)
    losses = iter([math.nan, math.nan, 0.5, math.nan])
    assert measure_layers(model, 3, lambda trial: next(losses)) == (0, 1, 3)


def test_a_run_measures_on_its_own_samples(tmp_path) -> None:
    text = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}\n"
    text += "  - !LayerDropModifier {keep: 2, choice: measured}\n"
    model, _ = problem(4, 3)
    task = make_task()
    batch = task.collate(list(task.train))

    @torch.no_grad()
    def loss(trial) -> float:
        return float(task.sample_loss(trial(batch["tokens"]), batch).mean())

    expected = greedy(model, 2, loss)
    manager = RecipeManager.from_recipe(text)
    train(model, task, TrainConfig(tmp_path, cpu=True), manager)
    (drop,) = (one for one in manager.modifiers if isinstance(one, LayerDropModifier))
    assert drop.kept == expected != (0, 3) and len(model.layers) == 2
    with pytest.raises(ValueError, match="choice=measured has no samples"):
        RecipeManager.from_recipe(text).apply_structure(problem(4, 3)[0])
