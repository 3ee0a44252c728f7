"""Parameter groups, and a learning-rate schedule where no recipe has one."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from obert_modifiers.training.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Leave vectors (biases, normalisation weights) out of weight decay.

    The matrices are ``param_groups: [0]`` of SparseML's ``SetWeightDecayModifier``.
    """
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def rate_factor(config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by optimizer step."""
    warmup = round(config.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        if config.lr_scheduler_type == "constant":
            return 1.0
        if config.lr_scheduler_type == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return max(0.0, 1.0 - progress)

    return factor
