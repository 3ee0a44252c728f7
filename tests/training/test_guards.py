"""A loss that becomes NaN, and data and teachers that are not what they said."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import RecipeStepper, TaskData, TrainConfig, checks, train
from obert_modifiers.training.batches import lengths_of
from obert_modifiers.training.checks import check_same_classes, check_same_data
from obert_modifiers.training.guards import FiniteGuard
from tests.modifiers.table import make_model
from tests.training.test_training import OBERT, make_task


def poisoned(task: TaskData, calls: set[int]) -> TaskData:
    """Make the losses of some calls in training NaN; those of a recipe are left."""
    done = [0]

    def sample_loss(outputs, batch):
        losses = task.sample_loss(outputs, batch)
        if len(losses) != 8 or not torch.is_grad_enabled():
            return losses
        done[0] += 1
        return losses * torch.nan if done[0] - 1 in calls else losses

    return replace(task, sample_loss=sample_loss)


def run(folder: Path, task: TaskData, recipe: str | None = None, **options):
    model = make_model().double()
    torch.manual_seed(7)
    config = TrainConfig(
        folder,
        **{
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "cpu": True,
            "num_train_epochs": 3,
            "learning_rate": 1e-2,
            **options,
        },
    )
    manager = RecipeManager.from_recipe(recipe) if recipe else None
    return model, train(model, task, config, manager)


def said(folder: Path) -> list[str]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r["text"] for r in records if r["kind"] == "message"]


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}])
def test_ten_nan_steps_in_a_row_end_the_run(tmp_path, options) -> None:
    task = poisoned(make_task(), set(range(5, 20)))
    options = {"lr_scheduler_type": "constant", **options}
    with pytest.raises(
        ValueError,
        match="loss=nan .* 10 optimizer steps in a row, until step 15, "
        "learning_rate=0.01; .*lower the learning rate",
    ):
        run(tmp_path, task, **options)
    texts = said(tmp_path)
    assert len(texts) == 10
    assert texts[0].startswith("step 6, learning_rate=0.01: the gradients are not fin")


def test_nine_are_passed_over_and_nothing_is_lost(tmp_path) -> None:
    """Twice nine, with one good step between them."""
    task = poisoned(make_task(), {*range(0, 9), *range(10, 19)})
    model, result = run(tmp_path, task)
    assert result.steps == 24 and len(said(tmp_path)) == 18
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("norm", [1.0, 0.0])
def test_a_step_that_is_passed_over_moves_nothing(tmp_path, norm, monkeypatch) -> None:
    seen = []
    original = RecipeStepper.pass_over

    def pass_over(self):
        before = [p.clone() for p in self._model.parameters()]
        moments = [s["exp_avg"].clone() for s in self._optimizer.state.values()]
        original(self)
        now = self._model.parameters()
        same = [torch.equal(a, b) for a, b in zip(before, now, strict=True)]
        after = [s["exp_avg"] for s in self._optimizer.state.values()]
        same += [torch.equal(a, b) for a, b in zip(moments, after, strict=True)]
        seen.append(all(same) and len(moments) > 0)
        return True

    monkeypatch.setattr(RecipeStepper, "pass_over", pass_over)
    task = poisoned(make_task(), {3})
    run(tmp_path, task, max_grad_norm=norm, weight_decay=0.1)
    assert seen == [True]


def test_an_event_on_a_bad_step_prunes_and_the_recipe_goes_on(tmp_path) -> None:
    """The gradients of the event are its own; the step's batch is lost alone."""
    model, result = run(tmp_path, poisoned(make_task(), {4}), OBERT)
    assert [event.step for event in result.events] == [4, 8, 12, 16]
    assert result.steps == 24
    assert result.sparsity == pytest.approx(0.8, abs=1 / 384)


class Scaler:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def test_a_scaler_may_look_for_its_scale_but_not_for_ever(monkeypatch) -> None:
    """Overflows with a finite loss are its business until the scale is below 1."""
    texts: list[str] = []
    accelerator = Accelerator(cpu=True)
    scaler = Scaler(2.0**16)
    monkeypatch.setattr(accelerator, "scaler", scaler)
    guard = FiniteGuard(accelerator, texts.append)
    model = make_model()
    assert guard.usable(torch.tensor(torch.nan), model)
    fine, lost = torch.tensor(0.5), torch.tensor(torch.inf)
    for _ in range(100):
        guard.count(True, False, fine, "step 1")
    for _ in range(9):
        guard.count(True, False, lost, "step 1")
    guard.count(True, True, fine, "step 1")
    for _ in range(9):
        guard.count(True, False, lost, "step 2")
    with pytest.raises(ValueError, match="loss=inf .*until step 2"):
        guard.count(True, False, lost, "step 2")
    guard.count(True, True, fine, "step 2")
    scaler.scale = 0.5
    with pytest.raises(ValueError, match="10 optimizer steps in a row"):
        for _ in range(10):
            guard.count(True, False, fine, "step 3")
    assert texts == []


class Ending:
    """Says 64 samples and gives 40."""

    def __init__(self, error: type[Exception], counted: bool) -> None:
        self.rows, self.error, self.counted = make_task().train, error, counted

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int):
        if index >= 40:
            raise self.error(index)
        return self.rows[index]

    def token_counts(self) -> list[int]:
        return [5] * 64


@pytest.mark.parametrize("error", [IndexError, StopIteration])
def test_data_that_ends_early_is_an_error(tmp_path, error) -> None:
    task = replace(make_task(), train=Ending(error, True))
    with pytest.raises(ValueError, match="train data has no sample .*64 samples, as"):
        run(tmp_path, task)


def test_data_of_another_length_is_an_error_at_the_start(tmp_path) -> None:
    class Short(list):
        def __len__(self) -> int:
            return 64

    rows = Short(make_task().train[:40])
    with pytest.raises(ValueError, match="data of 64 samples gives 40; expected"):
        lengths_of(rows)
    for train_rows, message in (
        (rows, "gives 40"),
        ([], "train data has 0 samples"),
        (iter(make_task().train), "list_iterator without a length"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, replace(make_task(), train=train_rows))


def test_processes_with_other_data_are_told(monkeypatch) -> None:
    """Oracle: the least of this process' pair and another's."""

    def among(others: list[int]):
        def reduce(values, least):
            assert least
            digest = sha256(repr(others).encode()).digest()
            number = int.from_bytes(digest[:7], "big")
            return torch.minimum(values, torch.tensor([number, -number]))

        return reduce

    device = torch.device("cpu")
    check_same_data([3, 4, 5], device)
    monkeypatch.setattr(checks, "all_reduce_", among([3, 4, 5]))
    check_same_data([3, 4, 5], device)
    monkeypatch.setattr(checks, "all_reduce_", among([3, 4]))
    with pytest.raises(ValueError, match="train data with 3 samples differs between"):
        check_same_data([3, 4, 5], device)


class ForSequenceClassification(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.config = type("Config", (), {"num_labels": labels})()


class ForMaskedLM(ForSequenceClassification):
    """Has a ``num_labels`` that means nothing."""


def test_a_teacher_with_other_classes_is_refused() -> None:
    two, three = ForSequenceClassification(2), ForSequenceClassification(3)
    with pytest.raises(ValueError, match="teacher has num_labels=3; .* model's 2;"):
        check_same_classes(two, three)
    for teacher in (ForSequenceClassification(2), ForMaskedLM(3), "self", None):
        check_same_classes(two, teacher)
    check_same_classes(ForMaskedLM(2), ForMaskedLM(3))
