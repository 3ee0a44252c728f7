"""Run every modifier of the table and write down the bits after each step."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import TrainConfig, train
from tests.modifiers.driving import name_of
from tests.modifiers.table import PRUNERS, TABLE, Row, make_model
from tests.training.toy import digest, each_step, make_task

# 30 samples in batches of 4 are 8, of which the last has 2: with two processes the
# last pair is uneven.
SAMPLES, BATCH, EPOCHS, STEPS = 30, 4, 4, 16
HEAD = """
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: {epochs}.0}}
  - !{name} {keys}
"""


# Masks that are let go of while training goes on are refused when a recipe is loaded.
TO_THE_END = {"ConstantMasksModifier": {"end_epoch": -1.0}}


class Enough(Exception):
    """The first step is over."""


def masks_of(manager: RecipeManager) -> list[Tensor]:
    """Return all masks of a recipe's modifiers."""
    return [m for one in manager.pruning for m in one.module_masks.param_masks]


def run(row: Row, folder: Path, watch, compiler=None, **keys) -> None:
    """Train the tiny model with one modifier; `watch` sees each step."""
    name = row.cls.__name__
    keys = {**row.keys, **TO_THE_END.get(name, {}), **keys}
    text = HEAD.format(epochs=EPOCHS, name=name, keys=json.dumps(keys))
    manager = RecipeManager.from_recipe(text)
    torch.manual_seed(0)
    model = make_model()
    teacher = "self" if manager.distillation and not manager.teacher else None

    def watched(stepper, step) -> bool:
        advanced = step()
        watch(model, manager)
        return advanced

    config = TrainConfig(
        folder,
        learning_rate=1e-2,
        per_device_train_batch_size=BATCH,
        cpu=True,
        report_to="none",
        torch_compile=compiler,
    )
    with each_step(watched), suppress(Enough):
        train(model, make_task(SAMPLES), config, manager, teacher)


def every_step(row: Row, folder: Path, compiler: str | None = None) -> list[str]:
    """Return the hash of parameters, buffers and masks after each step."""
    found: list[str] = []

    def watch(model: nn.Module, manager: RecipeManager) -> None:
        found.append(digest([*model.state_dict().values(), *masks_of(manager)]))

    run(row, folder, watch, compiler)
    return found


def first_masks(row: Row, folder: Path) -> str:
    """Return the hash of the masks of an event on the weights as they are made."""
    found: list[str] = []

    def watch(model: nn.Module, manager: RecipeManager) -> None:
        masks = masks_of(manager)
        assert not all(mask.all() for mask in masks)
        found.append(digest(masks))
        raise Enough

    run(row, folder, watch, start_epoch=0.0)
    return found[0]


def main(folder: Path, part: str = "") -> None:
    """Run the table as one of several processes, or one row `planted` or `compiled`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    if part == "planted" and rank == 1:
        _prune_one_more()
    compiler = "eager" if part == "compiled" else None
    rows = TABLE[5:6] if part else TABLE
    steps = {name_of(row): every_step(row, folder / "run", compiler) for row in rows}
    pruners = [] if part else PRUNERS
    first = {name_of(row): first_masks(row, folder / "run") for row in pruners}
    if compiler:
        # One graph to train and one to evaluate, however many events there are.
        assert counters["stats"]["unique_graphs"] == 2
    (folder / f"rank{rank}.json").write_text(json.dumps([steps, first]))
    torch.distributed.destroy_process_group()


def _prune_one_more() -> None:
    """Plant a fault: this process alone prunes another weight at each event."""
    from obert_modifiers.modifiers._masks import ParameterMasks

    original = ParameterMasks.apply

    def apply(self: ParameterMasks) -> None:
        self.param_masks[0][0, 0] = False
        original(self)

    ParameterMasks.apply = apply  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
