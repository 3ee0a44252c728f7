"""Masks of parameters, with the reading side of SparseML's class, and their holder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.host.bases import (
    SCHEDULE_KEY,
    ScheduledModifier,
    SparsificationTypes,
    check_initialized,
)
from obert_modifiers.modifiers._states import as_tensors, from_tensors
from obert_modifiers.modifiers._targets import find_layer
from obert_modifiers.modifiers.keys import KeyedModifier

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.pruning.report import LayerCount
    from obert_modifiers.core.pruning.targets import Target


class ParameterMasks:
    """One mask per pruned parameter.

    The masks act on the parameters' data once after each optimizer step; no hook is
    left on the model. ``names``, ``layers``, ``layer_names``, ``param_names``,
    ``params_data``, ``param_masks``, ``enabled`` and ``apply`` are what SparseML's
    ``ModuleParamPruningMask`` calls them.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        """Start with masks of parameters of an unwrapped model that keep everything."""
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
        """Replace the masks (True = kept) and apply them; writes the parameters."""
        self.replace(masks)
        self.apply()

    def replace(self, masks: Sequence[Tensor]) -> None:
        """Replace the masks (True = kept) and leave the parameters as they are."""
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
        """Count the pruned weights of each parameter."""
        return tuple(
            core.pruning.report.LayerCount(
                t.name, mask.numel(), mask.numel() - int(mask.sum())
            )
            for t, mask in zip(self.targets, self.param_masks, strict=True)
        )

    def sparsity(self) -> float:
        """Return the fraction of pruned weights over all parameters."""
        counts = self.counts()
        return sum(c.pruned for c in counts) / sum(c.numel for c in counts)


class MaskingModifier(KeyedModifier, ScheduledModifier):
    """Base of the modifiers that hold masks; says nothing of where they come from.

    Order of its hooks: ``optimizer_post_step`` applies the masks, where they are on;
    ``finalize`` applies them a last time and lets go of them. Subclasses set ``_masks``
    in ``initialize``.
    """

    kind = SparsificationTypes.pruning
    _masks: ParameterMasks | None = None

    @property
    def module_masks(self) -> ParameterMasks | None:
        """Masks of the selected parameters; None before and after training."""
        return self._masks

    def optimizer_post_step(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Apply the masks, as the optimizer may have moved pruned weights."""
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        if self._masks.enabled:
            self._masks.apply()

    def log_update(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Log the sparsity of each parameter to SparseML's loggers."""
        super().log_update(module, optimizer, epoch, steps_per_epoch)
        for count in self._masks.counts():
            self.log_scalar(
                tag=f"ParamPruning/{count.name}",
                value=count.pruned / count.numel,
                epoch=epoch,
                steps_per_epoch=steps_per_epoch,
            )

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Apply the masks a last time and let go of them."""
        super().finalize(module, reset_loggers, **kwargs)
        # SparseML calls this without a model when a manager is deleted, which may be
        # while Python ends: nothing is written then.
        if self._masks.enabled and module is not None:
            self._masks.apply()
        self._masks = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks by parameter name, and one tensor with all that is none."""
        return as_tensors(self._state())

    def _state(self) -> dict[str, Any]:
        masks = zip(self._masks.names, self._masks.param_masks, strict=True)
        return dict(masks) | {
            SCHEDULE_KEY: {
                "started": self._started,
                "ended": self._ended,
                "enabled": self._masks.enabled,
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Continue where :meth:`state_dict` was taken; writes the parameters.

        A missing or extra name is always an error, whatever ``strict`` says.
        """
        check_initialized(self)
        state_dict = from_tensors(state_dict)
        masks = {k: v for k, v in state_dict.items() if k != SCHEDULE_KEY}
        if set(masks) != set(self._masks.names):
            missing = sorted(set(self._masks.names) - set(masks))
            extra = sorted(set(masks) - set(self._masks.names))
            raise IndexError(
                f"state has other parameters than the model: missing {missing}, extra "
                f"{extra}; expected the same names; use the model it was saved from"
            )
        schedule = state_dict[SCHEDULE_KEY]
        self._started, self._ended = schedule["started"], schedule["ended"]
        self._masks.enabled = schedule["enabled"]
        self._masks.replace([masks[name] for name in self._masks.names])
        if self._masks.enabled:
            self._masks.apply()
