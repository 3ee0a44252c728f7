"""Sentences in tiles."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from obert_modifiers.runtime.packing import divide, pack


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=20),
    st.sampled_from([4, 16, 32, 64]),
    st.integers(0, 2**32),
)
def test_every_token_has_a_slot_of_its_own(lengths, tokens, seed) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((len(lengths), max(lengths) + 3), bool)
    for row, length in enumerate(lengths):
        mask[row, :length] = rng.random(length) < 0.9
        mask[row, length - 1] = True
    rows = rng.permutation(len(lengths))
    found = pack(rows, mask, tokens)
    assert len(set(found.slots)) == len(found.slots) == sum(lengths)
    assert len(found.own) == found.tiles * tokens
    at = 0
    for i, row in enumerate(rows):
        slots = found.slots[at : at + lengths[row]]
        at += len(slots)
        assert slots[0] == found.starts[i] and (np.diff(slots) == 1).all()
        assert (found.own[slots] == i).all()
        np.testing.assert_array_equal(found.keys[slots] == i, mask[row, : len(slots)])
        if len(slots) <= tokens:
            assert slots[0] // tokens == slots[-1] // tokens
        for tile in {slot // tokens for slot in slots}:
            first, last = found.ranges[tile]
            assert first <= slots[0] and slots[-1] < last
    assert not (found.ranges % 4).any()
    assert found.ranges.max() <= len(found.own)
    assert (found.own == -1).sum() == len(found.own) - sum(lengths)


def test_short_sentences_share_tiles() -> None:
    mask = np.zeros((9, 30), bool)
    for row, length in enumerate([20, 20, 20, 10, 10, 10, 2, 2, 2]):
        mask[row, :length] = True
    assert pack(np.arange(9), mask, 32).tiles == 3


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 9))
def test_parts_have_about_as_many_tokens(lengths, parts) -> None:
    found = divide(lengths, parts)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part) for part in found]
    # Graham 1969: the longest first is within 4/3 of the best.
    best = max(max(lengths), sum(lengths) / parts)
    assert max(loads) <= 4 / 3 * best + max(lengths) / 3
