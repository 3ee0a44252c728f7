"""A process that dies takes the others along, with the reason and soon."""

import time

import pytest

from obert_modifiers.training.environment import is_lost_rank
from tests.training.processes import run_script

MINUTE = 60.0

# In the training, one process is killed before its seventh step; in an event, when it
# computes its first gradients, which come in batches of other sizes than training's.
SCRIPT = """
import logging, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from tests.training import test_training as t
from obert_modifiers.training import RecipeStepper

folder, victim, phase = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
rank = os.environ["RANK"]

def die():
    if rank == victim:
        (folder / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

step, make_task = RecipeStepper.step, t.make_task

def dying_step(self):
    if phase == "training" and self.steps == 6:
        die()
    return step(self)

def dying_task():
    task = make_task()
    def sample_loss(outputs, batch):
        if phase == "event" and len(batch["labels"]) > 12:
            die()
        return task.sample_loss(outputs, batch)
    return replace(task, sample_loss=sample_loss)

RecipeStepper.step, t.make_task = dying_step, dying_task
logging.basicConfig()
t.run(folder / "run", t.OBERT, per_device_train_batch_size=4, save_on_sigterm=True)
(folder / "end").touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["training", "event"])
@pytest.mark.parametrize("victim", ["0", "1"])
def test_the_other_process_ends_within_a_minute(tmp_path, victim, phase) -> None:
    done = run_script(SCRIPT, tmp_path, victim, phase)
    seconds = time.time() - float((tmp_path / "died").read_text())
    print(f"{victim} {phase}: {seconds:.1f} s")
    assert done.returncode != 0 and not (tmp_path / "end").exists()
    assert seconds < MINUTE
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert "another process is gone (" in done.stderr
    assert "--resume_from_checkpoint last" in done.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/pair.cc:598] Connection closed by peer [::1]:5"), True),
        (RuntimeError("writev [::1]:5: Connection reset by peer"), True),
        (RuntimeError("NCCL error: remote process exited or there was a"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_about_another_process(error, expected) -> None:
    assert is_lost_rank(error) is expected
