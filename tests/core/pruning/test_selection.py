"""Selection against sorting, in one piece and in many, on one process and on two."""

from pathlib import Path

import numpy as np
import pytest
import torch

from obert_modifiers.core.patterns import UNSTRUCTURED
from obert_modifiers.core.pruning.selection import (
    Candidates,
    Pool,
    Quota,
    choose,
    make_pools,
    make_quotas,
    smallest,
)
from tests import reference
from tests.core.models import equal, in_group


def _values(dtype: torch.dtype, size: int = 1000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    scale = torch.rand(size, generator=generator).double() * 60 - 30
    return (values * 10.0**scale).to(dtype)


def _smallest(pieces, count: int) -> torch.Tensor:
    found = smallest(dict(enumerate(pieces)), count, len(pieces))
    return torch.cat([found[place] for place in sorted(found)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 7, 500, 999, 1000])
def test_smallest_over_many_magnitudes(count: int, dtype: torch.dtype) -> None:
    values = _values(dtype)
    expected = reference.lowest(values.double().numpy(), np.ones(1000, bool), count)
    found = _smallest([values], count)
    assert (found.numpy() == expected).all()
    # Control: the order of the bits of a float is not that of negative numbers.
    wrong = values.double().view(torch.int64).argsort()[:count]
    assert count in (0, 999, 1000) or not found[wrong].all()


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_smallest_breaks_ties_by_index_across_pieces(count: int) -> None:
    values = torch.tensor([3.0, 1.0, 1.0, 2.0, 0.0] * 4, dtype=torch.float64)
    values[9] = -0.0  # no different from 0.0
    expected = reference.lowest(values.numpy(), np.ones(20, bool), count)
    for cuts in ([20], [7, 13], [1, 1, 18], [20, 0]):
        assert (_smallest(values.split(cuts), count).numpy() == expected).all()


def test_smallest_refuses_nan_and_too_many() -> None:
    with pytest.raises(FloatingPointError, match="saliency has NaN"):
        _smallest([torch.tensor([1.0, float("nan")])], 1)
    with pytest.raises(ValueError, match=r"count=3 is outside \[0, 2\]"):
        _smallest([torch.tensor([1.0, 2.0, float("inf")])], 3)


def _quotas(pools, masks, **options) -> list[Quota]:
    kept = [mask.reshape(-1, 1) for mask in masks]
    return make_quotas(pools, kept, UNSTRUCTURED, **options)


def _choose(saliencies, masks, quotas) -> list[torch.Tensor]:
    """Choose single weights, each parameter in one piece."""
    candidates = {
        i: Candidates(torch.where(mask.reshape(-1), saliency, torch.inf))
        for i, (saliency, mask) in enumerate(zip(saliencies, masks, strict=True))
    }
    found = choose(candidates, range(len(masks)), quotas)
    return [found[i] for i in range(len(masks))]


@pytest.mark.parametrize("global_sparsity", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 1.0])
def test_selection_hits_the_count(global_sparsity: bool, sparsity: float) -> None:
    saliencies = [torch.rand(15), torch.rand(24) * 3]
    masks = [torch.rand(3, 5) > 0.2, torch.rand(24) > 0.2]
    pools = make_pools([15, 24], [sparsity] * 2, global_sparsity)
    chosen = _choose(saliencies, masks, _quotas(pools, masks))
    for pool in pools:
        living, picked, values = (
            np.concatenate([of[i].reshape(-1).numpy() for i in pool.members])
            for of in (masks, chosen, saliencies)
        )
        pruned, wanted = picked | ~living, max(0, pool.count - int((~living).sum()))
        assert pruned.sum() == wanted + (~living).sum()
        assert (pruned == (reference.lowest(values, living, wanted) | ~living)).all()


def test_all_equal_saliency_prunes_by_index() -> None:
    masks = [torch.ones(16).bool()]
    (chosen,) = _choose([torch.ones(16)], masks, _quotas([Pool((0,), 8)], masks))
    assert chosen.tolist() == [True] * 8 + [False] * 8


def test_greedy_candidates_keep_the_order_inside_a_block() -> None:
    saliency = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, torch.inf])
    order = torch.tensor([[2, 0, 1], [1, 0, 2]], dtype=torch.int16)
    candidates = Candidates(saliency, order=order)
    chosen = choose({0: candidates}, [0], [Quota((0,), 2)])[0]
    # Both from the first block, in its order; the last index is padding.
    assert candidates.pruned(chosen, 5).tolist() == [True, False, True, False, False]


def test_groups_and_members_go_together() -> None:
    chosen, members = torch.tensor([True, False]), [[True, False], [True, True]]
    found = Candidates(torch.ones(2), group_size=3).pruned(chosen, 6)
    assert found.tolist() == [True] * 3 + [False] * 3
    found = Candidates(torch.ones(2), torch.tensor(members)).pruned(chosen, 4)
    assert found.tolist() == [True, False, False, False]


@pytest.mark.parametrize("min_density", [0.1, 0.3, 0.5])
def test_minimum_density_holds_for_each_parameter(min_density: float) -> None:
    saliencies = [torch.rand(100), 10.0 + torch.rand(60), torch.rand(40)]
    masks = [torch.ones(100).bool(), torch.ones(60).bool(), torch.rand(40) > 0.3]
    quotas = _quotas([Pool((0, 1, 2), 100)], masks, min_density=min_density)
    chosen = _choose(saliencies, masks, quotas)
    pruned = [c | ~m for c, m in zip(chosen, masks, strict=True)]
    assert sum(int(p.sum()) for p in pruned) == 100
    for p in pruned:
        assert int((~p).sum()) >= min_density * p.numel() - 1e-9
    # Control: without it the parameters of low saliency go nearly whole.
    free = _choose(saliencies, masks, [Quota((0, 1, 2), quotas[0].wanted)])
    assert int((~free[0]).sum()) < 0.5 * 100
    # Inside each parameter the lowest go.
    for saliency, picked, mask in zip(saliencies, chosen, masks, strict=True):
        if picked.any() and (~picked & mask).any():
            assert saliency[picked].max() <= saliency[~picked & mask].min()


@pytest.mark.parametrize(("sparsity", "least"), [(0.7, 0.3), (0.9, 0.1), (0.8, 0.2)])
def test_minimum_density_of_all_that_stays(sparsity: float, least: float) -> None:
    """Rounded down, the parameters together could lose fewer than the count."""
    numels = [101, 57, 33, 33]
    masks = [torch.ones(numel).bool() for numel in numels]
    (pool,) = make_pools(numels, [sparsity] * 4, True)
    quotas = _quotas([pool], masks, min_density=least)
    chosen = _choose([torch.rand(numel) for numel in numels], masks, quotas)
    assert sum(int(one.sum()) for one in chosen) == pool.count
    for one in chosen:
        assert int((~one).sum()) > least * one.numel() - 1.0


def test_minimum_density_that_cannot_be_held_is_an_error() -> None:
    masks = [torch.ones(10).bool()] * 2
    quotas = _quotas([Pool((0, 1), 16)], masks, min_density=0.5)
    with pytest.raises(ValueError, match=r"count=16 is outside \[0, 10\]"):
        _choose([torch.ones(10)] * 2, masks, quotas)


def _choose_some(mine, device: torch.device | None = None):
    """Choose from six pieces of two parameters, of which some are here."""
    generator = torch.Generator().manual_seed(0)
    saliencies = torch.randint(0, 9, (6, 30), generator=generator).double()
    candidates = {i: Candidates(saliencies[i]) for i in mine}
    return choose(candidates, [0, 0, 0, 1, 1, 1], [Quota((0, 1), 77, (40, 50))], device)


def _worker(rank: int, folder: str) -> None:
    with in_group(rank, folder):
        mine = [i for i in range(6) if i // 2 % 2 == rank]
        torch.save(_choose_some(mine, torch.device("cpu")), f"{folder}/rank{rank}.pt")


def test_two_processes_choose_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    one, two = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    alone, found = _choose_some(range(6)), one | two
    assert sum(int(chosen.sum()) for chosen in alone.values()) == 77
    assert equal(alone.values(), [found[i] for i in alone])


@pytest.mark.parametrize(
    ("numels", "sparsities", "global_sparsity", "unit", "expected"),
    [
        ([10, 10, 20], [0.5, 0.8, 0.5], True, 1, [((0, 2), 15), ((1,), 8)]),
        ([40, 24], [0.33, 0.33], True, 4, [((0, 1), 20)]),  # 21.12 of 64
        ([40, 24], [0.33, 0.5], False, 3, [((0,), 12), ((1,), 12)]),
    ],
)
def test_pools(numels, sparsities, global_sparsity, unit, expected) -> None:
    pools = make_pools(numels, sparsities, global_sparsity, unit)
    assert [(p.members, p.count) for p in pools] == expected
