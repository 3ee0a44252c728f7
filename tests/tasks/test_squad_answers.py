"""Answers from scores, against the enumeration of all spans."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from obert_modifiers.tasks.squad.answers import Search, answer_question, best_spans

CONTEXT = "zero one two three four five six seven"


def window(rng: np.random.Generator, first: int, last: int, padding: int = 0) -> dict:
    """Make a window over some words of CONTEXT: null, question, words, separator."""
    words = CONTEXT.split()[first : last + 1]
    begins = [CONTEXT.index(word) for word in words]
    starts = [-1, -1, *begins, -1]
    ends = [-1, -1, *(i + len(word) for i, word in zip(begins, words, strict=True)), -1]
    logits = rng.integers(-3, 4, (2, len(starts) + padding)).astype(np.float32)
    logits[:, len(starts) :] = 99.0  # padding, which must not count
    window = {"starts": starts, "ends": ends, "null": 0}
    return window | {"start_logits": logits[0], "end_logits": logits[1]}


def all_spans(one: dict, search: Search) -> list[tuple[float, int, int]]:
    """Enumerate what the definition allows: score, first, last, best first."""
    inside = [i for i, start in enumerate(one["starts"]) if start >= 0]
    found = [
        (float(one["start_logits"][first] + one["end_logits"][last]), first, last)
        for first, last in itertools.product(inside, inside)
        if 0 <= last - first < search.max_answer_length
    ]
    return sorted(found, key=lambda span: (-span[0], span[1], span[2]))


def check_spans(find: Callable, search: Search) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        one = window(rng, 0, int(rng.integers(0, 8)))
        allowed = np.array(one["starts"]) >= 0
        found = find(one["start_logits"], one["end_logits"], allowed, search)
        expected = all_spans(one, search)[: search.n_best_size]
        assert found == [(first, last) for _, first, last in expected]


SEARCHES = [Search(3, 2), Search(20, 30), Search(1, 1), Search(1000, 4)]


@pytest.mark.parametrize("search", SEARCHES)
def test_the_best_spans_are_those_of_the_enumeration(search: Search) -> None:
    check_spans(best_spans, search)


def any_order(start_logits, end_logits, allowed, search):
    """Let the best start and the best end make a span, whatever lies between."""
    first = int(np.where(allowed, start_logits, -np.inf).argmax())
    return [(first, int(np.where(allowed, end_logits, -np.inf).argmax()))]


def one_longer(start_logits, end_logits, allowed, search):
    wrong = Search(search.n_best_size, search.max_answer_length + 1)
    return best_spans(start_logits, end_logits, allowed, wrong)


def everywhere(start_logits, end_logits, allowed, search):
    return best_spans(start_logits, end_logits, np.ones_like(allowed), search)


def late_ties(start_logits, end_logits, allowed, search):
    turned = best_spans(end_logits[::-1], start_logits[::-1], allowed[::-1], search)
    last = len(allowed) - 1
    return [(last - first, last - end) for first, end in turned]


@pytest.mark.parametrize("wrong", [any_order, one_longer, everywhere, late_ties])
def test_a_planted_search_is_found(wrong: Callable) -> None:
    with pytest.raises(AssertionError):
        check_spans(wrong, Search(1, 1))


def oracle(windows: list[dict], search: Search) -> tuple[str, float]:
    """Find text and odds of "no answer" from the definition alone."""
    spans = [
        (score, one["starts"][first], one["ends"][last])
        for one in windows
        for score, first, last in all_spans(one, search)
    ]
    score, begin, end = max(spans, key=lambda span: span[0])
    null = min(float(one["start_logits"][0] + one["end_logits"][0]) for one in windows)
    if search.with_null and null - score > search.null_threshold:
        return "", null - score
    return CONTEXT[begin:end], null - score


@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize("threshold", [-3.0, 0.0, 2.0])
def test_answers_over_several_windows(with_null: bool, threshold: float) -> None:
    rng = np.random.default_rng(1)
    search = Search(5, 3, with_null, threshold)
    empty = 0
    for _ in range(100):
        windows = [window(rng, 0, 4, padding=3), window(rng, 3, 7)]
        windows[0]["start_logits"][0] += 3.0  # so that "no answer" is likely
        windows[1]["start_logits"][0] += 5.0
        text, odds = oracle(windows, search)
        found = answer_question(CONTEXT, windows, search)
        assert found.text == text
        assert found.null_odds == (odds if with_null else None)
        empty += not text
    assert (0 < empty < 100) is with_null


def test_one_window_with_an_answer_is_enough() -> None:
    """The lowest score of "no answer" counts, not the highest."""
    rng = np.random.default_rng(2)
    windows = [window(rng, 0, 3), window(rng, 4, 7)]
    for one in windows:
        one["start_logits"][:] = one["end_logits"][:] = 0.0
    windows[0]["start_logits"][0] = 9.0  # sure that it holds no answer
    windows[1]["start_logits"][0] = -9.0
    windows[1]["start_logits"][3] = windows[1]["end_logits"][3] = 2.0
    found = answer_question(CONTEXT, windows, Search(with_null=True))
    assert (found.text, found.null_odds) == ("five", -13.0)


def test_candidates_are_listed_with_their_probabilities() -> None:
    rng = np.random.default_rng(3)
    windows = [window(rng, 0, 7)]
    found = answer_question(CONTEXT, windows, Search(4, 2, with_null=True))
    assert len(found.candidates) == 4
    assert math.isclose(sum(one["probability"] for one in found.candidates), 1.0)
    scores = [one["start_logit"] + one["end_logit"] for one in found.candidates]
    first, second = (one["probability"] for one in found.candidates[:2])
    assert first / second == pytest.approx(math.exp(scores[0] - scores[1]))
    assert [one["text"] for one in found.candidates].count("") == 1
    low = windows[0]["start_logits"][0] = -50.0
    found = answer_question(CONTEXT, windows, Search(4, 2, with_null=True))
    assert found.candidates[-1]["text"] == ""
    assert found.candidates[-1]["start_logit"] == low
    plain = answer_question(CONTEXT, windows, Search(4, 2))
    assert all(one["text"] for one in plain.candidates) and len(plain.candidates) == 4


def test_a_context_without_tokens_has_no_answer() -> None:
    one = window(np.random.default_rng(4), 8, 8)
    for with_null in (False, True):
        found = answer_question(CONTEXT, [one], Search(with_null=with_null))
        assert found.text == "" and len(found.candidates) == 1
