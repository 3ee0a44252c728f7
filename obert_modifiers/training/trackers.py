"""Figures of a run for TensorBoard and Weights & Biases, by accelerate's trackers."""

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from obert_modifiers.training.config import REPORT_TO

FOLDER = "tensorboard"
_LOGGER = logging.getLogger(__name__)
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
_KINDS = {"step": "train", "eval": "eval", "prune": "prune"}
_PROJECT = "obert_modifiers"


def trackers_of(report_to: str | None) -> list[str]:
    """Return the names of the trackers that a run reports to."""
    installed = [name for name, options in _PACKAGES.items() if any(map(_has, options))]
    if report_to is None:
        return [name for name in installed if name == "tensorboard"]
    if report_to not in REPORT_TO:
        raise ValueError(
            f"report_to={report_to} is unknown; expected one of {', '.join(REPORT_TO)};"
            " use none"
        )
    if report_to in _PACKAGES and report_to not in installed:
        raise ValueError(
            f"report_to={report_to} is not installed; expected the package; run pip "
            f"install {report_to}, or use none (metrics.jsonl has every record)"
        )
    if report_to == "all":
        return installed
    return [name for name in installed if name == report_to]


def _has(package: str) -> bool:
    return find_spec(package) is not None


class Trackers:
    """Passes the numbers of a run's records on, on the main process only."""

    def __init__(
        self, folder: Path, names: list[str], settings: dict[str, Any]
    ) -> None:
        self._folder, self._names, self._settings = folder, names, settings
        self._open: list[GeneralTracker] = []

    def open(self, fresh: bool) -> None:
        """Begin to report; a fresh run removes what another reported."""
        if fresh:
            shutil.rmtree(self._folder / FOLDER, ignore_errors=True)
        for name in self._names:
            if name == "tensorboard":
                tracker = TensorBoardTracker(FOLDER, self._folder)
            else:
                tracker = WandBTracker(_PROJECT, dir=str(self._folder))
            if hasattr(tracker, "start"):  # not in every release
                tracker.start()
            self._open.append(tracker)
        if fresh:
            kinds = (bool, int, float, str)
            settings = self._settings.items()
            plain = {k: v if isinstance(v, kinds) else str(v) for k, v in settings}
            self._each("store_init_configuration", plain)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Report the numbers of a record at its optimizer step."""
        if kind not in _KINDS or not self._open:
            return
        numbers = {
            f"{_KINDS[kind]}/{name}": float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, (int, float))
        }
        self._each("log", numbers, step=record["step"])

    def close(self) -> None:
        """Finish what was begun."""
        self._each("finish")
        self._open = []

    def _each(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call all trackers; one that fails is left out from then on."""
        for tracker in list(self._open):
            try:
                getattr(tracker, method)(*args, **kwargs)
            except Exception as error:  # a tracker must not end a training
                self._open.remove(tracker)
                _LOGGER.warning(
                    "%s failed (%s) and gets nothing more; metrics.jsonl goes on",
                    tracker.name,
                    error,
                )
