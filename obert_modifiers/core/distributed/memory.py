"""Memory that a process has used, and can use."""

import os
import sys
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Return the highest use so far in bytes, of a CUDA device or of the process.

    0 on systems that do not tell (Windows).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that a process can still take, None where nobody tells.

    Those of the allocator on a CUDA device, else the machine's free memory, which the
    processes of a launch share evenly (Linux).
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device)
        unused -= torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            free = int(value.split()[0]) * 1024  # the kernel writes KiB
            return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None
