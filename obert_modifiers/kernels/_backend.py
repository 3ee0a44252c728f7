"""Choice of a kernel's backend, and what the backends share."""

import functools
import importlib.metadata
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from obert_modifiers.kernels.packed import unpack_blocks

BACKENDS = ("torch", "numba", "triton")
# Triton 3.5 is the first whose dot takes float64.
_OLDEST = {"numba": (0, 59), "triton": (3, 5)}
_TRITON_WIDTH = 128  # a float64 tile then takes half of a multiprocessor's registers
_CHUNK_BYTES = 128 * 2**20  # of float64 working copies in the torch backend


def choose_backend(
    backend: str, tensor: Tensor, *, among: tuple[str, ...] = BACKENDS, tile: int = 1
) -> str:
    """Resolve ``"auto"`` and check that a backend can run on a tensor.

    ``"auto"`` takes numba on a CPU and triton on a GPU, where they are installed and
    ``among`` those that have the kernel, and torch otherwise. A Triton program holds
    one block on chip: for a padded ``tile`` wider than 128 both take torch.

    Returns:
        ``"torch"``, ``"numba"`` or ``"triton"``.

    Raises:
        ValueError: If the backend is unknown, not installed, or not for the device.
    """
    if backend == "auto":
        native = "numba" if tensor.device.type == "cpu" else "triton"
        able = native in among and not _refusal(native, tensor)
        backend = native if able else "torch"
    elif backend not in among:
        names = f"{', '.join(('auto', *among[:-1]))} or {among[-1]}"
        known = "has no such kernel" if backend in BACKENDS else "is unknown"
        raise ValueError(f"backend={backend} {known}; expected {names}; use auto")
    elif refusal := _refusal(backend, tensor):
        raise ValueError(f"backend={backend} {refusal}")
    return "torch" if backend == "triton" and tile > _TRITON_WIDTH else backend


def _refusal(backend: str, tensor: Tensor) -> str:
    """Return why a backend cannot run on a tensor; empty if it can."""
    device = tensor.device.type
    if backend == "numba" and device != "cpu":
        return f"cannot run on {tensor.device}; expected a CPU tensor; use auto"
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "triton" and device != "cuda" and not interpreted:
        return (
            f"cannot run on {tensor.device}; expected a CUDA tensor, or Triton's "
            "interpreter; use auto, or set TRITON_INTERPRET=1 before the start"
        )
    oldest = _OLDEST.get(backend, ())
    if _version(backend) < oldest:
        wanted = f"{backend}>={'.'.join(map(str, oldest))}"
        return f"is not installed; expected the package {wanted}; pip install it"
    return ""


@functools.cache
def _version(package: str) -> tuple[int, ...]:
    """Return the first two numbers of an installed package's version, else nothing."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in version.split(".")[:2])


def padded_width(count: int) -> int:
    """Return the lowest power of two that is not below a count, at least 1."""
    return 1 << (count - 1).bit_length()


def block_chunks(num_blocks: int, block_size: int) -> Iterator[slice]:
    """Yield slices of a range of blocks so that float64 copies of them stay small."""
    step = max(1, _CHUNK_BYTES // (8 * block_size * block_size))
    for start in range(0, num_blocks, step):
        yield slice(start, min(start + step, num_blocks))


def dampened(sums: Tensor, scale: float, damp: float) -> Tensor:
    """Return ``F = damp I + scale S``, ``(n, B, B)``, float64, a new tensor."""
    fisher = unpack_blocks(sums).to(torch.float64, copy=True).mul_(scale)
    fisher.diagonal(dim1=1, dim2=2).add_(damp)
    return fisher


def cholesky(fisher: Tensor) -> Tensor:
    """Return the lower factors of ``(n, B, B)`` float64 blocks, or raise."""
    factor, info = torch.linalg.cholesky_ex(fisher)
    check_definite(int((info != 0).sum()))
    return factor


def check_definite(failed: int) -> None:
    """Raise if some blocks had no Cholesky factor."""
    if failed:
        raise FloatingPointError(
            f"{failed} Fisher blocks are not positive definite; expected a dampening "
            "that outweighs rounding; raise damp or damp_fraction tenfold"
        )
