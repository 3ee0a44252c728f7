"""Embeddings of sentences: pooled from the tokens, their losses and their Fisher."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from obert_modifiers.core.outputs import EMBEDDING

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens")
TEMPERATURE = 0.05  # of the contrastive loss
_TOKENS = "last_hidden_state"
_MASK = "attention_mask"
_TINY = 1e-9


@dataclass(frozen=True)
class Pooling:
    """How tokens become the embedding of their sentence.

    Attributes:
        modes: Of `MODES`; of several the embeddings stand one after the other.
        unit: Whether it has the length 1.
    """

    modes: tuple[str, ...] = ("mean",)
    unit: bool = True

    def __call__(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens (k, T, H) by their attention mask (k, T).

        A mask (k, 1, 1, T) is one that is added to scores, 0 for what is attended to.

        Returns:
            ``(k, H)``, of n modes ``(k, n H)``.
        """
        if mask is None:
            mask = hidden.new_ones(hidden.shape[:2])
        if mask.ndim == 4:
            mask = mask[:, 0, 0].ge(0)
        kept = mask.unsqueeze(-1).to(hidden.dtype)  # (k, T, 1)
        parts = [_pool(mode, hidden, kept) for mode in self.modes]
        found = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return nnf.normalize(found, dim=-1) if self.unit else found


def _pool(mode: str, hidden: Tensor, kept: Tensor) -> Tensor:
    if mode == "cls":
        return hidden[:, 0]
    if mode == "max":
        lowest = torch.finfo(hidden.dtype).min
        return hidden.masked_fill(kept == 0, lowest).amax(dim=1)
    count = kept.sum(dim=1).clamp(min=_TINY)
    count = count.sqrt() if mode == "mean_sqrt_len_tokens" else count
    return (hidden * kept).sum(dim=1) / count


@dataclass(frozen=True)
class Embeds:
    """What an encoder with embeddings has beside its weights."""

    pooling: Pooling = field(default_factory=Pooling)
    files: Mapping[str, bytes] = field(default_factory=dict)  # by path in its folder


def embed_(model: nn.Module, embeds: Embeds) -> nn.Module:
    """Let an encoder of transformers return the embeddings of its sentences, in place.

    It then returns a dict with ``sentence_embedding``, ``last_hidden_state`` and, where
    they are asked for, ``hidden_states``; `save_pretrained` writes `files` too. Names
    of class and parameters stay. A pooler, which has no part in it, is frozen.

    Returns:
        The model.
    """
    base = type(model)
    names = [*inspect.signature(base.forward).parameters][1:]
    place = names.index(_MASK) if _MASK in names else len(names)

    class Embedding(base):  # type: ignore[misc, valid-type]
        @functools.wraps(base.forward)
        def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            kwargs.pop("return_dict", None)
            outputs = super().forward(*args, **kwargs)
            hidden = outputs[_TOKENS]
            mask = args[place] if place < len(args) else kwargs.get(_MASK)
            found = {EMBEDDING: self.embeds.pooling(hidden, mask), _TOKENS: hidden}
            states = outputs.get("hidden_states")
            return found if states is None else found | {"hidden_states": states}

        def save_pretrained(self, folder: str | Path, *args: Any, **kwargs: Any) -> Any:
            found = super().save_pretrained(folder, *args, **kwargs)
            for name, content in self.embeds.files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return found

    Embedding.__name__, Embedding.__qualname__ = base.__name__, base.__qualname__
    Embedding.__module__ = base.__module__
    model.__class__ = Embedding
    model.embeds = embeds  # type: ignore[assignment]
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
    return model


def embedding_of(outputs: Any) -> Tensor:
    """Return the embeddings (k, H) of a model's outputs, in float32 or wider."""
    if not isinstance(outputs, Mapping) or EMBEDDING not in outputs:
        raise ValueError(
            f"model gives no {EMBEDDING}; expected embeddings of sentences; train the "
            "task sentence_embedding"
        )
    found = outputs[EMBEDDING]
    return found if found.element_size() >= 4 else found.float()


def probe_losses(embeddings: Tensor, ids: Tensor, seed: int) -> Tensor:
    r"""Compute :math:`\langle v_i, e(x_i) \rangle` with random v of :math:`N(0, I)`.

    With J the Jacobian of an embedding e, its gradient is :math:`J^T v`, and
    :math:`E[J^T v v^T J] = J^T J`: the Gauss-Newton matrix of
    :math:`1/2 \|e - e_0\|^2` (Schraudolph 2002, "Fast Curvature Matrix-Vector
    Products"), which is the Fisher of a Gaussian of unit variance around e (Martens
    2020, "New Insights and Perspectives on the Natural Gradient Method"). No label and
    no teacher is needed.

    Args:
        embeddings: ``(k, H)``.
        ids: ``(k,)``, whole numbers below 2^32 that tell the samples apart. A sample
            has the same v whatever batch and process it is in.
        seed: Of all v.

    Returns:
        ``(k,)``; a number without a meaning, only its gradient has one.
    """
    width, made = embeddings.shape[-1], []
    for number in ids.tolist():
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + number) % 2**32)
        made.append(torch.randn(width, generator=generator))
    return (embeddings * torch.stack(made).to(embeddings)).sum(dim=-1)


def cosine_losses(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cos of each pair of embeddings (k, H), ``(k,)``."""
    _check_width(student, teacher)
    return 1.0 - nnf.cosine_similarity(student, teacher.to(student), dim=-1)


def squared_losses(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the squared distance of each pair (k, H), in units of the teacher's mean.

    :math:`\|e_s - e_t\|^2 / mean_j \|e_{t,j}\|^2`, ``(k,)``; for embeddings of
    length 1 the squared distance itself.
    """
    _check_width(student, teacher)
    teacher = teacher.to(student)
    scale = teacher.square().sum(dim=-1).mean().clamp(min=_TINY)
    return (student - teacher).square().sum(dim=-1) / scale


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the cosines among the sentences of a batch (k, H).

    Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", with cosines.
    The embeddings may be of different widths.

    Returns:
        The mean squared error over the k (k - 1) pairs of two sentences, 0 where there
        is only one sentence.
    """
    count = len(student)
    error = similarities(student) - similarities(teacher.to(student))
    error = error - torch.diag(torch.diagonal(error))  # rounding
    return error.square().sum() / max(count * (count - 1), 1)


def similarities(first: Tensor, second: Tensor | None = None) -> Tensor:
    """Return the cosines of all pairs, (n, H) and (m, H) to ``(n, m)``."""
    first = nnf.normalize(first, dim=-1)
    second = first if second is None else nnf.normalize(second, dim=-1)
    return first @ second.T


def score_losses(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Return the squared error of the cosines of pairs (k, H) to scores (k,)."""
    cosines = nnf.cosine_similarity(first, second, dim=-1)
    return (cosines - scores.to(cosines)).square()


def contrastive_losses(first: Tensor, second: Tensor, texts: Tensor) -> Tensor:
    """Return the cross-entropy of finding the second text of a pair by the first.

    Among the second texts of the batch, by cosine over a temperature of 0.05 (the
    in-batch negatives of Henderson et al. 2017, "Efficient Natural Language Response
    Suggestion for Smart Reply"). Embeddings are (k, H); `texts` (k,) numbers the second
    texts: one that is there twice is no negative of itself.
    """
    logits = similarities(first, second) / TEMPERATURE
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    twins = texts[:, None].eq(texts[None]) & ~own
    logits = logits.masked_fill(twins, -torch.inf)
    return nnf.cross_entropy(
        logits, torch.arange(len(logits), device=logits.device), reduction="none"
    )


def _check_width(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher embeddings have shape {tuple(teacher.shape)}; expected the "
            f"student's {tuple(student.shape)}; use a teacher of the same width, or "
            "similarity_weight alone"
        )
