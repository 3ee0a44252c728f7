"""The backends that can run here, and kernels that bring their tensors to them.

Triton runs on a GPU, or, where TRITON_INTERPRET=1, in its interpreter on a CPU;
``test_triton_interpreted.py`` starts a process with the latter.
"""

import functools
import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch

from obert_modifiers import kernels as package_kernels
from tests import reference

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DEVICE = "cpu" if INTERPRETED else "cuda"
CAN_RUN_TRITON = HAS_TRITON and (INTERPRETED or torch.cuda.is_available())
BACKENDS = ("torch", "numba", *(("triton",) if CAN_RUN_TRITON else ()))
each_backend = pytest.mark.parametrize("backend", BACKENDS)
NUM_GRADS, DAMP = 24, 1e-3
NUMBERS = (1 / NUM_GRADS, DAMP)  # scale and dampening of `problem`


def _move(value, device: str):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_move(one, device) for one in value)
    if isinstance(value, package_kernels.GreedyOrder):
        return package_kernels.GreedyOrder(
            value.order.to(device), value.saliency.to(device)
        )
    return value


def _moving(kernel):
    @functools.wraps(kernel)
    def run(*args, **options):
        device = TRITON_DEVICE if options.get("backend") == "triton" else "cpu"
        return _move(kernel(*_move(args, device), **options), "cpu")

    return run


# The public kernels on CPU tensors, wherever the backend works; use what they return.
kernels = SimpleNamespace(**{
    name: _moving(getattr(package_kernels, name))
    for name in package_kernels.__all__
    if name != "GreedyOrder"
})


def problem(num_blocks: int, width: int, living: torch.Tensor | None = None):
    """Random blocks; what does not live has zero gradient and zero weight."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(NUM_GRADS, num_blocks, width, generator=generator).double()
    weights = torch.randn(num_blocks, width, generator=generator)
    if living is not None:
        grads, weights = grads * living, weights * living
    sums = torch.zeros(num_blocks, width, width, dtype=torch.float64)
    kernels.accumulate_blocks_(sums, grads)
    dense = [
        reference.dense_fisher(grads[:, b].numpy(), DAMP) for b in range(num_blocks)
    ]
    return sums, weights, dense


def some(num_blocks: int, width: int, share: float, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_blocks, width, generator=generator) < share


def cut(width: int, size: int) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(0, width, size)]
