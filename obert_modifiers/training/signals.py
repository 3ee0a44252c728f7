"""SIGTERM, as a node sends it before it is taken away: save, then leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class TrainingStopped(Exception):
    """Training was asked to stop, and has saved where it is."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped by SIGTERM; saved in {checkpoint}")
        self.checkpoint = checkpoint


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self, active: bool) -> None:
        self.active, self.received = active, False

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True


@contextmanager
def listening(active: bool) -> Iterator[StopRequest]:
    """Take SIGTERM as a request, for a while."""
    request = StopRequest(active)
    if not active or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request._receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
