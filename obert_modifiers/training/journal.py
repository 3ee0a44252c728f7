"""What a run records in ``metrics.jsonl`` and displays."""

import json
from pathlib import Path
from typing import Any, Protocol

from obert_modifiers.training.trackers import Trackers


class Reporter(Protocol):
    """Callback that displays progress."""

    def start(self, total_steps: int) -> None:
        """Begin; the run has this many optimizer steps."""

    def step(self, record: dict[str, Any]) -> None:
        """Show step, epoch, loss, learning_rate and sparsity."""

    def prune(self, record: dict[str, Any]) -> None:
        """Show a pruning event."""

    def eval(self, record: dict[str, Any]) -> None:
        """Show the figures of an evaluation."""

    def message(self, text: str) -> None:
        """Show a line."""

    def close(self) -> None:
        """End, also when the run failed."""


class Journal:
    """Writes ``metrics.jsonl`` and passes records on, on the main process only."""

    def __init__(
        self,
        folder: Path,
        reporter: Reporter | None,
        active: bool,
        trackers: Trackers | None = None,
    ) -> None:
        self._trackers = trackers if active else None
        self._reporter = reporter if active else None
        self._path = folder / "metrics.jsonl"
        self._active = active
        self._file = None

    def open(self, before: str = "") -> None:
        """Begin the file with the records of a resumed run; replace any other."""
        if not self._active:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".partial")
        fresh.write_text(before, encoding="utf-8")
        fresh.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        if self._trackers is not None:
            self._trackers.open(fresh=not before)

    def text(self) -> str:
        """Return what has been written so far."""
        return self._path.read_text(encoding="utf-8") if self._file else ""

    def start(self, total_steps: int) -> None:
        """Tell the reporter how many optimizer steps there will be."""
        if self._reporter is not None:
            self._reporter.start(total_steps)

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Write a record of a kind: step, prune, eval, or message with ``text``."""
        if self._file is not None:
            self._append(json.dumps({"kind": kind, **record}) + "\n")
            if self._trackers is not None:
                self._trackers.write(kind, record)
        if self._reporter is not None:
            value = record["text"] if kind == "message" else record
            getattr(self._reporter, kind)(value)

    def _append(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._path} cannot be written to: {error}; expected room on the "
                "disk; make some and resume with --resume_from_checkpoint last"
            ) from error

    def close(self) -> None:
        """Close the file and tell the reporter."""
        if self._file is not None:
            self._file.close()
            if self._trackers is not None:
                self._trackers.close()
        if self._reporter is not None:
            self._reporter.close()
