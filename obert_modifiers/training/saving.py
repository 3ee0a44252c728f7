"""What of a run goes into a checkpoint, when it is saved, and how it comes back."""

import logging
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.parallel import (
    OtherProcessFailed,
    raise_on_all_ranks,
)
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.checkpoint import (
    WRITE_ERRORS,
    checkpoints_in,
    partial_of,
    read_state,
    remove_old,
    remove_unfinished,
    seal,
    write_state,
    write_text,
)
from obert_modifiers.training.draws import random_state
from obert_modifiers.training.run import Run

_LOGGER = logging.getLogger(__name__)

MODEL, OPTIMIZER, MODIFIERS, RUN = "model", "optimizer", "modifiers", "run"
RECIPE, JOURNAL = "recipe.yaml", "metrics.jsonl"


class Saver:
    """Saves one run."""

    def __init__(self, run: Run) -> None:
        self._run, self._config = run, run.config
        self._folder = Path(run.config.output_dir)
        self._main = run.accelerator.is_main_process
        if self._main:
            remove_unfinished(self._folder)

    def after_step(self) -> None:
        due = self._run.stepper.steps % self._config.save_steps == 0
        if self._config.save_strategy == "steps" and due:
            self.save()

    def after_epoch(self) -> None:
        if self._config.save_strategy == "epoch":
            self.save()

    def save(self) -> Path | None:
        """Write a checkpoint, on every process; None where that fails."""
        started, step = time.perf_counter(), self._run.stepper.steps
        partial = partial_of(self._folder, step)
        try:
            final = self._write(partial, step)
        except (*WRITE_ERRORS, OtherProcessFailed) as error:
            if self._main:
                shutil.rmtree(partial, ignore_errors=True)
                self._complain(step, error)
            return None
        if self._main:
            remove_old(self._folder, final, self._config.save_total_limit)
            _LOGGER.info("saved %s in %.1f s", final, time.perf_counter() - started)
        return final

    def _write(self, partial: Path, step: int) -> Path:
        run, device = self._run, self._run.accelerator.device
        with raise_on_all_ranks(device):
            if self._main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with raise_on_all_ranks(device):
            write_state(partial, _rank(run), _rank_state(run))
            if self._main:
                manager = run.manager
                write_state(partial, MODEL, run.model.state_dict())
                write_state(partial, OPTIMIZER, run.optimizer.state_dict())
                write_state(partial, MODIFIERS, manager.state_dict() if manager else {})
                write_state(partial, RUN, _run_state(run))
                write_text(partial / RECIPE, manager.text if manager else "")
                write_text(partial / JOURNAL, run.journal.text())
        with raise_on_all_ranks(device):
            return seal(partial, step) if self._main else partial.with_suffix("")

    def _complain(self, step: int, error: Exception) -> None:
        whole = checkpoints_in(self._folder)
        _LOGGER.warning(
            "the checkpoint of step %d could not be written: %s (%.0f MB are free in "
            "%s); %s; the training goes on",
            step,
            error,
            shutil.disk_usage(self._folder).free / 1e6,
            self._folder,
            f"the last one is {whole[0]}" if whole else "there is none before it",
        )


def _rank(run: Run) -> str:
    """Name this process's files, without their endings."""
    return f"rank-{run.accelerator.process_index}"


def _rank_state(run: Run) -> dict[str, Any]:
    """Collect what each process has for itself."""
    losses = run.progress.losses
    return {
        "random": random_state(run.accelerator.device),
        "losses": torch.stack(losses).cpu() if losses else None,
    }


def _run_state(run: Run) -> dict[str, Any]:
    progress = run.progress
    return {
        "step": run.stepper.steps,
        "epoch": progress.epoch,
        "micro_batch": progress.micro_batch,
        "metrics": progress.metrics,
        "seconds": progress.seconds(),
        "sparsity": run.sparsity(),
        "scheduler": _state_of(run.scheduler),
        "scaler": _state_of(run.accelerator.scaler),
        "trained": [p.requires_grad for p in run.model.parameters()],
        "settings": run.settings,
        "surroundings": _environment(),
    }


def _state_of(holder: Any) -> dict[str, Any] | None:
    if holder is None:
        return None
    # A schedule's functions are made anew; None stands for them.
    return {k: v for k, v in holder.state_dict().items() if k != "lr_lambdas"}


def _environment() -> dict[str, Any]:
    """Name what decides in which order sums are made, and so the last bits."""
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "machine": platform.machine(),
    }


def resume_(run: Run, folder: Path) -> dict[str, Any]:
    """Bring a run that has not begun to where a checkpoint was written.

    Nothing is changed, in memory or on disk, before everything is checked. Returns the
    state of the random numbers, which is to be set before the next batch.
    """
    state = read_state(folder, RUN)
    _check_settings(run.settings, state["settings"])
    if run.manager and run.scheduler is not None and state["scheduler"] is None:
        raise ValueError(
            "recipe sets no learning rate, and did so when the checkpoint was written; "
            "expected a modifier that sets it; put one back"
        )
    _check_same_model(run.model, read_state(folder, MODEL), folder)
    own = read_state(folder, _rank(run))
    _load_modifiers(run, folder, state)
    restore_(run, folder, state)
    before = (folder / RECIPE).read_text(encoding="utf-8")
    if run.manager is None or before == run.manager.text:
        # In an edited recipe the share may be of more weights.
        check_sparsity(run.manager, state["sparsity"])
    if own["losses"] is not None:
        losses = own["losses"].to(run.accelerator.device)
        run.progress.losses = list(losses.unbind())
    run.journal.open((folder / JOURNAL).read_text(encoding="utf-8"))
    if run.accelerator.is_main_process:
        _LOGGER.info("resuming from %s, after step %d", folder, state["step"])
        for name, now in _environment().items():
            before = state["surroundings"].get(name)  # the file's word for it
            if now != before:
                _LOGGER.warning(
                    "%s was %s and is %s: the run goes on, but its last bits may "
                    "differ from those of one that was not interrupted",
                    name,
                    before,
                    now,
                )
    return own["random"]


def _check_settings(settings: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, before in saved.items():
        now = settings.get(name)
        if now == before:
            continue
        if name == "lengths_of_samples":
            raise ValueError(
                "train data has samples of other lengths than the checkpoint's; "
                "expected the same data in the same order"
            )
        raise ValueError(
            f"{name}={now} was {before} when the checkpoint was written; expected the "
            "same; resume with the same value, or train anew"
        )


def _check_same_model(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    own = {name: tuple(v.shape) for name, v in model.state_dict().items()}
    saved = {name: tuple(v.shape) for name, v in state.items()}
    differ = sorted(set(own.items()) ^ set(saved.items()))
    if differ:
        name = differ[0][0]
        raise ValueError(
            f"resume_from_checkpoint={folder} is of another model: {name} has the "
            f"shape {saved.get(name, 'none')} there and {own.get(name, 'none')} here; "
            "expected the model that the run began with"
        )


def _load_modifiers(run: Run, folder: Path, state: dict[str, Any]) -> None:
    before = (folder / RECIPE).read_text(encoding="utf-8")
    if run.manager is not None:
        run.manager.load_changed_state_dict(
            read_state(folder, MODIFIERS),
            before,
            step=state["step"],
            steps_per_epoch=run.stepper.steps_per_epoch,
            allowed=run.config.recipe_changed == "allow",
        )
    elif before:
        raise ValueError(
            f"recipe is missing; expected that of {folder}; give --recipe "
            f"{folder / RECIPE}"
        )


@torch.no_grad()
def restore_(run: Run, folder: Path, state: dict[str, Any]) -> None:
    """Bring model, optimizer and counters back, after the recipe's modifiers."""
    # The modifiers may write weights, so these come after them.
    run.model.load_state_dict(read_state(folder, MODEL))
    parameters = run.model.parameters()
    for parameter, trained in zip(parameters, state["trained"], strict=True):
        parameter.requires_grad_(trained)
    run.optimizer.load_state_dict(read_state(folder, OPTIMIZER))
    if run.scheduler is not None:
        lambdas = run.scheduler.state_dict()["lr_lambdas"]
        run.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": lambdas})
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.stepper.steps = state["step"]
    progress = run.progress
    progress.epoch, progress.micro_batch = state["epoch"], state["micro_batch"]
    progress.metrics, progress.earlier = state["metrics"], state["seconds"]


def check_sparsity(manager: RecipeManager | None, before: float) -> None:
    """Check that no weight that was pruned has come back."""
    now = manager.sparsity() if manager is not None else 0.0
    if now < before:
        raise RuntimeError(
            f"sparsity={now:.4%} is lower than the checkpoint's {before:.4%}; expected "
            "the same masks; report this bug with the recipe"
        )
