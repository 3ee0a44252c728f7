"""Claims of the papers, and whether what was measured bears them out."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

from scipy.stats import t

from studies.results import Cell

HOLDS, FAILS = "holds here", "does not hold here"
UNDECIDED, MISSING = "undecided: within the spread", "not measured yet"
FEW = "undecided: too few seeds"
SURE = 0.95  # how sure a difference must be, on both sides
LEAST = 0.002  # a difference that decides, whatever the spread
RULE = (
    "A claim says that one row is better than others, by a margin where it names one. "
    "Two rows are told apart where the difference of their means, less the margin, is "
    f"beyond its {SURE:.0%} confidence interval (Student's, from the sample standard "
    f"deviations over the seeds) and more than {LEAST:g}. **Holds here**: better than "
    "each of the others. **Does not hold here**: worse than one of them. "
    "**Undecided**: neither, or fewer seeds than the claim asks for. "
    "**Not measured yet**: a row has no run."
)
_CLAIM = set("says of left right margin at paper seeds differs".split())


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, on rows of the table."""

    says: str
    of: str  # the paper's table
    left: str  # the row that is said to be better
    right: tuple[str, ...]  # than each of these
    margin: float = 0.0  # by more than this; below 0 where it may be that much worse
    paper: str = ""  # their numbers
    seeds: int = 3  # of each row, below which nothing is decided
    differs: str = ""


def claims_of(table: Mapping[str, Any]) -> Iterator[Claim]:
    """Read the claims of a table's YAML; `at` repeats one over places of the grid."""
    for told in table.get("claims", []):
        unknown = sorted(set(told) - _CLAIM)
        if unknown:
            raise ValueError(
                f"claim={told.get('says')!r}: {unknown[0]} is unknown; expected some "
                f"of {', '.join(sorted(_CLAIM))}; correct it"
            )
        rights = told["right"] if isinstance(told["right"], list) else [told["right"]]
        places = told.get("at", [None])
        for place in places:
            words = "" if place is None else f" {place:g}"
            paper = told.get("paper", "")
            yield Claim(
                says=told["says"] + ("" if place is None else f", at{words}"),
                of=told["of"],
                left=told["left"].replace(" *", words),
                right=tuple(one.replace(" *", words) for one in rights),
                margin=told.get("margin", 0.0),
                paper=paper.get(place, "") if isinstance(paper, Mapping) else paper,
                seeds=told.get("seeds", 3),
                differs=told.get("differs", ""),
            )


def verdict(claim: Claim, left: Cell, rights: Sequence[Cell]) -> str:
    """Decide a claim by `RULE`."""
    measured = [left, *rights]
    if not all(cell.values for cell in measured):
        return MISSING
    if any(len(cell.values) < claim.seeds for cell in measured):
        return FEW
    found = [_compare(left, right, claim.margin) for right in rights]
    if min(found) < 0:
        return FAILS
    return HOLDS if all(one > 0 for one in found) else UNDECIDED


def _compare(left: Cell, right: Cell, margin: float) -> int:
    """Return 1 where left is better, -1 where it is worse, 0 where nobody knows."""
    difference = left.mean - right.mean - margin
    error = sqrt(sum(c.spread**2 / len(c.values) for c in (left, right)))
    freedom = len(left.values) + len(right.values) - 2
    if not isfinite(difference) or freedom < 1:
        return 0
    if abs(difference) <= max(t.ppf(0.5 + SURE / 2, freedom) * error, LEAST):
        return 0
    return 1 if difference > 0 else -1


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points (cost, accuracy) that no other beats in both; by rising cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best = list(itertools.accumulate((points[i][1] for i in order), max))
    before = [float("-inf"), *best[:-1]]
    return [i for i, most in zip(order, before, strict=True) if points[i][1] > most]
