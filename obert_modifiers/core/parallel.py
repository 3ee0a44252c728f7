"""The few questions that the algorithms ask of ``torch.distributed``."""

import torch


def world() -> tuple[int, int]:
    """Return rank and number of processes; (0, 1) where nothing is distributed."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


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
    tensor = torch.tensor([count], device=device)
    torch.distributed.all_reduce(tensor)
    return int(tensor)
