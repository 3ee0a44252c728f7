"""SIGTERM: save, leave, and go on later with the same bits."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from obert_modifiers.training import TrainingStopped, checkpoint
from obert_modifiers.training.environment import listening
from tests.faults import world
from tests.faults.conftest import log
from tests.faults.kills import Kill
from tests.faults.test_checkpoint import run, same, steps_in
from tests.training.toy import each_step

STEP = "training.stepper:RecipeStepper.step"
STOPPED = 3  # what a child exits with after TrainingStopped


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_handler_comes_and_goes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening(True) as request:
        terminate()
        assert request.received
    assert signal.getsignal(signal.SIGTERM) is before
    with listening(False) as request:
        assert signal.getsignal(signal.SIGTERM) is before
        assert not request.active


def test_another_thread_leaves_the_handler_as_it_is() -> None:
    def handler():
        with listening(True):
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        found = pool.submit(handler).result()
    assert found is signal.getsignal(signal.SIGTERM)


def test_a_stopped_run_saves_and_goes_on(tmp_path) -> None:
    whole, _ = run(tmp_path / "whole", save_strategy="no")

    def stop_at_seventh(stepper, step) -> bool:
        if stepper.steps == 6:
            terminate()
        return step()

    folder, message = tmp_path / "stopped", "stopped by SIGTERM; saved in"
    with (
        each_step(stop_at_seventh),
        pytest.raises(TrainingStopped, match=message) as stop,
    ):
        run(folder, save_strategy="no", save_on_sigterm=True)
    assert stop.value.checkpoint == folder / "checkpoint-7"
    assert steps_in(folder) == [7]
    model, _ = run(folder, save_strategy="no", resume_from_checkpoint="last")
    assert same(model, whole)


def test_where_nothing_can_be_saved_it_is_an_error(tmp_path, monkeypatch) -> None:
    def no_space(*args) -> None:
        raise OSError(28, "No space left on device")

    def stop(stepper, step) -> bool:
        terminate()
        return step()

    monkeypatch.setattr(checkpoint, "write_text", no_space)
    message = "SIGTERM came and step 1 could not be saved"
    with each_step(stop), pytest.raises(OSError, match=message):
        run(tmp_path, save_strategy="no", save_on_sigterm=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 5, 10, 15])
def test_stopped_at_any_step(number, runs, tmp_path) -> None:
    """The last micro-batch of an epoch and of the run are among them."""
    kill = Kill(STEP, number, send="SIGTERM")
    how = {"save_on_sigterm": True, "resume_from_checkpoint": "last"}
    assert runs.start(tmp_path, "obert", kill, **how) == [STOPPED], log(tmp_path)
    runs.end(tmp_path, "obert", **how)
    world.compare(tmp_path, runs.whole("obert"))


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(runs, tmp_path) -> None:
    """One of them got the signal."""
    kill = Kill(STEP, 3, send="SIGTERM", rank=1)
    how = {"save_on_sigterm": True, "resume_from_checkpoint": "last", "ranks": 2}
    codes = runs.start(tmp_path, "gmp", kill, **how)
    assert codes == [STOPPED, STOPPED], log(tmp_path)
    assert steps_in(tmp_path) == [8]
    runs.end(tmp_path, "gmp", **how)
    world.compare(tmp_path, runs.whole("gmp", 2), 2)
