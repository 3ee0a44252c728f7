"""One pruning event on two processes equals one process on the same samples."""

from pathlib import Path

import pytest
import torch

from obert_modifiers.core.distributed import sharding
from obert_modifiers.core.distributed.parallel import OTHER_FAILED, world
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning import collect
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.core.pruning.sampling import GradientSource
from tests.core.models import losses, make_batches, make_model, targets_of

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


def _event(case: str, divides: bool = True, bad: bool = False):
    model = make_model(dtype=torch.float32)
    targets = targets_of(model, *NAMES)
    # Several pieces of a layer, and several portions of gradients.
    sharding.PIECE_WEIGHTS, collect.FOLD_SAMPLES = 24, 10

    def batches(request):
        rank, ranks = world()
        found = make_batches(BATCHES, SIZE, seed=request.draw + 1)
        if bad and rank == 1:
            found[3] = (found[3][0][:, :, :3], found[3][1])
        if divides:
            return found[rank::ranks]
        assert request.share == (10 if ranks == 2 else 20)
        return found  # every process draws alike and is cut off at its share

    result = second_order_step_(
        model,
        targets,
        [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets],
        [0.5] * len(targets),
        global_sparsity=True,
        config=SecondOrderConfig(**{
            "num_grads": BATCHES * SIZE,
            "fisher_block_size": 12,
            **CASES[case],
        }),
        source=GradientSource(batches, losses, divides=divides),
    )
    weights = [t.parameter.detach().clone() for t in targets]
    figures = (result.gradients.used, result.damp, result.predicted_loss_increase)
    return result.masks, weights, figures


def _in_group(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )


def _worker(rank: int, folder: str) -> None:
    _in_group(rank, folder)
    try:
        found = {case: _event(case) for case in CASES}
        found["own draws"] = _event("default", divides=False)
        torch.save(found, f"{folder}/rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "PIECE_WEIGHTS", 24)
    monkeypatch.setattr(collect, "FOLD_SAMPLES", 10)
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert len(first) == len(CASES) + 1
    for case, (masks, weights, figures) in first.items():
        for a, b in zip(
            masks + weights, second[case][0] + second[case][1], strict=True
        ):
            assert torch.equal(a, b), case  # the same bits on both
        assert figures == second[case][2], case
    for case in CASES:
        masks, weights, figures = _event(case)
        assert first[case][2] == figures, case
        for ours, theirs in zip(
            masks + weights, first[case][0] + first[case][1], strict=True
        ):
            assert torch.equal(ours, theirs), case
    assert first["own draws"][2][0] == 20


def _failing_worker(rank: int, folder: str) -> None:
    _in_group(rank, folder)
    try:
        _event("default", bad=True)
    except RuntimeError as error:
        Path(f"{folder}/rank{rank}.txt").write_text(str(error), encoding="utf-8")
    finally:
        torch.distributed.destroy_process_group()


def test_a_failing_process_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_failing_worker, (str(tmp_path),), nprocs=2)
    one, two = (
        (tmp_path / f"rank{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)
    )
    assert one == OTHER_FAILED
    assert "shapes cannot be multiplied" in two
