"""Masks: their shares, and that nothing but seed, epoch and place decides on them."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from obert_modifiers.tasks.masked_language_modeling import (
    MaskedSamples,
    Masking,
    masking_of,
)

MASK, WORDS = 4, 1000
MASKING = Masking(0.15, MASK, WORDS, special=(0, 2, 3, 4))


def block(length: int, seed: int = 0) -> list[int]:
    middle = np.random.default_rng(seed).integers(5, WORDS, length).tolist()
    return [2, *middle, 3]


def blocks(count: int = 6) -> Dataset:
    return Dataset.from_dict({"input_ids": [block(40, i) for i in range(count)]})


def test_the_shares_are_berts() -> None:
    tokens = np.array(block(200_000))
    ids, labels = map(np.array, MASKING.mask(tokens.tolist(), [0]))
    chosen = labels != -100
    assert (labels[chosen] == tokens[chosen]).all()
    assert (ids[~chosen] == tokens[~chosen]).all()
    # Four standard deviations of 200,000, and of 30,000 draws.
    assert chosen.mean() == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 2e5) ** 0.5)
    masked, kept = ids[chosen] == MASK, ids[chosen] == tokens[chosen]
    spread = 4 * (0.25 / 3e4) ** 0.5
    assert masked.mean() == pytest.approx(0.8, abs=spread)
    assert kept.mean() == pytest.approx(0.1, abs=spread)
    others = ids[chosen][~masked & ~kept]
    assert others.min() >= 0 and others.max() < WORDS
    assert len(np.unique(others)) > 0.9 * WORDS


def test_special_tokens_are_never_chosen_and_one_token_always_is() -> None:
    tokens = [2, 7, 3, 0, 0]
    for seed in range(50):
        ids, labels = MASKING.mask(tokens, [seed])
        assert labels == [-100, 7, -100, -100, -100]
        assert ids[0] == 2 and ids[2:] == [3, 0, 0]


def test_masks_depend_on_seed_epoch_and_place_alone() -> None:
    ahead, alone = (MaskedSamples(blocks(), MASKING, seed=3) for _ in range(2))
    first = [ahead[i] for i in range(6)]
    ahead.start_epoch(1)
    second = [ahead[i] for i in range(6)]
    assert first != second
    # A run that goes on at epoch 1, in another order.
    alone.start_epoch(1)
    assert [alone[i] for i in reversed(range(6))] == second[::-1]
    assert MaskedSamples(blocks(), MASKING, seed=4)[0] != first[0]
    same = Dataset.from_dict({"input_ids": [block(40)] * 2})
    twins = MaskedSamples(same, MASKING, seed=3)
    assert twins[0] != twins[1]


def test_validation_is_masked_alike_in_every_epoch() -> None:
    fixed = MaskedSamples(blocks(), MASKING, seed=None)
    before = [fixed[i] for i in range(6)]
    fixed.start_epoch(5)
    assert [fixed[i] for i in range(6)] == before
    assert len(fixed) == 6 and fixed.token_counts() == [42] * 6


def test_no_generator_is_disturbed() -> None:
    before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    samples = MaskedSamples(blocks(), MASKING, seed=3)
    samples.start_epoch(2)
    assert len([samples[i] for i in range(6)]) == 6
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_tokenizer_tells_what_is_special(small) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    found = masking_of(tokenizer, 0.15)
    assert found.mask_id == tokenizer.mask_token_id
    assert found.vocab_size == len(tokenizer)
    names = tokenizer.convert_ids_to_tokens(found.special)
    assert set(names) == {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}  # not [UNK]
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token"):
        masking_of(tokenizer, 0.15)
