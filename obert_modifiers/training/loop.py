"""The training loop on ``accelerate``."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import skip_first_batches
from torch import nn

from obert_modifiers.core.attention import plain_attention
from obert_modifiers.core.distributed.parallel import all_reduce_count
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import Batch, TaskData, inputs_of, mean_loss
from obert_modifiers.training.checkpoint import find_whole
from obert_modifiers.training.checks import check_run
from obert_modifiers.training.config import TrainConfig, TrainResult
from obert_modifiers.training.draws import set_random_state_
from obert_modifiers.training.environment import (
    StopRequest,
    TrainingStopped,
    check_not_sharded,
    check_tf32,
    dropout_of,
    listening,
    products_in_tf32,
    translate_lost_rank_errors,
)
from obert_modifiers.training.evaluation import (
    calibration_loss,
    evaluate,
    make_accelerator,
)
from obert_modifiers.training.guards import FiniteGuard
from obert_modifiers.training.journal import Journal, Reporter, Trackers, trackers_of
from obert_modifiers.training.run import Run
from obert_modifiers.training.saving import Saver, resume_

_ASK_EVERY = 8  # steps after which several processes ask each other for a SIGTERM


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
    ``teacher="self"`` distils from the model as it is now.

    Raises:
        ValueError: If recipe, data and teacher do not go together, the checkpoint is
            of another run, the parameters are sharded (FSDP, DeepSpeed), or the device
            has no TF32 and it is asked for.
        TrainingStopped: After SIGTERM, once everything is saved.
    """
    check_run(model, data, config, manager, teacher)
    folder = Path(config.output_dir)
    checkpoint = find_whole(config.resume_from_checkpoint, folder)
    accelerator = make_accelerator(config)
    if manager is not None:
        # The optimizer and the parallel wrapper must not know dropped layers.
        manager.apply_structure(
            model,
            teacher=teacher,
            loss=partial(
                calibration_loss, data=data, seed=config.seed, device=accelerator.device
            ),
        )
        manager.check_model(model)
    check_not_sharded(accelerator, model)
    if config.tf32:
        check_tf32(accelerator.device)
    trackers = Trackers(folder, trackers_of(config.report_to), asdict(config))
    journal = Journal(folder, reporter, trackers, accelerator.is_main_process)
    if not checkpoint:
        journal.open()
    try:
        run = _Run(model, data, config, manager, teacher, accelerator, journal)
        listens = config.save_on_sigterm and (manager is None or manager.can_be_saved)
        precision = products_in_tf32(config.tf32)
        dropout = dropout_of(model, config.dropout)
        with listening(listens) as request, translate_lost_rank_errors(), precision:
            with dropout:
                return run.run(checkpoint, request)
    finally:
        journal.close()
        accelerator.free_memory()


class _Run(Run):
    """A run that goes its way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.guard = FiniteGuard(self.accelerator, self.message)
        self.saver = Saver(self)
        self.random: dict[str, Any] | None = None  # to be set before the next batch
        # Backward, torch's fused kernel takes 3 times as long as the products.
        bf16 = self.config.mixed_precision == "bf16"
        self.slow_attention = bf16 and self.accelerator.device.type == "cpu"

    def run(self, checkpoint: Path | None, request: StopRequest) -> TrainResult:
        self.request = request
        if checkpoint is not None:
            self.random = resume_(self, checkpoint)
        progress = self.progress
        self.journal.start(self.total_steps)
        while not self._is_over():
            if self.data.start_epoch is not None:
                self.data.start_epoch(progress.epoch)
            self._run_epoch()
            due = self.config.eval_each_epoch or self._all_steps_made()
            if len(self.data.validation) and due:
                progress.metrics = self._evaluate()
                self._say_if_over(progress.metrics)
            progress.epoch, progress.micro_batch = progress.epoch + 1, 0
            self.saver.after_epoch()
        self._restore_random()  # of a run that was resumed after its last batch
        if self.manager is not None and self.manager.restore_best(self.model):
            progress.metrics = self._evaluate()
        sparsity, events = self.sparsity(), self.events()
        if self.manager is not None:
            self.manager.finalize(self.model)
        return TrainResult(
            progress.metrics, events, self.stepper.steps, progress.seconds(), sparsity
        )

    def _is_over(self) -> bool:
        if self.progress.micro_batch:  # a run that was resumed within an epoch
            return False
        stopper = self.manager.early_stopping if self.manager is not None else None
        early = stopper is not None and stopper.stopped
        return early or self._all_steps_made()

    def _all_steps_made(self) -> bool:
        return self.stepper.steps >= self.total_steps

    def _say_if_over(self, metrics: dict[str, float]) -> None:
        """Tell the recipe the figures, and the log if they end the training."""
        manager, epoch = self.manager, self.stepper.epoch
        if manager is not None and manager.evaluated(self.model, metrics, epoch):
            stopper = manager.early_stopping
            best = "was never a number"
            if stopper.best is not None:
                best = f"was best ({stopper.best:.4f}) at epoch {stopper.best_epoch:g}"
            self.message(
                f"The training ends at epoch {epoch:g}: {stopper.metric} {best}."
            )

    def _run_epoch(self) -> None:
        self.wrapped.train()
        for batch in self._batches():
            self.progress.micro_batch += 1
            with self.accelerator.accumulate(self.wrapped):
                # Backward passes that compute layers again need the same attention.
                plain = self.slow_attention
                with plain_attention(self.model) if plain else nullcontext():
                    self.progress.losses.append(self._micro_batch(batch))
                if self.accelerator.sync_gradients and self._step():
                    self._log()
                    self.saver.after_step()
                    self._leave_if_asked()

    def _batches(self) -> Iterator[Batch]:
        number, done = self.progress.epoch, self.progress.micro_batch
        self.loader.set_epoch(number)
        self.sampler.set_epoch(number)
        self.collate.epoch, self.collate.number = number, done
        over = done >= len(self.loader) or self._all_steps_made()
        if over or not done:
            self._restore_random()
        if over:
            return
        loader = skip_first_batches(self.loader, done) if done else self.loader
        # accelerate counts micro-batches to know when an optimizer step is due.
        self.accelerator.step = done
        for batch in loader:
            # To fetch the first batch of an epoch draws a number.
            self._restore_random()
            if self._all_steps_made():
                # A partial last epoch: the loader has to hear that it is over.
                loader.end()
                break
            yield batch
        self._restore_random()  # where accelerate had no batch left

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
        received, device = int(self.request.received), self.accelerator.device
        if not all_reduce_count(received, device):
            return
        saved = self.saver.save()
        if saved is None:
            raise OSError(
                f"SIGTERM came and step {self.stepper.steps} could not be saved; "
                "expected room and permission; resume from the checkpoint before with "
                "--resume_from_checkpoint last"
            )
        raise TrainingStopped(saved)

    def _micro_batch(self, batch: Batch) -> torch.Tensor:
        outputs = self.wrapped(**inputs_of(batch))
        loss = mean_loss(self.data.sample_loss(outputs, batch), batch)
        if self.manager is not None:
            with self.accelerator.autocast():
                loss = self.manager.loss(
                    loss,
                    self.model,
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
                self.wrapped.parameters(), self.config.max_grad_norm
            )
        usable = self.guard.usable(norm, self.model)
        seen = len(self.events())
        advanced = self.stepper.step() if usable else self.stepper.pass_over()
        self.optimizer.zero_grad()
        for event in self.events()[seen:]:
            self.journal.write("prune", event.as_dict())
        step = self.stepper.steps + (not advanced)
        where = f"step {step}, learning_rate={self._rate():g}"
        self.guard.count(usable, advanced, self.progress.losses[-1], where)
        if advanced and self.scheduler is not None:
            self.scheduler.step()
        return advanced

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _log(self) -> None:
        step, losses = self.stepper.steps, self.progress.losses
        if step % self.config.logging_steps and step < self.total_steps:
            return
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        record = {"step": step, "epoch": self.stepper.epoch, "loss": float(loss)}
        record |= {"learning_rate": self._rate(), "sparsity": self.sparsity()}
        self.journal.write("step", record)
        losses.clear()

    def _evaluate(self) -> dict[str, float]:
        with self.manager.averaged(self.model) if self.manager else nullcontext():
            metrics = evaluate(self.wrapped, self.data, self.config, self.accelerator)
        record = {"step": self.stepper.steps, "epoch": self.stepper.epoch, **metrics}
        self.journal.write("eval", record | {"headline": list(self.data.headline)})
        return metrics
