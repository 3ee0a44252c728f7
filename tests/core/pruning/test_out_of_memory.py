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
from obert_modifiers.core.pruning import collect
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.sampling import GradientSource
from tests.core import models

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
        return models.make_batches(BATCHES, SIZE, request.draw + 1)[rank::ranks]

    model = model or models.make_model(dtype=torch.float32)
    config = models.make_config(num_grads=BATCHES * SIZE, num_recomputations=2)
    source = GradientSource(batches, models.losses, divides=True)
    targets = models.targets_of(model, *NAMES)
    return models.prune(config, source, model=model, targets=targets, draw=3)


def _fail(patch, error: Exception, times: int = 1) -> None:
    """Let `BlockFisher.add_` fail at its third call, and so on."""
    add_, calls, failed = BlockFisher.add_, 0, 0

    def failing(*args, **kwargs):
        nonlocal calls, failed
        calls += 1
        if calls == 3 and failed < times:
            calls, failed = 0, failed + 1
            raise error
        return add_(*args, **kwargs)

    patch(BlockFisher, "add_", failing)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError(HOST_MEMORY)],
    ids=["device", "python", "host"],
)
def test_less_memory_gives_the_same_bits(error, monkeypatch, caplog) -> None:
    _small_pieces(monkeypatch.setattr)
    one, undisturbed = _event()
    assert one.plan.turns == 1
    _fail(monkeypatch.setattr, error)
    with caplog.at_level(logging.WARNING):
        two, found = _event()
    assert two.plan.turns > 1
    assert two.plan.state_bytes <= one.plan.state_bytes // 2
    assert models.equal(one.masks + undisturbed, two.masks + found)
    assert (one.gradients, one.damp) == (two.gradients, two.damp)
    assert one.predicted_loss_increase == two.predicted_loss_increase
    (record,) = caplog.records
    assert "out of memory in the pruning event" in record.getMessage()
    assert two.plan.describe() in record.getMessage()


def test_where_less_is_not_possible_it_says_so(monkeypatch) -> None:
    _small_pieces(monkeypatch.setattr)
    _fail(monkeypatch.setattr, MemoryError(), times=100)
    model = models.make_model(dtype=torch.float32)
    message = "below the .* bytes that one piece"
    with models.unchanged(models.targets_of(model, *NAMES)):
        with pytest.raises(ValueError, match=message) as found:
            _event(model)
    assert isinstance(found.value.__cause__, MemoryError)


def test_other_errors_are_not_taken_for_it(monkeypatch) -> None:
    _fail(monkeypatch.setattr, RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        _event()
    assert not ran_out_of_memory(OtherProcessFailed())
    assert ran_out_of_memory(OtherProcessFailed(out_of_memory=True))


def _worker(rank: int, folder: str, disturbed: bool) -> None:
    with models.in_group(rank, folder, f"meet{disturbed}"):
        _small_pieces(setattr)
        if disturbed and rank == 1:
            _fail(setattr, torch.OutOfMemoryError("CUDA"))
        result, weights = _event()
        found = result.masks + weights, result.plan.turns
        torch.save(found, f"{folder}/rank{rank}-{disturbed}.pt")


def test_one_process_that_lacks_memory_makes_all_start_again(tmp_path: Path) -> None:
    for disturbed in (False, True):
        torch.multiprocessing.spawn(_worker, (str(tmp_path), disturbed), nprocs=2)
    for rank in (0, 1):
        (one, before), (two, turns) = (
            torch.load(tmp_path / f"rank{rank}-{disturbed}.pt", weights_only=True)
            for disturbed in (False, True)
        )
        assert before == 1 and turns > 1
        assert models.equal(one, two)
