"""Kill a process at the n-th call of a function, from outside of the package."""

import importlib
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class Kill:
    """Where a run is killed."""

    target: str  # ``module:name`` or ``module:Class.name``, below the package
    number: int = 1  # which call of it, counted from 1
    when: str = "before"  # or after, or torn for a file of which half is written
    send: str = "SIGKILL"
    rank: int = 0  # the process that is hit; the others are killed after it


def owner_of(target: str) -> tuple[Any, str]:
    """Return what holds a target's function, and the function's name there."""
    module, _, name = target.partition(":")
    full = module if module in ("os", "shutil") else f"obert_modifiers.{module}"
    *inside, last = name.split(".")
    return reduce(getattr, inside, importlib.import_module(full)), last


def plant(kill: Kill) -> None:
    """Let the calls of a function be counted, and the process die at one."""
    owner, last = owner_of(kill.target)
    calls = itertools.count(1)
    original: Callable[..., Any] = getattr(owner, last)

    def die() -> None:
        os.kill(os.getpid(), getattr(signal, kill.send))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != kill.number:
            return original(*args, **kwargs)
        if kill.when == "before":
            die()
        found = original(*args, **kwargs)
        if kill.when == "torn":
            os.truncate(args[1], args[1].stat().st_size // 2)
        if kill.when != "before":  # a signal may be one that the process survives
            die()
        return found

    setattr(owner, last, counted)
