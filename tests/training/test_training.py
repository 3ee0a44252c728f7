"""The training loop: steps, accumulation, precision, two processes."""

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch import nn

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import RecipeStepper, TrainConfig, evaluate, train
from obert_modifiers.training.batches import (
    EpochBatches,
    TaskData,
    check_sampling_options,
    sorted_batches,
)
from tests.modifiers.table import ENCODER, TinyModel, make_model
from tests.training.processes import run_script

RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 3.0
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: 3.0
      lr_func: linear
      init_lr: 1e-2
      final_lr: 0.0
  - !{name}
      init_sparsity: 0.4
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 2.0
      update_frequency: 0.5
      {keys}
"""
OBERT = RECIPE.format(
    name="OBERTPruningModifier", keys="num_grads: 48\n      fisher_block_size: 12"
)
GMP = RECIPE.format(name="GMPStarPruningModifier", keys="global_sparsity: true")


def make_task(train: int = 64, validation: int = 24) -> TaskData:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(0, 11, (train + validation, 5), generator=generator)
    samples = [
        {"input_ids": row.tolist(), "labels": int(row.sum() % 2)} for row in rows
    ]

    def collate(items):
        return {
            "tokens": torch.tensor([item["input_ids"] for item in items]),
            "labels": torch.tensor([item["labels"] for item in items]),
        }

    def sample_loss(outputs, batch):
        return nn.functional.cross_entropy(
            outputs["logits"], batch["labels"], reduction="none"
        )

    def metrics(logits, labels):
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    return TaskData(samples[:train], samples[train:], collate, sample_loss, metrics)


def run(folder, recipe, dtype=torch.float64, **options):
    model = make_model().to(dtype)
    torch.manual_seed(7)
    settings = {"per_device_train_batch_size": 8, "logging_steps": 1, "cpu": True}
    config = TrainConfig(Path(folder), **{**settings, **options})
    manager = RecipeManager.from_recipe(recipe) if recipe else None
    return model, train(model, make_task(), config, manager)


def masks_of(model: TinyModel) -> torch.Tensor:
    return torch.cat([(model.get_parameter(n) != 0).reshape(-1) for n in ENCODER])


@pytest.mark.parametrize("recipe", [OBERT, GMP])
def test_accumulation_changes_neither_steps_nor_masks(tmp_path, recipe) -> None:
    """Same effective batch, 1 against 4 micro-batches, fixed length, no dropout."""
    one, first = run(tmp_path / "1", recipe)
    four, second = run(
        tmp_path / "4",
        recipe,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        group_by_length=False,
    )
    plain, _ = run(tmp_path / "p", recipe, group_by_length=False)
    assert first.steps == second.steps == 24
    assert [e.step for e in first.events] == [e.step for e in second.events]
    assert [e.step for e in first.events] == [4, 8, 12, 16]
    assert [e.sparsity_after for e in first.events] == [
        e.sparsity_after for e in second.events
    ]
    assert torch.equal(masks_of(plain), masks_of(four))
    for a, b in zip(plain.parameters(), four.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_accumulation_in_fp32_overlaps_at_the_first_event(tmp_path) -> None:
    recipe = OBERT.replace("end_epoch: 2.0", "end_epoch: 0.5")
    options = {"dtype": torch.float32, "group_by_length": False}
    one, _ = run(tmp_path / "1", recipe, **options)
    four, _ = run(
        tmp_path / "4",
        recipe,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **options,
    )
    same = (masks_of(one) == masks_of(four)).double().mean()
    assert same > 0.999


def test_pruning_between_micro_batches_keeps_accumulated_gradients(tmp_path) -> None:
    """An event sees complete gradients and hands them on to the optimizer whole."""
    seen = []
    original = RecipeStepper.step

    def step(self):
        before = [p.grad.clone() for p in self._model.parameters()]
        manager, pruned = self._manager, len(self._manager.events)
        inner = self._optimizer.step

        def check():
            if len(manager.events) > pruned:
                now = [p.grad for p in self._model.parameters()]
                seen.append(
                    all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
                )
            return inner()

        self._optimizer.step = check
        try:
            return original(self)
        finally:
            del self._optimizer.step

    RecipeStepper.step = step
    try:
        run(
            tmp_path,
            OBERT,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
    finally:
        RecipeStepper.step = original
    assert seen == [True] * 4


def test_recipe_sets_epochs_and_learning_rate_and_says_so(tmp_path) -> None:
    _, result = run(tmp_path, OBERT, num_train_epochs=9, learning_rate=0.5)
    assert result.steps == 24
    assert result.sparsity == pytest.approx(0.8, abs=1 / 384)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    texts = [r["text"] for r in records if r["kind"] == "message"]
    assert texts == [
        "The recipe sets the number of epochs: 3 (--num_train_epochs 9 is not used).",
        "The recipe sets the learning rate (--learning_rate 0.5 and "
        "--lr_scheduler_type are not used).",
    ]
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 25))
    assert steps[0]["learning_rate"] == pytest.approx(1e-2)
    assert steps[-1]["learning_rate"] < 1e-3
    assert steps[-1]["sparsity"] == result.sparsity
    assert len([r for r in records if r["kind"] == "prune"]) == 4
    assert [r["epoch"] for r in records if r["kind"] == "eval"] == [1.0, 2.0, 3.0]


def test_nothing_is_written_outside_the_output_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "out", GMP)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_a_recipe(tmp_path) -> None:
    before = make_model().double()
    model, result = run(tmp_path, None, num_train_epochs=1.5, learning_rate=1e-2)
    assert result.steps == 12
    assert result.events == []
    assert not torch.equal(before.head.weight, model.head.weight)
    task = make_task()
    again = evaluate(model, task, TrainConfig(tmp_path, cpu=True))
    assert again == result.metrics
    assert again["samples"] == 24


def test_bf16_trains_and_prunes_in_full_precision(tmp_path) -> None:
    model, result = run(tmp_path, OBERT, dtype=torch.float32, mixed_precision="bf16")
    assert math.isfinite(result.metrics["loss"])
    assert all(event.num_gradients == 48 for event in result.events)


def test_skipped_optimizer_step_does_not_advance_the_recipe() -> None:
    """The rule for fp16's overflows, with an optimizer that reports skipped steps."""

    class Skipping:
        def __init__(self, optimizer, skipped) -> None:
            self.optimizer, self.skipped, self.calls = optimizer, skipped, 0
            self.param_groups = optimizer.param_groups

        def step(self) -> None:
            self.step_was_skipped = self.calls in self.skipped
            self.calls += 1

    model = make_model()
    manager = RecipeManager.from_recipe(GMP)
    manager.initialize(model)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Skipping(inner, {0, 4, 5})
    stepper = RecipeStepper(manager, model, optimizer, steps_per_epoch=8)
    advanced = [stepper.step() for _ in range(20)]
    assert advanced == [call not in {0, 4, 5} for call in range(20)]
    assert stepper.steps == 17
    # Three calls were skipped, and every event is at its own recipe step, once.
    assert [event.step for event in manager.events] == [4, 8, 12, 16]


def test_checks_come_before_training(tmp_path) -> None:
    with pytest.raises(ValueError, match="num_grads=4800"):
        run(tmp_path, OBERT.replace("num_grads: 48", "num_grads: 4800"))
    options = "num_grads: 48\n      grad_sampler_kwargs:\n        size: 4"
    with pytest.raises(ValueError, match="grad_sampler_kwargs=.'size'. is unknown"):
        run(tmp_path, OBERT.replace("num_grads: 48", options))
    with pytest.raises(ValueError, match="params=head.wait matches no parameter"):
        run(tmp_path, GMP.replace("global_sparsity: true", "params: head.wait"))
    distilled = GMP + "  - !LogitDistillationModifier\n      hardness: 1.0\n"
    with pytest.raises(ValueError, match="teacher"):
        run(tmp_path, distilled)
    with pytest.raises(ValueError, match="lr_scheduler_type=step is unknown"):
        run(tmp_path, None, lr_scheduler_type="step")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_epoch_batches_cover_every_sample_once_and_repeat() -> None:
    lengths = [(7 * i) % 31 for i in range(1001)]
    for by_length in (True, False):
        batches = EpochBatches(lengths, 16, seed=1, by_length=by_length)
        first = list(batches)
        assert len(first) == len(batches) == 63
        assert sorted(i for b in first for i in b) == list(range(1001))
        assert list(batches) == first
        batches.set_epoch(1)
        assert list(batches) != first
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in first]
    by_length = EpochBatches(lengths, 16, seed=1, by_length=True)
    tight = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in by_length]
    assert sum(tight) < 0.2 * sum(spread)
    flat = [lengths[i] for b in sorted_batches(lengths, 16) for i in b]
    assert flat == sorted(lengths)
    assert check_sampling_options(None) == 32


@pytest.mark.parametrize("short_last", [True, False])
def test_two_processes_train_on_every_sample(short_last) -> None:
    """accelerate leaves out a pair of batches of which the second is a short one."""
    lengths = [(7 * i) % 31 for i in range(38)]
    batches = EpochBatches(lengths, 4, seed=0, by_length=True, short_last=short_last)
    whole = []
    for epoch in range(12):
        batches.set_epoch(epoch)
        shards = [list(BatchSamplerShard(batches, 2, rank)) for rank in (0, 1)]
        seen = {i for shard in shards for batch in shard for i in batch}
        whole.append([len(shard) for shard in shards] == [5, 5] and len(seen) == 38)
    assert all(whole) is short_last


TWO_RANKS = """
import hashlib, sys, torch
from pathlib import Path
from tests.training import test_training as t
from obert_modifiers.training import RecipeStepper

log, original = [], RecipeStepper.step

def step(self):
    advanced = original(self)
    digest = hashlib.sha256()
    for tensor in self._model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for modifier in self._manager.pruning:
        for mask in modifier.module_masks.param_masks:
            digest.update(mask.numpy().tobytes())
    log.append(digest.hexdigest())
    return advanced

RecipeStepper.step = step
folder = Path(sys.argv[1])
model, result = t.run(folder, t.OBERT, per_device_train_batch_size=4)
rank = torch.distributed.get_rank()
line = f"{result.steps} {result.metrics['samples']} {result.metrics['loss']:.9f}"
(folder / f"rank{rank}").write_text("\\n".join([*log, line]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_same_bits_at_every_step(tmp_path) -> None:
    done = run_script(TWO_RANKS, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in (0, 1)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 25  # 24 optimizer steps of 2 x 4 samples, and the result
    assert logs[0][-1].startswith("24 24 ")
