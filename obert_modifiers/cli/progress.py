"""Show a run while it goes on: a progress bar, or plain lines where it is piped."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from obert_modifiers.cli.common import draw_table, figures, rank, table_console

_LINES = 20  # plain lines about training steps in a run


def status(record: dict[str, Any]) -> str:
    """Say where training is, from a ``step`` record."""
    return (
        f"epoch {record['epoch']:.2f}  loss {record['loss']:.4f}  "
        f"lr {record['learning_rate']:.2e}  sparsity {record['sparsity']:.2%}"
    )


def pruning_line(record: dict[str, Any]) -> str:
    """Say what a pruning event did, from a ``prune`` record."""
    increase = record["predicted_loss_increase"]
    skipped = record.get("skipped_gradients", 0)
    parts = [
        f"sparsity {record['sparsity_before']:.2%} -> {record['sparsity_after']:.2%}",
        *([] if increase is None else [f"predicted loss increase {increase:.4g}"]),
        f"{record['seconds']:.1f} s",
        f"peak memory {record['peak_memory_bytes'] / 1e9:.2f} GB",
        *([f"{skipped} gradients skipped"] if skipped else []),
    ]
    where = f"pruned at epoch {record['epoch']:.2f} (step {record['step']})"
    return f"{where}: {', '.join(parts)} [{record['modifier']}]"


def evaluation_line(record: dict[str, Any]) -> str:
    """Say what an evaluation gave, from an ``eval`` record."""
    names = record.get("headline", ("accuracy", "pearson"))
    said = figures(record, *names, "loss")
    return f"validation at epoch {record['epoch']:.2f}: {said}"


class Reporter:
    """A progress bar at the bottom of a terminal, with lines above it.

    Elsewhere plain lines without control characters, for pipes and log files.
    """

    def __init__(self, console: Console, bar: bool | None = None) -> None:
        """Write to a console; a bar is shown on a terminal unless told otherwise."""
        self._console = console
        self._bar = console.is_terminal if bar is None else bar
        self._progress: Progress | None = None

    def start(self, total_steps: int) -> None:
        self._total, self._next = total_steps, 0
        if self._bar:
            self._progress = Progress(
                BarColumn(bar_width=10),  # all of it fits into 80 columns
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("starting", total=total_steps)
            self._progress.start()

    def step(self, record: dict[str, Any]) -> None:
        """Move the bar, or print a line now and then."""
        step = record["step"]
        if self._progress is not None:
            said = status(record).replace("  ", " ")
            self._progress.update(self._task, completed=step, description=said)
        elif not self._bar and step >= min(self._next, self._total):
            self._next = step + max(1, self._total // _LINES)
            self.message(f"step {step}/{self._total}  {status(record)}")

    def prune(self, record: dict[str, Any]) -> None:
        self.message(pruning_line(record))

    def eval(self, record: dict[str, Any]) -> None:
        self.message(evaluation_line(record))

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first row is the head."""
        self._console.print(draw_table(rows, title=title))

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class LogLines(logging.Handler):
    """Passes what the package logs on to a reporter, so that bar and lines agree."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        self._reporter.message(f"{mark}{record.getMessage()}")


@contextmanager
def reporting(bar: bool | None = None) -> Iterator[Reporter]:
    """Show what the package logs, only on the first process."""
    reporter = Reporter(table_console(), bar)
    logger = logging.getLogger("obert_modifiers")
    handler = LogLines(reporter)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    try:
        yield reporter
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
