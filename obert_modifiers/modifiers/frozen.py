"""Parameters that do not change for a range of epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers.host.bases import (
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledModifier,
    SparsificationTypes,
    check_initialized,
    recipe_key,
)
from obert_modifiers.modifiers._states import as_tensors, from_tensors
from obert_modifiers.modifiers._targets import match_names, unwrap
from obert_modifiers.modifiers._validate import as_float, check_end

if TYPE_CHECKING:
    from torch import Tensor, nn

_CLOSE = 1e-9  # of an epoch; far below a step, far above a sum's rounding
_NEXT = "next_epoch"


@PyTorchModifierYAML()
class FrozenParamsModifier(ScheduledModifier):
    """Keep parameters as they are for a range of epochs, such as the embeddings.

    oBERTa Table 24: "Frozen until epoch 10, unfrozen for QAT". SparseML's
    ``TrainableParamsModifier`` switches ``requires_grad``, which distributed training
    reads once, when the model is wrapped: what is frozen after that makes the next
    step fail, and what is frozen before and released later is never averaged over the
    processes. Here ``requires_grad`` stays as it is.

    Order of its hooks: ``initialize`` and ``optimizer_post_step`` look at the epoch of
    the step that comes next, and in the range have the parameters' gradients be zero,
    so that they do not count in clipping either; ``optimizer_pre_step`` takes those
    gradients away, so that neither weight decay nor momentum moves the parameters;
    ``finalize`` leaves nothing behind.

    Sample YAML::

        !FrozenParamsModifier
            params: ["re:.*embeddings.*_embeddings.weight"]
            start_epoch: 0.0
            end_epoch: 10.0
    """

    params = recipe_key("params", "Names, re: patterns or a token.")

    def __init__(
        self,
        params: str | Sequence[str],
        start_epoch: float = 0.0,
        end_epoch: float = -1.0,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            params: Names, ``re:`` patterns or tokens of the parameters to keep.
            start_epoch: Epoch of the first step that leaves them as they are.
            end_epoch: Epoch of the first step that moves them again; -1 for never.

        Raises:
            ValueError: If a value breaks its rule.
        """
        start, end = (
            as_float("start_epoch", start_epoch),
            as_float("end_epoch", end_epoch),
        )
        check_end(start, end)
        super().__init__(start_epoch=start, end_epoch=end, end_comparator=-1)
        self._params = params if isinstance(params, str) else list(params)
        self._kept: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self._next_epoch = 0.0

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        """Kinds of compression that this modifier applies."""  # noqa: DOC201 property
        return [SparsificationTypes.general]

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters that this modifier would keep as they are.

        Args:
            model: The model, wrapped or not.

        Returns:
            Full names in the unwrapped model.
        """
        names = [self._params] if isinstance(self._params, str) else self._params
        return match_names(unwrap(model), names)

    def _in_range(self, epoch: float) -> bool:
        before_end = self.end_epoch < 0.0 or epoch < self.end_epoch - _CLOSE
        return before_end and epoch >= self.start_epoch - _CLOSE

    def _prepare(self, next_epoch: float) -> None:
        """Hold the gradients at zero if the step at this epoch is in the range."""
        import torch

        self._next_epoch = next_epoch
        if self._in_range(next_epoch) and not self._handles:
            self._handles = [
                parameter.register_hook(torch.zeros_like)
                for parameter in self._kept
                if parameter.requires_grad
            ]
        elif not self._in_range(next_epoch):
            self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Find the parameters, and hold them if the training starts in the range.

        Args:
            module: The model.
            epoch: Epoch to start from.
            loggers: SparseML loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().initialize(module, epoch, loggers, **kwargs)
        model = unwrap(module)
        # Looked up once; it fails now rather than at start_epoch.
        self._kept = [model.get_parameter(n) for n in self.resolve_targets(model)]
        self._prepare(epoch)

    def optimizer_pre_step(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Take the gradients away, in the range.

        Args:
            module: The model.
            optimizer: The optimizer; it passes over parameters without a gradient.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        super().optimizer_pre_step(module, optimizer, epoch, steps_per_epoch)
        if self._in_range(epoch):
            for parameter in self._kept:
                parameter.grad = None

    def optimizer_post_step(
        self, module: nn.Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Hold or release the parameters for the step that comes next.

        Args:
            module: The model.
            optimizer: The optimizer.
            epoch: Progress in epochs.
            steps_per_epoch: Optimizer steps in an epoch.
        """
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        self._prepare(epoch + 1.0 / steps_per_epoch)

    def finalize(
        self, module: nn.Module | None = None, reset_loggers: bool = True, **kwargs: Any
    ) -> None:
        """Release the parameters and let go of them.

        Args:
            module: The model.
            reset_loggers: True forgets the loggers.
            **kwargs: What the caller offers to all modifiers.
        """
        super().finalize(module, reset_loggers, **kwargs)
        self._release()
        self._kept = []

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the schedule stands, and the epoch of the step to come."""
        return as_tensors({
            "started": self._started,
            "ended": self._ended,
            _NEXT: self._next_epoch,
        })

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state_dict: As from :meth:`state_dict`.
            strict: Ignored: a missing entry is always an error.

        Raises:
            RuntimeError: If the modifier is not initialized.
        """
        check_initialized(self)
        state_dict = from_tensors(state_dict)
        self._started, self._ended = state_dict["started"], state_dict["ended"]
        self._prepare(state_dict[_NEXT])
