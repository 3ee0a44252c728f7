"""Rows of words as the windows of tokens that a model reads.

Each word is labelled by its first token, in the window that shows most around it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from obert_modifiers.tasks.data.columns import Batch
from obert_modifiers.tasks.task import IGNORED

_SHARED = 4  # neighbouring windows share the fourth part of their tokens
_KEPT = ("input_ids", "labels", "row", "words")


def cut_rows(
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]],
    max_length: int,
) -> Batch:
    """Cut rows of words into windows; a row without a labelled token has none.

    The labels are a class number for each word, -100 for none. Gives for each window
    what the model reads, with ``labels``; its ``row``; and the ``words`` it labels.
    """
    names = [n for n in tokenizer.model_input_names if n != "labels"]
    windows: Batch = {name: [] for name in (*names, *_KEPT)}
    for number, (words, classes) in enumerate(zip(rows, labels, strict=True)):
        if not words:
            continue
        encoded = tokenizer(list(words), is_split_into_words=True, verbose=False)
        owners = _owners(tokenizer, words, encoded)
        for picked, chosen in _windows(owners, max_length):
            first = {t: owners[t] for t in chosen if classes[owners[t]] >= 0}
            if not first:
                continue
            for name in names:
                if name in encoded:
                    windows[name].append([encoded[name][t] for t in picked])
            windows["labels"].append([
                classes[first[t]] if t in first else IGNORED for t in picked
            ])
            windows["row"].append(number)
            windows["words"].append(list(first.values()))
    return {name: values for name, values in windows.items() if values or name in _KEPT}


def _owners(
    tokenizer: Tokenizer, words: Sequence[str], encoded: Any
) -> list[int | None]:
    """Return the index of the word that each token is of, None for special tokens."""
    if tokenizer.is_fast:
        return encoded.word_ids()
    ids, owners = [], []
    for number, word in enumerate(words):
        own = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
        ids += own
        owners += [number] * len(own)
    full = list(encoded["input_ids"])
    for start in range(len(full) - len(ids) + 1):
        if full[start : start + len(ids)] == ids:
            after = len(full) - start - len(ids)
            return [None] * start + owners + [None] * after
    raise ValueError(
        f"tokenizer={type(tokenizer).__name__} does not tell the words of its tokens; "
        "expected a fast tokenizer; save the model with tokenizer.json"
    )


def _windows(
    owners: Sequence[int | None], max_length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield for each window of a row the tokens that it reads, and those it labels."""
    inside = [token for token, word in enumerate(owners) if word is not None]
    if not inside:
        return
    begin, end = inside[0], inside[-1] + 1
    room = max_length - (len(owners) - (end - begin))
    if room < 1:
        raise ValueError(
            f"--max_seq_length={max_length} leaves no room beside the special tokens; "
            f"expected {max_length - room + 1} at least; give more"
        )
    final = max(end - room, begin)
    starts = [*range(begin, final, max(room - room // _SHARED, 1)), final]
    ends: dict[int, int] = {}  # by the first token of a word its last one
    for token in inside:
        if token == begin or owners[token - 1] != owners[token]:
            first = token
        ends[first] = token
    chosen: dict[int, list[int]] = {start: [] for start in starts}
    for first, last in ends.items():
        best = max(
            (start for start in starts if start <= first < start + room),
            key=lambda start: min(first - start, start + room - 1 - last),
        )
        chosen[best].append(first)
    for start, labelled in chosen.items():
        part = range(start, min(start + room, end))
        yield [*range(begin), *part, *range(end, len(owners))], labelled


def outside_of(names: Sequence[str]) -> int | None:
    """Return the class of words that are no part of anything, None without O."""
    return names.index("O") if "O" in names else None


def by_word(
    predicted: Iterable[np.ndarray],
    labels: Iterable[np.ndarray],
    places: Iterable[Mapping[str, Any]],
    lengths: Sequence[int],
    outside: int | None,
) -> list[np.ndarray]:
    """Bring class numbers (T,) of windows back to the words of rows.

    `places` are ``row`` and ``words`` of each window. Words that no window labels get
    the class `outside`, or if it is None that of the word before, or else after, them.
    """
    rows = [np.full(length, IGNORED) for length in lengths]
    for row, marks, place in zip(predicted, labels, places, strict=True):
        rows[place["row"]][place["words"]] = row[marks != IGNORED]
    for row in rows:
        known = np.flatnonzero(row != IGNORED)
        missing = np.flatnonzero(row == IGNORED)
        if outside is not None or not known.size:
            row[missing] = outside or 0
        else:
            before = np.searchsorted(known, missing) - 1
            row[missing] = row[known[np.maximum(before, 0)]]
    return rows
