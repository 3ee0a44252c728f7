"""One pruning event on two processes equals one process on the same samples."""

from pathlib import Path

import pytest
import torch

from obert_modifiers.core.event import SecondOrderConfig
from obert_modifiers.core.gradients import GradientSource
from obert_modifiers.core.parallel import world
from obert_modifiers.core.pruning_step import second_order_step_
from tests.core.models import losses, make_batches, make_model, targets_of

NAMES = ("first.weight", "shared.weight")
BATCHES, SIZE = 5, 4  # an odd number: one process has more than the other


def _event(divides: bool, dtype: str = "float64"):
    model = make_model(dtype=torch.float32)
    targets = targets_of(model, *NAMES)

    def batches(request):
        rank, ranks = world()
        found = make_batches(BATCHES, SIZE)
        if divides:
            return found[rank::ranks]
        assert request.share == (10 if ranks == 2 else 20)
        return found  # every process draws alike and is cut off at its share

    result = second_order_step_(
        model,
        targets,
        [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets],
        [0.5, 0.5],
        global_sparsity=True,
        config=SecondOrderConfig(
            num_grads=BATCHES * SIZE, fisher_block_size=12, fisher_dtype=dtype
        ),
        source=GradientSource(batches, losses, divides=divides),
    )
    weights = [t.parameter.detach().clone() for t in targets]
    return result.masks, weights, result.gradients.used


def _worker(rank: int, folder: str, divides: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    try:
        torch.save(_event(divides), f"{folder}/rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("divides", [True, False])
def test_two_processes(tmp_path: Path, divides: bool) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path), divides), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert torch.equal(a, b)  # the same bits on both
    assert first[2] == second[2] == 20
    if divides:
        masks, weights, used = _event(divides)
        assert used == 20
        for ours, theirs in zip(masks, first[0], strict=True):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(weights, first[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
