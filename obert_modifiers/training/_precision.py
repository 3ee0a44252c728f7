"""The precision of matrix products while a run lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_AMPERE = (8, 0)  # the first GPUs that have TF32


def check_tf32(device: torch.device) -> None:
    """Refuse TF32 where the device has none."""
    if device.type != "cuda":
        found = f"runs on a {device.type.upper()}"
    elif torch.cuda.get_device_capability(device) < _AMPERE:
        found = f"runs on {torch.cuda.get_device_name(device)}, which has no TF32,"
    else:
        return
    raise ValueError(
        f"tf32=True {found} here; expected an Ampere GPU or a later one; leave it out"
    )


@contextmanager
def products_in_tf32(wanted: bool) -> Iterator[None]:
    """Let float32 matrix products round their factors to TF32 inside the block.

    It is torch's switch for the process, and is as it was afterwards.
    """
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if wanted:
            torch.set_float32_matmul_precision(before)
