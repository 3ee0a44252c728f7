"""What the modifiers with masks share: when masks act, and how they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obert_modifiers.host.bases import (
    SCHEDULE_KEY,
    ModifierProp,
    ScheduledModifier,
    SparsificationTypes,
    check_initialized,
)
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers._states import as_tensors, from_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


class MaskingModifier(ScheduledModifier):
    """Base of the modifiers that hold masks; says nothing of where they come from.

    Order of its hooks: ``optimizer_post_step`` applies the masks, where they are on;
    ``finalize`` applies them a last time and lets go of them. Subclasses set ``_masks``
    in ``initialize``.
    """

    _masks: ParameterMasks | None = None

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        """Kinds of compression that this modifier applies."""  # noqa: DOC201 property
        return [SparsificationTypes.pruning]

    @property
    def module_masks(self) -> ParameterMasks | None:
        """Masks of the selected parameters; None before and after training."""
        return self._masks

    def optimizer_post_step(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Apply the masks, as the optimizer may have moved pruned weights.

        Args:
            module: The model.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        if self._masks.enabled:
            self._masks.apply()

    def log_update(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Log the sparsity of each parameter to SparseML's loggers.

        Args:
            module: The model.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
        """
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
        """Apply the masks a last time and let go of them.

        Args:
            module: The model; None leaves its weights as they are.
            reset_loggers: True forgets the loggers.
            **kwargs: What the caller offers to all modifiers.
        """
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
        """Return the masks by parameter name, and where the schedule stands."""
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

        Args:
            state_dict: As from :meth:`state_dict`.
            strict: Ignored: a missing or extra name is always an error.

        Raises:
            RuntimeError: If the modifier is not initialized.
            IndexError: If the names differ from the selected parameters.
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
