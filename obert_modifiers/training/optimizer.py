"""AdamW, its parameter groups, and a learning-rate schedule where no recipe has one."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from obert_modifiers.training.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Leave vectors (biases, normalisation weights) out of weight decay.

    The matrices are what SparseML's ``SetWeightDecayModifier`` calls
    ``param_groups: [0]``.
    """
    decayed, plain = [], []
    for param in model.parameters():
        (decayed if param.ndim > 1 else plain).append(param)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, config: TrainConfig, fused: bool
) -> torch.optim.AdamW:
    """Make AdamW.

    A scaler of fp16 leaves it to a fused step to pass itself over, and nobody could
    tell that from one that was taken: no fused step with a scaler.
    """
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        weight_decay=0.0,
        fused=fused or None,
    )


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
