"""An event that runs out of memory starts again with less, and ends the same."""

import logging
from pathlib import Path

import pytest
import torch

from obert_modifiers.core.distributed import sharding
from obert_modifiers.core.distributed.parallel import (
    OtherProcessFailed,
    ran_out_of_memory,
    world,
)
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning import collect
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.core.pruning.sampling import GradientSource
from tests.core.models import losses, make_batches, make_model, targets_of

NAMES = ("first.weight", "shared.weight", "head.weight")
BATCHES, SIZE = 4, 4
HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


def _small_pieces(patch) -> None:
    patch(sharding, "PIECE_WEIGHTS", 24)
    patch(sharding, "HELD_BYTES", 2**12)
    patch(collect, "FOLD_SAMPLES", 10)


def _event(**options):
    model = make_model(dtype=torch.float32)
    targets = targets_of(model, *NAMES)

    def batches(request):
        rank, ranks = world()
        return make_batches(BATCHES, SIZE, seed=request.draw + 1)[rank::ranks]

    result = second_order_step_(
        model,
        targets,
        [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets],
        [0.5] * len(targets),
        global_sparsity=True,
        config=SecondOrderConfig(**{
            "num_grads": BATCHES * SIZE,
            "fisher_block_size": 12,
            "num_recomputations": 2,
            **options,
        }),
        source=GradientSource(batches, losses, divides=True),
        draw=3,
    )
    return result, [t.parameter.detach().clone() for t in targets]


class Failing:
    """`BlockFisher.add_` that has memory from its n-th call on."""

    def __init__(self, error: Exception, times: int, first: int = 2) -> None:
        self.error, self.left, self.first = error, times, first
        self.inner = BlockFisher.add_

    def __call__(self, fisher, *args, **kwargs):
        self.first -= 1
        if self.first < 0 and self.left:
            self.left -= 1
            self.first = 2
            raise self.error
        return self.inner(fisher, *args, **kwargs)

    def method(self):
        return lambda fisher, *args, **kwargs: self(fisher, *args, **kwargs)


def _same(one, two) -> bool:
    tensors = zip(one[0].masks + one[1], two[0].masks + two[1], strict=True)
    same = all(torch.equal(a, b) for a, b in tensors)
    figures = [(r.gradients, r.damp, r.predicted_loss_increase) for r, _ in (one, two)]
    return same and figures[0] == figures[1]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError(HOST_MEMORY)],
    ids=["device", "python", "host"],
)
def test_less_memory_gives_the_same_bits(error, monkeypatch, caplog) -> None:
    _small_pieces(monkeypatch.setattr)
    undisturbed = _event()
    assert undisturbed[0].plan.turns == 1
    monkeypatch.setattr(BlockFisher, "add_", Failing(error, times=1).method())
    with caplog.at_level(logging.WARNING):
        found = _event()
    assert found[0].plan.turns > 1
    assert found[0].plan.state_bytes <= undisturbed[0].plan.state_bytes // 2
    assert _same(undisturbed, found)
    (record,) = caplog.records
    assert "out of memory in the pruning event" in record.getMessage()
    assert found[0].plan.describe() in record.getMessage()


def test_where_less_is_not_possible_it_says_so(monkeypatch) -> None:
    _small_pieces(monkeypatch.setattr)
    failing = Failing(MemoryError(), times=100)
    monkeypatch.setattr(BlockFisher, "add_", failing.method())
    model = make_model(dtype=torch.float32)
    before = [t.parameter.detach().clone() for t in targets_of(model, *NAMES)]
    with pytest.raises(ValueError, match="below the .* bytes that one piece") as found:
        _event()
    assert isinstance(found.value.__cause__, MemoryError)
    after = [t.parameter.detach() for t in targets_of(model, *NAMES)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_other_errors_are_not_taken_for_it(monkeypatch) -> None:
    failing = Failing(RuntimeError("shapes"), times=1)
    monkeypatch.setattr(BlockFisher, "add_", failing.method())
    with pytest.raises(RuntimeError, match="shapes"):
        _event()
    assert not ran_out_of_memory(OtherProcessFailed())
    assert ran_out_of_memory(OtherProcessFailed(out_of_memory=True))


def _worker(rank: int, folder: str, disturbed: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{disturbed}", rank=rank, world_size=2
    )
    try:
        _small_pieces(setattr)
        if disturbed and rank == 1:
            BlockFisher.add_ = Failing(torch.OutOfMemoryError("CUDA"), 1).method()
        result, weights = _event()
        found = {"tensors": result.masks + weights, "turns": result.plan.turns}
        torch.save(found, f"{folder}/rank{rank}-{disturbed}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_one_process_that_lacks_memory_makes_all_start_again(tmp_path: Path) -> None:
    for disturbed in (False, True):
        torch.multiprocessing.spawn(_worker, (str(tmp_path), disturbed), nprocs=2)
    files = sorted(tmp_path.glob("rank*.pt"))
    found = {path.stem: torch.load(path, weights_only=True) for path in files}
    assert len(found) == 4
    for rank in (0, 1):
        one, two = found[f"rank{rank}-False"], found[f"rank{rank}-True"]
        assert one["turns"] == 1 and two["turns"] > 1
        for a, b in zip(one["tensors"], two["tensors"], strict=True):
            assert torch.equal(a, b)
