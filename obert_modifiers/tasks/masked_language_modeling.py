"""Masked language modelling: upstream training and pruning on plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obert_modifiers import core
from obert_modifiers.tasks.data.columns import (
    Batch,
    Columns,
    as_text,
    map_rows,
    need_column,
    usual_column,
)
from obert_modifiers.tasks.flags import DataSetArguments, check_share, flag
from obert_modifiers.tasks.task import IGNORED, Inputs, Prepared, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

REPLACED, KEPT = 0.8, 0.1  # by the mask token; as they are. The rest: any other token.
_LARGEST = 700.0  # of which the exponential is still a number


@dataclass
class MaskedArguments(DataSetArguments):
    """The flags of masked language modelling's data."""

    text_column_name: str | None = flag(
        None, "The column of the text; else text or sentence. A .txt file has lines."
    )
    line_by_line: bool = flag(
        False, "A sample is a row, cut to max_seq_length; else rows are joined and cut."
    )
    mlm_probability: float = flag(0.15, "The share of the tokens to be predicted.")

    def check(self) -> None:
        """Raise ValueError if a value breaks its rule or two exclude each other."""
        super().check()
        check_share(self, "mlm_probability", 0.15)


@dataclass(frozen=True)
class Masking:
    """How tokens are masked: BERT's way (Devlin et al. 2019, section 3.1).

    Of the chosen tokens 80 % become the mask token, 10 % a random token, and 10 % stay.
    Each token is chosen on its own; one of a sample always is.
    """

    probability: float
    mask_id: int
    vocab_size: int  # random tokens are below this
    special: tuple[int, ...]  # tokens that are never chosen

    def choosable(self, tokens: Sequence[int]) -> np.ndarray:
        """Tell which tokens (T,) may be chosen, as bool (T,)."""
        return ~np.isin(tokens, self.special)

    def mask(self, tokens: Sequence[int], seed: Sequence[int]) -> tuple[Any, Any]:
        """Mask a sample (T,) by a seed: tokens that the model reads, and labels."""
        draw = np.random.default_rng(seed)  # no other generator is touched
        tokens = np.asarray(tokens)
        free = self.choosable(tokens)
        chosen = free & (draw.random(len(tokens)) < self.probability)
        how = draw.random(len(tokens))
        others = draw.integers(self.vocab_size, size=len(tokens))
        one = draw.choice(np.flatnonzero(free))
        if not chosen.any():
            chosen[one] = True
        masked = np.where(how < REPLACED, self.mask_id, others)
        masked = np.where(how >= 1.0 - KEPT, tokens, masked)
        labels = np.where(chosen, tokens, IGNORED)
        return np.where(chosen, masked, tokens).tolist(), labels.tolist()


def masking_of(tokenizer: PreTrainedTokenizerBase, probability: float) -> Masking:
    """Take mask token, vocabulary and special tokens from a tokenizer."""
    mask = tokenizer.mask_token_id
    if mask is None:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path} has no mask token; expected that of a "
            "model for masked language modelling; choose another with --tokenizer_name"
        )
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return Masking(probability, mask, len(tokenizer), tuple(sorted(special)))


@dataclass(eq=False)
class MaskedSamples(Sequence[dict[str, Any]]):
    """Blocks of tokens, masked anew in each epoch.

    The masks depend only on seed, epoch and the block's place in the data. Without a
    seed they are the same in every epoch and every run.
    """

    blocks: Dataset
    masking: Masking
    seed: int | None
    epoch: int = 0

    def start_epoch(self, number: int) -> None:
        """Choose the masks of an epoch, counted from 0."""
        self.epoch = number

    def token_counts(self) -> list[int]:
        """Return the number of tokens of each block."""
        return [len(ids) for ids in self.blocks["input_ids"]]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        drawn = (0, 0) if self.seed is None else (self.seed, 1 + self.epoch)
        tokens = self.blocks[int(index)]["input_ids"]
        ids, labels = self.masking.mask(tokens, (*drawn, int(index)))
        return {"input_ids": ids, "labels": labels}


def _columns(rows: Dataset, flags: MaskedArguments, description: str) -> Columns:
    column = usual_column(rows, flags.text_column_name, ("text", "sentence"))
    need_column(rows, column, "--text_column_name", description)
    return (column,), None


def _prepare(inputs: Inputs) -> Prepared:
    masking = masking_of(inputs.pretrained.tokenizer, inputs.flags.mlm_probability)
    samples = {}
    for name in inputs.data.splits:
        seed = inputs.seed if name == "train" else None
        samples[name] = MaskedSamples(tokenize(inputs, masking, name), masking, seed)
    return Prepared.of(
        samples,
        collate=inputs.token_collator(),
        sample_loss=core.losses.token_loss,
        metrics=masked_metrics,
        keep=_keep,
        headline=("perplexity", "accuracy"),
        start_epoch=samples["train"].start_epoch if "train" in samples else None,
    )


def tokenize(inputs: Inputs, masking: Masking, name: str) -> Dataset:
    """Turn the texts of a split into blocks of tokens that can be masked.

    Joined rows keep their special tokens, a thousand rows at a time; what remains of
    them is a shorter block.
    """
    flags, length = inputs.flags, inputs.max_length
    tokenizer = inputs.pretrained.tokenizer
    options = {"truncation": True, "max_length": length} if flags.line_by_line else {}
    (column,) = inputs.data.text_columns
    rows = as_text(inputs.data.splits[name], column, inputs.data.place(name))

    def encode(batch: Batch) -> Batch:
        texts = [text for text in batch[column] if text.strip()]
        if not texts:
            return {"input_ids": []}
        blocks = tokenizer(texts, verbose=False, **options)["input_ids"]
        if not flags.line_by_line:
            joined = [token for ids in blocks for token in ids]
            blocks = [joined[i : i + length] for i in range(0, len(joined), length)]
        return {"input_ids": [ids for ids in blocks if masking.choosable(ids).any()]}

    workers = flags.preprocessing_num_workers
    blocks = map_rows(rows, encode, [column], workers, f"tokenizing {name}")
    if len(blocks) == 0:
        raise ValueError(
            f"data={inputs.data.description} has no words in its {name} split; expected"
            " a text; check the file"
        )
    return blocks


def _keep(outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sums, counts, hits = core.losses.token_sums(outputs, batch)
    return {"sums": sums.double(), "counts": counts, "hits": hits}


def masked_metrics(
    sums: np.ndarray, counts: np.ndarray, hits: np.ndarray
) -> dict[str, float]:
    """Measure samples (n,) by their masked tokens: sums of losses, counts and hits."""
    total = float(counts.sum())
    loss = float(sums.sum()) / total
    return {
        "perplexity": math.exp(loss) if loss < _LARGEST else math.inf,
        "accuracy": float(hits.sum()) / total,
        "loss": loss,
    }


TASK = Task(
    name="masked_language_modeling",
    flags=MaskedArguments,
    head="ForMaskedLM",
    columns=_columns,
    prepare=_prepare,
)
