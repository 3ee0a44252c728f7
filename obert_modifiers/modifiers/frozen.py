"""Parameters that do not change for a range of epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.host.bases import ScheduledModifier
from obert_modifiers.modifiers._targets import match_names, unwrap
from obert_modifiers.modifiers.keys import KeyedModifier, between, recipe_modifier
from obert_modifiers.modifiers.rules import listed
from obert_modifiers.modifiers.shared_keys import SharedKeys, starts_before_it_ends

if TYPE_CHECKING:
    from torch import Tensor, nn

_CLOSE = 1e-9  # of an epoch; far below a step, far above a sum's rounding


@recipe_modifier()
class FrozenParamsModifier(KeyedModifier, ScheduledModifier):
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

    params = SharedKeys.params.but(
        meaning="Names, re: patterns or tokens of the parameters to keep."
    )
    start_epoch = SharedKeys.start_epoch.but(default=0.0).means(
        "Epoch of the first step that leaves them as they are."
    )
    end_epoch = SharedKeys.end_epoch.but(default=-1.0).means(
        "Epoch of the first step that moves them again; -1 for never. That of "
        "start_epoch freezes nothing, so that a recipe's variable may decide."
    )
    _ends = between("start_epoch", "end_epoch")(starts_before_it_ends)

    @between("params")
    def _named(params: Any) -> Iterator[Fault]:
        if not params:
            said = "names nothing", "names or re: patterns", "write one"
            yield Fault.of(Rule.NAMES, "params", params, *said)

    def begin(self) -> None:
        """Hold nothing yet."""
        self._model: nn.Module | None = None
        self._kept: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self._next_epoch = 0.0

    def resolve_targets(self, model: nn.Module) -> list[str]:
        """Name the parameters that stay as they are, of a wrapped model too."""
        return match_names(unwrap(model), listed("params", self.params))

    def _in_range(self, epoch: float) -> bool:
        before_end = self.end_epoch < 0.0 or epoch < self.end_epoch - _CLOSE
        return before_end and epoch >= self.start_epoch - _CLOSE

    def _prepare(self, next_epoch: float) -> None:
        """Hold the gradients at zero if the step at this epoch is in the range."""
        self._next_epoch = next_epoch
        if self._in_range(next_epoch) and not self._handles:
            self._handles = [
                parameter.register_hook(partial(_held, self._model))
                for parameter in self._kept
                if parameter.requires_grad
            ]
        elif not self._in_range(next_epoch):
            self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        """Find the parameters, and hold them if the training starts in the range."""
        super().initialize(module, epoch, loggers, **kwargs)
        model = self._model = unwrap(module)
        # Looked up once; it fails now rather than at start_epoch.
        self._kept = [model.get_parameter(n) for n in self.resolve_targets(model)]
        self._prepare(epoch)

    def optimizer_pre_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Take the gradients away, in the range."""
        super().optimizer_pre_step(module, optimizer, epoch, steps_per_epoch)
        if self._in_range(epoch):
            for parameter in self._kept:
                parameter.grad = None

    def optimizer_post_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Hold or release the parameters for the step that comes next."""
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        self._prepare(epoch + 1.0 / steps_per_epoch)

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        """Release the parameters and let go of them."""
        super().finalize(module, reset_loggers, **kwargs)
        self._release()
        self._model, self._kept = None, []

    def own_state(self) -> dict[str, Any]:
        """Return the epoch of the step to come."""
        return {"next_epoch": self._next_epoch}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Hold the parameters where the step to come is in the range."""
        self._prepare(state["next_epoch"])


def _held(model: nn.Module, grad: Tensor) -> Tensor:
    import torch

    # A Fisher is of the gradients as they are; it takes them in eval mode.
    return torch.zeros_like(grad) if model.training else grad
