"""What is wrong, as values: which rule a value breaks, and how to put it right."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Rule(Enum):
    """The rules that values and recipes can break."""

    NUMBER = "number"
    COUNT = "count"
    POSITIVE = "positive"
    NOT_NEGATIVE = "not negative"
    FRACTION = "fraction"
    FREQUENCY = "frequency"
    FLAG = "flag"
    CHOICE = "choice"
    BYTES = "bytes"
    NAMES = "names"
    PATTERN = "pattern"
    MAPPING = "mapping"
    LAYERS = "layers"
    MASK_TYPE = "mask type"
    BLOCK_SIZE = "block size"
    EPOCHS = "epochs"  # the order of two epochs
    SPARSITIES = "sparsities"  # the order of two, or that of a structure
    BOTH = "both"  # keys that exclude each other
    NEEDS = "needs"  # a key without another that it needs
    MISSING = "missing"
    UNKNOWN = "unknown"
    REPEATED = "repeated"
    REFUSED = "refused"  # by the constructor of somebody else's modifier
    FILE = "file"
    YAML = "yaml"
    VARIABLE = "variable"
    EXPRESSION = "expression"
    ARRANGEMENT = "arrangement"
    CONFLICT = "conflict"  # between two modifiers
    RECIPE_END = "recipe end"
    TEACHER = "teacher"
    MODEL = "model"
    DATA = "data"
    STEPS = "steps"
    NOTE = "note"  # legal, and may not be meant


@dataclass(frozen=True)
class Fault:
    """A rule that a value breaks.

    Attributes:
        rule: Which rule.
        key: The key or name that it is about; may be empty.
        value: What was written there, as text; None where it is not to be shown.
        broken: In which way the rule is broken.
        expected: What is expected, may be empty.
        fix: What to write, may be empty.
    """

    rule: Rule
    key: str = ""
    value: str | None = None
    broken: str = ""
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        """Write ``<key>=<value> <broken>; expected <expected>; <fix>``."""
        shown = self.broken if self.value is None else f"{self.key}={self.value}"
        if self.value is not None and self.broken:
            joint = "" if self.broken[0] in ":," else " "
            shown = f"{shown}{joint}{self.broken}"
        expected = self.expected and f"expected {self.expected}"
        return "; ".join(part for part in (shown, expected, self.fix) if part)

    @staticmethod
    def of(
        rule: Rule, key: str, value: Any, broken: str, expected: str, fix: str
    ) -> "Fault":
        """Describe a fault of a value of any type."""
        return Fault(rule, key, str(value), broken, expected, fix)


class FaultError(ValueError):
    """Values that cannot be used, with everything that is wrong with them.

    Attributes:
        faults: The faults, at least one.
    """

    def __init__(self, *faults: Fault):
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        """Write all faults, one a line."""
        return "\n".join(str(fault) for fault in self.faults)


def nearest(word: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """Return the candidates that look most like a word, whatever its case, best first.

    Empty where none comes near.
    """
    by_lower = {name.lower(): name for name in sorted(candidates)}
    close = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[name] for name in close]


def nearest_word(word: str, words: Sequence[str]) -> str:
    """Return the word that looks most like another, the first where none does."""
    return (nearest(word, words) or words)[0]
