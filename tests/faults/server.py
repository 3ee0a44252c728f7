"""A warm process that starts runs as its children: ``python -m tests.faults.server``.

It reads a line of JSON for each group of processes, forks them, waits for them, and
answers with their exit codes (a signal's number is negative). When one of a group dies,
the others are killed, as a launcher does. One thread, so that a fork is safe.
"""

import gc
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path


def child(job: dict) -> None:
    """Run one process of a group; does not return."""
    code = 1
    try:
        os.environ.update(job["environment"])
        with open(job["log"], "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        from tests.faults import kills, planted, world

        for name in job["plant"]:
            getattr(planted, name)()
        if job["kill"] is not None:
            kill = kills.Kill(**job["kill"])
            if kill.rank == int(job["environment"].get("RANK", "0")):
                kills.plant(kill)
        world.train_once(Path(job["folder"]), job["recipe"], **job["options"])
        code = 0
    except BaseException as error:
        traceback.print_exc()
        code = 3 if type(error).__name__ == "TrainingStopped" else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_group(jobs: list[dict]) -> list[int]:
    """Fork a process for each job, and wait for all."""
    waiting = {}
    for number, job in enumerate(jobs):
        pid = os.fork()
        if pid == 0:
            child(job)
        waiting[pid] = number
    codes = [0] * len(jobs)
    while waiting:
        pid, status = os.wait()
        codes[waiting.pop(pid)] = code = os.waitstatus_to_exitcode(status)
        if code < 0:
            for other in waiting:
                os.kill(other, signal.SIGKILL)
    return codes


def warm_up() -> None:
    """Import and compile what every run needs."""
    import torch
    from accelerate.state import AcceleratorState, PartialState

    from tests.faults import world

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in ("obert", "qat"):
            world.train_once(Path(folder) / recipe, recipe)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else is written where the answers go
    warm_up()
    gc.collect()
    gc.freeze()  # the children do not go through what is imported
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run_group(json.loads(line))), file=answers, flush=True)
