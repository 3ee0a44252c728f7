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
from tests.core.models import in_group


def _values(seed: int = 0, size: int = 1000, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    scale = torch.rand(size, generator=generator).double() * 60 - 30
    return (values * 10.0**scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 7, 500, 999, 1000])
def test_smallest_over_many_magnitudes(count: int, dtype: torch.dtype) -> None:
    values = _values(dtype=dtype)
    expected = reference.lowest(values.double().numpy(), np.ones(1000, bool), count)
    (found,) = smallest([values], count)
    assert (found.numpy() == expected).all()
    # Control: the order of the bits of a float is not that of negative numbers.
    wrong = values.double().view(torch.int64).argsort()[:count]
    assert count in (0, 999, 1000) or not found[wrong].all()


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_smallest_breaks_ties_by_index_across_pieces(count: int) -> None:
    values = torch.tensor([3.0, 1.0, 1.0, 2.0, 0.0] * 4, dtype=torch.float64)
    values[9] = -0.0  # no different from 0.0
    expected = reference.lowest(values.numpy(), np.ones(20, bool), count)
    assert (smallest([values], count)[0].numpy() == expected).all()
    for cuts in ([7, 13], [1, 1, 18], [20, 0]):
        pieces = values.split(cuts)
        found = torch.cat(smallest(pieces, count))
        assert (found.numpy() == expected).all()


def test_smallest_refuses_nan_and_too_many() -> None:
    with pytest.raises(FloatingPointError, match="saliency has NaN"):
        smallest([torch.tensor([1.0, float("nan")])], 1)
    with pytest.raises(ValueError, match=r"count=3 is outside \[0, 2\]"):
        smallest([torch.tensor([1.0, 2.0, float("inf")])], 3)


def _kept(*masks: torch.Tensor) -> list[torch.Tensor]:
    return [mask.reshape(-1, 1) for mask in masks]


def _singles(saliency: torch.Tensor, mask: torch.Tensor) -> Candidates:
    return Candidates(torch.where(mask.reshape(-1), saliency, torch.inf))


@pytest.mark.parametrize("global_sparsity", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 1.0])
def test_selection_hits_the_count(global_sparsity: bool, sparsity: float) -> None:
    torch.manual_seed(0)
    saliencies = [torch.rand(15), torch.rand(24) * 3]
    masks = [torch.rand(3, 5) > 0.2, torch.rand(24) > 0.2]
    pools = make_pools([15, 24], [sparsity] * 2, global_sparsity)
    quotas = make_quotas(pools, _kept(*masks), UNSTRUCTURED)
    candidates = [_singles(s, m) for s, m in zip(saliencies, masks, strict=True)]
    chosen = choose(candidates, [(0, 0), (1, 1)], 2, quotas)
    for pool in pools:
        pruned = np.concatenate([
            (chosen[i] | ~masks[i].reshape(-1)).numpy() for i in pool.members
        ])
        living = np.concatenate([masks[i].reshape(-1).numpy() for i in pool.members])
        values = np.concatenate([saliencies[i].numpy() for i in pool.members])
        wanted = max(0, pool.count - int((~living).sum()))
        assert pruned.sum() == wanted + (~living).sum()
        assert (pruned == (reference.lowest(values, living, wanted) | ~living)).all()


def test_all_equal_saliency_prunes_by_index() -> None:
    quotas = make_quotas([Pool((0,), 8)], _kept(torch.ones(16).bool()), UNSTRUCTURED)
    (chosen,) = choose([Candidates(torch.ones(16))], [(0, 0)], 1, quotas)
    assert chosen.tolist() == [True] * 8 + [False] * 8


def test_greedy_candidates_keep_the_order_inside_a_block() -> None:
    costs = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, torch.inf])
    order = torch.tensor([[2, 0, 1], [1, 0, 2]], dtype=torch.int16)
    candidates = Candidates(costs, order=order)
    (chosen,) = choose([candidates], [(0, 0)], 1, [Quota((0,), 2)])
    # Both from the first block, in its order; the last index is padding.
    assert candidates.pruned(chosen, 5).tolist() == [True, False, True, False, False]


def test_groups_and_members_go_together() -> None:
    chosen = torch.tensor([True, False])
    assert Candidates(torch.ones(2), group_size=3).pruned(chosen, 6).tolist() == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    members = torch.tensor([[True, False], [True, True]])
    found = Candidates(torch.ones(2), members).pruned(chosen, 4)
    assert found.tolist() == [True, False, False, False]


@pytest.mark.parametrize("min_density", [0.1, 0.3, 0.5])
def test_minimum_density_holds_for_each_parameter(min_density: float) -> None:
    torch.manual_seed(0)
    costs = [torch.rand(100), 10.0 + torch.rand(60), torch.rand(40)]
    masks = [torch.ones(100).bool(), torch.ones(60).bool(), torch.rand(40) > 0.3]
    quotas = make_quotas(
        [Pool((0, 1, 2), 100)], _kept(*masks), UNSTRUCTURED, min_density=min_density
    )
    candidates = [_singles(c, m) for c, m in zip(costs, masks, strict=True)]
    places = [(i, i) for i in range(3)]
    chosen = choose(candidates, places, 3, quotas)
    pruned = [c | ~m for c, m in zip(chosen, masks, strict=True)]
    assert sum(int(p.sum()) for p in pruned) == 100
    for p in pruned:
        assert int((~p).sum()) >= min_density * p.numel() - 1e-9
    # Control: without it the cheap parameters go nearly whole.
    free = choose(candidates, places, 3, [Quota(quotas[0].members, quotas[0].wanted)])
    assert int((~free[0]).sum()) < 0.5 * 100
    # Inside each parameter the cheapest go.
    for cost, picked, mask in zip(costs, chosen, masks, strict=True):
        if picked.any() and (~picked & mask).any():
            assert cost[picked].max() <= cost[~picked & mask].min()


def test_minimum_density_that_cannot_be_held_is_an_error() -> None:
    kept = _kept(torch.ones(10).bool(), torch.ones(10).bool())
    quotas = make_quotas([Pool((0, 1), 16)], kept, UNSTRUCTURED, min_density=0.5)
    candidates = [Candidates(torch.ones(10)), Candidates(torch.ones(10))]
    with pytest.raises(ValueError, match=r"count=16 is outside \[0, 10\]"):
        choose(candidates, [(0, 0), (1, 1)], 2, quotas)


def _worker(rank: int, folder: str) -> None:
    with in_group(rank, folder):
        saliencies, places = _pieces()
        mine = [i for i in range(len(saliencies)) if i // 2 % 2 == rank]
        found = choose(
            [Candidates(saliencies[i]) for i in mine],
            [places[i] for i in mine],
            len(saliencies),
            _quotas(),
            torch.device("cpu"),
        )
        torch.save(dict(zip(mine, found, strict=True)), f"{folder}/rank{rank}.pt")


def _pieces():
    torch.manual_seed(0)
    costs = [torch.randint(0, 9, (30,)).double() for _ in range(6)]
    return costs, [(i // 3, i) for i in range(6)]


def _quotas() -> list[Quota]:
    return [Quota((0, 1), 77, (40, 50))]


def test_two_processes_choose_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    found = {}
    for rank in (0, 1):
        found |= torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
    costs, places = _pieces()
    alone = choose([Candidates(c) for c in costs], places, 6, _quotas())
    assert sum(int(one.sum()) for one in alone) == 77
    for i, one in enumerate(alone):
        assert torch.equal(found[i], one)


def test_pools_group_equal_targets() -> None:
    pools = make_pools([10, 10, 20], [0.5, 0.8, 0.5], True)
    assert [(p.members, p.count) for p in pools] == [((0, 2), 15), ((1,), 8)]


def test_counts_are_whole_groups() -> None:
    pools = make_pools([40, 24], [0.33, 0.33], True, unit=4)
    assert [(p.members, p.count) for p in pools] == [((0, 1), 20)]  # 21.12 of 64
    pools = make_pools([40, 24], [0.33, 0.5], False, unit=3)
    assert [p.count for p in pools] == [12, 12]
