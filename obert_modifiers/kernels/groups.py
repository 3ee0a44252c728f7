"""Small systems inside groups: the saliency of a group and of its subsets."""

import itertools

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import (
    block_chunks,
    cholesky,
    choose_backend,
    padded_width,
)
from obert_modifiers.kernels._run import run_blocks


def solve_groups(
    groups: Tensor, weights: Tensor, members: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Solve the system of each group restricted to some of its members.

    :math:`x_P = ([F^{-1}]_{PP})^{-1} w_P` for the members P of each group; half the
    product of x and w is their saliency, and :math:`F^{-1} x` the update that their
    removal calls for (oBERT section 3.1).

    Time: ``O(d Q^2)``; memory: the result.

    The ``groups`` are the diagonal ``Q x Q`` blocks of the inverse Fisher,
    ``(num_blocks, B / Q, Q, Q)``; weights and members are ``(num_blocks, B / Q, Q)``.

    Returns:
        x, ``(num_blocks, B / Q, Q)``, exactly zero outside of P.
    """
    solved = weights.new_zeros(weights.shape, dtype=torch.float64)
    chosen = choose_backend(backend, groups, tile=padded_width(weights.shape[2]))
    if chosen != "torch":
        blocks = (groups, weights.double(), members, solved)
        run_blocks(chosen, "solve_group_blocks", *blocks)
        return solved
    for part in block_chunks(len(groups), weights.shape[1] * weights.shape[2]):
        inside = members[part]
        system = groups[part] * (inside.unsqueeze(3) & inside.unsqueeze(2))
        system.diagonal(dim1=2, dim2=3).add_((~inside).double())
        right = (weights[part].double() * inside).unsqueeze(3)
        solved[part] = torch.cholesky_solve(right, cholesky(system)).squeeze(3)
    return solved


def lowest_subsets(
    groups: Tensor, weights: Tensor, pruned: Tensor, size: int, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""Find the set of weights of lowest saliency in each group.

    Tries all :math:`\binom{Q}{size}` sets P of a group and takes the one of lowest
    :math:`\frac12 w_P^T ([F^{-1}]_{PP})^{-1} w_P` (oBERT section 3.1), ties by the
    order of the indices. Only sets that hold everything pruned earlier count.

    Time: ``O(d / Q)`` times the number of sets; memory: the result.

    Shapes are those of :func:`solve_groups`; weights are zero where ``pruned``.

    Returns:
        The saliency ``(num_blocks, B / Q)``, and the sets ``(num_blocks, B / Q, Q)``,
        bool. A group that has lost more than ``size`` weights has infinite saliency and
        the empty set.
    """
    width = weights.shape[2]
    subsets = torch.tensor(list(itertools.combinations(range(width), size)))
    saliency = weights.new_full(weights.shape[:2], torch.inf, dtype=torch.float64)
    found = torch.full_like(saliency, -1, dtype=torch.int64)
    chosen = choose_backend(backend, groups, tile=padded_width(size))
    if chosen != "torch":
        blocks = (groups, weights.double(), pruned, subsets, saliency, found)
        run_blocks(chosen, "find_lowest_subsets", *blocks)
    else:
        for part in block_chunks(len(groups), weights.shape[1] * weights.shape[2]):
            saliency[part], found[part] = _lowest(
                groups[part], weights[part].double(), pruned[part], subsets
            )
    # The last row, at index -1, is the empty set.
    table = torch.zeros(len(subsets) + 1, width, dtype=torch.bool)
    table[:-1].scatter_(1, subsets, True)
    return saliency, table.to(found.device)[found]


def _lowest(
    groups: Tensor, weights: Tensor, pruned: Tensor, subsets: Tensor
) -> tuple[Tensor, Tensor]:
    best = weights.new_full(weights.shape[:2], torch.inf)
    found = torch.full_like(best, -1, dtype=torch.int64)
    held = pruned.sum(dim=2)
    for nth, subset in enumerate(subsets.to(weights.device)):
        factor = cholesky(groups[:, :, subset[:, None], subset])
        right = weights[:, :, subset].unsqueeze(3)
        half = torch.linalg.solve_triangular(factor, right, upper=False)
        now = 0.5 * half.square().sum(dim=(2, 3))
        better = (now < best) & (pruned[:, :, subset].sum(dim=2) == held)
        best = torch.where(better, now, best)
        found = torch.where(better, nth, found)
    return best, found
