"""Figures of embeddings: of scored pairs, of retrieval, and beside the dense model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import ndcg_score
from sklearn.preprocessing import normalize

from obert_modifiers.core.embedding import TEMPERATURE
from obert_modifiers.tasks.data.metrics import measure
from obert_modifiers.tasks.sentences.data import PAIRS, SCORES, TEXTS

TOP = 10
_ROWS = 1024  # of cosines at once
HEADLINES = {
    SCORES: ("spearman", "pearson"),
    PAIRS: ("ndcg_at_10", "mrr_at_10", "accuracy_at_1"),
    TEXTS: ("top10_kept", "cosine_to_dense"),
}


@dataclass(frozen=True, eq=False)
class Measure:
    """Measures embeddings of texts (n, H), in the order of the samples.

    Attributes:
        kind: Of the rows.
        first: For each row the place of its text.
        second: That of the other text of a pair; empty for texts.
        scores: Of scored pairs.
        dense: The dense model's embeddings, (n, H'), or None.
    """

    kind: str
    first: Sequence[int]
    second: Sequence[int] = ()
    scores: Sequence[float] = ()
    dense: np.ndarray | None = None

    def __call__(self, embedding: np.ndarray) -> dict[str, float]:
        """Return the figures by name; all are better when higher but ``loss``."""
        ours = normalize(embedding.astype(np.float64))
        found: dict[str, float] = {}
        own = {SCORES: self._scored, PAIRS: self._retrieved}.get(self.kind)
        if own is not None:
            found |= own(ours)
        if self.dense is not None:
            dense = normalize(self.dense.astype(np.float64))
            found |= self._beside(ours, dense)
            if own is not None:
                name = HEADLINES[self.kind][0]
                found[f"{name}_dense"] = own(dense)[name]
        return found | {"samples": len(self.first)}

    def _scored(self, unit: np.ndarray) -> dict[str, float]:
        cosines = (unit[self.first] * unit[self.second]).sum(axis=1)
        loss = np.mean((cosines - np.asarray(self.scores)) ** 2)
        figures = measure(("spearman", "pearson"), cosines, self.scores)
        return figures | {"loss": float(loss)}

    def _retrieved(self, unit: np.ndarray) -> dict[str, float]:
        """Find second texts by first ones; those of a pair belong together."""
        queries, passages = np.unique(self.first), np.unique(self.second)
        relevant = np.zeros((len(queries), len(passages)), bool)
        rows = np.searchsorted(queries, self.first)
        relevant[rows, np.searchsorted(passages, self.second)] = True
        sums = np.zeros(4)
        for part, cosines in _cosines(unit[queries], unit[passages]):
            right = relevant[part]
            hits = np.take_along_axis(right, _top(cosines), axis=1)
            ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
            ndcg = ndcg_score(right, cosines, k=TOP, ignore_ties=True)
            logits = cosines / TEMPERATURE
            own = logsumexp(logits, axis=1, b=right)
            losses = logsumexp(logits, axis=1) - own
            sums += (
                len(right) * ndcg,
                (1.0 / ranks).sum(),
                hits[:, 0].sum(),
                losses.sum(),
            )
        names = (*HEADLINES[PAIRS], "loss")
        return dict(zip(names, (sums / len(queries)).tolist(), strict=True))

    def _beside(self, ours: np.ndarray, dense: np.ndarray) -> dict[str, float]:
        """Compare with the dense model, whose embeddings may have another width."""
        found = {"top10_kept": self._kept(ours, dense)}
        if ours.shape == dense.shape:
            found["cosine_to_dense"] = float((ours * dense).sum(axis=1).mean())
        if self.kind == TEXTS:
            found["loss"] = 1.0 - found.get("cosine_to_dense", found["top10_kept"])
        return found

    def _kept(self, ours: np.ndarray, dense: np.ndarray) -> float:
        """Return which share of the dense model's ten nearest are among our ten.

        Passages near each query; else all other texts near each text.
        """
        rows = columns = np.arange(len(ours))
        if self.kind == PAIRS:
            rows, columns = np.unique(self.first), np.unique(self.second)
        shared = count = 0
        pairs = zip(
            _cosines(ours[rows], ours[columns]),
            _cosines(dense[rows], dense[columns]),
            strict=True,
        )
        for (part, one), (_, two) in pairs:
            for cosines in (one, two):
                if self.kind != PAIRS:
                    cosines[np.arange(len(cosines)), rows[part]] = -np.inf
            most = min(TOP, one.shape[1] - (self.kind != PAIRS))
            tops = zip(_top(one, most), _top(two, most), strict=True)
            shared += sum(len(np.intersect1d(a, b)) for a, b in tops)
            count += len(one) * most
        return shared / count


def _cosines(
    first: np.ndarray, second: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield some rows at a time, and their cosines with all of the others."""
    for start in range(0, len(first), _ROWS):
        part = slice(start, start + _ROWS)
        yield part, first[part] @ second.T


def _top(cosines: np.ndarray, count: int = TOP) -> np.ndarray:
    """Return the columns of the highest in each row; ties go to the lower column."""
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]
