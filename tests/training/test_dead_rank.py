"""A process that dies takes the others along, with the reason and soon."""

import time

import pytest

from obert_modifiers.training.environment import translate_lost_rank_errors
from tests.training.processes import run_script

MINUTE = 60.0

# In the training, one process is killed before its seventh step; in an event, when it
# computes its first gradients, which come in batches of other sizes than training's.
SCRIPT = """
import logging, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from tests.training import toy

folder, victim, phase = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
task = toy.make_task()

def die(when, now):
    if phase == when and now and os.environ["RANK"] == victim:
        (folder / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

def dying_step(stepper, step):
    die("training", stepper.steps == 6)
    return step()

def sample_loss(outputs, batch):
    die("event", len(batch["labels"]) > 12)
    return task.sample_loss(outputs, batch)

logging.basicConfig()
dying = replace(task, sample_loss=sample_loss)
options = {"per_device_train_batch_size": 4, "save_on_sigterm": True}
with toy.each_step(dying_step):
    toy.run(folder / "run", toy.OBERT, dying, **options)
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
    ("message", "expected"),
    [
        ("[gloo/pair.cc:598] Connection closed by peer [::1]:5", True),
        ("writev [::1]:5: Connection reset by peer", True),
        ("NCCL error: remote process exited or there was a", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_which_errors_are_about_another_process(message, expected) -> None:
    error = ConnectionError if expected else RuntimeError
    with pytest.raises(error, match="process is gone" if expected else "shapes"):
        with translate_lost_rank_errors():
            raise RuntimeError(message)
