"""Models from nothing but their configuration, to count in and to time."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from obert_modifiers.core.positions import usable_length
from obert_modifiers.recipe.counts import Timing, estimate_recipe, second_order
from obert_modifiers.recipe.load import LoadedRecipe


def shape_model(folder: Path) -> nn.Module:
    """Build a model on torch's meta device, from the configuration in its folder."""
    with torch.device("meta"):
        return _build(AutoConfig.from_pretrained(folder))


def time_recipe(recipe: LoadedRecipe, folder: Path, tokens: int) -> list[Timing]:
    """Estimate the time of a recipe's second-order events on this machine.

    A model with random weights is made from the folder's configuration, on a GPU where
    there is one, and a few random samples (of as many tokens as the model takes, at
    most) and weights are timed.
    """
    if not any(second_order(placed.modifier) for placed in recipe.placed):
        return []
    config = AutoConfig.from_pretrained(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build(config).to(device).eval()
    tokens = min(tokens, usable_length(model) or tokens)
    generator = torch.Generator().manual_seed(0)

    def batch_of(size: int) -> dict[str, Tensor]:
        words = (size, tokens)
        ids = torch.randint(config.vocab_size, words, generator=generator)
        mask = torch.ones_like(ids)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def losses(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        # Any loss takes the same time: a sum of the outputs stands for the task's.
        found = [v for v in network(**batch).values() if isinstance(v, Tensor)]
        return sum(one.float().square().flatten(1).mean(1) for one in found)

    return estimate_recipe(recipe, model, batch_of, losses, tokens)


def _build(config: Any) -> nn.Module:
    named = (getattr(config, "architectures", None) or [""])[0]
    cls = getattr(transformers, named, None)
    if cls is None:
        return AutoModelForSequenceClassification.from_config(config)
    return cls(config)
