"""What is wrong with a recipe, said with file, line, modifier and key."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe.

    Attributes:
        file: Path of the recipe as it was given, or ``<recipe text>``.
        line: Line in that file, from 1.
        modifier: Name of the modifier, or empty.
        key: Key in the modifier, or name of a variable; may be empty.
        message: What is wrong; what is expected; how to fix it.
    """

    file: str
    line: int
    modifier: str
    key: str
    message: str

    def __str__(self) -> str:
        """Write the problem in one line, ``file:line: Modifier.key: message``.

        Returns:
            That line.
        """
        where = ".".join(part for part in (self.modifier, self.key) if part)
        parts = (f"{self.file}:{self.line}", where, self.message)
        return ": ".join(part for part in parts if part)


class RecipeError(ValueError):
    """A recipe that cannot be used, with everything that is wrong with it.

    Attributes:
        problems: The problems, in the order of their lines.
    """

    def __init__(self, problems: Iterable[Problem]):
        """Keep the problems, each once, sorted by line.

        Args:
            problems: At least one problem.
        """
        self.problems = sorted(dict.fromkeys(problems), key=lambda one: one.line)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """Write all problems, one a line.

        Returns:
            Those lines.
        """
        return "\n".join(str(problem) for problem in self.problems)


def nearest(word: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """Find the candidates that look most like a word, whatever its case.

    Args:
        word: What was written.
        candidates: What could have been meant.
        count: How many to return at most.

    Returns:
        The nearest ones, best first; empty where none comes near.
    """
    by_lower = {name.lower(): name for name in sorted(candidates)}
    close = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[name] for name in close]
