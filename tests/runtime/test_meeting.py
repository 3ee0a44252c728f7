"""Threads that meet in compiled code, interpreted; test_encoder.py runs them."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from obert_modifiers.runtime.kernels import Kernel
from obert_modifiers.runtime.meeting import RECORD, came
from obert_modifiers.runtime.memory import aligned
from obert_modifiers.runtime.paths import PATHS
from tests.runtime.interpreter import Interpreter

MEET, STEP, YIELD = 1, 2, 3  # addresses
PARTIES, PHASES = 3, 4


def run(name: str, late: int = -1, absent: int = -1, meet: bool = True):
    """Let each party write its slot of a phase, meet, and look at all slots.

    Returns whether all of them were seen, and the door.
    """
    path, control = PATHS[name], aligned((2, 8), np.int64)
    control[:] = 0
    slots = np.zeros((PHASES, PARTIES), int)
    seen, end = [], time.monotonic() + 30

    def step(words: int) -> None:
        party, phase = (ctypes.c_int64 * 2).from_address(words)
        if phase:
            seen.append(slots[phase - 1].all())
        if phase < PHASES:
            time.sleep(0.02 * (party == late))
            slots[phase, party] = 1

    def leave() -> None:
        assert time.monotonic() < end, "they wait for ever"
        time.sleep(0)

    def interpreted(kind: str):
        return Interpreter(Kernel(kind).write(path), functions)

    functions = {
        STEP: step,
        YIELD: leave,
        MEET: lambda words: interpreted("meet")(words),
    }

    def party(number: int) -> None:
        records = np.zeros((2 * PHASES + 1, RECORD), np.int64)
        for phase in range(PHASES + 1):
            records[2 * phase, :3] = STEP, number, phase
        for n in range(PHASES if meet else 0):
            expected = (n + 1) * PARTIES
            records[2 * n + 1, :4] = MEET, control[1].ctypes.data, expected, YIELD
        records = records[records[:, 0] > 0]
        others = [] if number else [PARTIES - 1]
        words = [records.ctypes.data, len(records), control.ctypes.data, *others, YIELD]
        given = np.array(words)
        interpreted("follow" if number else "lead")(given.ctypes.data)

    with ThreadPoolExecutor(PARTIES) as pool:
        list(pool.map(party, [n for n in range(PARTIES) if n != absent]))
    return seen, int(control[0, 0])


@pytest.mark.parametrize("late", range(PARTIES))
@pytest.mark.parametrize("name", PATHS)
def test_nobody_goes_on_before_all_have_come(name, late) -> None:
    seen, door = run(name, late)
    assert came(door) and len(seen) == PARTIES * PHASES and all(seen)


def test_without_meetings_it_is_noticed() -> None:
    seen, _ = run("portable", late=0, meet=False)
    assert not all(seen)


@pytest.mark.parametrize("absent", range(PARTIES))
def test_nobody_runs_when_somebody_stays_away(absent, monkeypatch) -> None:
    monkeypatch.setattr("obert_modifiers.runtime.meeting._PATIENCE", 310)
    seen, door = run("portable", absent=absent)
    assert not seen and not came(door)
