"""Tokens that are masked, to be predicted: the same in every run with a seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from obert_modifiers.core.distillation import IGNORED_LABEL

REPLACED, KEPT = 0.8, 0.1  # by the mask token; as they are. The rest: any other token.
_VALIDATION_SEED = 0  # fixed, so that runs with different seeds can be compared


@dataclass(frozen=True)
class Masking:
    """How tokens are masked.

    BERT (Devlin et al. 2019, section 3.1): of the chosen tokens 80 % become the mask
    token, 10 % a random token, and 10 % stay.

    Attributes:
        probability: The share of the tokens that are chosen, each on its own; one of a
            sample always is.
        mask_id: The mask token.
        vocab_size: Random tokens are below this.
        special: Tokens that are never chosen.
    """

    probability: float
    mask_id: int
    vocab_size: int
    special: tuple[int, ...]

    def choosable(self, tokens: Sequence[int]) -> np.ndarray:
        """Tell which tokens may be chosen.

        Args:
            tokens: A sample (T,).

        Returns:
            Bool (T,).
        """
        return ~np.isin(np.asarray(tokens), self.special)

    def mask(self, tokens: Sequence[int], seed: Iterable[int]) -> tuple[Any, Any]:
        """Mask a sample.

        Args:
            tokens: The sample (T,), with a token that may be chosen.
            seed: Numbers that fix the draw; no other generator is touched.

        Returns:
            The tokens as the model reads them, and the labels, -100 for those that
            were not chosen, as lists.
        """
        draw = np.random.default_rng([*seed])
        tokens = np.asarray(tokens)
        free = self.choosable(tokens)
        chosen = free & (draw.random(len(tokens)) < self.probability)
        how, others = (
            draw.random(len(tokens)),
            draw.integers(self.vocab_size, size=len(tokens)),
        )
        one = draw.choice(np.flatnonzero(free))
        if not chosen.any():
            chosen[one] = True
        masked = np.where(how < REPLACED, self.mask_id, others)
        masked = np.where(how >= 1.0 - KEPT, tokens, masked)
        return (
            np.where(chosen, masked, tokens).tolist(),
            np.where(chosen, tokens, IGNORED_LABEL).tolist(),
        )


def masking_of(tokenizer: PreTrainedTokenizerBase, probability: float) -> Masking:
    """Take mask token, vocabulary and special tokens from a tokenizer.

    Args:
        tokenizer: The tokenizer.
        probability: The share of the tokens that are chosen.

    Returns:
        How to mask.

    Raises:
        ValueError: If the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path} has no mask token; expected that of a "
            "model for masked language modelling; choose another with --tokenizer_name"
        )
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return Masking(
        probability, tokenizer.mask_token_id, len(tokenizer), tuple(sorted(special))
    )


class MaskedSamples(Sequence[dict[str, Any]]):
    """Blocks of tokens, masked anew in each epoch.

    The masks depend on seed, epoch and the block's place in the data alone: not on the
    batch, the process, or what was drawn before.
    """

    def __init__(self, blocks: Dataset, masking: Masking, seed: int | None) -> None:
        """Prepare the masks of epoch 0.

        Args:
            blocks: Rows with ``input_ids``.
            masking: How to mask.
            seed: The run's seed; None masks alike in every epoch and every run.
        """
        self._blocks = blocks
        self._masking = masking
        self._seed = seed
        self._epoch = 0

    def start_epoch(self, number: int) -> None:
        """Choose the masks of an epoch.

        Args:
            number: Number of the epoch, counted from 0.
        """
        self._epoch = number

    def token_counts(self) -> list[int]:
        """Return the number of tokens of each block."""
        return [len(ids) for ids in self._blocks["input_ids"]]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Mask a block.

        Args:
            index: Its place.

        Returns:
            ``input_ids`` and ``labels``.
        """
        tokens = self._blocks[int(index)]["input_ids"]
        if self._seed is None:
            seed = (_VALIDATION_SEED, 0, int(index))
        else:
            seed = (self._seed, 1 + self._epoch, int(index))
        ids, labels = self._masking.mask(tokens, seed)
        return {"input_ids": ids, "labels": labels}
