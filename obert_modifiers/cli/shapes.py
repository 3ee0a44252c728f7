"""Models from their configuration alone, to count in and to time."""

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
    """Build a model without weights, from the configuration in its folder alone.

    Args:
        folder: A model in Hugging Face's format; ``config.json`` is read.

    Returns:
        The model on torch's meta device, of the class that the configuration names.

    Raises:
        FileNotFoundError: If there is no configuration.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"model={folder} has no config.json; expected the folder of a model; check "
            "the path"
        )
    with torch.device("meta"):
        return _build(AutoConfig.from_pretrained(folder))


def time_recipe(recipe: LoadedRecipe, folder: Path, tokens: int) -> list[Timing]:
    """Estimate the time of a recipe's second-order events on this machine.

    A model with random weights is made, on a GPU where there is one, and a few random
    samples and weights are timed.

    Args:
        recipe: A checked recipe.
        folder: A model in Hugging Face's format; ``config.json`` is read.
        tokens: Tokens of a sample; as many as the model takes, at most.

    Returns:
        An estimate for each second-order modifier; of the others none is needed.
    """
    if not any(second_order(one.modifier) for one in recipe.placed):
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
