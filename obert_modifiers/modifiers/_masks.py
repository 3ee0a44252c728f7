"""Masks of parameters, with the reading side of SparseML's class, and their holder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.host.bases import (
    SCHEDULE_KEY,
    ScheduledModifier,
    SparsificationTypes,
)
from obert_modifiers.modifiers._states import by_name
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
        self.names = [t.name for t in targets]
        self.layer_names = [name.rpartition(".")[0] for name in self.names]
        self.param_names = [name.rpartition(".")[2] for name in self.names]
        self.layers = [model.get_submodule(name) for name in self.layer_names]
        self.param_masks = [
            torch.ones_like(t.parameter, dtype=torch.bool) for t in targets
        ]
        self.enabled = False

    def __len__(self) -> int:
        return len(self.targets)

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
        count = core.pruning.report.LayerCount
        pairs = zip(self.names, self.param_masks, strict=True)
        return tuple(count(n, m.numel(), m.numel() - int(m.sum())) for n, m in pairs)

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

    def optimizer_post_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Apply the masks, as the optimizer may have moved pruned weights."""
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        if self._masks.enabled:
            self._masks.apply()

    def log_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Log the sparsity of each parameter to SparseML's loggers."""
        super().log_update(module, optimizer, epoch, steps_per_epoch)
        where = {"epoch": epoch, "steps_per_epoch": steps_per_epoch}
        for count in self._masks.counts():
            tag, value = f"ParamPruning/{count.name}", count.pruned / count.numel
            self.log_scalar(tag=tag, value=value, **where)

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Apply the masks a last time and let go of them."""
        super().finalize(module, reset_loggers, **kwargs)
        # SparseML calls this without a model when a manager is deleted, which may be
        # while Python ends: nothing is written then.
        if self._masks.enabled and module is not None:
            self._masks.apply()
        self._masks = None

    def own_state(self) -> dict[str, Any]:
        """Return the masks by parameter name, and whether they are on."""
        masks = zip(self._masks.names, self._masks.param_masks, strict=True)
        return dict(masks) | {SCHEDULE_KEY: {"enabled": self._masks.enabled}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up the masks; writes the parameters."""
        names = self._masks.names
        masks = by_name(state, names, "parameters")
        self._masks.enabled = state[SCHEDULE_KEY]["enabled"]
        self._masks.replace([masks[name] for name in names])
        if self._masks.enabled:
            self._masks.apply()
