"""Kernels that run others, one after the other, and let threads meet between them.

Threads wait for each other here without Python. They must be at work at the same time,
which a door sees to: the thread that leads runs with the others once all of them have
come, and closes it if one stays away, so that the others leave and it computes alone. A
thread that waits at the door too long leaves it. Nobody enters without all.
"""

from llvmlite import ir

from obert_modifiers.runtime.code import I32, I64, Code, Value, constant
from obert_modifiers.runtime.paths import Path

RECORD = 18  # words: a kernel's address, then its parameters
_SPINS = 300  # turns of waiting before the core is left to other threads
_PATIENCE = 8_000  # turns of the thread that leads, a millisecond at least
_OPEN, _CLOSED = 1 << 32, 1 << 33  # added to how many wait at the door
_EVER = (1 << 63) - 1

PARAMETERS = {
    # records, how many
    "sequence": "ii",
    # the same, door, how many others, the system's function that yields the core
    "lead": "iiiii",
    # the same without the others
    "follow": "iiii",
    # how many have come, how many are to come, as above
    "meet": "iii",
}


def came(door: int) -> bool:
    """Tell from a door whether all came in."""
    return _OPEN <= door < _CLOSED


def _run(code: Code, records: Value, count: Value) -> None:
    def body(i: Value, _: list[Value]) -> None:
        record = code.sum(records, code.times(i, 8 * RECORD))
        code.jump(code.load(I64, record), code.sum(record, 8))

    code.loop(0, count, body)


def _wait(
    path: Path, code: Code, address: Value, least: Value, turns: int, leave: Value
) -> Value:
    build = code.build

    def spin(turn: Value) -> None:
        with build.if_else(build.icmp_signed("<", turn, constant(I64, _SPINS))) as (
            soon,
            late,
        ):
            with soon:
                if path.pause is not None:
                    name, numbers = path.pause
                    given = [constant(I32, number) for number in numbers]
                    code.call(name, ir.VoidType(), *given)
            with late:
                code.jump(leave)

    return code.wait(address, least, constant(I64, turns), spin)


def _sequence(path: Path, code: Code, args: list[Value]) -> None:
    """Run kernels."""
    _run(code, *args)


def _lead(path: Path, code: Code, args: list[Value]) -> None:
    """Wait for others at the door, then open it and run kernels, or close it."""
    records, count, door, others, leave = args
    _wait(path, code, door, others, _PATIENCE, leave)
    found = code.exchange(others, code.sum(others, _OPEN), door)
    missing = code.build.icmp_signed("!=", found, others)
    with code.build.if_then(missing):
        code.add_atomic(_CLOSED, door)
    _run(code, records, code.build.select(missing, constant(I64, 0), count))


def _follow(path: Path, code: Code, args: list[Value]) -> None:
    """Come to the door, and run kernels if it opens."""
    records, count, door, leave = args
    code.add_atomic(1, door)
    _wait(path, code, door, constant(I64, _OPEN), 10 * _PATIENCE, leave)
    # Away again, unless it was opened: from then on all stay.
    found = code.add_atomic(-1, door)
    early = code.build.icmp_signed("<", found, constant(I64, _OPEN))
    closed = code.build.icmp_signed(">=", found, constant(I64, _CLOSED))
    alone = code.build.or_(early, closed)
    _run(code, records, code.build.select(alone, constant(I64, 0), count))


def _meet(path: Path, code: Code, args: list[Value]) -> None:
    """Count oneself, and wait until as many have come as are to come."""
    counter, expected, leave = args
    code.add_atomic(1, counter)
    _wait(path, code, counter, expected, _EVER, leave)


WRITERS = {
    "sequence": _sequence,
    "lead": _lead,
    "follow": _follow,
    "meet": _meet,
}
