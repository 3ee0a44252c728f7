"""Threads that compute parts of the same sentences at the same time."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import numpy as np

from obert_modifiers.runtime.jit import YIELD, Library, Program
from obert_modifiers.runtime.kernels import Kernel
from obert_modifiers.runtime.meeting import came
from obert_modifiers.runtime.memory import aligned

_T = TypeVar("_T")
_MEET = Kernel("meet")
_LINE = 8  # words of a cache line


class Team:
    """The threads that calls of an encoder use.

    Args:
        threads: How many may be at work.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.process = os.getpid()  # a fork leaves the threads behind
        # Those that share sentences come at once: they have no other work.
        self._sharing = ThreadPoolExecutor(max(1, threads - 1), "sparse-shared")
        self._own = ThreadPoolExecutor(threads, "sparse")
        self._lock, self._busy = Lock(), 0

    @contextmanager
    def some(self, wanted: int) -> Iterator[int]:
        """Count threads as busy, and say how many: of those left, one at least.

        There are never more than cores that the process may use, as they wait for each
        other.
        """
        with self._lock:
            left = min(self.threads, cores()) - self._busy
            taken = max(1, min(wanted, left))
            self._busy += taken
        try:
            yield taken
        finally:
            with self._lock:
                self._busy -= taken

    def each(self, work: Callable[[_T], None], items: Sequence[_T]) -> None:
        """Call a function with each of some items, on threads of their own."""
        if self.threads == 1 or len(items) < 2:
            for item in items:
                work(item)
            return
        for _ in self._own.map(work, items):
            pass

    def run(
        self, library: Library, parts: Sequence[np.ndarray], control: np.ndarray
    ) -> None:
        """Run parts of a program, this thread the first; alone if no others come."""

        def follow(records: np.ndarray, control: np.ndarray) -> None:
            library.run(records, "follow", control.ctypes.data, YIELD)

        try:
            for records in parts[1:]:
                self._sharing.submit(follow, records, control)
            others = len(parts) - 1
            library.run(parts[0], "lead", control.ctypes.data, others, YIELD)
        except RuntimeError:  # no more threads are to be had
            pass
        if not came(int(control[0, 0])):
            library.run(_in_turn(parts, library.entry(_MEET)[0]))


class Parts:
    """Programs that run at the same time, and meet.

    Args:
        library: The kernels.
        team: Who runs them.
        count: How many programs.
    """

    def __init__(self, library: Library, team: Team, count: int) -> None:
        self._library, self._team = library, team
        self.programs = [Program(library) for _ in range(count)]
        self._begin()

    def _begin(self) -> None:
        # Anew for each run: threads may still look at those of the last.
        self._control = aligned((2, _LINE), np.int64)  # a door, and how many came
        self._control[:] = 0
        self._meetings = 0

    def meet(self) -> None:
        """Let no program go on before all others have come as far."""
        if len(self.programs) == 1:
            return
        self._meetings += 1
        expected = self._meetings * len(self.programs)
        for one in self.programs:
            one.add(_MEET, self._control[1].ctypes.data, expected, YIELD)

    def run(self) -> None:
        """Run what was added, and begin anew."""
        if any(len(one) for one in self.programs[1:]):
            self.meet()  # what was computed is whole then
            records = [one.take() for one in self.programs]
            self._team.run(self._library, records, self._control)
            self._begin()
        else:
            self._library.run(self.programs[0].take())


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_turn(parts: Sequence[np.ndarray], meet: int) -> np.ndarray:
    """Return the same work for one thread: what is before a meeting of each part."""
    phases = [np.split(one, np.flatnonzero(one[:, 0] == meet)) for one in parts]
    found = np.concatenate([one for at in zip(*phases, strict=True) for one in at])
    return found[found[:, 0] != meet]
