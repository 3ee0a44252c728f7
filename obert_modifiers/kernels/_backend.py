"""Choice of the backend of a kernel."""

import importlib.util
from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_BYTES = 128 * 2**20  # of float64 working copies in the torch backend


def choose_backend(backend: str, tensor: Tensor) -> str:
    """Resolve ``"auto"`` and check that a backend can run.

    Args:
        backend: ``"auto"``, ``"torch"`` or ``"numba"``.
        tensor: A tensor that the kernel works on.

    Returns:
        ``"torch"`` or ``"numba"``.

    Raises:
        ValueError: If the backend is unknown, not installed, or not for the device.
    """
    installed = importlib.util.find_spec("numba") is not None
    if backend == "auto":
        return "numba" if installed and tensor.device.type == "cpu" else "torch"
    if backend not in ("torch", "numba"):
        raise ValueError(
            f"backend={backend} is unknown; expected auto, torch or numba; use auto"
        )
    if backend == "numba" and tensor.device.type != "cpu":
        raise ValueError(
            f"backend=numba cannot run on {tensor.device}; expected a CPU tensor; use "
            "auto"
        )
    if backend == "numba" and not installed:
        raise ValueError(
            "backend=numba is not installed; expected the package numba; pip install "
            "numba"
        )
    return backend


def block_chunks(num_blocks: int, block_size: int) -> Iterator[slice]:
    """Cut a range of blocks so that float64 copies of them stay small.

    Args:
        num_blocks: Number of blocks.
        block_size: Width B of a block.

    Yields:
        Slices that cover ``range(num_blocks)`` in order.
    """
    step = max(1, _CHUNK_BYTES // (8 * block_size * block_size))
    for start in range(0, num_blocks, step):
        yield slice(start, min(start + step, num_blocks))


def dampened(sums: Tensor, scale: float, damp: float) -> Tensor:
    """Return ``F = damp I + scale S`` in float64, a new tensor.

    Args:
        sums: Sums of outer products S, ``(n, B, B)``.
        scale: One over the number of gradients.
        damp: Dampening, larger than 0.

    Returns:
        ``(n, B, B)``, float64.
    """
    fisher = sums.to(torch.float64, copy=True).mul_(scale)
    fisher.diagonal(dim1=1, dim2=2).add_(damp)
    return fisher


def cholesky(fisher: Tensor) -> Tensor:
    """Factor dampened blocks, or say that they are not positive definite.

    Args:
        fisher: ``(n, B, B)``, float64.

    Returns:
        Lower factors, ``(n, B, B)``.

    Raises:
        FloatingPointError: If a block is not numerically positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(fisher)
    check_definite(int((info != 0).sum()))
    return factor


def check_definite(failed: int) -> None:
    """Raise if blocks had no Cholesky factor.

    Args:
        failed: Number of such blocks.

    Raises:
        FloatingPointError: If there is one.
    """
    if failed:
        raise FloatingPointError(
            f"{failed} Fisher blocks are not positive definite; expected a dampening "
            "that outweighs rounding; raise damp or damp_fraction tenfold"
        )
