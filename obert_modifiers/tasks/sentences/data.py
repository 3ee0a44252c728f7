"""Rows as texts or as pairs of texts, in columns that have the same names for all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from obert_modifiers.tasks.data import sources
from obert_modifiers.tasks.data.columns import as_text, need_column, no_gaps

if TYPE_CHECKING:
    from obert_modifiers.tasks.data.dataset import TextData

logger = logging.getLogger(__name__)

TEXT, OTHER, SCORE = "text", "other", "score"
TEXTS, SCORES, PAIRS = "texts", "scores", "pairs"  # what rows are
_USUAL_TEXTS = ("text", "sentence")
_USUAL_PAIRS = (
    ("sentence1", "sentence2"),
    ("question", "context"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("anchor", "positive"),
    ("question1", "question2"),
    (TEXT, OTHER),
)
_USUAL_SCORES = ("score", "similarity", "label")
_HIGHEST = (1.0, 5.0)  # of scores that name no range: cosines, and STS-B's


def read(flags: Any, cache_dir: str | None) -> tuple[dict[str, Dataset], str]:
    """Read the splits; each has the column TEXT, pairs OTHER, and scored ones SCORE."""
    splits, description = sources.read(flags, cache_dir)
    files = flags.files
    return {
        name: _split(rows, name, flags, files.get(name) or f"{description} ({name})")
        for name, rows in splits.items()
    }, description


def kind_of(rows: Dataset) -> str:
    """Tell what the rows of a split are."""
    if OTHER not in rows.column_names:
        return TEXTS
    return SCORES if SCORE in rows.column_names else PAIRS


def _split(rows: Dataset, name: str, flags: Any, place: str) -> Dataset:
    training = name == "train"
    named = flags.text_column_names if training else flags.pair_column_names
    flag = "--text_column_names" if training else "--pair_column_names"
    columns = _columns(rows, named, flag, place)
    score = _score_column(rows, columns, flags.score_column_name, place)
    kind = flags.train_on if training else None
    if kind is None:
        kind = TEXTS if len(columns) != 2 else SCORES if score else PAIRS
        # Of pairs without a score nobody knows whether they belong together.
        kind = TEXTS if training and kind == PAIRS else kind
    if kind == TEXTS:
        return _texts(rows, columns, place)
    if len(columns) != 2 or (kind == SCORES and score is None):
        raise ValueError(
            f"--train_on={kind} finds the columns {', '.join(columns)} and "
            f"{score or 'no score'} in {place}; expected two of text"
            f"{' and a score' * (kind == SCORES)}; name them with {flag} and "
            "--score_column_name"
        )
    return _pairs(rows, columns, score if kind == SCORES else None, place)


def _columns(
    rows: Dataset, named: str | None, flag: str, place: str
) -> tuple[str, ...]:
    if named is not None:
        columns = tuple(one.strip() for one in named.split(","))
        for column in columns:
            need_column(rows, column, flag, place)
        return columns
    there = set(rows.column_names)
    for columns in (*_USUAL_PAIRS, *((one,) for one in _USUAL_TEXTS)):
        if there.issuperset(columns):
            return columns
    texts = tuple(
        name
        for name, feature in rows.features.items()
        if getattr(feature, "dtype", "") in ("string", "large_string")
    )
    if len(texts) != 1:
        raise ValueError(
            f"data={place} has the columns {', '.join(rows.column_names)}, of which "
            f"{len(texts)} hold text; expected text, or pairs such as query and "
            f"passage; name them with {flag}"
        )
    return texts


def _score_column(
    rows: Dataset, columns: Sequence[str], named: str | None, place: str
) -> str | None:
    if named is not None and len(columns) == 2:
        need_column(rows, named, "--score_column_name", place)
        return named
    there = [name for name in _USUAL_SCORES if name in rows.column_names]
    return there[0] if there and len(columns) == 2 else None


def _texts(rows: Dataset, columns: Sequence[str], place: str) -> Dataset:
    """List every text of some columns once; what is empty is left out."""
    given = [text for name in columns for text in _strings(rows, name, place)]
    texts = list(dict.fromkeys(text for text in given if text and text.strip()))
    if not texts:
        raise ValueError(
            f"data={place} has no text in {', '.join(columns)}; expected some; check "
            "the file"
        )
    empty = sum(not (text and text.strip()) for text in given)
    if empty:
        logger.warning("%s: %d empty texts are left out", place, empty)
    return Dataset.from_dict({TEXT: texts})


def _strings(rows: Dataset, name: str, place: str) -> list[str | None]:
    dtype = str(getattr(rows.features[name], "dtype", ""))
    if dtype in ("string", "large_string"):
        return list(rows[name])
    return list(as_text(rows, name, place)[name])


def _pairs(
    rows: Dataset, columns: Sequence[str], score: str | None, place: str
) -> Dataset:
    found: dict[str, list[Any]] = {}
    for into, name in zip((TEXT, OTHER), columns, strict=True):
        found[into] = as_text(rows, name, place)[name]
        empty = [row for row, text in enumerate(found[into]) if not text.strip()]
        if empty:
            raise ValueError(
                f"column {name} of {place} has no text in {len(empty)} rows, first in "
                f"row {empty[0]}; expected both texts of a pair; fill or drop these "
                "rows"
            )
    if score is not None:
        no_gaps(rows, score, place)
        dtype = str(getattr(rows.features[score], "dtype", ""))
        classes = getattr(rows.features[score], "names", None)
        if classes:
            raise ValueError(
                f"column {score} of {place} holds classes ({', '.join(classes)}); "
                "expected scores of similarity; name another with --score_column_name, "
                "or give --train_on pairs"
            )
        if not dtype.startswith(("int", "uint", "float")):
            raise ValueError(
                f"column {score} of {place} holds {rows[0][score]!r} in row 0; "
                "expected numbers; name another with --score_column_name"
            )
        found[SCORE] = [float(one) for one in rows[score]]
    return Dataset.from_dict({name: list(given) for name, given in found.items()})


def scaled_scores(data: TextData, highest: float | None) -> dict[str, list[float]]:
    """Divide the scores of all splits by the highest that there may be.

    Without one it is 1 where all lie in [-1, 1], and 5 where they lie in [0, 5].
    """
    scores = {
        name: list(rows[SCORE])
        for name, rows in data.splits.items()
        if kind_of(rows) == SCORES
    }
    every = [one for given in scores.values() for one in given]
    fits = [top for top in _HIGHEST if not _outside(every, top)]
    top = highest or (fits or _HIGHEST[-1:])[0]
    for name, given in scores.items():
        wrong = _outside(given, top)
        if wrong:
            raise ValueError(
                f"score={given[wrong[0]]:g} in row {wrong[0]} of {data.place(name)} is "
                f"outside of [{'-1' if top == 1.0 else '0'}, {top:g}]; expected scores "
                "within their range; give the highest with --max_score"
            )
    return {name: [one / top for one in given] for name, given in scores.items()}


def _outside(scores: Sequence[float], top: float) -> list[int]:
    lowest = -1.0 if top == 1.0 else 0.0  # cosines, else points
    return [row for row, one in enumerate(scores) if not lowest <= one <= top]
