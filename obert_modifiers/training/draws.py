"""Random numbers that a resumed run draws as if it had never stopped."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class SeededCollate:
    """Calls a collate function with torch's generator seeded for each batch.

    A function that draws, as one that masks words does, then gives the same batch
    whether the batches before it were made or skipped, and however far ahead of the
    training it is called. The generator's state comes back as it was.
    """

    collate: Callable[[list[Any]], Any]
    seed: int
    rank: int
    epoch: int = 0
    number: int = 0  # batches of the epoch that are made or skipped

    def __call__(self, samples: list[Any]) -> Any:
        # Tuples of integers have the same hash in every process.
        seed = hash((self.seed, self.rank, self.epoch, self.number)) % 2**63
        self.number += 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.collate(samples)


def random_state(device: torch.device) -> dict[str, Any]:
    """Read the generators of Python, NumPy, torch and the device as plain values."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    inner = numpy.pop("state")
    state = {
        "python": [version, list(words), gauss],
        "numpy": {**numpy, "key": inner["key"].tolist(), "pos": inner["pos"]},
        "torch": _hex(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _hex(torch.cuda.get_rng_state(device))
    return state


def set_random_state_(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators where `random_state` read them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    key = np.array(numpy["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["pos"]}})
    torch.set_rng_state(_bytes(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_bytes(state["cuda"]), device)


def _hex(values: torch.Tensor) -> str:
    return values.cpu().numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
