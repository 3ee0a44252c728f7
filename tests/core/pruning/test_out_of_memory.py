"""An event that runs out of memory starts again with less, and ends the same."""

import logging
from pathlib import Path

import pytest
import torch

from obert_modifiers.core.distributed import sharding
from obert_modifiers.core.distributed.parallel import world
from obert_modifiers.core.pruning import collect
from obert_modifiers.core.pruning.fisher import BlockFisher
from tests.core.models import (
    float32_event,
    in_group,
    make_batches,
    make_model,
    targets_of,
    unchanged,
)

NAMES = ("first.weight", "shared.weight", "head.weight")
BATCHES, SIZE = 4, 4
HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


def _small_pieces(patch) -> None:
    patch(sharding, "PIECE_WEIGHTS", 24)
    patch(sharding, "HELD_BYTES", 2**12)
    patch(collect, "FOLD_SAMPLES", 10)


def _event(model=None):
    def batches(request):
        rank, ranks = world()
        return make_batches(BATCHES, SIZE, seed=request.draw + 1)[rank::ranks]

    options = {"num_grads": BATCHES * SIZE, "num_recomputations": 2}
    return float32_event(NAMES, batches, draw=3, model=model, **options)


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
    message = "below the .* bytes that one piece"
    with unchanged(targets_of(model, *NAMES)):
        with pytest.raises(ValueError, match=message) as found:
            _event(model)
    assert isinstance(found.value.__cause__, MemoryError)


def test_other_errors_are_not_taken_for_it(monkeypatch) -> None:
    failing = Failing(RuntimeError("shapes"), times=1)
    monkeypatch.setattr(BlockFisher, "add_", failing.method())
    with pytest.raises(RuntimeError, match="shapes"):
        _event()


def _worker(rank: int, folder: str, disturbed: bool) -> None:
    with in_group(rank, folder, f"meet{disturbed}"):
        _small_pieces(setattr)
        if disturbed and rank == 1:
            BlockFisher.add_ = Failing(torch.OutOfMemoryError("CUDA"), 1).method()
        result, weights = _event()
        found = {"tensors": result.masks + weights, "turns": result.plan.turns}
        torch.save(found, f"{folder}/rank{rank}-{disturbed}.pt")


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
