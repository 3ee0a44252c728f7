"""The training loop: steps, accumulation, precision, two processes."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import RecipeStepper, TrainConfig, evaluate
from obert_modifiers.training.batches import (
    EpochBatches,
    check_sampling_options,
    sorted_batches,
)
from tests.modifiers.table import make_model
from tests.training.processes import lines_of_ranks
from tests.training.toy import (
    GMP,
    OBERT,
    all_equal,
    each_step,
    make_task,
    masks_of,
    messages,
    records,
    run,
)

FOUR = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
FIXED = {"group_by_length": False}


@pytest.mark.parametrize("recipe", [OBERT, GMP])
def test_accumulation_changes_neither_steps_nor_masks(tmp_path, recipe) -> None:
    """Same effective batch, 1 against 4 micro-batches, fixed length, no dropout."""
    _, first = run(tmp_path / "1", recipe)
    four, second = run(tmp_path / "4", recipe, **FOUR, **FIXED)
    plain, _ = run(tmp_path / "p", recipe, **FIXED)
    assert first.steps == second.steps == 24
    assert [e.step for e in first.events] == [4, 8, 12, 16]
    for one, other in zip(first.events, second.events, strict=True):
        assert (one.step, one.sparsity_after) == (other.step, other.sparsity_after)
    assert torch.equal(masks_of(plain), masks_of(four))
    for a, b in zip(plain.parameters(), four.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_accumulation_in_fp32_overlaps_at_the_first_event(tmp_path) -> None:
    recipe = OBERT.replace("end_epoch: 2.0", "end_epoch: 0.5")
    one, _ = run(tmp_path / "1", recipe, dtype=torch.float32, **FIXED)
    four, _ = run(tmp_path / "4", recipe, dtype=torch.float32, **FOUR, **FIXED)
    assert (masks_of(one) == masks_of(four)).double().mean() > 0.999


def test_pruning_between_micro_batches_keeps_accumulated_gradients(tmp_path) -> None:
    """An event sees complete gradients and hands them on to the optimizer whole."""
    seen = []

    def watch(stepper, step):
        model, optimizer = stepper._model, stepper._optimizer
        before = [p.grad.clone() for p in model.parameters()]
        pruned, inner = len(stepper._manager.events), optimizer.step

        def check():
            if len(stepper._manager.events) > pruned:
                now = [p.grad for p in model.parameters()]
                seen.append(all_equal(before, now))
            return inner()

        optimizer.step = check
        try:
            return step()
        finally:
            del optimizer.step

    with each_step(watch):
        run(tmp_path, OBERT, **FOUR)
    assert seen == [True] * 4


def test_recipe_sets_epochs_and_learning_rate_and_says_so(tmp_path) -> None:
    _, result = run(tmp_path, OBERT, num_train_epochs=9, learning_rate=0.5)
    assert result.steps == 24
    assert result.sparsity == pytest.approx(0.8, abs=1 / 384)
    assert messages(tmp_path) == [
        "The recipe sets the number of epochs: 3 (--num_train_epochs 9 is not used).",
        "The recipe sets the learning rate (--learning_rate 0.5 and "
        "--lr_scheduler_type are not used).",
    ]
    steps = records(tmp_path, "step")
    assert [r["step"] for r in steps] == list(range(1, 25))
    assert steps[0]["learning_rate"] == pytest.approx(1e-2)
    assert steps[-1]["learning_rate"] < 1e-3
    assert steps[-1]["sparsity"] == result.sparsity
    assert len(records(tmp_path, "prune")) == 4
    assert [r["epoch"] for r in records(tmp_path, "eval")] == [1.0, 2.0, 3.0]


def test_nothing_is_written_outside_the_output_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "out", GMP)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_record_has_the_mean_loss_since_the_one_before(tmp_path) -> None:
    """Also where an epoch ended in between, here after 8 and 16 steps."""
    run(tmp_path / "each", GMP)
    run(tmp_path / "some", GMP, logging_steps=6)
    each = [record["loss"] for record in records(tmp_path / "each", "step")]
    some = {r["step"]: r["loss"] for r in records(tmp_path / "some", "step")}
    assert some == pytest.approx({
        step: sum(each[step - 6 : step]) / 6 for step in (6, 12, 18, 24)
    })


def test_without_a_recipe(tmp_path) -> None:
    before = make_model().double()
    model, result = run(tmp_path, num_train_epochs=1.5, learning_rate=1e-2)
    assert result.steps == 12
    assert result.events == []
    assert not torch.equal(before.head.weight, model.head.weight)
    again = evaluate(model, make_task(), TrainConfig(tmp_path, cpu=True))
    assert again == result.metrics
    assert again["samples"] == 24


def test_bf16_trains_and_prunes_in_full_precision(tmp_path) -> None:
    _, result = run(tmp_path, OBERT, dtype=torch.float32, mixed_precision="bf16")
    assert math.isfinite(result.metrics["loss"])
    assert all(event.num_gradients == 48 for event in result.events)


def test_skipped_optimizer_step_does_not_advance_the_recipe() -> None:
    """The rule for fp16's overflows, with an optimizer that reports skipped steps."""
    model = make_model()
    manager = RecipeManager.from_recipe(GMP)
    manager.initialize(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = [call not in {0, 4, 5} for call in range(20)]
    calls = iter(made)

    def step() -> None:
        optimizer.step_was_skipped = not next(calls)

    optimizer.step = step
    stepper = RecipeStepper(manager, model, optimizer, steps_per_epoch=8)
    assert [stepper.step() for _ in made] == made
    assert stepper.steps == 17
    # Three calls were skipped, and every event is at its own recipe step, once.
    assert [event.step for event in manager.events] == [4, 8, 12, 16]


SIZED = "num_grads: 48\n      grad_sampler_kwargs:\n        size: 4"
DISTILLED = GMP + "  - !LogitDistillationModifier\n      hardness: 1.0\n"


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (OBERT.replace(": 48", ": 4800"), {}, "num_grads=4800"),
        # Where the gradients are of other samples, those have to be enough.
        (OBERT, {"task": replace(make_task(), gradients=make_task(20))}, "the 20 "),
        (OBERT.replace("num_grads: 48", SIZED), {}, "kwargs=.'size'. is unknown"),
        (
            GMP.replace("global_sparsity: true", "params: head.wait"),
            {},
            "params=head.wait matches no parameter",
        ),
        (DISTILLED, {}, "teacher"),
        (None, {"lr_scheduler_type": "step"}, "lr_scheduler_type=step is unknown"),
    ],
)
def test_checks_come_before_training(tmp_path, recipe, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, recipe, **options)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_epoch_batches_cover_every_sample_once_and_repeat() -> None:
    lengths = [(7 * i) % 31 for i in range(1001)]
    spread = {}
    for by_length in (True, False):
        batches = EpochBatches(lengths, 16, seed=1, by_length=by_length)
        first = list(batches)
        assert len(first) == len(batches) == 63
        assert sorted(i for b in first for i in b) == list(range(1001))
        assert list(batches) == first
        batches.set_epoch(1)
        assert list(batches) != first
        sizes = [[lengths[i] for i in b] for b in first]
        spread[by_length] = sum(max(of) - min(of) for of in sizes)
    assert spread[True] < 0.2 * spread[False]
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
import sys, torch
from pathlib import Path
from tests.training import toy

log, folder = [], Path(sys.argv[1])

def watch(stepper, step):
    advanced = step()
    masks = [m for p in stepper._manager.pruning for m in p.module_masks.param_masks]
    log.append(toy.digest([*stepper._model.state_dict().values(), *masks]))
    return advanced

with toy.each_step(watch):
    model, result = toy.run(folder, toy.OBERT, per_device_train_batch_size=4)
rank = torch.distributed.get_rank()
line = f"{result.steps} {result.metrics['samples']} {result.metrics['loss']:.9f}"
(folder / f"rank{rank}").write_text("\\n".join([*log, line]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_same_bits_at_every_step(tmp_path) -> None:
    first, second = lines_of_ranks(TWO_RANKS, tmp_path)
    assert first == second
    assert len(first) == 25  # 24 optimizer steps of 2 x 4 samples, and the result
    assert first[-1].startswith("24 24 ")
