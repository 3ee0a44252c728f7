"""A loss that becomes NaN, and data and teachers that are not what they said."""

from dataclasses import replace
from hashlib import sha256
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from obert_modifiers.training import RecipeStepper, TaskData, checks
from obert_modifiers.training.checks import check_same_classes, check_same_data
from obert_modifiers.training.guards import FiniteGuard
from tests.modifiers.table import make_model
from tests.training.toy import OBERT, all_equal, make_task, messages, run


def poisoned(*calls: int) -> TaskData:
    """Make the losses of some calls in training NaN; those of a recipe are left."""
    task, number = make_task(), count()

    def sample_loss(outputs, batch):
        losses = task.sample_loss(outputs, batch)
        if len(losses) != 8 or not torch.is_grad_enabled():
            return losses
        return losses * torch.nan if next(number) in calls else losses

    return replace(task, sample_loss=sample_loss)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}])
def test_ten_nan_steps_in_a_row_end_the_run(tmp_path, options) -> None:
    task, rate = poisoned(*range(5, 20)), {"learning_rate": 1e-2}
    options |= {"lr_scheduler_type": "constant", **rate}
    message = "loss=nan .* 10 optimizer steps .* step 15, learning_rate=0.01; .*lower"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, None, task, **options)
    texts = messages(tmp_path)
    assert len(texts) == 10
    assert texts[0].startswith("step 6, learning_rate=0.01: the gradients are not fin")


def test_nine_are_passed_over_and_nothing_is_lost(tmp_path) -> None:
    """Twice nine, with one good step between them."""
    task = poisoned(*range(0, 9), *range(10, 19))
    model, result = run(tmp_path, None, task, learning_rate=1e-2)
    assert result.steps == 24 and len(messages(tmp_path)) == 18
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("norm", [1.0, 0.0])
def test_a_step_that_is_passed_over_moves_nothing(tmp_path, norm, monkeypatch) -> None:
    seen = []
    original = RecipeStepper.pass_over

    def state_of(stepper) -> list[torch.Tensor]:
        moments = [s["exp_avg"] for s in stepper._optimizer.state.values()]
        assert moments
        return [t.clone() for t in (*stepper._model.parameters(), *moments)]

    def pass_over(self):
        before = state_of(self)
        original(self)
        seen.append(all_equal(before, state_of(self)))
        return True

    monkeypatch.setattr(RecipeStepper, "pass_over", pass_over)
    run(tmp_path, None, poisoned(3), max_grad_norm=norm, weight_decay=0.1)
    assert seen == [True]


def test_an_event_on_a_bad_step_prunes_and_the_recipe_goes_on(tmp_path) -> None:
    """The gradients of the event are its own; the step's batch is lost alone."""
    _, result = run(tmp_path, OBERT, poisoned(4))
    assert [event.step for event in result.events] == [4, 8, 12, 16]
    assert result.steps == 24
    assert result.sparsity == pytest.approx(0.8, abs=1 / 384)


def test_a_scaler_may_look_for_its_scale_but_not_for_ever(monkeypatch) -> None:
    """Overflows with a finite loss are its business until the scale is below 1."""
    texts: list[str] = []
    accelerator = Accelerator(cpu=True)
    scale = [2.0**16]
    scaler = SimpleNamespace(get_scale=lambda: scale[0])
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
    scale[0] = 0.5
    with pytest.raises(ValueError, match="10 optimizer steps in a row"):
        for _ in range(10):
            guard.count(True, False, fine, "step 3")
    assert texts == []


class Short(list):
    """Says 64 samples and has fewer."""

    def __len__(self) -> int:
        return 64


class Ending(Short):
    """Counts the tokens of samples that it does not have."""

    def token_counts(self) -> list[int]:
        return [5] * 64


class Stopping(Ending):
    """Ends as an iterator does."""

    def __getitem__(self, index):
        try:
            return super().__getitem__(index)
        except IndexError as error:
            raise StopIteration from error


FORTY = make_task(40).train


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Ending(FORTY), "train data has no sample .*IndexError.*64 samples, as"),
        (Stopping(FORTY), "train data has no sample .*StopIteration.*64 samples, as"),
        (Short(FORTY), "data of 64 samples gives 40; expected"),
        ([], "train data has 0 samples"),
        (iter(FORTY), "list_iterator without a length"),
    ],
)
def test_data_of_another_length_is_an_error(tmp_path, rows, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, None, replace(make_task(), train=rows))


def test_processes_with_other_data_are_told(monkeypatch) -> None:
    """Oracle: the least of this process' pair and another's."""

    others, device = [3, 4, 5], torch.device("cpu")

    def reduce(values, least):
        assert least
        digest = sha256(repr(others).encode()).digest()
        number = int.from_bytes(digest[:7], "big")
        return torch.minimum(values, torch.tensor([number, -number]))

    check_same_data([3, 4, 5], device)
    monkeypatch.setattr(checks, "all_reduce_", reduce)
    check_same_data([3, 4, 5], device)
    others.pop()
    with pytest.raises(ValueError, match="train data with 3 samples differs between"):
        check_same_data([3, 4, 5], device)


def model_of(name: str, labels: int) -> nn.Module:
    model = type(name, (nn.Module,), {})()
    model.config = SimpleNamespace(num_labels=labels)
    return model


def test_a_teacher_with_other_classes_is_refused() -> None:
    two, three = (model_of("ForSequenceClassification", n) for n in (2, 3))
    with pytest.raises(ValueError, match="teacher has num_labels=3; .* model's 2;"):
        check_same_classes(two, three)
    masked = model_of("ForMaskedLM", 3)  # whose num_labels means nothing
    for teacher in (model_of("ForSequenceClassification", 2), masked, "self", None):
        check_same_classes(two, teacher)
    check_same_classes(model_of("ForMaskedLM", 2), masked)
