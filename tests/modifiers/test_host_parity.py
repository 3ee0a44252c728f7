"""Where we claim SparseML's rule, its own code has to agree."""

import importlib

import numpy as np
import pytest
import torch

from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.pruning_step import magnitude_step_
from obert_modifiers.core.pruning.saliency import obs_candidates
from obert_modifiers.core.pruning.selection import choose, make_pools, make_quotas
from obert_modifiers.core.pruning.targets import Target
from obert_modifiers.core.pruning.update import independent_update
from obert_modifiers.host import bases
from tests.hosts import on_sparseml

pytestmark = on_sparseml
PRUNING = f"{bases.Modifier.__module__.rpartition('.')[0]}.pruning"
SHAPE, WIDTH, DAMP, NUM_GRADS = (12, 16), 24, 1e-2, 32


def _theirs(name: str):
    return importlib.import_module(f"{PRUNING}.{name}")


def _mask_creator(mask_type: str):
    return _theirs("mask_creator").get_mask_creator_default(mask_type)


@pytest.mark.parametrize(
    ("mask_type", "sparsity"),
    [("unstructured", 0.6), ("block4", 0.5), ("block4", 0.75), ("2:4", 0.5)],
)
def test_magnitude_masks_are_those_of_its_mask_creators(mask_type, sparsity) -> None:
    weights = [torch.nn.Parameter(torch.randn(SHAPE) * (i + 1)) for i in range(2)]
    theirs = _mask_creator(mask_type).create_sparsity_masks(
        [w.detach().abs() for w in weights], sparsity, mask_type != "2:4"
    )
    targets = [Target(str(i), w) for i, w in enumerate(weights)]
    ours = magnitude_step_(
        targets,
        [torch.ones(SHAPE, dtype=torch.bool)] * 2,
        [sparsity] * 2,
        global_sparsity=True,
        pattern=parse_mask_type(mask_type),
    )
    for mask, other in zip(ours.masks, theirs, strict=True):
        assert torch.equal(mask, other.bool())


@pytest.mark.parametrize("mask_type", ["unstructured", "block4"])
def test_independent_step_is_its_obs_step(mask_type: str) -> None:
    pattern = parse_mask_type(mask_type)
    weight = torch.nn.Parameter(torch.randn(SHAPE).double())
    grads = torch.randn(NUM_GRADS, *SHAPE).double() * 0.3
    dense = [torch.ones(SHAPE).double()]

    scorer = _theirs("modifier_pruning_obs").OBSPruningParamsScorer(
        [weight], NUM_GRADS, DAMP, WIDTH, mask_type
    )
    scorer._enabled_grad_buffering = True
    scorer._setup_fisher_inverse(dense)
    for finv in scorer._finvs:
        finv.f_inv = finv.f_inv.double()
    for grad in grads:
        weight.grad = grad.clone()
        scorer.pre_optim_step_update(dense)
    scores = scorer.score_parameters()
    theirs = _mask_creator(mask_type).create_sparsity_masks(scores, 0.5)[0].double()

    fisher = BlockFisher(weight.numel(), WIDTH, dtype=torch.float64)
    fisher.add_(grads.reshape(NUM_GRADS, -1))
    kept = torch.ones(weight.numel() // pattern.group_size, pattern.group_size).bool()
    groups = weight.detach().reshape(kept.shape)
    found = obs_candidates(groups, kept, fisher, DAMP, pattern)
    each = scores[0].reshape(kept.shape)[:, 0]
    # It adds 1e-7 to the diagonal of single weights.
    np.testing.assert_allclose(found.saliency, each, rtol=1e-5)
    pools = make_pools([weight.numel()], [0.5], True, pattern.unit)
    chosen = choose({0: found}, [0], make_quotas(pools, [kept], pattern))[0]
    mask = ~found.pruned(chosen, weight.numel()).reshape(kept.shape)
    assert torch.equal(mask.reshape(SHAPE), theirs.bool())

    ours, _ = independent_update(groups, fisher, DAMP, mask, pattern.group_size)
    scorer.mask_update([theirs], [theirs - 1.0])
    np.testing.assert_allclose(ours.reshape(SHAPE), weight.detach(), atol=1e-5)
