"""The few questions that the algorithms ask of ``torch.distributed``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

OTHER_FAILED = (
    "another process failed in this pruning event; expected all to succeed; see its "
    "message; nothing was pruned"
)


class OtherProcessFailed(RuntimeError):
    """Another process failed, maybe out of memory, and all of them know it."""

    def __init__(self, out_of_memory: bool = False) -> None:
        """Say that another process has the message."""
        super().__init__(OTHER_FAILED)
        self.out_of_memory = out_of_memory


def world() -> tuple[int, int]:
    """Return rank and number of processes; (0, 1) where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def share_of(total: int, rank: int, ranks: int) -> int:
    """Return this process's part of a number of samples; the parts sum to ``total``."""
    return total // ranks + (rank < total % ranks)


def all_reduce_(values: Tensor, least: bool = False) -> Tensor:
    """Return a tensor summed over all processes in place, or the ``least`` of theirs.

    It has the same shape and dtype everywhere, is on a device where the process group
    can work, such as a parameter's, and gets equal bits on all processes.
    """
    if world()[1] > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN if least else dist.ReduceOp.SUM)
    return values


def all_reduce_count(count: int, device: torch.device) -> int:
    """Return the sum of a number over all processes; ``device`` as for a parameter."""
    if world()[1] == 1:
        return count
    return int(all_reduce_(torch.tensor([count], device=device)))


def all_gather_row(row: Tensor) -> Tensor:
    """Return every process's row ``(n,)`` of numbers, ``(processes, n)``."""
    found = [torch.empty_like(row) for _ in range(world()[1])]
    dist.all_gather(found, row)
    return torch.stack(found)


def exchange(parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Return a flat tensor from every process, of these sizes, for one sent to each.

    One dtype and device everywhere; what comes is in memory of its own.
    """
    sent = torch.cat([part.reshape(-1) for part in parts])
    found = sent.new_empty(sum(sizes))
    dist.all_to_all_single(found, sent, list(sizes), [p.numel() for p in parts])
    return [part.clone() for part in found.split(list(sizes))]


@contextmanager
def raise_on_all_ranks(device: torch.device) -> Iterator[None]:
    """Raise on all processes if the body, which must not communicate, raises on one."""
    try:
        yield
    except Exception as error:
        _count_failures(device, True, ran_out_of_memory(error))
        raise
    failed, out_of_memory = _count_failures(device, False, False)
    if failed:
        raise OtherProcessFailed(out_of_memory > 0)


def _count_failures(device: torch.device, *failed: bool) -> list[int]:
    if world()[1] == 1:
        return [int(one) for one in failed]
    return all_reduce_(torch.tensor(failed, dtype=torch.int64, device=device)).tolist()


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether memory of host or device lacked, here or in another process."""
    if isinstance(error, OtherProcessFailed):
        return error.out_of_memory
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch has no class of its own for memory of the host.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
