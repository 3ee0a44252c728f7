"""SIGTERM: save, leave, and go on later with the same bits."""

import os
import signal
import threading

import pytest
import torch

from obert_modifiers.training import RecipeStepper, TrainingStopped, checkpoint
from obert_modifiers.training.environment import listening
from tests.faults.conftest import log
from tests.faults.kills import Kill
from tests.faults.test_checkpoint import run, same, steps_in, weights

STEP = "training.stepper:RecipeStepper.step"
STOPPED = 3  # what a child exits with after TrainingStopped


def terminate(model_or_loss) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_handler_comes_and_goes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening(True) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.received
    assert signal.getsignal(signal.SIGTERM) is before
    with listening(False) as request:
        assert signal.getsignal(signal.SIGTERM) is before
        assert not request.active
    found = []

    def elsewhere() -> None:
        with listening(True):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_stopped_run_saves_and_goes_on(tmp_path, monkeypatch) -> None:
    whole, _ = run(tmp_path / "whole", save_strategy="no")
    original, calls = RecipeStepper.step, []

    def step(self):
        calls.append(1)
        if len(calls) == 7:
            terminate(self)
        return original(self)

    monkeypatch.setattr(RecipeStepper, "step", step)
    folder = tmp_path / "stopped"
    with pytest.raises(TrainingStopped, match="stopped by SIGTERM; saved in") as stop:
        run(folder, save_strategy="no", save_on_sigterm=True)
    assert stop.value.checkpoint == folder / "checkpoint-7"
    assert steps_in(folder) == [7]
    model, _ = run(folder, save_strategy="no", resume_from_checkpoint="last")
    assert same(model, whole)
    assert weights(model)


def test_where_nothing_can_be_saved_it_is_an_error(tmp_path, monkeypatch) -> None:
    def no_space(*args) -> None:
        raise OSError(28, "No space left on device")

    original = RecipeStepper.step
    monkeypatch.setattr(
        RecipeStepper, "step", lambda self: (terminate(self), original(self))[1]
    )
    monkeypatch.setattr(checkpoint, "write_text", no_space)
    with pytest.raises(OSError, match="SIGTERM came and step 1 could not be saved"):
        run(tmp_path, save_strategy="no", save_on_sigterm=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 5, 10, 15])
def test_stopped_at_any_step(number, runs, compare, tmp_path) -> None:
    """The last micro-batch of an epoch and of the run are among them."""
    torch.manual_seed(number)
    whole = runs.whole("obert")
    kill = Kill(STEP, number, send="SIGTERM")
    how = {"save_on_sigterm": True, "resume_from_checkpoint": "last"}
    assert runs.start(tmp_path, "obert", kill, **how) == [STOPPED], log(tmp_path)
    assert runs.start(tmp_path, "obert", **how) == [0], log(tmp_path)
    compare(tmp_path, whole)


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(runs, compare, tmp_path) -> None:
    """One of them got the signal."""
    whole = runs.whole("gmp", 2)
    kill = Kill(STEP, 3, send="SIGTERM", rank=1)
    how = {"save_on_sigterm": True, "resume_from_checkpoint": "last", "ranks": 2}
    codes = runs.start(tmp_path, "gmp", kill, **how)
    assert codes == [STOPPED, STOPPED], log(tmp_path)
    assert steps_in(tmp_path) == [8]
    assert runs.start(tmp_path, "gmp", **how) == [0, 0], log(tmp_path)
    compare(tmp_path, whole, 2)
