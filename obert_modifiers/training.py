"""The training loop on ``accelerate``: it alone owns the step rule of a recipe."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from obert_modifiers.batches import (
    EpochBatches,
    TaskData,
    check_sampling_options,
    gradient_source,
    inputs_of,
    lengths_of,
    sorted_batches,
)
from obert_modifiers.core.pruning_step import PruneReport
from obert_modifiers.manager import RecipeManager

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        output_dir: Folder of ``metrics.jsonl``.
        num_train_epochs: Epochs where the recipe does not say.
        learning_rate: Highest rate where the recipe does not set it.
        weight_decay: Of AdamW; not on biases and normalisation weights.
        per_device_train_batch_size: Samples of a micro-batch of one process.
        per_device_eval_batch_size: The same for evaluation.
        gradient_accumulation_steps: Micro-batches of an optimizer step.
        max_grad_norm: Norm to which gradients are clipped; 0 turns it off.
        warmup_ratio: Share of the steps in which the rate rises from 0.
        lr_scheduler_type: linear, cosine or constant.
        mixed_precision: no, bf16 or fp16.
        seed: Seed of the order of samples and of the draws of gradient samples.
        logging_steps: Optimizer steps from one record to the next.
        group_by_length: True puts samples of similar length into a batch.
        eval_each_epoch: True evaluates after every epoch, not only at the end.
        cpu: True stays on the CPU.
    """

    output_dir: Path
    num_train_epochs: float = 3.0
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.0
    lr_scheduler_type: str = "linear"
    mixed_precision: str = "no"
    seed: int = 42
    logging_steps: int = 10
    group_by_length: bool = True
    eval_each_epoch: bool = True
    cpu: bool = False


@dataclass(frozen=True)
class TrainResult:
    """What a training run ended with.

    Attributes:
        metrics: Figures of the last evaluation by name.
        events: Every pruning event.
        steps: Optimizer steps that were made.
        seconds: Wall-clock time.
        sparsity: Fraction of pruned weights over all pruned parameters.
    """

    metrics: dict[str, float]
    events: list[PruneReport]
    steps: int
    seconds: float
    sparsity: float


class Reporter(Protocol):
    """Somebody who shows a run while it goes on."""

    def start(self, total_steps: int) -> None:
        """Learn how many optimizer steps there will be."""

    def step(self, record: dict[str, Any]) -> None:
        """See step, epoch, loss, learning_rate and sparsity."""

    def prune(self, record: dict[str, Any]) -> None:
        """See a pruning event."""

    def eval(self, record: dict[str, Any]) -> None:
        """See the figures of an evaluation."""

    def message(self, text: str) -> None:
        """See one line."""

    def close(self) -> None:
        """Learn that the run is over, also when it failed."""


class RecipeStepper:
    """The step rule: a recipe advances once for each real optimizer step.

    Pruning happens before the optimizer steps, on gradients that are complete; a step
    that the optimizer skips (an overflow in fp16) does not advance the recipe.
    """

    def __init__(
        self,
        manager: RecipeManager | None,
        model: nn.Module,
        optimizer: Any,
        steps_per_epoch: int,
    ) -> None:
        """Start at step 0.

        Args:
            manager: The recipe, initialized; None trains without one.
            model: The unwrapped model.
            optimizer: An optimizer; ``step_was_skipped`` is read where it exists.
            steps_per_epoch: Optimizer steps of an epoch.
        """
        self.steps = 0
        self.steps_per_epoch = steps_per_epoch
        self._manager = manager
        self._model = model
        self._optimizer = optimizer

    @property
    def epoch(self) -> float:
        """Progress in epochs of optimizer steps."""
        whole, rest = divmod(self.steps, self.steps_per_epoch)
        return whole + rest / self.steps_per_epoch

    def step(self) -> bool:
        """Make one optimizer step with everything the recipe wants around it.

        Returns:
            False if the optimizer skipped the step.
        """
        where = (self._model, self._optimizer, self.epoch, self.steps_per_epoch)
        if self._manager is not None:
            self._manager.update(*where)
            self._manager.pre_step(*where)
        self._optimizer.step()
        if self._manager is not None:
            self._manager.post_step(*where)
        if getattr(self._optimizer, "step_was_skipped", False):
            return False
        self.steps += 1
        return True


class _Journal:
    """Writes ``metrics.jsonl`` and passes records on, on the main process alone."""

    def __init__(self, folder: Path, reporter: Reporter | None, active: bool) -> None:
        self._reporter = reporter if active else None
        self._file = None
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "metrics.jsonl").open("w", encoding="utf-8")

    def start(self, total_steps: int) -> None:
        if self._reporter is not None:
            self._reporter.start(total_steps)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, **record}) + "\n")
            self._file.flush()
        if self._reporter is not None:
            value = record["text"] if kind == "message" else record
            getattr(self._reporter, kind)(value)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._reporter is not None:
            self._reporter.close()


def train(
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    manager: RecipeManager | None = None,
    teacher: nn.Module | str | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a model, with a recipe or without; changes the model in place.

    Works in one process or under ``accelerate launch`` and ``torchrun``. The caller
    seeds torch, as the model's head may have been drawn before.

    Args:
        model: The model.
        data: The task.
        config: How to train.
        manager: A checked recipe, or None.
        teacher: Model to distil from, ``"self"`` for the model as it is now.
        reporter: Somebody who shows the run, or None.

    Returns:
        Figures of the last evaluation, pruning events, steps, time and sparsity.

    Raises:
        ValueError: If recipe, data and teacher do not go together.
    """
    _check(model, data, config, manager, teacher)
    accelerator = _accelerator(config)
    journal = _Journal(Path(config.output_dir), reporter, accelerator.is_main_process)
    try:
        return _Run(model, data, config, manager, teacher, accelerator, journal).run()
    finally:
        journal.close()
        accelerator.free_memory()


def evaluate(model: nn.Module, data: TaskData, config: TrainConfig) -> dict[str, float]:
    """Evaluate a model on all validation samples.

    Args:
        model: The model; its train or eval mode comes back as it was.
        data: The task.
        config: Batch size, precision and device.

    Returns:
        ``loss`` (mean over samples), ``samples`` and the task's metrics, equal on all
        processes.
    """
    return _evaluate(model, data, config, _accelerator(config))


def _check(
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    manager: RecipeManager | None,
    teacher: nn.Module | str | None,
) -> None:
    if config.lr_scheduler_type not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler_type={config.lr_scheduler_type} is unknown; expected one of "
            f"{', '.join(SCHEDULES)}; use linear"
        )
    if manager is not None:
        manager.check_model(model)
        manager.check_data(len(data.train))
        manager.check_teacher(teacher)
        for modifier in manager.pruning:
            check_sampling_options(getattr(modifier, "grad_sampler_kwargs", None))


def _accelerator(config: TrainConfig) -> Accelerator:
    # accelerate keeps one precision per process; a second run may want another. The
    # process group stays.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )


class _Run:
    """One training run; holds what the loop's parts share."""

    def __init__(
        self,
        model: nn.Module,
        data: TaskData,
        config: TrainConfig,
        manager: RecipeManager | None,
        teacher: nn.Module | str | None,
        accelerator: Accelerator,
        journal: _Journal,
    ) -> None:
        self.data, self.config, self.manager = data, config, manager
        self.accelerator, self.journal = accelerator, journal
        self.raw_model = model
        forward = model.forward  # before prepare() wraps it for mixed precision
        self.sampler = EpochBatches(
            lengths_of(data.train),
            config.per_device_train_batch_size,
            seed=config.seed,
            by_length=config.group_by_length,
        )
        loader = DataLoader(
            data.train, batch_sampler=self.sampler, collate_fn=data.collate
        )
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            weight_decay=0.0,
        )
        self.model, self.optimizer, self.loader = accelerator.prepare(
            model, optimizer, loader
        )
        steps = math.ceil(len(self.loader) / config.gradient_accumulation_steps)
        self.stepper = RecipeStepper(manager, model, self.optimizer, steps)
        self.total_steps = self._count_steps(steps)
        self.scheduler = self._make_scheduler(optimizer)
        if isinstance(teacher, nn.Module):
            teacher.to(accelerator.device)
        if manager is not None:
            source = gradient_source(
                data, forward, accelerator.device, seed=config.seed
            )
            manager.initialize(model, gradient_source=source, teacher=teacher)

    def _count_steps(self, steps_per_epoch: int) -> int:
        epochs = self.config.num_train_epochs
        recipe = self.manager.max_epochs if self.manager is not None else None
        if recipe is not None:
            self._message(
                f"The recipe sets the number of epochs: {recipe:g} "
                f"(--num_train_epochs {epochs:g} is not used)."
            )
            epochs = recipe
        return max(1, round(epochs * steps_per_epoch))

    def _make_scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR | None:
        if self.manager is not None and self.manager.sets_learning_rate:
            self._message(
                "The recipe sets the learning rate "
                f"(--learning_rate {self.config.learning_rate:g} and "
                "--lr_scheduler_type are not used)."
            )
            return None
        return LambdaLR(optimizer, _rate_factor(self.config, self.total_steps))

    def _message(self, text: str) -> None:
        self.journal.write("message", {"text": text})

    def run(self) -> TrainResult:
        started = time.perf_counter()
        self.journal.start(self.total_steps)
        metrics, number = {}, 0
        while self.stepper.steps < self.total_steps:
            self.sampler.set_epoch(number)
            self._run_epoch()
            number += 1
            over = self.stepper.steps >= self.total_steps
            if len(self.data.validation) and (self.config.eval_each_epoch or over):
                metrics = self._evaluate()
        sparsity = self.manager.sparsity() if self.manager is not None else 0.0
        events = self.manager.events if self.manager is not None else []
        if self.manager is not None:
            self.manager.finalize(self.raw_model)
        return TrainResult(
            metrics, events, self.stepper.steps, time.perf_counter() - started, sparsity
        )

    def _run_epoch(self) -> None:
        self.model.train()
        losses: list[torch.Tensor] = []
        for batch in self.loader:
            if self.stepper.steps >= self.total_steps:
                # A partial last epoch: the loader has to hear that it is over.
                self.loader.end()
                break
            with self.accelerator.accumulate(self.model):
                losses.append(self._micro_batch(batch))
                if self.accelerator.sync_gradients and self._step():
                    losses = self._log(losses)

    def _micro_batch(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs = self.model(**inputs_of(batch))
        loss = self.data.sample_loss(outputs, batch).mean()
        if self.manager is not None:
            with self.accelerator.autocast():
                loss = self.manager.loss(
                    loss,
                    self.raw_model,
                    self.optimizer,
                    self.stepper.epoch,
                    self.stepper.steps_per_epoch,
                    student_outputs=outputs,
                    student_inputs=batch,
                )
        self.accelerator.backward(loss)
        return loss.detach()

    def _step(self) -> bool:
        if self.config.max_grad_norm > 0.0:
            self.accelerator.clip_grad_norm_(
                self.model.parameters(), self.config.max_grad_norm
            )
        seen = len(self.manager.events) if self.manager is not None else 0
        advanced = self.stepper.step()
        self.optimizer.zero_grad()
        for event in (self.manager.events if self.manager is not None else [])[seen:]:
            self.journal.write("prune", event.as_dict())
        if advanced and self.scheduler is not None:
            self.scheduler.step()
        return advanced

    def _log(self, losses: list[torch.Tensor]) -> list[torch.Tensor]:
        step = self.stepper.steps
        if step % self.config.logging_steps and step < self.total_steps:
            return losses
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        self.journal.write(
            "step",
            {
                "step": step,
                "epoch": self.stepper.epoch,
                "loss": float(loss),
                "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
                "sparsity": self.manager.sparsity() if self.manager else 0.0,
            },
        )
        return []

    def _evaluate(self) -> dict[str, float]:
        metrics = _evaluate(self.model, self.data, self.config, self.accelerator)
        where = {"step": self.stepper.steps, "epoch": self.stepper.epoch}
        self.journal.write("eval", {**where, **metrics})
        return metrics


@torch.no_grad()
def _evaluate(
    model: nn.Module, data: TaskData, config: TrainConfig, accelerator: Accelerator
) -> dict[str, float]:
    batches = sorted_batches(
        lengths_of(data.validation), config.per_device_eval_batch_size
    )
    own = batches[accelerator.process_index :: accelerator.num_processes]
    taken = sum(len(indices) for indices in own)
    was_training = model.training
    model.to(accelerator.device).eval()
    found = []
    # A process without a batch of its own still has to take part in gathering.
    for indices in own or batches[:1]:
        batch = data.collate([data.validation[i] for i in indices])
        batch = {name: values.to(accelerator.device) for name, values in batch.items()}
        with accelerator.autocast():
            outputs = model(**inputs_of(batch))
        losses = data.sample_loss(outputs, batch).double()
        found.append((outputs["logits"].float(), batch["labels"], losses))
    model.train(was_training)
    columns = [torch.cat(column)[:taken] for column in zip(*found, strict=True)]
    logits, labels, losses = (_gather_rows(column, accelerator) for column in columns)
    metrics = data.metrics(logits.cpu().numpy(), labels.cpu().numpy())
    return {**metrics, "loss": float(losses.mean()), "samples": len(labels)}


def _gather_rows(rows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Concatenate the rows of all processes, which may have different numbers.

    Returns:
        All rows, equal on all processes.
    """
    count = torch.tensor([len(rows)], device=rows.device)
    counts = accelerator.gather(count).tolist()
    padded = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))
    parts = padded.split(max(counts))
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    if weight_decay == 0.0:
        return [{"params": list(model.parameters())}]
    decayed, plain = [], []
    for param in model.parameters():
        # Biases and normalisation weights are vectors; decay is for matrices.
        (decayed if param.ndim > 1 else plain).append(param)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _rate_factor(config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    warmup = round(config.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        if config.lr_scheduler_type == "constant":
            return 1.0
        if config.lr_scheduler_type == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return max(0.0, 1.0 - progress)

    return factor
