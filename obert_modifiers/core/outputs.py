"""What models return."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# What a task's loss is computed from, and the model is not called with.
LABELS = ("labels", "start_positions", "end_positions")


def logits_of(outputs: Any) -> Tensor:
    """Find the logits in what a model returned.

    Args:
        outputs: A mapping with ``logits``, a tuple that starts with them (a model with
            ``return_dict=False`` that was given no labels), or the logits.

    Returns:
        The logits.
    """
    if isinstance(outputs, Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
