"""Starting the processes that ``accelerate launch --cpu`` does not."""

import pytest

from obert_modifiers.cli.launch import processes_asked_for

CPU = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
LAUNCH = ["python", "accelerate", "launch", "--num_processes", "2", "--cpu", "-m", "x"]


@pytest.mark.parametrize(
    ("environment", "launcher", "expected"),
    [
        (CPU, LAUNCH, 2),
        (CPU, [*LAUNCH[:3], "--num_processes=3", "--cpu"], 3),
        (CPU, [*LAUNCH[:3], "--num-processes", "4"], 4),
        ({**CPU, "ACCELERATE_USE_CPU": "false"}, LAUNCH, None),
        ({"ACCELERATE_USE_CPU": "True"}, LAUNCH, None),  # one process was asked for
        ({**CPU, "WORLD_SIZE": "2"}, LAUNCH, None),  # torchrun did it
        ({**CPU, "PMI_SIZE": "2"}, LAUNCH, None),  # MPI did it
        (CPU, ["bash"], None),
        (CPU, [*LAUNCH[:3], "--num_processes", "two"], None),
        (CPU, [*LAUNCH[:3], "--num_processes"], None),
        ({}, [], None),
    ],
)
def test_when_processes_are_missing(environment, launcher, expected) -> None:
    assert processes_asked_for(environment, launcher) == expected
