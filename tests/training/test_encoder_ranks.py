"""One pruning event of the whole embedded encoder: one process, two, and in turns."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.event import plan_targets
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.embedded import encoder_path, movie_snippets
from obert_modifiers.modifiers._targets import encoder_weights, find_targets
from obert_modifiers.training.batches import TaskData, gradient_source

SAMPLES, NUM_GRADS, SPARSITY = 192, 96, 0.7

pytestmark = pytest.mark.slow


def _data(folder: Path) -> TaskData:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(movie_snippets()["train"]).to_pylist()[:SAMPLES]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer([r["sentence"] for r in rows], truncation=True, max_length=128)
    samples = [
        {"input_ids": ids, "labels": row["label"]}
        for ids, row in zip(found["input_ids"], rows, strict=True)
    ]

    def collate(items):
        ids = {"input_ids": [item["input_ids"] for item in items]}
        batch = dict(tokenizer.pad(ids, return_tensors="pt"))
        batch["labels"] = torch.tensor([item["labels"] for item in items])
        return batch

    def sample_loss(outputs, batch):
        return nn.functional.cross_entropy(
            outputs.logits, batch["labels"], reduction="none"
        )

    return TaskData(samples, [], collate, sample_loss, lambda *_: {})


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
    source = gradient_source(_data(folder), model.forward, "cpu", seed=0)
    result = second_order_step_(
        model,
        targets,
        [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets],
        [SPARSITY] * len(targets),
        global_sparsity=True,
        config=config,
        source=source,
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
    ranks = [
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    ]
    for a, b in zip(ranks[0][0] + ranks[0][1], ranks[1][0] + ranks[1][1], strict=True):
        assert torch.equal(a, b)  # the same bits on both
    masks, weights, plan = _event()
    assert sum(mask.numel() for mask in masks) == 10_616_832
    assert sum(int((~mask).sum()) for mask in masks) == round(SPARSITY * 10_616_832)
    assert ranks[0][2] < 0.6 * plan.state_bytes
    for ours, theirs in zip(masks, ranks[0][0], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(weights, ranks[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    in_turns = _event(turns=True)
    assert in_turns[2].turns > 1
    for ours, theirs in zip(masks + weights, in_turns[0] + in_turns[1], strict=True):
        assert torch.equal(ours, theirs)
