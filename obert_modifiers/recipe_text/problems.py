"""What is wrong with a recipe: faults, each with file, line and modifier."""

from collections.abc import Iterable
from dataclasses import dataclass

from obert_modifiers.faults import Fault


@dataclass(frozen=True)
class Problem:
    """A fault and its place in a recipe."""

    file: str  # path of the recipe as it was given, or "<recipe text>"
    line: int  # from 1
    modifier: str  # its name, or empty
    fault: Fault
    under: str = ""  # key that it stands under, where that is not the fault's

    @property
    def key(self) -> str:
        """Key in the modifier, or name of a variable; may be empty."""
        return self.under or self.fault.key

    @property
    def message(self) -> str:
        """What is wrong; what is expected; how to fix it."""
        return str(self.fault)

    def __str__(self) -> str:
        where = ".".join(part for part in (self.modifier, self.key) if part)
        parts = (f"{self.file}:{self.line}", where, self.message)
        return ": ".join(part for part in parts if part)


class RecipeError(ValueError):
    """A recipe that cannot be used, with everything that is wrong with it.

    Attributes:
        problems: The problems, each once, in the order of their lines.
    """

    def __init__(self, problems: Iterable[Problem]):
        self.problems = sorted(dict.fromkeys(problems), key=lambda one: one.line)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)
