"""Keys that many modifiers have: what they act on, and between which epochs."""

from collections.abc import Iterator

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers.keys import Between, Key
from obert_modifiers.modifiers.rules import EPOCH, PARAMS

LATER = "a later epoch, or -1 for the end of the training"


class SharedKeys:
    """Keys that a modifier takes with a meaning, and a default, of its own."""

    params = Key(PARAMS).means("Names, re: patterns or tokens of parameters.")
    start_epoch = Key(EPOCH).means("Epoch at which it begins.")
    end_epoch = Key(EPOCH).means("Epoch at which it ends.")


def starts_before_it_ends(start: float, end: float) -> Iterator[Fault]:
    """Find an end, where there is one, that lies before the start."""
    if 0.0 <= end < start:
        broken, fix = f"comes after end_epoch={end:g}", "swap them or move one"
        said = f"{start:g}", broken, "the start before the end", fix
        yield Fault.of(Rule.EPOCHS, "start_epoch", *said)


def ends_later(expected: str = LATER) -> Between:
    """Declare that what begins at an epoch ends at a later one, or never."""

    def check(start: float, end: float) -> Iterator[Fault]:
        yield from starts_before_it_ends(start, end)
        if max(start, 0.0) == end:
            broken = f"does not lie after start_epoch={start:g}"
            said = f"{end:g}", broken, expected, "raise it"
            yield Fault.of(Rule.EPOCHS, "end_epoch", *said)

    return Between(("start_epoch", "end_epoch"), check)
