"""Masks of a model that is sparse already, kept while it trains."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from obert_modifiers.modifiers._host import (
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledModifier,
    SparsificationTypes,
    recipe_key,
)
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers._targets import (
    ALL_ENCODER,
    find_targets,
    match_names,
    unwrap,
)
from obert_modifiers.modifiers._validate import as_float

_SCHEDULE_KEY = "__schedule__"


@PyTorchModifierYAML()
class ConstantMasksModifier(ScheduledModifier):
    """Keep the zeros of parameters at zero while the other weights train.

    oBERT section 4.2, "sparse transfer": the masks of a model pruned upstream stay as
    they are downstream. What is zero at ``start_epoch`` is what stays zero. SparseML's
    ``ConstantPruningModifier`` does the same with hooks on layers and gradients; here
    no hook is left on the model, names are those of the unwrapped model, and the state
    can be saved.

    Order of its hooks: ``initialize`` finds the parameters; ``update`` takes the masks
    at ``start_epoch`` and lets go of them at ``end_epoch``; ``optimizer_post_step``
    applies them, as the optimizer may have moved zeros; ``finalize`` applies them a
    last time.

    Sample YAML::

        !ConstantMasksModifier
            params: __ALL_ENCODER__
            start_epoch: 0.0
            end_epoch: -1.0
    """

    params = recipe_key("params", "Names, re: patterns or a token.")

    def __init__(
        self,
        params: str | Sequence[str] = ALL_ENCODER,
        start_epoch: float = -1.0,
        end_epoch: float = -1.0,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            params: Names, ``re:`` patterns or tokens of the parameters.
            start_epoch: Epoch from which on zeros stay; -1 for the start.
            end_epoch: Epoch from which on they may grow back; -1 for never.

        Raises:
            ValueError: If a value breaks its rule.
        """
        start, end = (
            as_float("start_epoch", start_epoch),
            as_float("end_epoch", end_epoch),
        )
        if 0.0 <= end <= max(start, 0.0):
            raise ValueError(
                f"end_epoch={end:g} does not lie after start_epoch={start:g}; expected "
                "a later epoch, or -1 for the end of the training; raise it"
            )
        super().__init__(start_epoch=start, end_epoch=end, end_comparator=-1)
        self._params = params if isinstance(params, str) else list(params)
        self._masks: ParameterMasks | None = None

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        """Kinds of compression that this modifier applies."""  # noqa: DOC201 property
        return [SparsificationTypes.pruning]

    @ModifierProp(serializable=False)
    def leave_enabled(self) -> bool:
        """Whether masks stay on after ``end_epoch``: they do not."""  # noqa: DOC201 property
        return False

    @property
    def module_masks(self) -> ParameterMasks | None:
        """Masks of the selected parameters; None before and after training."""
        return self._masks

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters whose zeros stay.

        Args:
            model: The model, wrapped or not.

        Returns:
            Full names in the unwrapped model.
        """
        names = [self._params] if isinstance(self._params, str) else self._params
        return match_names(unwrap(model), names or [ALL_ENCODER])

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Find the parameters; masks are taken at ``start_epoch``.

        Args:
            module: The model.
            epoch: Epoch to start from; ``inf`` takes the masks now.
            loggers: SparseML loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().initialize(module, epoch, loggers, **kwargs)
        model = unwrap(module)
        targets = find_targets(model, self.resolve_targets(model))
        self._masks = ParameterMasks(model, targets)
        if epoch == float("inf"):
            self._take()

    def _take(self) -> None:
        self._masks.replace([data != 0 for data in self._masks.params_data])
        self._masks.enabled = True

    def update(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Take the masks, or let go of them; called by SparseML when it is time.

        Args:
            module: The model.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        super().update(module, optimizer, epoch, steps_per_epoch)
        if self.start_pending(epoch, steps_per_epoch):
            self._take()
        if 0.0 <= self.end_epoch <= epoch:
            self._masks.enabled = False

    def optimizer_post_step(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Apply the masks, as the optimizer may have moved zeros.

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
        """Apply the masks a last time and let go of the model.

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

    def state_dict(self) -> dict[str, Any]:
        """Return the masks by parameter name, and where the schedule stands."""
        masks = zip(self._masks.names, self._masks.param_masks, strict=True)
        return dict(masks) | {
            _SCHEDULE_KEY: {
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
        if not self.initialized:
            raise RuntimeError("Cannot load state dict for an uninitialized modifier")
        masks = {k: v for k, v in state_dict.items() if k != _SCHEDULE_KEY}
        if set(masks) != set(self._masks.names):
            missing = sorted(set(self._masks.names) - set(masks))
            extra = sorted(set(masks) - set(self._masks.names))
            raise IndexError(
                f"state has other parameters than the model: missing {missing}, extra "
                f"{extra}; expected the same names; use the model it was saved from"
            )
        schedule = state_dict[_SCHEDULE_KEY]
        self._started, self._ended = schedule["started"], schedule["ended"]
        self._masks.enabled = schedule["enabled"]
        self._masks.replace([masks[name] for name in self._masks.names])
        if self._masks.enabled:
            self._masks.apply()
