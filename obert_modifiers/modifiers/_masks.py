"""Masks of the pruned parameters, with the reading side of SparseML's class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from obert_modifiers.core.pruning.report import LayerCount
from obert_modifiers.modifiers._targets import find_layer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.pruning.targets import Target


class ParameterMasks:
    """One mask per pruned parameter.

    The masks act on the parameters' data once after each optimizer step; no hook is
    left on the model. ``names``, ``layers``, ``layer_names``, ``param_names``,
    ``params_data``, ``param_masks``, ``enabled`` and ``apply`` are what SparseML's
    ``ModuleParamPruningMask`` calls them.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        """Start with masks that keep everything but what is already zero-masked.

        Args:
            model: Unwrapped model.
            targets: Parameters to mask.
        """
        import torch

        self.targets = list(targets)
        found = [find_layer(model, t.name) for t in targets]
        self.layers = [layer.module for layer in found]
        self.layer_names = [layer.module_name for layer in found]
        self.param_names = [layer.param_name for layer in found]
        self.param_masks = [
            torch.ones_like(t.parameter, dtype=torch.bool) for t in targets
        ]
        self.enabled = False

    def __len__(self) -> int:
        """Return the number of masked parameters."""
        return len(self.targets)

    @property
    def names(self) -> list[str]:
        """Full names of the parameters."""
        return [t.name for t in self.targets]

    @property
    def params_data(self) -> list[Tensor]:
        """Data of the parameters, without gradient tracking."""
        return [t.parameter.data for t in self.targets]

    def set_param_masks(self, masks: Sequence[Tensor]) -> None:
        """Replace the masks and apply them; writes the parameters.

        Args:
            masks: One mask per parameter, True = kept, shape of the parameter.
        """
        self.replace(masks)
        self.apply()

    def replace(self, masks: Sequence[Tensor]) -> None:
        """Replace the masks and leave the parameters as they are.

        Args:
            masks: One mask per parameter, True = kept, shape of the parameter.
        """
        import torch

        self.param_masks = [
            mask.to(device=t.parameter.device, dtype=torch.bool)
            for mask, t in zip(masks, self.targets, strict=True)
        ]

    def apply(self) -> None:
        """Set the pruned weights to zero; writes the parameters."""
        import torch

        from obert_modifiers.kernels import apply_mask_

        with torch.no_grad():
            for target, mask in zip(self.targets, self.param_masks, strict=True):
                apply_mask_(target.parameter, mask)

    def counts(self) -> tuple[LayerCount, ...]:
        """Count the pruned weights.

        Returns:
            A count for each parameter.
        """
        return tuple(
            LayerCount(t.name, mask.numel(), mask.numel() - int(mask.sum()))
            for t, mask in zip(self.targets, self.param_masks, strict=True)
        )

    def sparsity(self) -> float:
        """Return the fraction of pruned weights over all parameters."""
        counts = self.counts()
        return sum(c.pruned for c in counts) / sum(c.numel for c in counts)
