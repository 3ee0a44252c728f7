"""What a model is traced with and compared at: few and many tokens, with padding."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from obert_modifiers.core.positions import usable_length

# Beyond it tracing and comparing take long; windows and spans of known models, which
# are cut off or begin at some length, are shorter.
LONGEST = 512
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
_SIZES = ((1, 2), (3, 9), (4, 40))  # and two rows of the longest


def longest_sample(model: nn.Module) -> int:
    """Tell how long the samples are that a model is traced with and compared at."""
    return min(usable_length(model) or LONGEST, LONGEST)


def repeated(sample: Mapping[str, Tensor], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Repeat and cut a batch."""
    rows, tokens = shape
    return {
        name: value.repeat(-(-rows // len(value)), -(-tokens // value.shape[1]))[
            :rows, :tokens
        ]
        for name, value in sample.items()
    }


def compared_samples(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    fixed: tuple[int | None, int | None] = (None, None),
) -> Iterator[dict[str, Tensor]]:
    """Make batches of several lengths, with padded rows, to compare outputs at.

    Tokens are drawn from the vocabulary; the first and the last of a row are those of
    the sample, and the second half of a row is a second text where the model tells
    texts apart.
    """
    longest = fixed[1] or longest_sample(model)
    sizes = [(fixed[0] or rows, fixed[1] or tokens) for rows, tokens in _SIZES]
    sizes.append((fixed[0] or 2, longest))
    for rows, tokens in dict.fromkeys(sizes):
        if tokens > longest:
            continue
        yield _drawn(model, sample, [tokens - r * tokens // rows for r in range(rows)])
        if rows == 1 and fixed[1] is not None and MASK in sample:
            half = _drawn(model, sample, [tokens, -(-tokens // 2)])
            yield {name: value[1:] for name, value in half.items()}


def _drawn(
    model: nn.Module, sample: Mapping[str, Tensor], lengths: list[int]
) -> dict[str, Tensor]:
    """Draw rows of some lengths; without a mask all are as long as the longest."""
    rows, tokens = len(lengths), max(lengths)
    found = repeated(sample, (rows, tokens))
    if IDS not in sample:
        return found
    config = getattr(model, "config", None)
    ends = torch.tensor(lengths if MASK in sample else [tokens] * rows)[:, None]
    place = torch.arange(tokens)
    used = place < ends  # (rows, tokens)
    words = _words(config, sample[IDS])
    generator = torch.Generator().manual_seed(tokens)
    ids = words[torch.randint(len(words), (rows, tokens), generator=generator)]
    ids[:, 0] = sample[IDS][0, 0]
    ids = torch.where((place == ends - 1) & (place > 0), sample[IDS][0, -1], ids)
    padding = getattr(config, "pad_token_id", None) or 0
    found[IDS] = torch.where(used, ids, padding).to(sample[IDS])
    if MASK in sample:
        found[MASK] = used.to(sample[MASK])
    if TYPES in sample:
        two_texts = (getattr(config, "type_vocab_size", None) or 0) > 1
        second = (place >= tokens // 2) & used & two_texts
        found[TYPES] = second.to(sample[TYPES])
    return found


def _words(config: object, ids: Tensor) -> Tensor:
    """List the vocabulary without special tokens."""
    size = getattr(config, "vocab_size", None) or int(ids.max()) + 1
    named = vars(config) if config is not None else {}
    special = {value for name, value in named.items() if name.endswith("_token_id")}
    special |= {int(ids[0, 0]), int(ids[0, -1])}
    words = [word for word in range(size) if word not in special]
    return torch.tensor(words or [int(ids[0, 0])], dtype=torch.long)
