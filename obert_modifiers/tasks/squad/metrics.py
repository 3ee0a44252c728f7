"""EM and F1 as the scripts of SQuAD v1.1 and v2.0 define them.

Written from that definition, as no library that works without a network has both:
transformers removed its own, evaluate fetches its from the hub, and torchmetrics has
only v1.1, with another F1 where an answer has no words.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Drop case, ASCII punctuation, English articles and double spaces of an answer."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(predicted: str, truth: str) -> float:
    """Return 1.0 where both are the same after `normalize`."""
    return float(normalize(predicted) == normalize(truth))


def f1(predicted: str, truth: str) -> float:
    """Return the F1 of the words after `normalize`, 0.0 where none are common."""
    ours, theirs = normalize(predicted).split(), normalize(truth).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2.0 * common / (len(ours) + len(theirs)) if common else 0.0


def f1_or_none(predicted: str, truth: str) -> float:
    """Compare as `f1`, with "no answer" as an answer; v2.0's rule."""
    both_empty = not normalize(predicted) and not normalize(truth)
    return 1.0 if both_empty else f1(predicted, truth)


def squad_metrics(
    predicted: Sequence[str], truths: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return EM and F1 in percent as SQuAD v1.1 does; the best right answer counts."""
    return {
        "exact_match": _mean(_best(exact_match, predicted, truths)),
        "f1": _mean(_best(f1, predicted, truths)),
    }


def squad_v2_metrics(
    predicted: Sequence[str], truths: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Measure answers as SQuAD v2.0 does.

    Right answers that have no words are left out; where none is left, the right answer
    is none. ``HasAns_`` and ``NoAns_`` are of questions with and without right answers.
    """
    kept = [[text for text in texts if normalize(text)] or [""] for texts in truths]
    exact = _best(exact_match, predicted, kept)
    overlap = _best(f1_or_none, predicted, kept)
    figures = {"exact_match": _mean(exact), "f1": _mean(overlap)}
    for kind, wanted in (("HasAns", True), ("NoAns", False)):
        chosen = [i for i, texts in enumerate(truths) if bool(texts) is wanted]
        if chosen:
            figures[f"{kind}_exact_match"] = _mean([exact[i] for i in chosen])
            figures[f"{kind}_f1"] = _mean([overlap[i] for i in chosen])
            figures[f"{kind}_total"] = len(chosen)
    return figures


def _best(
    compare: Callable[[str, str], float],
    predicted: Sequence[str],
    truths: Sequence[Sequence[str]],
) -> list[float]:
    return [
        max(compare(answer, truth) for truth in texts)
        for answer, texts in zip(predicted, truths, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values)
