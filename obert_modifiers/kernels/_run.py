"""Run a loop over blocks on the backend that was chosen."""

from typing import Any

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import check_definite


def run_blocks(chosen: str, name: str, *arguments: Any) -> None:
    """Run a loop over blocks on numba or Triton.

    Args:
        chosen: ``"numba"`` or ``"triton"``.
        name: Its name in ``_compiled`` and in Triton's files, which take the same.
        *arguments: What it reads, and the tensors that it writes.
    """
    if chosen == "numba":
        check_definite(run_compiled(name, *arguments))
        return
    from obert_modifiers.kernels import _triton_fisher, _triton_greedy

    loop = getattr(_triton_fisher, name, None) or getattr(_triton_greedy, name)
    check_definite(loop(*arguments))


def run_compiled(name: str, *arguments: Any) -> int:
    """Run a compiled loop over blocks on torch's number of threads.

    Torch and numba may share one OpenMP runtime, in which numba sets the number of
    threads for both: it is torch's again afterwards, so that what follows rounds as
    before.

    Args:
        name: A function of ``_compiled``.
        *arguments: Its arguments; CPU tensors are passed on as arrays, those that it
            writes have to be contiguous.

    Returns:
        What it returns: the number of blocks that failed.
    """
    from obert_modifiers.kernels import _compiled

    arrays = [
        value.contiguous().numpy() if isinstance(value, Tensor) else value
        for value in arguments
    ]
    threads = torch.get_num_threads()
    _compiled.use_threads(threads)
    try:
        return int(getattr(_compiled, name)(*arrays))
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
