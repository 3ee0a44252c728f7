"""What of a run goes into a checkpoint, and how it comes back."""

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import TaskData, lengths_of
from obert_modifiers.training.checkpoint import read_state
from obert_modifiers.training.config import TrainConfig
from obert_modifiers.training.draws import random_state
from obert_modifiers.training.stepper import RecipeStepper

MODEL, OPTIMIZER, MODIFIERS, RUN = "model", "optimizer", "modifiers", "run"
RECIPE, JOURNAL = "recipe.yaml", "metrics.jsonl"
# With another value of one of these a run is another run.
_FIXED = (
    "num_train_epochs",
    "learning_rate",
    "weight_decay",
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
        """Return the wall-clock seconds of the run so far."""
        return self.earlier + time.perf_counter() - self._started


@dataclass(frozen=True)
class Parts:
    """What a run consists of."""

    model: nn.Module  # not wrapped
    optimizer: Any  # as accelerate prepared it
    scheduler: Any  # of the learning rate, where the recipe does not set it
    accelerator: Accelerator
    manager: RecipeManager | None
    stepper: RecipeStepper
    progress: Progress
    settings: dict[str, Any]  # from `settings_of`

    @property
    def recipe(self) -> str:
        """Text of the recipe; empty without one."""
        return self.manager.text if self.manager is not None else ""

    @property
    def rank(self) -> str:
        """Name of this process's files, without their endings."""
        return f"rank-{self.accelerator.process_index}"


def settings_of(
    config: TrainConfig, data: TaskData, accelerator: Accelerator
) -> dict[str, Any]:
    """Collect what has to be the same when a run is resumed."""
    lengths = lengths_of(data.train)
    return {
        **{name: getattr(config, name) for name in _FIXED},
        "processes": accelerator.num_processes,
        "train_samples": len(lengths),
        "lengths_of_samples": hashlib.sha256(repr(list(lengths)).encode()).hexdigest(),
    }


def shared_parts(parts: Parts) -> dict[str, Callable[[], Any]]:
    """Return what gives the states that all processes share, by name of their files."""
    manager = parts.manager
    return {
        MODEL: parts.model.state_dict,
        OPTIMIZER: parts.optimizer.state_dict,
        MODIFIERS: lambda: {} if manager is None else manager.state_dict(),
        RUN: lambda: _run_state(parts),
    }


def _run_state(parts: Parts) -> dict[str, Any]:
    progress = parts.progress
    return {
        "step": parts.stepper.steps,
        "epoch": progress.epoch,
        "micro_batch": progress.micro_batch,
        "metrics": progress.metrics,
        "seconds": progress.seconds(),
        "sparsity": parts.manager.sparsity() if parts.manager is not None else 0.0,
        "scheduler": _state_of(parts.scheduler),
        "scaler": _state_of(parts.accelerator.scaler),
        "trained": [p.requires_grad for p in parts.model.parameters()],
        "settings": parts.settings,
        "surroundings": environment(),
    }


def _state_of(holder: Any) -> dict[str, Any] | None:
    if holder is None:
        return None
    # A schedule's functions are made anew; None stands for them.
    return {k: v for k, v in holder.state_dict().items() if k != "lr_lambdas"}


def environment() -> dict[str, Any]:
    """Name what decides in which order sums are made, and so the last bits."""
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "machine": platform.machine(),
    }


def rank_state(parts: Parts) -> dict[str, Any]:
    """Collect what each process has for itself."""
    losses = parts.progress.losses
    return {
        "random": random_state(parts.accelerator.device),
        "losses": torch.stack(losses).cpu() if losses else None,
    }


def check_same_model(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Check that a model has the parameters of a checkpoint, before it is changed."""
    own = {name: tuple(v.shape) for name, v in model.state_dict().items()}
    saved = {name: tuple(v.shape) for name, v in state.items()}
    differ = sorted(set(own.items()) ^ set(saved.items()))
    if differ:
        name = differ[0][0]
        raise ValueError(
            f"resume_from_checkpoint={folder} is of another model: {name} has the "
            f"shape {saved.get(name, 'none')} there and {own.get(name, 'none')} here; "
            "expected the model that the run began with; give the same flags"
        )


def check_settings(settings: dict[str, Any], saved: dict[str, Any]) -> None:
    """Check that a run is resumed with the settings it began with."""
    for name, before in saved.items():
        now = settings.get(name)
        if now == before:
            continue
        if name == "lengths_of_samples":
            raise ValueError(
                "train data has samples of other lengths than when the checkpoint was "
                "written; expected the same data in the same order; give the same flags"
            )
        raise ValueError(
            f"{name}={now} was {before} when the checkpoint was written; expected the "
            "same; resume with the same value, or train anew"
        )


@torch.no_grad()
def restore_(parts: Parts, folder: Path, run: dict[str, Any]) -> None:
    """Bring model, optimizer and counters back, after the recipe's modifiers."""
    # The modifiers may write weights, so these come after them.
    parts.model.load_state_dict(read_state(folder, MODEL))
    parameters = parts.model.parameters()
    for parameter, trained in zip(parameters, run["trained"], strict=True):
        parameter.requires_grad_(trained)
    parts.optimizer.load_state_dict(read_state(folder, OPTIMIZER))
    if parts.scheduler is not None:
        lambdas = parts.scheduler.state_dict()["lr_lambdas"]
        parts.scheduler.load_state_dict({**run["scheduler"], "lr_lambdas": lambdas})
    if parts.accelerator.scaler is not None and run["scaler"] is not None:
        parts.accelerator.scaler.load_state_dict(run["scaler"])
    parts.stepper.steps = run["step"]
    progress = parts.progress
    progress.epoch, progress.micro_batch = run["epoch"], run["micro_batch"]
    progress.metrics, progress.earlier = run["metrics"], run["seconds"]
