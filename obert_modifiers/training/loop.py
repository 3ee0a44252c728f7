"""The training loop on ``accelerate``."""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from obert_modifiers.core.distributed.parallel import all_reduce_count
from obert_modifiers.core.pruning.report import PruneReport
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import (
    EpochBatches,
    TaskData,
    gradient_source,
    inputs_of,
    lengths_of,
)
from obert_modifiers.training.checkpoint import find_whole
from obert_modifiers.training.checks import check_run, check_same_data
from obert_modifiers.training.config import TrainConfig, TrainResult
from obert_modifiers.training.draws import SeededCollate, set_random_state_
from obert_modifiers.training.environment import (
    StopRequest,
    TrainingStopped,
    check_not_sharded,
    check_tf32,
    listening,
    products_in_tf32,
    translate_lost_rank_errors,
)
from obert_modifiers.training.evaluation import evaluate_with, make_accelerator
from obert_modifiers.training.guards import FiniteGuard, Samples
from obert_modifiers.training.journal import Journal, Reporter
from obert_modifiers.training.optimizer import make_optimizer, rate_factor
from obert_modifiers.training.saving import Saver, resume_
from obert_modifiers.training.snapshot import Parts, Progress, settings_of
from obert_modifiers.training.stepper import RecipeStepper
from obert_modifiers.training.trackers import Trackers, trackers_of

_ASK_EVERY = 8  # steps after which several processes ask each other for a SIGTERM
_LOGGER = logging.getLogger(__name__)


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
    seeds torch, as the model's head may have been drawn before. To resume a run, pass
    what was passed when it began, and ``resume_from_checkpoint`` in the config.

    Args:
        model: The model.
        data: The task.
        config: How to train.
        manager: A checked recipe, or None.
        teacher: Model to distil from, ``"self"`` for the model as it is now.
        reporter: Callback that displays progress, or None.

    Returns:
        Figures of the last evaluation, pruning events, steps, time and sparsity.

    Raises:
        ValueError: If recipe, data and teacher do not go together, the checkpoint is
            of another run, the parameters are sharded (FSDP, DeepSpeed), or the device
            has no TF32 and it is asked for.
        TrainingStopped: After SIGTERM, once everything is saved.
    """  # noqa: DOC502  raised by what is called
    check_run(model, data, config, manager, teacher)
    checkpoint = _find_checkpoint(config)
    if manager is not None:
        # The optimizer and the parallel wrapper must not know dropped layers.
        manager.apply_structure(model, teacher=teacher)
        manager.check_model(model)
    accelerator = make_accelerator(config)
    check_not_sharded(accelerator, model)
    if config.tf32:
        check_tf32(accelerator.device)
    folder, main = Path(config.output_dir), accelerator.is_main_process
    trackers = Trackers(folder, trackers_of(config.report_to), asdict(config))
    journal = Journal(folder, reporter, main, trackers)
    if not checkpoint:
        journal.open()
    try:
        run = _Run(model, data, config, manager, teacher, accelerator, journal)
        listens = config.save_on_sigterm and (manager is None or manager.can_be_saved)
        precision = products_in_tf32(config.tf32)
        with listening(listens) as request, translate_lost_rank_errors(), precision:
            return run.run(checkpoint, request)
    finally:
        journal.close()
        accelerator.free_memory()


def _find_checkpoint(config: TrainConfig) -> Path | None:
    if config.resume_from_checkpoint is None:
        return None
    checkpoint = find_whole(config.resume_from_checkpoint, Path(config.output_dir))
    if checkpoint is None:
        _LOGGER.info("no checkpoint in %s yet: starting anew", config.output_dir)
    return checkpoint


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
        loader = self._make_loader()
        fused = accelerator.device.type == "cpu" and accelerator.scaler is None
        optimizer = make_optimizer(model, config, fused)
        self.model, self.optimizer, self.loader = accelerator.prepare(
            model, optimizer, loader
        )
        steps = math.ceil(len(self.loader) / config.gradient_accumulation_steps)
        if manager is not None:
            manager.check_steps(steps)
        self.stepper = RecipeStepper(manager, model, self.optimizer, steps)
        self.total_steps = self._count_steps(steps)
        self.scheduler = self._make_scheduler(optimizer)
        self._attach_recipe(forward, teacher)
        self.guard = FiniteGuard(accelerator, self._message)
        self.progress = Progress()
        self.parts = Parts(
            model,
            self.optimizer,
            self.scheduler,
            accelerator,
            manager,
            self.stepper,
            self.progress,
            settings_of(config, data, accelerator),
        )
        self.saver = Saver(config, self.parts, journal)
        self.random: dict[str, Any] | None = None  # to be set before the next batch

    def _make_loader(self) -> DataLoader:
        data, config, accelerator = self.data, self.config, self.accelerator
        lengths = lengths_of(data.train)
        check_same_data(lengths, accelerator.device)
        self.sampler = EpochBatches(
            lengths,
            config.per_device_train_batch_size,
            seed=config.seed,
            by_length=config.group_by_length,
            short_last=accelerator.num_processes > 1,
        )
        rank = accelerator.process_index
        self.collate = SeededCollate(data.collate, config.seed, rank)
        return DataLoader(
            Samples(data.train), batch_sampler=self.sampler, collate_fn=self.collate
        )

    def _attach_recipe(self, forward: Any, teacher: nn.Module | str | None) -> None:
        if isinstance(teacher, nn.Module):
            teacher.to(self.accelerator.device)
        if self.manager is None:
            return
        source = gradient_source(
            self.data,
            forward,
            self.accelerator.device,
            seed=self.config.seed,
            batch_size=self.config.per_device_train_batch_size,
        )
        model = self.raw_model
        self.manager.initialize(model, gradient_source=source, teacher=teacher)

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

    def _events(self) -> list[PruneReport]:
        return self.manager.events if self.manager is not None else []

    def _sparsity(self) -> float:
        return self.manager.sparsity() if self.manager is not None else 0.0

    def _message(self, text: str) -> None:
        self.journal.write("message", {"text": text})

    def run(self, checkpoint: Path | None, request: StopRequest) -> TrainResult:
        self.request = request
        if checkpoint is not None:
            self.random = resume_(self.config, self.parts, self.journal, checkpoint)
        progress = self.progress
        self.journal.start(self.total_steps)
        while not self._is_over():
            if self.data.start_epoch is not None:
                self.data.start_epoch(progress.epoch)
            self._run_epoch()
            over = self.stepper.steps >= self.total_steps
            if len(self.data.validation) and (self.config.eval_each_epoch or over):
                progress.metrics = self._evaluate()
                self._say_if_over(progress.metrics)
            progress.epoch, progress.micro_batch = progress.epoch + 1, 0
            self.saver.after_epoch()
        self._restore_random()  # of a run that was resumed after its last batch
        if self.manager is not None and self.manager.restore_best(self.raw_model):
            progress.metrics = self._evaluate()
        sparsity, events = self._sparsity(), self._events()
        if self.manager is not None:
            self.manager.finalize(self.raw_model)
        return TrainResult(
            progress.metrics, events, self.stepper.steps, progress.seconds(), sparsity
        )

    def _is_over(self) -> bool:
        if self.progress.micro_batch:  # a run that was resumed within an epoch
            return False
        stopper = self.manager.early_stopping if self.manager is not None else None
        early = stopper is not None and stopper.stopped
        return early or self.stepper.steps >= self.total_steps

    def _say_if_over(self, metrics: dict[str, float]) -> None:
        """Tell the recipe the figures, and the log if they end the training."""
        if self.manager is None:
            return
        epoch = self.stepper.epoch
        if not self.manager.evaluated(self.raw_model, metrics, epoch):
            return
        stopper = self.manager.early_stopping
        self._message(
            f"The training ends at epoch {epoch:g}: {stopper.metric} was best "
            f"({stopper.best:.4f}) at epoch {stopper.best_epoch:g}."
        )

    def _run_epoch(self) -> None:
        self.model.train()
        for batch in self._batches():
            self.progress.micro_batch += 1
            with self.accelerator.accumulate(self.model):
                self.progress.losses.append(self._micro_batch(batch))
                if self.accelerator.sync_gradients and self._step():
                    self._log()
                    self.saver.after_step()
                    self._leave_if_asked()
        self.progress.losses = []

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        number, done = self.progress.epoch, self.progress.micro_batch
        self.loader.set_epoch(number)
        self.sampler.set_epoch(number)
        self.collate.epoch, self.collate.number = number, done
        if done >= len(self.loader) or self.stepper.steps >= self.total_steps:
            self._restore_random()
            return
        loader = skip_first_batches(self.loader, done) if done else self.loader
        # accelerate counts micro-batches to know when an optimizer step is due.
        self.accelerator.step = done
        if not done:
            self._restore_random()
        for batch in loader:
            # To fetch the first batch of an epoch draws a number.
            self._restore_random()
            if self.stepper.steps >= self.total_steps:
                # A partial last epoch: the loader has to hear that it is over.
                loader.end()
                break
            yield batch
        # Where accelerate had no batch left.
        self._restore_random()

    def _restore_random(self) -> None:
        if self.random is not None:
            set_random_state_(self.random, self.accelerator.device)
            self.random = None

    def _leave_if_asked(self) -> None:
        """End the run after a SIGTERM, on all processes after the same step."""
        single = self.accelerator.num_processes == 1
        due = single or self.stepper.steps % _ASK_EVERY == 0
        if not (self.request.active and due):
            return
        if not all_reduce_count(int(self.request.received), self.accelerator.device):
            return
        saved = self.saver.save()
        if saved is None:
            raise OSError(
                f"SIGTERM came and step {self.stepper.steps} could not be saved; "
                "expected room and permission for a checkpoint; resume from the one "
                "before with --resume_from_checkpoint last"
            )
        raise TrainingStopped(saved)

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
        norm = None
        if self.config.max_grad_norm > 0.0:
            norm = self.accelerator.clip_grad_norm_(
                self.model.parameters(), self.config.max_grad_norm
            )
        usable = self.guard.usable(norm, self.raw_model)
        seen = len(self._events())
        advanced = self.stepper.step() if usable else self.stepper.pass_over()
        self.optimizer.zero_grad()
        for event in self._events()[seen:]:
            self.journal.write("prune", event.as_dict())
        rate = float(self.optimizer.param_groups[0]["lr"])
        where = f"step {self.stepper.steps + (not advanced)}, learning_rate={rate:g}"
        self.guard.count(usable, advanced, self.progress.losses[-1], where)
        if advanced and self.scheduler is not None:
            self.scheduler.step()
        return advanced

    def _log(self) -> None:
        step, losses = self.stepper.steps, self.progress.losses
        if step % self.config.logging_steps and step < self.total_steps:
            return
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        self.journal.write(
            "step",
            {
                "step": step,
                "epoch": self.stepper.epoch,
                "loss": float(loss),
                "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
                "sparsity": self._sparsity(),
            },
        )
        losses.clear()

    def _evaluate(self) -> dict[str, float]:
        metrics = evaluate_with(self.model, self.data, self.config, self.accelerator)
        where = {"step": self.stepper.steps, "epoch": self.stepper.epoch}
        figures = {"headline": list(self.data.headline)}
        self.journal.write("eval", {**where, **metrics, **figures})
        return metrics
