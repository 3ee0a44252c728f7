"""Pieces cover every weight once whatever the plan, and plans keep to the budget."""

import math

import pytest
import torch

from obert_modifiers.core.distributed import sharding
from obert_modifiers.core.distributed.sharding import plan_event
from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning.blocks import make_layout

SHAPES = [(512, 384), (10, 7), (1, 5), (768, 512), (33, 50)]


def _layouts(text: str = "unstructured", shapes=SHAPES, transposed: bool = False):
    pattern = parse_mask_type(text)
    return [make_layout(pattern, "w", shape, transposed) for shape in shapes]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("width", [4, 48, 50])
def test_every_weight_is_in_one_piece(ranks: int, width: int) -> None:
    layouts = _layouts()
    plan = plan_event(layouts, width, ranks=ranks)
    places = {target: 0 for target in range(len(SHAPES))}
    for piece in plan.pieces:
        assert piece.start == places[piece.target]
        assert piece.start % width == 0  # whole Fisher blocks
        assert piece.start % SHAPES[piece.target][1] == 0  # whole output rows
        places[piece.target] = piece.stop
    assert places == {i: math.prod(shape) for i, shape in enumerate(SHAPES)}
    owned = [i for rank in range(ranks) for i in plan.owned(rank)]
    assert sorted(owned) == list(range(len(plan.pieces)))
    assert owned == sorted(owned)  # neighbours together


def test_cuts_do_not_depend_on_the_plan() -> None:
    layouts = _layouts(shapes=[(3072, 768), (768, 768)])
    plans = [
        plan_event(layouts, 50),
        plan_event(layouts, 50, ranks=3),
        plan_event(layouts, 50, ranks=2, memory_budget=3 * 2**30),
    ]
    cuts = [[(p.target, p.start, p.stop) for p in plan.pieces] for plan in plans]
    assert cuts[0] == cuts[1] == cuts[2]
    assert len(cuts[0]) > 8
    assert max(stop - start for _, start, stop in cuts[0]) <= sharding.PIECE_WEIGHTS


def test_groups_of_rows_are_not_cut() -> None:
    layouts = _layouts("block:4x2", shapes=[(1024, 770)])
    for piece in plan_event(layouts, 48).pieces:
        assert piece.start % (4 * 770) == 0
        assert piece.start % 48 == 0


def test_owners_share_the_weights_evenly() -> None:
    layouts = _layouts(shapes=[(384, 384)] * 24 + [(1536, 384), (384, 1536)] * 6)
    for ranks in (2, 4):
        plan = plan_event(layouts, 48, ranks=ranks)
        loads = [
            sum(plan.pieces[i].numel for i in plan.owned(rank)) for rank in range(ranks)
        ]
        assert max(loads) - min(loads) <= 2 * sharding.PIECE_WEIGHTS


def test_state_bytes_are_those_of_the_sums() -> None:
    layouts = _layouts(shapes=[(480, 100)])
    for dtype, size in ((torch.float64, 8), (torch.float32, 4)):
        plan = plan_event(layouts, 48, fisher_dtype=dtype)
        assert plan.state_bytes == 1000 * 48 * 48 * size
        half = plan_event(layouts, 48, block_values=48 * 49 // 2, fisher_dtype=dtype)
        assert half.state_bytes == 1000 * 48 * 49 // 2 * size
        assert half.working_bytes == plan.working_bytes
    assert plan_event(layouts, 48, ranks=1).keeps == "device"


@pytest.mark.parametrize("host", [0, 2**40])
def test_a_budget_makes_turns(host: int) -> None:
    layouts = _layouts(shapes=[(3072, 768)] * 4)
    free = plan_event(layouts, 48)
    budget = free.working_bytes + free.state_bytes // 3
    plan = plan_event(layouts, 48, memory_budget=budget, host_budget=host)
    assert plan.turns in (3, 4)
    assert plan.state_bytes + plan.working_bytes <= budget
    assert plan.keeps == ("host" if host else "nothing")
    assert plan.host_bytes == (free.state_bytes if host else 0)
    assert sorted({piece.turn for piece in plan.pieces}) == list(range(plan.turns))
    assert f"in {plan.turns} turns" in plan.describe()
    assert "in one turn" in free.describe()


def test_ranks_share_the_state() -> None:
    layouts = _layouts(shapes=[(3072, 768)] * 4)
    alone, shared = (plan_event(layouts, 48, ranks=ranks) for ranks in (1, 4))
    assert shared.state_bytes < 0.3 * alone.state_bytes
    assert "on each of 4 processes" in shared.describe()


def test_a_budget_below_one_piece_is_refused() -> None:
    layouts = _layouts(shapes=[(3072, 768)])
    with pytest.raises(ValueError, match="memory_budget=1000 is below") as caught:
        plan_event(layouts, 48, memory_budget=1000)
    least = int(str(caught.value).split("at least ")[1].split(";")[0])
    assert plan_event(layouts, 48, memory_budget=least).turns > 1
