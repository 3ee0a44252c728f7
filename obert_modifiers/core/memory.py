"""Memory that a process has used."""

import sys

import torch


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Return the highest memory use so far, in bytes.

    Args:
        device: A CUDA device gives the peak of torch's allocator there; anything
            else the peak resident size of the process.

    Returns:
        Bytes; 0 on systems that do not tell (Windows).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
