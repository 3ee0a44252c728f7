"""How many tokens a model reads at most."""

from torch import nn

_POSITIONS = "position_embeddings"


def usable_length(model: nn.Module) -> int | None:
    """Return how many tokens a model reads at most, None where nothing sets a limit.

    An embedding of positions with a padding index, as in RoBERTa, only has rows for the
    positions behind that index; ``max_position_embeddings`` counts those before it too.
    """
    named = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    limits = [named] if isinstance(named, int) and named > 0 else []
    for name, module in model.named_modules():
        # By its attributes: I-BERT has a class of its own.
        if name.rpartition(".")[2] == _POSITIONS and hasattr(module, "padding_idx"):
            padding = -1 if module.padding_idx is None else int(module.padding_idx)
            limits.append(module.weight.shape[0] - padding - 1)
    return min(limits, default=None)
