"""A toy model that trains with a recipe, and what is read of its runs."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import RecipeStepper, TaskData, TrainConfig, train
from tests.modifiers.table import ENCODER, TinyModel, make_model

RECIPE = """
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: 3.0}}
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: 3.0
      lr_func: linear
      init_lr: 1e-2
      final_lr: 0.0
  - !{name}
      init_sparsity: 0.4
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 2.0
      update_frequency: 0.5
      {keys}
"""
OBERT = RECIPE.format(
    name="OBERTPruningModifier", keys="num_grads: 48\n      fisher_block_size: 12"
)
GMP = RECIPE.format(name="GMPStarPruningModifier", keys="global_sparsity: true")


def sample_loss(outputs, batch) -> Tensor:
    return cross_entropy(outputs["logits"], batch["labels"], reduction="none")


def accuracy(logits, labels) -> dict[str, float]:
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def make_task(train: int = 64, validation: int = 24) -> TaskData:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(0, 11, (train + validation, 5), generator=generator)
    samples = [
        {"input_ids": row.tolist(), "labels": int(row.sum() % 2)} for row in rows
    ]

    def collate(items):
        names = {"tokens": "input_ids", "labels": "labels"}
        return {k: torch.tensor([item[v] for item in items]) for k, v in names.items()}

    return TaskData(samples[:train], samples[train:], collate, sample_loss, accuracy)


def run(folder, recipe=None, task=None, dtype=torch.float64, **options):
    """Train for 24 steps of 8 samples; returns the model and the result."""
    model = make_model().to(dtype)
    torch.manual_seed(7)
    settings = {"per_device_train_batch_size": 8, "logging_steps": 1, "cpu": True}
    config = TrainConfig(Path(folder), **{**settings, **options})
    manager = RecipeManager.from_recipe(recipe) if recipe else None
    return model, train(model, task or make_task(), config, manager)


def steady(folder, **options) -> TrainConfig:
    """Settings of a run at a constant, high rate, 8 samples a step."""
    settings = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "cpu": True}
    return TrainConfig(folder, per_device_train_batch_size=8, **settings, **options)


def masks_of(model: TinyModel) -> Tensor:
    return torch.cat([(model.get_parameter(n) != 0).reshape(-1) for n in ENCODER])


def all_equal(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def records(folder: Path, kind: str | None = None) -> list[dict]:
    """Read a run's journal, of one kind or whole."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if kind in (None, r["kind"])]


def messages(folder: Path) -> list[str]:
    return [record["text"] for record in records(folder, "message")]


def digest(tensors: Iterable[Tensor]) -> str:
    """Hash the bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


@contextmanager
def each_step(
    around: Callable[[RecipeStepper, Callable[[], bool]], bool],
) -> Iterator[None]:
    """Make each optimizer step by `around`, which gets the stepper and the step."""
    original = RecipeStepper.step
    RecipeStepper.step = lambda self: around(self, lambda: original(self))
    try:
        yield
    finally:
        RecipeStepper.step = original
