"""When a run saves itself, and how it goes on from what was saved."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from obert_modifiers.core.distributed.parallel import OtherProcessFailed, together
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
from obert_modifiers.training.config import TrainConfig
from obert_modifiers.training.journal import Journal
from obert_modifiers.training.snapshot import (
    JOURNAL,
    MODEL,
    MODIFIERS,
    RECIPE,
    RUN,
    Parts,
    check_same_model,
    check_settings,
    environment,
    rank_state,
    restore_,
    shared_parts,
)

_LOGGER = logging.getLogger(__name__)


class Saver:
    """Saves one run."""

    def __init__(self, config: TrainConfig, parts: Parts, journal: Journal) -> None:
        self._config, self._parts, self._journal = config, parts, journal
        self._folder = Path(config.output_dir)
        if parts.accelerator.is_main_process:
            remove_unfinished(self._folder)

    def after_step(self) -> None:
        """Save if a checkpoint is due after an optimizer step."""
        due = self._parts.stepper.steps % self._config.save_steps == 0
        if self._config.save_strategy == "steps" and due:
            self.save()

    def after_epoch(self) -> None:
        """Save if a checkpoint is due after an epoch."""
        if self._config.save_strategy == "epoch":
            self.save()

    def save(self) -> Path | None:
        """Write a checkpoint; every process has to call it.

        Where that fails, the run goes on and the checkpoints before stay as they are.
        """
        started = time.perf_counter()
        step, main = self._parts.stepper.steps, self._parts.accelerator.is_main_process
        partial = partial_of(self._folder, step)
        try:
            final = self._write(partial, step, main)
        except (*WRITE_ERRORS, OtherProcessFailed) as error:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                self._complain(step, error)
            return None
        if main:
            remove_old(self._folder, final, self._config.save_total_limit)
            _LOGGER.info("saved %s in %.1f s", final, time.perf_counter() - started)
        return final

    def _write(self, partial: Path, step: int, main: bool) -> Path:
        device = self._parts.accelerator.device
        with together(device):
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with together(device):
            write_state(partial, self._parts.rank, rank_state(self._parts))
            if main:
                for name, state in shared_parts(self._parts).items():
                    write_state(partial, name, state())
                write_text(partial / RECIPE, self._parts.recipe)
                write_text(partial / JOURNAL, self._journal.text())
        with together(device):
            final = seal(partial, step) if main else partial.with_suffix("")
        return final

    def _complain(self, step: int, error: Exception) -> None:
        whole = checkpoints_in(self._folder)
        before = f"the last one is {whole[0]}" if whole else "there is none before it"
        free = shutil.disk_usage(self._folder).free / 1e6
        _LOGGER.warning(
            "the checkpoint of step %d could not be written: %s (%.0f MB are free in "
            "%s); %s; the training goes on",
            step,
            error,
            free,
            self._folder,
            before,
        )


def resume_(
    config: TrainConfig, parts: Parts, journal: Journal, folder: Path
) -> dict[str, Any]:
    """Bring a run that has not begun to where a checkpoint was written.

    Nothing is changed, in memory or on disk, before everything is checked.
    """
    run = read_state(folder, RUN)
    check_settings(parts.settings, run["settings"])
    check_same_model(parts.model, read_state(folder, MODEL), folder)
    own = read_state(folder, parts.rank)
    _load_modifiers(config, parts, folder, run)
    restore_(parts, folder, run)
    check_sparsity(parts.manager, run["sparsity"])
    if own["losses"] is not None:
        losses = own["losses"].to(parts.accelerator.device)
        parts.progress.losses = list(losses.unbind())
    journal.open((folder / JOURNAL).read_text(encoding="utf-8"))
    if parts.accelerator.is_main_process:
        _LOGGER.info("resuming from %s, after step %d", folder, run["step"])
        _say_what_differs(run["surroundings"])  # the file's name for the environment
    return own["random"]


def _load_modifiers(
    config: TrainConfig, parts: Parts, folder: Path, run: dict[str, Any]
) -> None:
    state = read_state(folder, MODIFIERS)
    before = (folder / RECIPE).read_text(encoding="utf-8")
    if parts.manager is None and not before:
        return
    if parts.manager is None:
        raise ValueError(
            f"recipe is missing, and {folder} was written with one; expected the same "
            f"recipe; give --recipe {folder / RECIPE}"
        )
    parts.manager.load_changed_state_dict(
        state,
        before,
        step=run["step"],
        steps_per_epoch=parts.stepper.steps_per_epoch,
        allowed=config.recipe_changed == "allow",
    )


def check_sparsity(manager: RecipeManager | None, before: float) -> None:
    """Check that no weight that was pruned has come back."""
    now = manager.sparsity() if manager is not None else 0.0
    if now < before:
        raise RuntimeError(
            f"sparsity={now:.4%} is lower than the checkpoint's {before:.4%}; expected "
            "the same masks; this is a bug, please report it with the recipe"
        )


def _say_what_differs(saved: dict[str, Any]) -> None:
    for name, now in environment().items():
        if saved.get(name) != now:
            _LOGGER.warning(
                "%s was %s and is %s: the run goes on, but its last bits may differ "
                "from those of one that was not interrupted",
                name,
                saved.get(name),
                now,
            )
