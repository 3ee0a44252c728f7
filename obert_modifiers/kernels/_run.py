"""Run a loop over blocks on the backend that was chosen."""

from typing import Any

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import check_definite
from obert_modifiers.kernels.packed import pack_blocks, unpack_blocks


def run_blocks(chosen: str, name: str, *arguments: Any) -> None:
    """Run a loop over blocks by its name, on numba or Triton, with the same arguments.

    Raises:
        FloatingPointError: If a block is not numerically positive definite.
    """
    if chosen == "numba":
        check_definite(run_compiled(name, *arguments))
        return
    from obert_modifiers.kernels import _triton_fisher, _triton_greedy

    loop = getattr(_triton_fisher, name, None) or getattr(_triton_greedy, name)
    check_definite(loop(*arguments))


def run_on_sums(chosen: str, name: str, sums: Tensor, *arguments: Any) -> None:
    """Run a loop over Fisher blocks: compiled ones read packed blocks, Triton whole."""
    form = pack_blocks if chosen == "numba" else unpack_blocks
    run_blocks(chosen, name, form(sums), *arguments)


def run_compiled(name: str, *arguments: Any) -> int:
    """Return what a function of ``_compiled`` does on torch's number of threads.

    CPU tensors are passed on as arrays; those that it writes have to be contiguous.
    Torch and numba may share one OpenMP runtime, in which numba sets the number of
    threads for both: it is torch's again afterwards, so that what follows rounds as
    before.
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
