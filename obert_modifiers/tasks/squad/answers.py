"""Question answering: from the scores of positions to the text of an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from obert_modifiers.tasks.squad.windows import OUTSIDE


@dataclass(frozen=True)
class Search:
    """How answers are chosen."""

    n_best_size: int = 20  # candidates that are kept for a question
    max_answer_length: int = 30  # in tokens
    with_null: bool = False  # a question may have no answer (SQuAD v2)
    null_threshold: float = 0.0  # by how much "no answer" must beat the best answer


@dataclass(frozen=True)
class Answer:
    """The answer to one question."""

    text: str  # empty for "no answer"
    candidates: list[dict[str, Any]]  # best first: text, probability and both logits
    null_odds: float | None = None  # by how much "no answer" exceeds the best answer


def best_spans(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    allowed: np.ndarray,
    search: Search,
) -> list[tuple[int, int]]:
    """Find the spans of a window with the highest sums of start and end logit.

    All spans of at most `max_answer_length` L tokens are looked at, in T L sums.
    Returns first and last position of each, best first; equal sums by position, the
    shorter one first.
    """
    length = len(start_logits)
    longest = min(search.max_answer_length, length)
    starts = np.where(allowed, start_logits, -np.inf)
    ends = np.full(length + longest - 1, -np.inf)
    ends[:length] = np.where(allowed, end_logits, -np.inf)
    runs = np.lib.stride_tricks.sliding_window_view(ends, longest)  # (T, L)
    scores = (starts[:, None] + runs).reshape(-1)
    # The candidates that could be among the best, ties included, then in order.
    most = min(search.n_best_size, len(scores))
    least = np.partition(scores, -most)[-most]
    likely = np.flatnonzero((scores >= least) & (scores > -np.inf))
    order = likely[np.argsort(-scores[likely], kind="stable")][:most]
    return [(int(i // longest), int(i // longest + i % longest)) for i in order]


def answer_question(
    context: str, windows: Sequence[Mapping[str, Any]], search: Search
) -> Answer:
    """Choose the answer to a question from the scores of its windows.

    A window is that of `cut_windows` with ``start_logits`` and ``end_logits``, which
    may be longer. "No answer" scores as its lowest sum over the windows: where one
    window has an answer, the others say that they have none.
    """
    best: list[dict[str, Any]] = []
    nulls: list[dict[str, Any]] = []
    for window in windows:
        starts, ends = np.asarray(window["starts"]), np.asarray(window["ends"])
        logits = [
            np.asarray(window[f"{side}_logits"], np.float64)[: len(starts)]
            for side in ("start", "end")
        ]
        for first, last in best_spans(*logits, starts != OUTSIDE, search):
            text = context[starts[first] : ends[last]]
            best.append(_candidate(text, *logits, first, last))
        nulls.append(_candidate("", *logits, window["null"], window["null"]))
    best.sort(key=_score, reverse=True)  # stable: equal scores keep their order
    best = best[: search.n_best_size]
    null = min(nulls, key=_score)
    if not search.with_null:
        return Answer(best[0]["text"] if best else "", _weighed(best or [null]))
    odds = _score(null) - (_score(best[0]) if best else 0.0)
    text = best[0]["text"] if best and odds <= search.null_threshold else ""
    listed = sorted([*best, null], key=_score, reverse=True)
    # "No answer" stays on the list where it is not among the best.
    listed = listed[: search.n_best_size]
    if not any(candidate is null for candidate in listed):
        listed[-1] = null
    return Answer(text, _weighed(listed), float(odds))


def _candidate(
    text: str, starts: np.ndarray, ends: np.ndarray, first: int, last: int
) -> dict[str, Any]:
    logits = {"start_logit": float(starts[first]), "end_logit": float(ends[last])}
    return {"text": text, **logits}


def _score(candidate: Mapping[str, Any]) -> float:
    return candidate["start_logit"] + candidate["end_logit"]


def _weighed(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add probabilities, behind the texts."""
    scores = np.array([_score(candidate) for candidate in candidates])
    shares = np.exp(scores - scores.max())
    return [
        {"text": candidate["text"], "probability": float(share), **candidate}
        for candidate, share in zip(candidates, shares / shares.sum(), strict=True)
    ]
