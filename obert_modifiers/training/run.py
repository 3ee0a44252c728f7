"""What a training run consists of, and how it is put together."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from obert_modifiers.core.pruning.report import PruneReport
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import (
    EpochBatches,
    TaskData,
    WithTexts,
    gradient_source,
    lengths_of,
)
from obert_modifiers.training.checks import check_same_data
from obert_modifiers.training.config import TrainConfig
from obert_modifiers.training.draws import SeededCollate
from obert_modifiers.training.guards import CheckedSamples
from obert_modifiers.training.journal import Journal
from obert_modifiers.training.optimizer import parameter_groups, rate_factor
from obert_modifiers.training.stepper import RecipeStepper

# With another value of one of these a run is another run.
_FIXED = (
    "num_train_epochs",
    "learning_rate",
    "weight_decay",
    "dropout",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "warmup_ratio",
    "lr_scheduler_type",
    "mixed_precision",
    "tf32",
    "seed",
    "group_by_length",
)


@dataclass
class Progress:
    """Where a run is, beside its optimizer steps."""

    epoch: int = 0  # passes over the data that are complete, evaluated
    micro_batch: int = 0  # of this pass, that this process has trained on
    losses: list[Tensor] = field(default_factory=list)  # since the log's last record
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    earlier: float = 0.0  # wall-clock seconds of the runs before this one
    _started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self._started


@dataclass(eq=False)
class Run:
    """What a training run consists of."""

    model: nn.Module  # not wrapped
    data: TaskData
    config: TrainConfig
    manager: RecipeManager | None
    teacher: nn.Module | str | None
    accelerator: Accelerator
    journal: Journal
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        config, accelerator = self.config, self.accelerator
        self.lengths = lengths_of(self.data.train)
        check_same_data(self.lengths, accelerator.device)
        forward = self.model.forward  # before prepare() wraps it for mixed precision
        # A scaler of fp16 cannot tell whether a fused step passed itself over.
        fused = accelerator.device.type == "cpu" and accelerator.scaler is None
        groups = parameter_groups(self.model, config.weight_decay)
        optimizer = AdamW(groups, lr=config.learning_rate, fused=fused or None)
        self.wrapped, self.optimizer, self.loader = accelerator.prepare(
            self.model, optimizer, self._make_loader()
        )
        steps = math.ceil(len(self.loader) / config.gradient_accumulation_steps)
        if self.manager is not None:
            self.manager.check_steps(steps)
        self.stepper = RecipeStepper(self.manager, self.model, self.optimizer, steps)
        self.total_steps = max(1, round(self._epochs() * steps))
        factor = rate_factor(config, self.total_steps)
        by_recipe = self._recipe_sets_rate()
        self.scheduler = None if by_recipe else LambdaLR(optimizer, factor)
        self._attach_recipe(forward)

    def _make_loader(self) -> DataLoader:
        config, accelerator = self.config, self.accelerator
        self.sampler = EpochBatches(
            self.lengths,
            config.per_device_train_batch_size,
            seed=config.seed,
            by_length=config.group_by_length,
            short_last=accelerator.num_processes > 1,
        )
        collate, texts = self.data.collate, self.data.texts
        if texts is not None:
            collate = WithTexts(collate, texts, self.data.texts_share)
        rank = accelerator.process_index
        self.collate = SeededCollate(collate, config.seed, rank)
        samples = CheckedSamples(self.data.train)
        return DataLoader(samples, batch_sampler=self.sampler, collate_fn=self.collate)

    def _epochs(self) -> float:
        epochs = self.config.num_train_epochs
        recipe = self.manager.max_epochs if self.manager is not None else None
        if recipe is None:
            return epochs
        self.message(
            f"The recipe sets the number of epochs: {recipe:g} "
            f"(--num_train_epochs {epochs:g} is not used)."
        )
        return recipe

    def _recipe_sets_rate(self) -> bool:
        if self.manager is None or not self.manager.sets_learning_rate:
            return False
        self.message(
            "The recipe sets the learning rate "
            f"(--learning_rate {self.config.learning_rate:g} and "
            "--lr_scheduler_type are not used)."
        )
        return True

    def _attach_recipe(self, forward: Callable[..., Any]) -> None:
        device, teacher = self.accelerator.device, self.teacher
        if isinstance(teacher, nn.Module):
            teacher.to(device)
        if self.manager is None:
            return
        source = gradient_source(
            self.data,
            forward,
            device,
            seed=self.config.seed,
            batch_size=self.config.per_device_train_batch_size,
        )
        self.manager.initialize(self.model, gradient_source=source, teacher=teacher)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What has to be the same when the run is resumed."""
        texts = self.data.texts
        told = "" if texts is None else f"{lengths_of(texts)} {self.data.texts_share}"
        return {
            **{name: getattr(self.config, name) for name in _FIXED},
            "processes": self.accelerator.num_processes,
            "train_samples": len(self.lengths),
            "lengths_of_samples": _digest(repr(list(self.lengths))),
            "texts_without_labels": _digest(told) if told else "",
        }

    def events(self) -> list[PruneReport]:
        return self.manager.events if self.manager is not None else []

    def sparsity(self) -> float:
        return self.manager.sparsity() if self.manager is not None else 0.0

    def message(self, text: str) -> None:
        self.journal.write("message", {"text": text})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
