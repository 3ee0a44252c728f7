"""Random draws of a collate function that do not depend on what was drawn before."""

from collections.abc import Callable
from typing import Any

import torch


class SeededCollate:
    """Calls a collate function with torch's generator seeded for each batch.

    A function that draws, as one that masks words does, then gives the same batch
    whether the batches before it were made or skipped, and however far ahead of the
    training it is called. The generator is left as it was found.
    """

    def __init__(self, collate: Callable[..., Any], seed: int, rank: int) -> None:
        self._collate = collate
        self._seed = (seed, rank)
        self.epoch = self.number = 0

    def __call__(self, samples: list[Any]) -> Any:
        """Make the next batch."""
        # Tuples of integers have the same hash in every process.
        seed = hash((*self._seed, self.epoch, self.number)) % 2**63
        self.number += 1
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(seed)
        try:
            return self._collate(samples)
        finally:
            generator.set_state(before)
