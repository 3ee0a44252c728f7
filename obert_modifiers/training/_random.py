"""The state of every random generator of a process, as plain values."""

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Read the generators of Python, NumPy and torch, and the device's."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    state = {
        "python": [version, list(words), gauss],
        "numpy": {
            **{key: numpy[key] for key in ("bit_generator", "has_gauss", "gauss")},
            "key": numpy["state"]["key"].tolist(),
            "pos": numpy["state"]["pos"],
        },
        "torch": _hex(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _hex(torch.cuda.get_rng_state(device))
    return state


def set_random_state_(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators where :func:`random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    np.random.set_state({
        **{key: numpy[key] for key in ("bit_generator", "has_gauss", "gauss")},
        "state": {
            "key": np.array(numpy["key"], dtype=np.uint32),
            "pos": numpy["pos"],
        },
    })
    torch.set_rng_state(_bytes(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_bytes(state["cuda"]), device)


def _hex(values: torch.Tensor) -> str:
    return values.cpu().numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
