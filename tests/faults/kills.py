"""Kill a process at the n-th call of a function, from outside of the package."""

import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Kill:
    """Where a run is killed.

    Attributes:
        target: ``module:name`` or ``module:Class.name``, below the package.
        number: Which call of it, counted from 1.
        when: before, after, or torn for a file of which half is written.
        send: Name of the signal.
        rank: The process that is hit; the others are killed after it.
    """

    target: str
    number: int = 1
    when: str = "before"
    send: str = "SIGKILL"
    rank: int = 0

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def owner_of(target: str) -> tuple[Any, str]:
    """Return what holds a target's function, and the function's name there."""
    module, _, name = target.partition(":")
    full = module if module in ("os", "shutil") else f"obert_modifiers.{module}"
    owner: Any = importlib.import_module(full)
    *inside, last = name.split(".")
    for part in inside:
        owner = getattr(owner, part)
    return owner, last


def plant(kill: Kill) -> None:
    """Let the calls of a function be counted, and the process die at one."""
    owner, last = owner_of(kill.target)
    calls = 0
    original: Callable[..., Any] = getattr(owner, last)

    def die() -> None:
        os.kill(os.getpid(), getattr(signal, kill.send))

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != kill.number:
            return original(*args, **kwargs)
        if kill.when == "before":
            die()
        found = original(*args, **kwargs)
        if kill.when == "torn":
            path = args[1]
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            die()
        if kill.when == "after":
            die()
        return found

    setattr(owner, last, counted)
