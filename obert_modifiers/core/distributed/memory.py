"""Memory that a process has used, and can use."""

import os
import sys
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# Of control groups: folder below, files of limit and use, and what in front of the
# names of caches that are given up.
_VERSION_1 = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
_VERSION_2 = "", "memory.max", "memory.current", ""


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

    Those of the allocator on a CUDA device, else the machine's free memory, or less
    where a container's limit leaves less, which the processes of a launch share evenly
    (Linux).
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
            free = min([free, *_room_in_groups()])
            return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None


def _room_in_groups() -> list[int]:
    """Return what each limit on the control groups of this process leaves, in bytes."""
    found = []
    text = _OWN_GROUPS.read_text(encoding="utf-8") if _OWN_GROUPS.is_file() else ""
    for line in text.splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        below, *names = _VERSION_1 if kinds else _VERSION_2
        own = _GROUPS / below / path.lstrip("/")
        # In a container the path may be the host's, and the container's group the root.
        found += [_room_in(folder, *names) for folder in (own, *own.parents)]
    return [room for room in found if room is not None]


def _room_in(folder: Path, limit: str, use: str, prefix: str) -> int | None:
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        if most == "max":
            return None
        used = int((folder / use).read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:  # no such group here, or not ours to read
        return None
    caches = {f"{prefix}{kind}_file" for kind in ("active", "inactive")}
    values = (line.split() for line in lines)
    used -= sum(int(value) for name, value in values if name in caches)
    return max(0, int(most) - used)
