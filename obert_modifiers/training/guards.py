"""Gradients that are not finite, and data that is not what it said."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from obert_modifiers.core.distributed.parallel import all_reduce_, all_reduce_count

PATIENCE = 10  # optimizer steps in a row without finite gradients


class FiniteGuard:
    """Keeps gradients that are not finite from the weights, and ends a run of them.

    Gradients are equal on all processes, so all of them decide alike without asking.
    With a scaler of fp16 it is the scaler that skips a step. It does so now and then
    to find its scale; only a loss that is not finite, or a scale below 1, counts.
    """

    def __init__(self, accelerator: Accelerator, say: Callable[[str], None]) -> None:
        """Start without such a step.

        Args:
            accelerator: The run's.
            say: Takes a sentence for the log.
        """
        self._accelerator, self._say = accelerator, say
        self._row = 0

    def usable(self, norm: Tensor | None, model: nn.Module) -> bool:
        """Tell whether the optimizer may use the gradients.

        Args:
            norm: Their norm, or None where nobody has computed it.
            model: Whose gradients they are.

        Returns:
            False if one is not finite; with a scaler always True, as it looks itself.
        """
        if self._accelerator.scaler is not None:
            return True
        if norm is None:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        return math.isfinite(float(norm))

    def count(self, usable: bool, advanced: bool, loss: Tensor, where: str) -> None:
        """Count the step; all processes call it after each.

        Args:
            usable: Whether the optimizer could use the gradients.
            advanced: Whether it made its step, or a scaler skipped it.
            loss: Of the last micro-batch of this process.
            where: Step and learning rate, for the messages.

        Raises:
            ValueError: After ten such steps in a row.
        """
        if usable and advanced:
            self._row = 0
            return
        if not usable:
            self._say(
                f"{where}: the gradients are not finite (loss {float(loss):g}); the "
                "weights stay as they are"
            )
        elif not self._is_hopeless(loss):
            return
        self._row += 1
        if self._row >= PATIENCE:
            raise ValueError(
                f"loss={float(loss):g} with gradients that are not finite for "
                f"{self._row} optimizer steps in a row, until {where}; expected finite "
                "ones; lower the learning rate, warm it up (--warmup_ratio 0.1) or "
                "look at the data; the weights and checkpoints are those from before"
            )

    def _is_hopeless(self, loss: Tensor) -> bool:
        lost = not math.isfinite(float(loss))
        anywhere = all_reduce_count(int(lost), self._accelerator.device)
        return anywhere > 0 or self._accelerator.scaler.get_scale() < 1.0


class Samples(Dataset):
    """Training samples that say so if there are fewer than there should be."""

    def __init__(self, samples: Sequence[dict[str, Any]]) -> None:
        """Take the samples.

        Args:
            samples: By index.
        """
        self._samples = samples

    def __len__(self) -> int:
        """Return how many there should be."""
        return len(self._samples)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return the samples of a batch.

        Args:
            indices: Their numbers.

        Returns:
            The samples.

        Raises:
            ValueError: If the data ends before.
        """
        several = getattr(self._samples, "__getitems__", None)
        try:
            if several is not None:
                return several(indices)
            return [self._samples[index] for index in indices]
        # The loader would take StopIteration for the end of an epoch.
        except (IndexError, StopIteration) as error:
            raise ValueError(
                f"train data has no sample for one of {indices} ({error!r}); expected "
                f"{len(self)} samples, as it says; look at the data set"
            ) from error


def check_data(samples: Sequence[dict[str, Any]]) -> None:
    """Check that training data can be counted, and that there is some.

    Args:
        samples: The training samples.

    Raises:
        ValueError: If it has no length or no samples.
    """
    if not hasattr(samples, "__len__"):
        raise ValueError(
            f"train data is {type(samples).__name__} without a length; expected samples"
            " by index, as epochs are counted; make a list or a datasets.Dataset of it"
        )
    if not len(samples):
        raise ValueError(
            "train data has 0 samples; expected 1 or more; look at the data set"
        )


def check_same_data(lengths: Sequence[int], device: torch.device) -> None:
    """Check that all processes have the same training data.

    Without that one would wait for a batch that another does not have.

    Args:
        lengths: Tokens of each sample.
        device: Where the process group can work.

    Raises:
        ValueError: On all processes, if one has other samples.
    """
    digest = hashlib.sha256(repr(list(lengths)).encode()).digest()
    number = int.from_bytes(digest[:7], "big")
    pair = torch.tensor([number, -number], device=device)
    least, most = all_reduce_(pair, least=True).tolist()
    if least != -most:
        raise ValueError(
            f"train data with {len(lengths)} samples differs between the processes; "
            "expected the same samples in the same order on all; give all of them the "
            "same files and flags"
        )


def check_same_classes(model: nn.Module, teacher: Any) -> None:
    """Check that a teacher that classifies has as many classes as the model.

    Args:
        model: The model.
        teacher: A model, or anything else, which is not looked at.

    Raises:
        ValueError: If it has more or fewer.
    """
    if not isinstance(teacher, nn.Module) or not _classifies(model, teacher):
        return
    ours, theirs = model.config.num_labels, teacher.config.num_labels
    if ours != theirs:
        raise ValueError(
            f"teacher has num_labels={theirs}; expected the model's {ours}; use a "
            "teacher with the same labels"
        )


def _classifies(*models: Any) -> bool:
    return all(
        "Classification" in type(one).__name__
        and hasattr(getattr(one, "config", None), "num_labels")
        for one in models
    )
