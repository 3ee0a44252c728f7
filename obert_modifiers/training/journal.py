"""What a run records in ``metrics.jsonl``, displays, and reports to trackers."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TextIO

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

TENSORBOARD = "tensorboard"  # the tracker's name, and that of its folder
_LOGGER = logging.getLogger(__name__)
_PACKAGES = {TENSORBOARD: (TENSORBOARD, "tensorboardX"), "wandb": ("wandb",)}
_REPORT_TO = ("none", *_PACKAGES, "all")
_KINDS = {"step": "train", "eval": "eval", "prune": "prune"}
_PROJECT = "obert_modifiers"


class Reporter(Protocol):
    """Callback that displays progress; a method for each kind of record."""

    def start(self, total_steps: int) -> None: ...
    def step(self, record: dict[str, Any]) -> None: ...
    def prune(self, record: dict[str, Any]) -> None: ...
    def eval(self, record: dict[str, Any]) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...  # also when the run failed


class Journal:
    """Writes ``metrics.jsonl`` and passes records on, on the main process only."""

    def __init__(
        self,
        folder: Path,
        reporter: Reporter | None,
        trackers: "Trackers",
        active: bool,
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._reporter = reporter if active else None
        self._trackers = trackers
        self._active = active
        self._file: TextIO | None = None

    def open(self, before: str = "") -> None:
        """Begin the file with the records of a resumed run; replace any other."""
        if not self._active:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".partial")
        fresh.write_text(before, encoding="utf-8")
        fresh.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._trackers.open(fresh=not before)

    def text(self) -> str:
        return self._path.read_text(encoding="utf-8") if self._file else ""

    def start(self, total_steps: int) -> None:
        if self._reporter is not None:
            self._reporter.start(total_steps)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Write a record of a kind: step, prune, eval, or message with ``text``."""
        if self._file is not None:
            try:
                self._file.write(json.dumps({"kind": kind, **record}) + "\n")
                self._file.flush()
            except OSError as error:
                raise OSError(
                    f"{self._path} cannot be written to: {error}; expected room on the "
                    "disk; make some and resume with --resume_from_checkpoint last"
                ) from error
            self._trackers.write(kind, record)
        if self._reporter is not None:
            value = record["text"] if kind == "message" else record
            getattr(self._reporter, kind)(value)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._trackers.close()
        if self._reporter is not None:
            self._reporter.close()


def trackers_of(report_to: str | None) -> list[str]:
    """Return the names of the trackers that a run reports to."""
    installed = [name for name, options in _PACKAGES.items() if any(map(_has, options))]
    if report_to is not None and report_to not in _REPORT_TO:
        raise ValueError(
            f"report_to={report_to} is unknown; expected one of "
            f"{', '.join(_REPORT_TO)}; use none"
        )
    if report_to in _PACKAGES and report_to not in installed:
        raise ValueError(
            f"report_to={report_to} is not installed; expected the package; run pip "
            f"install {report_to}, or use none (metrics.jsonl has every record)"
        )
    if report_to == "all":
        return installed
    return [name for name in installed if name == (report_to or TENSORBOARD)]


def _has(package: str) -> bool:
    return find_spec(package) is not None


@dataclass
class Trackers:
    """Passes the numbers of a run's records on to accelerate's trackers."""

    folder: Path
    names: list[str]
    settings: dict[str, Any]
    _open: list[GeneralTracker] = field(default_factory=list)

    def open(self, fresh: bool) -> None:
        """Begin to report; a fresh run removes what another reported."""
        if fresh:
            shutil.rmtree(self.folder / TENSORBOARD, ignore_errors=True)
        for name in self.names:
            if name == TENSORBOARD:
                tracker = TensorBoardTracker(TENSORBOARD, self.folder)
            else:
                tracker = WandBTracker(_PROJECT, dir=str(self.folder))
            if hasattr(tracker, "start"):  # not in every release
                tracker.start()
            self._open.append(tracker)
        if fresh:
            kinds = (bool, int, float, str)
            settings = self.settings.items()
            plain = {k: v if isinstance(v, kinds) else str(v) for k, v in settings}
            self._each("store_init_configuration", plain)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Report the numbers of a record at its optimizer step."""
        if kind not in _KINDS:
            return
        numbers = {
            f"{_KINDS[kind]}/{name}": float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, (int, float))
        }
        self._each("log", numbers, step=record["step"])

    def close(self) -> None:
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
