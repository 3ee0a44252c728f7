"""Masked language modelling: upstream training and pruning on plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
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
_USUAL = ("text", "sentence")  # columns
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
    dataset_name: str | None = flag(
        None, "A folder or hub id of a data set, or several with commas, read as one."
    )
    dataset_config_name: str | None = flag(
        None, "Its configuration; of several, with commas, empty where one has none."
    )
    tokenized_dir: str | None = flag(
        None,
        "Where the tokens are kept and read from; else in --cache_dir or the cache of "
        "the datasets library, for each data set, tokenizer and length.",
    )

    def check(self) -> None:
        """Raise ValueError if a value breaks its rule or two exclude each other."""
        super().check()
        check_share(self, "mlm_probability", 0.15)
        self.data_sets()

    def data_sets(self) -> list[tuple[str, str | None]]:
        """Return names and configurations of the data sets that are read as one."""
        name, config = self.dataset_name or "", self.dataset_config_name
        if "," not in name or Path(name).exists():
            return [(name, config)]
        names = [one.strip() for one in name.split(",")]
        configs = [None] * len(names) if config is None else config.split(",")
        if not all(names) or len(configs) != len(names):
            raise ValueError(
                f"--dataset_config_name={config} has {len(configs)} configurations for "
                f"--dataset_name={name}; expected one for each of the data sets, empty "
                "where there is none; correct the commas"
            )
        return [(one, c or None) for one, c in zip(names, configs, strict=True)]


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
        return self._counts

    @cached_property
    def _counts(self) -> list[int]:
        # From where blocks begin: the tokens themselves stay on the disk.
        lists = self.blocks.with_format("arrow")[:].column("input_ids")
        return [n for part in lists.chunks for n in np.diff(part.offsets).tolist()]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        drawn = (0, 0) if self.seed is None else (self.seed, 1 + self.epoch)
        tokens = self.blocks[int(index)]["input_ids"]
        ids, labels = self.masking.mask(tokens, (*drawn, int(index)))
        return {"input_ids": ids, "labels": labels}


def _read(
    flags: MaskedArguments, cache_dir: str | None
) -> tuple[dict[str, Dataset], str]:
    """Read the data sets; the texts of several stand one behind the other."""
    from datasets import Value, concatenate_datasets

    from obert_modifiers.tasks.data import sources

    named = flags.data_sets()
    if len(named) == 1:
        return sources.read(flags, cache_dir)
    parts: dict[str, list[Dataset]] = {}
    for name, config in named:
        one = replace(flags, dataset_name=name, dataset_config_name=config)
        for split, rows in sources.read(one, cache_dir)[0].items():
            (column,), _ = _columns(rows, flags, name)
            rows = rows.select_columns([column])
            if rows.features[column] != Value("string"):
                rows = as_text(rows, column, f"{name} ({split})")
                rows = rows.cast_column(column, Value("string"))
            own = flags.text_column_name or _USUAL[0]
            if column != own:
                rows = rows.rename_column(column, own)
            parts.setdefault(split, []).append(rows)
    splits = {split: concatenate_datasets(several) for split, several in parts.items()}
    return splits, ", ".join(name for name, _ in named)


def _columns(rows: Dataset, flags: MaskedArguments, description: str) -> Columns:
    column = usual_column(rows, flags.text_column_name, _USUAL)
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
    """Turn the texts of a split into blocks of tokens that can be masked, on disk.

    Joined rows keep their special tokens, a thousand rows at a time; what remains of
    them is a shorter block.
    """
    from datasets import config

    from obert_modifiers.tasks.data import tokenized

    flags, length = inputs.flags, inputs.max_length
    tokenizer = inputs.pretrained.tokenizer
    options = {"truncation": True, "max_length": length} if flags.line_by_line else {}
    (column,) = inputs.data.text_columns
    rows = inputs.data.splits[name]

    def encode(batch: Batch) -> Batch:
        texts = [text for text in batch[column] if text.strip()]
        if not texts:
            return {"input_ids": []}
        blocks = tokenizer(texts, verbose=False, **options)["input_ids"]
        if not flags.line_by_line:
            joined = [token for ids in blocks for token in ids]
            blocks = [joined[i : i + length] for i in range(0, len(joined), length)]
        return {"input_ids": [ids for ids in blocks if masking.choosable(ids).any()]}

    def make(folder: Path) -> None:
        texts = as_text(rows, column, inputs.data.place(name))
        workers, title = flags.preprocessing_num_workers, f"tokenizing {name}"
        file = folder / "blocks.arrow"
        if len(map_rows(texts, encode, [column], workers, title, file)) == 0:
            raise ValueError(
                f"data={inputs.data.description} has no words in its {name} split; "
                "expected a text; check the file"
            )

    given = {"max_seq_length": length, "line_by_line": flags.line_by_line}
    source = tokenized.made_from(rows, column, tokenizer, encode, given)
    named = None if flags.tokenized_dir is None else Path(flags.tokenized_dir) / name
    cache = Path(inputs.pretrained.args.cache_dir or config.HF_DATASETS_CACHE)
    return tokenized.stored(tokenized.folder_of(source, named, cache), source, make)


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
    reader=_read,
)
