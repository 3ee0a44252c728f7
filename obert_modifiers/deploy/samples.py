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
    """Tell how long the samples are that a model is traced with and compared at.

    Args:
        model: The model.

    Returns:
        Tokens: as many as the model reads, :data:`LONGEST` at most.
    """
    return min(usable_length(model) or LONGEST, LONGEST)


def repeated(sample: Mapping[str, Tensor], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Repeat and cut a batch.

    Args:
        sample: ``(batch, sequence)`` by name.
        shape: Batch size and sequence length wanted.

    Returns:
        Tensors of that shape by name.
    """
    found = {}
    for name, value in sample.items():
        pairs = zip(shape, value.shape, strict=True)
        whole = value.repeat([-(-wanted // there) for wanted, there in pairs])
        found[name] = whole[: shape[0], : shape[1]]
    return found


def compared_samples(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    fixed: tuple[int | None, int | None] = (None, None),
) -> Iterator[dict[str, Tensor]]:
    """Make batches of several lengths, with padded rows, to compare outputs at.

    Tokens are drawn from the vocabulary; the first and the last of a row are those of
    the sample, and the second half of a row is a second text where the model tells
    texts apart.

    Args:
        model: The model.
        sample: A row of the tokenizer's by input name, ``(batch, sequence)``.
        fixed: Batch size and sequence length of a graph, None for a free one.

    Yields:
        Inputs by name; the longest come last.
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
    rows, tokens = len(lengths), max(lengths)
    if MASK not in sample:
        lengths = [tokens] * rows
    found = repeated(sample, (rows, tokens))
    if IDS not in sample:
        return found
    config = getattr(model, "config", None)
    place = torch.arange(tokens)
    used = place < torch.tensor(lengths)[:, None]  # (rows, tokens)
    ends = place == torch.tensor(lengths)[:, None] - 1
    first, last = sample[IDS][0, 0], sample[IDS][0, -1]
    words = _words(config, sample[IDS])
    generator = torch.Generator().manual_seed(tokens)
    ids = words[torch.randint(len(words), (rows, tokens), generator=generator)]
    ids[:, 0] = first
    ids = torch.where(ends & (place > 0), last, ids)
    padding = getattr(config, "pad_token_id", None) or 0
    found[IDS] = torch.where(used, ids, padding).to(sample[IDS])
    if MASK in sample:
        found[MASK] = used.to(sample[MASK])
    if TYPES in sample:
        second = (place >= tokens // 2) & used
        tells = (getattr(config, "type_vocab_size", None) or 0) > 1
        found[TYPES] = (second & tells).to(sample[TYPES])
    return found


def _words(config: object, ids: Tensor) -> Tensor:
    size = getattr(config, "vocab_size", None) or int(ids.max()) + 1
    special = (
        {value for name, value in vars(config).items() if name.endswith("_token_id")}
        if config is not None
        else set()
    )
    special |= {int(ids[0, 0]), int(ids[0, -1])}
    words = [one for one in range(size) if one not in special]
    return torch.tensor(words or [int(ids[0, 0])], dtype=torch.long)
