"""What ``accelerate launch --cpu`` leaves undone: starting more than one process.

With ``--num_processes N --cpu`` accelerate (seen with 1.15) starts a single process
unless MPI starts the others, and says nothing. The user asked for N; they are started
here through ``torch.distributed.run``.
"""

import os
import sys
from collections.abc import Mapping, Sequence

_RANKED = (
    "WORLD_SIZE",
    "RANK",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)


def processes_asked_for(
    environment: Mapping[str, str], launcher: Sequence[str]
) -> int | None:
    """Tell how many processes a user of ``accelerate launch --cpu`` still waits for.

    From this process's environment and the command line of the process that started
    it; None where nothing is left undone: another launcher, a GPU, or processes that
    exist already.
    """
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    # accelerate sets the address only where several processes were asked for.
    several = on_cpu and "MASTER_ADDR" in environment
    if not several or any(name in environment for name in _RANKED):
        return None
    words = [part for word in launcher for part in word.split("=", 1)]
    for flag, number in zip(words, words[1:], strict=False):
        if flag in ("--num_processes", "--num-processes"):
            return int(number) if number.isdigit() and int(number) > 1 else None
    return None


def start_missing_processes(words: Sequence[str]) -> None:
    """Start the processes that accelerate did not; does not return if it does."""
    import psutil  # comes with accelerate; not loaded for a plain start

    parent = psutil.Process().parent()
    number = processes_asked_for(os.environ, parent.cmdline() if parent else ())
    if number is None:
        return
    sys.stderr.write(
        f"obert: accelerate starts one process with --cpu; starting {number} through "
        "torch.distributed.run\n"
    )
    sys.stderr.flush()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Else the machine's own name, for which torchrun waits where it does not resolve.
    command += ["--local-addr=127.0.0.1"]
    command += [f"--nproc_per_node={number}", "-m", "obert_modifiers.cli", *words]
    os.execv(sys.executable, command)
