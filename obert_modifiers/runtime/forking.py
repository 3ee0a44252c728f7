"""Locks that a fork waits for.

A child has only the thread that forked. A lock that another thread held is held there
for ever, and what it guards was left half done.
"""

import os
from threading import Lock
from typing import Any
from weakref import WeakSet

_LOCKS: tuple[WeakSet[Any], ...] = (WeakSet(), WeakSet())  # in the order of taking
_GUARD = Lock()  # of the sets above, and of forks: one at a time
_held: list[Any] = []  # while this process forks


def fork_safe_lock(inner: bool = False) -> Any:
    """Make a lock that nobody else holds when a process forks.

    Whoever holds one may take an `inner` one, and whoever holds that takes none.
    """
    found = Lock()
    with _GUARD:
        _LOCKS[inner].add(found)
    return found


def _hold() -> None:
    _GUARD.acquire()
    _held.append(_GUARD)  # the last to be released
    for locks in _LOCKS:
        for lock in list(locks):
            lock.acquire()
            _held.append(lock)


def _release() -> None:
    while _held:
        _held.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release)
