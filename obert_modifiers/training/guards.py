"""Gradients that are not finite, and training data that is shorter than it says."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from obert_modifiers.core.distributed.parallel import all_reduce_count
from obert_modifiers.training.batches import Samples

PATIENCE = 10  # optimizer steps in a row without finite gradients


@dataclass
class FiniteGuard:
    """Keeps gradients that are not finite from the weights, and ends a run of them.

    Gradients are equal on all processes, so all of them decide alike without asking. A
    scaler of fp16 skips steps itself, now and then to find its scale: there only a loss
    that is not finite, or a scale below 1, counts.
    """

    accelerator: Accelerator
    say: Callable[[str], None]
    row: int = 0  # of bad steps

    def usable(self, norm: Tensor | None, model: nn.Module) -> bool:
        """Tell whether the optimizer may use gradients of this norm, if it is known."""
        if self.accelerator.scaler is not None:  # which looks itself
            return True
        if norm is None:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        return math.isfinite(float(norm))

    def count(self, usable: bool, advanced: bool, loss: Tensor, where: str) -> None:
        """Count a step, on all processes; ten bad ones in a row raise ValueError."""
        if usable and advanced:
            self.row = 0
            return
        if not usable:
            self.say(
                f"{where}: the gradients are not finite (loss {float(loss):g}); the "
                "weights stay as they are"
            )
        elif not self._is_hopeless(loss):
            return
        self.row += 1
        if self.row >= PATIENCE:
            raise ValueError(
                f"loss={float(loss):g} with gradients that are not finite for "
                f"{self.row} optimizer steps in a row, until {where}; expected finite "
                "ones; lower the learning rate or warm it up (--warmup_ratio 0.1)"
            )

    def _is_hopeless(self, loss: Tensor) -> bool:
        lost = not math.isfinite(float(loss))
        anywhere = all_reduce_count(int(lost), self.accelerator.device)
        return anywhere > 0 or self.accelerator.scaler.get_scale() < 1.0


@dataclass
class CheckedSamples(Dataset):
    """Training samples that say so if there are fewer than there should be."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        several = getattr(self.samples, "__getitems__", None)
        try:
            if several is not None:
                return several(indices)
            return [self.samples[index] for index in indices]
        # The loader would take StopIteration for the end of an epoch.
        except (IndexError, StopIteration) as error:
            raise ValueError(
                f"train data has no sample for one of {indices} ({error!r}); expected "
                f"{len(self)} samples, as it says; look at the data set"
            ) from error
