"""Kill a run at random times for as long as it takes, and compare it at the end.

    OMP_NUM_THREADS=1 python -m tests.faults.soak --epochs 400 --every 60 --minutes 60

First the run is made undisturbed. Then a child is killed with SIGKILL after a random
time (exponential, ``--every`` seconds on average) and resumed until it is through, and
again with other times until the minutes are over. It prints in which phase each kill
fell, and fails unless weights, reports of events and records are the same every time.
"""

import argparse
import collections
import gc
import mmap
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.faults import server, world
from tests.faults.kills import owner_of

# The innermost one that a process is in counts.
PHASES = {
    "resuming": "training.loop:resume_",
    "forward and backward": "training.loop:_Run._micro_batch",
    "step": "training.stepper:RecipeStepper.step",
    "pruning event": "modifiers._gradual:GradualPruningModifier._event",
    "quantizing": "modifiers.qat:QATModifier.update",
    "saving": "training.saving:Saver.save",
    "removing old ones": "training.saving:remove_old",
    "evaluation": "training.loop:_Run._evaluate",
}
OTHER = "between these"
MARKS = mmap.mmap(-1, 1)  # the phase of the child
RECIPE = """
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: {epochs}}}
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: {epochs}
      lr_func: linear
      init_lr: 1e-2
      final_lr: 1e-4
  - !OBERTPruningModifier
      init_sparsity: 0.1
      final_sparsity: 0.9
      start_epoch: 1.0
      end_epoch: {pruned}
      update_frequency: 1.0
      num_grads: 32
      memory_budget: 2GB
      fisher_block_size: 12
  - !QATModifier {{start_epoch: {quantized}, disable_observer_epoch: {fixed}}}
  - !LogitDistillationModifier {{hardness: 0.5, teacher: self}}
"""


def mark_phases() -> None:
    """Let a child write the number of the phase that it is in."""

    def watched(original, number):
        def call(*args, **kwargs):
            before = MARKS[0]
            MARKS[0] = number
            try:
                return original(*args, **kwargs)
            finally:
                MARKS[0] = before

        return call

    for number, target in enumerate(PHASES.values(), start=1):
        owner, last = owner_of(target)
        setattr(owner, last, watched(getattr(owner, last), number))


def start(folder: Path, recipe: str) -> int:
    """Fork a run that saves every 5 steps and goes on from what is there."""
    folder.mkdir(exist_ok=True)
    MARKS[0] = 0
    pid = os.fork()
    if pid == 0:
        how = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
        how["resume_from_checkpoint"] = "last"
        job = {"folder": str(folder), "recipe": recipe, "options": how}
        job |= {"environment": {}, "kill": None, "plant": []}
        server.child({**job, "log": str(folder / "log")})
    return pid


def through(pid: int) -> bool:
    """Tell whether a child that has ended ended well; it has to, unless killed."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run failed with exit code {code}")
    return code == 0


def soak(folder: Path, recipe: str, every: float, draw: random.Random) -> dict:
    """Kill and resume until the run is through; counts kills by phase."""
    counts: collections.Counter = collections.Counter()
    while True:
        pid = start(folder, recipe)
        until = time.monotonic() + draw.expovariate(1.0 / every)
        while time.monotonic() < until:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                break
            time.sleep(min(0.05, every / 20))
        else:
            os.kill(pid, signal.SIGKILL)
        if through(pid):
            return dict(counts)
        counts[[OTHER, *PHASES][MARKS[0]]] += 1


def main() -> None:
    """Read the flags, soak, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--every", type=float, default=60.0, help="seconds")
    parser.add_argument("--minutes", type=float, default=0.0, help="at least so long")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    mark_phases()
    parts = {"epochs": 1.0, "pruned": 0.6, "quantized": 0.7, "fixed": 0.9}
    ends = {name: float(int(part * flags.epochs)) for name, part in parts.items()}
    recipe = RECIPE.format(**ends)
    gc.collect()
    gc.freeze()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    begun = time.monotonic()
    if not through(start(folder / "whole", recipe)):
        raise SystemExit("the undisturbed run was killed")
    alone = time.monotonic() - begun
    counts: collections.Counter = collections.Counter()
    draw, begun, rounds = random.Random(flags.seed), time.monotonic(), 0
    while rounds == 0 or time.monotonic() - begun < 60 * flags.minutes:
        killed = folder / f"killed-{rounds}"
        counts.update(soak(killed, recipe, flags.every, draw))
        world.compare(killed, folder / "whole")
        shutil.rmtree(killed)
        rounds += 1
    total = time.monotonic() - begun
    print(f"undisturbed {alone:.0f} s")
    print(f"{rounds} times with {sum(counts.values())} kills in all {total:.0f} s")
    for phase in (*PHASES, OTHER):
        print(f"  {phase}: {counts.get(phase, 0)}")
    print("the same bits after every step")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
