"""One pruning event on two processes equals one process on the same samples."""

from pathlib import Path

import pytest
import torch

from obert_modifiers.core.distributed import sharding
from obert_modifiers.core.distributed.parallel import OTHER_FAILED, share_of, world
from obert_modifiers.core.pruning import collect
from obert_modifiers.core.pruning.sampling import GradientSource
from tests.core import models

NAMES = ("first.weight", "shared.weight", "head.weight", "first.bias")
BATCHES, SIZE = 5, 4  # an odd number: one process has more than the other
CASES = {
    "default": {},
    "float32": {"fisher_dtype": "float32"},
    "independent": {"selection": "independent", "update": "independent"},
    "batch": {"grad_granularity": "batch", "num_grads": BATCHES},
    "mean gradient": {"first_order": True},
    "minimum density": {"min_density": 0.3},
    "recomputed": {"num_recomputations": 2},
    "chosen dampening": {"damp_fraction": None, "damp_grid": (0.01, 1.0)},
}
assert len(CASES) == 8
ROWS = {"names": NAMES[:3], "update": "row"}


def _event(case: str, divides: bool = True, bad: bool = False, names=NAMES, **more):
    # Several pieces of a layer, and several portions of gradients.
    sharding.PIECE_WEIGHTS, collect.FOLD_SAMPLES = 24, 10

    def batches(request):
        rank, ranks = world()
        found = models.make_batches(BATCHES, SIZE, seed=request.draw + 1)
        if bad and rank == 1:
            found[3] = (found[3][0][:, :, :3], found[3][1])
        if divides:
            return found[rank::ranks]
        assert request.share == (10 if ranks == 2 else 20)
        return found  # every process draws alike and is cut off at its share

    model = models.make_model(dtype=torch.float32)
    config = models.make_config(**{"num_grads": BATCHES * SIZE, **CASES[case], **more})
    source = GradientSource(batches, models.losses, divides=divides)
    targets = models.targets_of(model, *names)
    result, weights = models.prune(config, source, model=model, targets=targets)
    figures = (result.gradients.used, result.damp, result.predicted_loss_increase)
    return result.masks + weights, figures


def _worker(rank: int, folder: str) -> None:
    with models.in_group(rank, folder):
        found = {case: _event(case) for case in CASES}
        found["own draws"] = _event("default", divides=False)
        found["rows"] = _event("default", **ROWS)
        torch.save(found, f"{folder}/rank{rank}.pt")


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "PIECE_WEIGHTS", 24)
    monkeypatch.setattr(collect, "FOLD_SAMPLES", 10)
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert len(first) == len(CASES) + 2
    single = {case: _event(case) for case in CASES}
    # Gram matrices are sums of the processes' own, and so are rounded otherwise.
    rows, (alone, _) = first["rows"][0], _event("default", **ROWS)
    assert models.equal(rows[:3], alone[:3])
    assert all(map(torch.allclose, rows[3:], alone[3:]))
    for case, (tensors, figures) in first.items():
        for others in (second, single) if case in CASES else (second,):
            assert models.equal(tensors, others[case][0]), case  # the same bits
            assert figures == others[case][1], case
    assert first["own draws"][1][0] == 20


def _failing_worker(rank: int, folder: str) -> None:
    with models.in_group(rank, folder):
        try:
            _event("default", bad=True)
        except RuntimeError as error:
            Path(f"{folder}/rank{rank}.txt").write_text(str(error), encoding="utf-8")


def test_a_failing_process_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_failing_worker, (str(tmp_path),), nprocs=2)
    one, two = (
        (tmp_path / f"rank{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)
    )
    assert one == OTHER_FAILED
    assert "shapes cannot be multiplied" in two


def test_shares_sum_up() -> None:
    for ranks in (1, 2, 3, 7):
        assert sum(share_of(10, rank, ranks) for rank in range(ranks)) == 10
