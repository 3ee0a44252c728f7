"""One pruning event of the whole embedded encoder: one process, two, and in turns."""

from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.event import plan_targets
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.embedded import encoder_path, movie_snippets
from obert_modifiers.modifiers._targets import encoder_weights, find_targets
from obert_modifiers.training.batches import gradient_source
from tests import tiny
from tests.training.toy import all_equal

SAMPLES, NUM_GRADS, SPARSITY = 192, 96, 0.7

pytestmark = pytest.mark.slow


def _event(turns: bool = False):
    torch.manual_seed(0)
    folder = encoder_path()
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    targets = find_targets(model, encoder_weights(model))
    config = SecondOrderConfig(num_grads=NUM_GRADS)
    if turns:
        free = plan_targets(targets, config, 1)
        budget = free.working_bytes + free.state_bytes // 2
        config = SecondOrderConfig(num_grads=NUM_GRADS, memory_budget=budget)
    rows = pyarrow.parquet.read_table(movie_snippets()["train"]).to_pylist()
    task = tiny.sentence_task(folder, rows[:SAMPLES])
    result = second_order_step_(
        model,
        targets,
        [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets],
        [SPARSITY] * len(targets),
        global_sparsity=True,
        config=config,
        source=gradient_source(task, model.forward, "cpu", seed=0),
    )
    return result.masks, [t.parameter.detach().clone() for t in targets], result.plan


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    try:
        masks, weights, plan = _event()
        torch.save((masks, weights, plan.state_bytes), f"{folder}/rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_and_turns_give_the_masks_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    (their_masks, their_weights, state_bytes), other = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert all_equal(their_masks + their_weights, other[0] + other[1])
    masks, weights, plan = _event()
    assert sum(mask.numel() for mask in masks) == 10_616_832
    assert sum(int((~mask).sum()) for mask in masks) == round(SPARSITY * 10_616_832)
    assert state_bytes < 0.6 * plan.state_bytes
    assert all_equal(masks, their_masks)
    for ours, theirs in zip(weights, their_weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    masks_in_turns, weights_in_turns, in_turns = _event(turns=True)
    assert in_turns.turns > 1
    assert all_equal(masks + weights, masks_in_turns + weights_in_turns)
