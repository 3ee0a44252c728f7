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
    """Another process failed, and all of them know it.

    Attributes:
        out_of_memory: Whether one of those that failed ran out of memory.
    """

    def __init__(self, out_of_memory: bool = False) -> None:
        """Say that another process has the message.

        Args:
            out_of_memory: Whether one of those that failed ran out of memory.
        """
        super().__init__(OTHER_FAILED)
        self.out_of_memory = out_of_memory


def world() -> tuple[int, int]:
    """Return rank and number of processes; (0, 1) where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def share_of(total: int, rank: int, ranks: int) -> int:
    """Split a number of samples over processes.

    Args:
        total: Samples over all processes.
        rank: This process, counted from 0.
        ranks: Number of processes.

    Returns:
        Samples of this process; the shares sum to ``total``.
    """
    return total // ranks + (rank < total % ranks)


def all_reduce_(values: Tensor, least: bool = False) -> Tensor:
    """Sum a tensor over all processes, in place.

    Args:
        values: Same shape and dtype on all processes, on a device where the process
            group can work, such as a parameter's.
        least: True for the minimum in place of the sum.

    Returns:
        The tensor, equal bits on all processes.
    """
    if world()[1] > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN if least else dist.ReduceOp.SUM)
    return values


def all_reduce_count(count: int, device: torch.device) -> int:
    """Sum a number over all processes.

    Args:
        count: Number of this process.
        device: Where the process group can work, such as a parameter's device.

    Returns:
        The sum, equal on all processes.
    """
    if world()[1] == 1:
        return count
    return int(all_reduce_(torch.tensor([count], device=device)))


def all_gather_row(row: Tensor) -> Tensor:
    """Collect a row of numbers from every process.

    Args:
        row: ``(n,)``, same length and dtype on all processes.

    Returns:
        ``(processes, n)``.
    """
    found = [torch.empty_like(row) for _ in range(world()[1])]
    dist.all_gather(found, row)
    return torch.stack(found)


def exchange(parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Send a flat tensor to every process and get one from each.

    Args:
        parts: ``(n_r,)`` for each process r; one dtype and device everywhere.
        sizes: Elements that come from each process.

    Returns:
        A tensor from each process, in memory of its own.
    """
    sent = torch.cat([part.reshape(-1) for part in parts])
    found = sent.new_empty(sum(sizes))
    dist.all_to_all_single(found, sent, list(sizes), [p.numel() for p in parts])
    return [part.clone() for part in found.split(list(sizes))]


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Raise on all processes if the body raises on one of them.

    The body must not talk to other processes.

    Args:
        device: Where the process group can work, such as a parameter's device.

    Yields:
        Once, for the body.

    Raises:
        OtherProcessFailed: If another process failed, so that none waits for it.
    """
    try:
        yield
    except Exception as error:
        _failures(True, ran_out_of_memory(error), device)
        raise
    failed, out_of_memory = _failures(False, False, device)
    if failed:
        raise OtherProcessFailed(out_of_memory)


def _failures(
    failed: bool, out_of_memory: bool, device: torch.device
) -> tuple[bool, bool]:
    if world()[1] == 1:
        return failed, out_of_memory
    counts = torch.tensor([failed, out_of_memory], dtype=torch.int64, device=device)
    found = all_reduce_(counts).tolist()
    return found[0] > 0, found[1] > 0


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was what lacked, here or in another process.

    Args:
        error: What was raised.

    Returns:
        True for torch's errors of host and device memory and for Python's.
    """
    if isinstance(error, OtherProcessFailed):
        return error.out_of_memory
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch has no class of its own for memory of the host.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
