"""The backends that can run here, and kernels that bring their tensors to them.

Triton runs on a GPU, or, where TRITON_INTERPRET=1, in its interpreter on a CPU;
``test_triton_interpreted.py`` starts a process with the latter.
"""

import functools
import importlib.util
import os
from types import SimpleNamespace

import torch

from obert_modifiers import kernels as package_kernels

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DEVICE = "cpu" if INTERPRETED else "cuda"
CAN_RUN_TRITON = HAS_TRITON and (INTERPRETED or torch.cuda.is_available())
BACKENDS = ("torch", "numba", *(("triton",) if CAN_RUN_TRITON else ()))


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
