"""The state of a recipe's modifiers in a checkpoint of SparseML's trainer."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from obert_modifiers.host.state import cannot_be_saved, load_state, state_of

STATE_FILE = "recipe_state.pt"
_LOGGER = logging.getLogger(__name__)


def write_state(manager: Any, folder: Path) -> None:
    """Write the state of a recipe's modifiers into a checkpoint's folder."""
    modifiers = list(manager.iter_modifiers())
    unknown = cannot_be_saved(modifiers)
    if unknown:
        _LOGGER.warning("no state is saved of %s", ", ".join(unknown))
    states = [None if cannot_be_saved([one]) else state_of(one) for one in modifiers]
    torch.save({"recipe": str(manager), "states": states}, folder / STATE_FILE)


def go_on(trainer: Any, checkpoint: Path) -> None:
    """Let a trainer's recipe go on where a checkpoint was written."""
    text = (checkpoint / "trainer_state.json").read_text(encoding="utf-8")
    step, per_epoch = json.loads(text)["global_step"], trainer.manager_steps_per_epoch
    wrapped = getattr(trainer.optimizer, "_wrapper", None)
    if wrapped is None:
        wrapped = trainer.scaler
    wrapped._wrapped_steps, wrapped._wrapped_epoch = step, step / per_epoch
    file = checkpoint / STATE_FILE
    if not file.is_file():
        _LOGGER.warning("%s is missing: the masks are made anew", file)
        return
    saved = torch.load(file, map_location="cpu", weights_only=True)
    modifiers = list(trainer.manager.iter_modifiers())
    if len(saved["states"]) != len(modifiers):
        raise ValueError(
            f"resume_from_checkpoint={checkpoint} has the state of "
            f"{len(saved['states'])} modifiers, the recipe {len(modifiers)}; expected "
            "the same recipe; resume with the one that it was saved with"
        )
    for modifier, state in zip(modifiers, saved["states"], strict=True):
        if state is not None:
            load_state(modifier, state)
