"""The training loop on ``accelerate``."""

import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
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
)
from obert_modifiers.manager import RecipeManager
from obert_modifiers.training.config import SCHEDULES, TrainConfig, TrainResult
from obert_modifiers.training.evaluation import evaluate_with, make_accelerator
from obert_modifiers.training.journal import Journal, Reporter
from obert_modifiers.training.optimizer import parameter_groups, rate_factor
from obert_modifiers.training.stepper import RecipeStepper


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
    _check(data, config, manager, teacher)
    if manager is not None:
        # The optimizer and the parallel wrapper must not know dropped layers.
        manager.apply_structure(model, teacher=teacher)
        manager.check_model(model)
    accelerator = make_accelerator(config)
    journal = Journal(Path(config.output_dir), reporter, accelerator.is_main_process)
    try:
        return _Run(model, data, config, manager, teacher, accelerator, journal).run()
    finally:
        journal.close()
        accelerator.free_memory()


def _check(
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
        manager.check_data(len(data.train))
        manager.check_teacher(teacher)
        if manager.early_stopping is not None:
            _check_evaluations(data, config)
        for modifier in manager.pruning:
            check_sampling_options(getattr(modifier, "grad_sampler_kwargs", None))


def _check_evaluations(data: TaskData, config: TrainConfig) -> None:
    if not (config.eval_each_epoch and len(data.validation)):
        raise ValueError(
            f"eval_each_epoch={config.eval_each_epoch} with {len(data.validation)} "
            "validation samples leaves EarlyStoppingModifier nothing to go by; "
            "expected an evaluation after each epoch; give --do_eval and "
            "--eval_strategy epoch, or remove the modifier"
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
        journal: Journal,
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
            parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            weight_decay=0.0,
        )
        self.model, self.optimizer, self.loader = accelerator.prepare(
            model, optimizer, loader
        )
        steps = math.ceil(len(self.loader) / config.gradient_accumulation_steps)
        if manager is not None:
            manager.check_steps(steps)
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
        return LambdaLR(optimizer, rate_factor(self.config, self.total_steps))

    def _message(self, text: str) -> None:
        self.journal.write("message", {"text": text})

    def run(self) -> TrainResult:
        started = time.perf_counter()
        self.journal.start(self.total_steps)
        metrics, number = {}, 0
        while self.stepper.steps < self.total_steps:
            self.sampler.set_epoch(number)
            if self.data.start_epoch is not None:
                self.data.start_epoch(number)
            self._run_epoch()
            number += 1
            over = self.stepper.steps >= self.total_steps
            if len(self.data.validation) and (self.config.eval_each_epoch or over):
                metrics = self._evaluate()
                if self._ends_early(metrics):
                    break
        if self.manager is not None and self.manager.restore_best(self.raw_model):
            metrics = self._evaluate()
        sparsity = self.manager.sparsity() if self.manager is not None else 0.0
        events = self.manager.events if self.manager is not None else []
        if self.manager is not None:
            self.manager.finalize(self.raw_model)
        return TrainResult(
            metrics, events, self.stepper.steps, time.perf_counter() - started, sparsity
        )

    def _ends_early(self, metrics: dict[str, float]) -> bool:
        if self.manager is None:
            return False
        epoch = self.stepper.epoch
        if not self.manager.evaluated(self.raw_model, metrics, epoch):
            return False
        stopper = self.manager.early_stopping
        self._message(
            f"The training ends at epoch {epoch:g}: {stopper.metric} was best "
            f"({stopper.best:.4f}) at epoch {stopper.best_epoch:g}."
        )
        return True

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
        metrics = evaluate_with(self.model, self.data, self.config, self.accelerator)
        where = {"step": self.stepper.steps, "epoch": self.stepper.epoch}
        figures = {"headline": list(self.data.headline)}
        self.journal.write("eval", {**where, **metrics, **figures})
        return metrics
