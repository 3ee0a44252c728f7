"""The inverse Fisher that the others are measured against: one gradient at a time.

SparseML's class where it is installed; otherwise the recursion of the paper in plain
torch, which is the same arithmetic.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from obert_modifiers.core.pruning.blocks import count_blocks, from_blocks, to_blocks
from obert_modifiers.core.pruning.selection import smallest
from obert_modifiers.core.pruning.targets import Target

RECURSION = "the paper's recursion in torch"
SPARSEML = "SparseML's class"
_OBS = "sparseml.pytorch.sparsification.pruning.modifier_pruning_obs"


class RankOneInverse:
    r"""Inverse Fisher blocks that take in a gradient at a time, in float32.

    oBERT section 3.2.2, starting from :math:`F^{-1} = I / \lambda`: with
    :math:`v = F^{-1} g`, :math:`F^{-1} \leftarrow F^{-1} - v v^T / (m + g^T v)`.

    Attributes:
        f_inv: ``(num_blocks, B, B)``.
    """

    def __init__(
        self, num_grads: int, fisher_block_size: int, numel: int, damp: float
    ) -> None:
        """Start with no gradient.

        Args:
            num_grads: Gradients m that will have come in.
            fisher_block_size: Width B of a block.
            numel: Number of weights d.
            damp: Dampening, larger than 0.
        """
        self._num_grads, self._numel = num_grads, numel
        self._width = fisher_block_size
        blocks = count_blocks(numel, fisher_block_size)
        eye = torch.eye(fisher_block_size) / damp
        self.f_inv = eye.expand(blocks, -1, -1).clone()

    def add_grad(self, grad: Tensor) -> None:
        """Take in a gradient, in place.

        Args:
            grad: ``(d,)``, float32.
        """
        g = to_blocks(grad, self._width).unsqueeze(2)  # (num_blocks, B, 1)
        v = self.f_inv @ g
        divisor = self._num_grads + g.transpose(1, 2) @ v
        self.f_inv.baddbmm_(v / divisor, v.transpose(1, 2), alpha=-1)

    def diagonal(self) -> Tensor:
        """Return the diagonal of the inverse, ``(d,)``."""
        return from_blocks(self.f_inv.diagonal(dim1=1, dim2=2), self._numel)

    def multiply(self, values: Tensor) -> Tensor:
        """Multiply a vector by the inverse.

        Args:
            values: ``(d,)``, float32.

        Returns:
            ``(d,)``.
        """
        blocks = to_blocks(values, self._width).unsqueeze(2)
        return from_blocks((self.f_inv @ blocks).squeeze(2), self._numel)


@dataclass(frozen=True)
class Baseline:
    """What a benchmark is measured against.

    Attributes:
        name: For the table.
        make: Called with m, B, d and the dampening; gives an object with ``add_grad``
            and ``f_inv``.
    """

    name: str
    make: Callable[[int, int, int, float], Any]


def find_baseline() -> Baseline:
    """Take SparseML's class where it is installed, otherwise the recursion.

    Returns:
        The baseline.
    """
    module = sparseml_module(_OBS)
    if module is None:
        return Baseline(RECURSION, RankOneInverse)
    theirs = module.EmpiricalBlockFisherInverse
    return Baseline(
        SPARSEML, lambda m, width, d, damp: theirs(m, width, d, damp, "cpu")
    )


def sparseml_module(name: str) -> Any:
    """Import a module of SparseML, with its analytics off.

    Args:
        name: Full name.

    Returns:
        The module, or None where SparseML is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_module("obert_modifiers.host.bases")  # analytics off
            return import_module(name)
        except ImportError:
            return None


def compare_baselines(baseline: Baseline, grads: Tensor, damp: float) -> dict[str, Any]:
    """Hold SparseML's class and the recursion against each other.

    Args:
        baseline: As from :func:`find_baseline`.
        grads: ``(m, d)``, float32.
        damp: Dampening, larger than 0.

    Returns:
        Norm-wise relative difference of the inverses, and seconds of SparseML's class
        over those of the recursion; empty where there is only the recursion.
    """
    if baseline.name == RECURSION:
        return {}
    inverses, seconds = [], []
    for make in (baseline.make, RankOneInverse):
        state = make(len(grads), 50, grads.shape[1], damp)
        state.add_grad(grads[0])
        started = time.perf_counter()
        for grad in grads[1:]:
            state.add_grad(grad)
        seconds.append(time.perf_counter() - started)
        inverses.append(state.f_inv.double())
    difference = float((inverses[1] - inverses[0]).norm() / inverses[0].norm())
    return {"difference": difference, "seconds_ratio": seconds[0] / seconds[1]}


def rank_one_step_(
    targets: Sequence[Target],
    losses: Sequence[Callable[[], Tensor]],
    fisher_block_size: int,
    damp: float,
    sparsity: float,
) -> None:
    """Prune as the paper's implementation does, one gradient after the other.

    Independent selection with one threshold, independent update; writes the
    parameters.

    Args:
        targets: Parameters to prune.
        losses: Called once for each gradient; gives the mean loss of a batch.
        fisher_block_size: Width B of a block.
        damp: Dampening, larger than 0.
        sparsity: Fraction of zeros afterwards, over all parameters.
    """
    parameters = [target.parameter for target in targets]
    states = [
        RankOneInverse(len(losses), fisher_block_size, p.numel(), damp)
        for p in parameters
    ]
    for loss in losses:
        grads = torch.autograd.grad(loss(), parameters)
        for state, grad in zip(states, grads, strict=True):
            state.add_grad(grad.reshape(-1))
    weights = [p.detach().reshape(-1) for p in parameters]
    saliency = [
        w.square() / (2.0 * state.diagonal())
        for w, state in zip(weights, states, strict=True)
    ]
    count = round(sparsity * sum(w.numel() for w in weights))
    pruned = smallest(dict(enumerate(saliency)), count, len(saliency))
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            pull = torch.where(pruned[i], weights[i] / states[i].diagonal(), 0.0)
            value = weights[i] - states[i].multiply(pull)
            value = torch.where(pruned[i], 0.0, value)
            parameter.copy_(value.reshape(parameter.shape))
