"""SparseML's ``ConstantPruningModifier``: what is zero stays zero, by hooks."""

from collections.abc import Sequence
from typing import Any

from obert_modifiers.host.modifier import (
    PyTorchModifierYAML,
    ScheduledUpdateModifier,
    SparsificationTypes,
    prop,
)
from obert_modifiers.host.standard import (
    ALL,
    ALL_PRUNABLE,
    kinds,
    named_parameters,
    names_of,
)

_PRUNABLE = ("Linear", "Embedding", "_ConvNd", "Conv1D")


class HookedMasks:
    """Masks of 0 and 1 that act on weights before a forward pass, and on gradients."""

    def __init__(self, found: Sequence[tuple[Any, str, str]]) -> None:
        self._layers = [layer for layer, _, _ in found]
        self.layer_names = [layer_name for _, layer_name, _ in found]
        self.param_names = [name for _, _, name in found]
        self._params = [getattr(layer, name) for layer, _, name in found]
        self.param_masks = [p.detach().new_ones(p.shape) for p in self._params]
        self._hooks: list[Any] = []

    @property
    def names(self) -> list[str]:
        """Names that the masks have in a state."""
        both = zip(self.layer_names, self.param_names, strict=True)
        return [f"{layer}.{name}.sparsity_mask" for layer, name in both]

    @property
    def params_data(self) -> list[Any]:
        return [parameter.data for parameter in self._params]

    @property
    def enabled(self) -> bool:
        return bool(self._hooks)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value == self.enabled:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        pairs = zip(self._params, self._layers, strict=True) if value else ()
        for place, (parameter, layer) in enumerate(pairs):
            self._hooks += [
                layer.register_forward_pre_hook(lambda *_, at=place: self._mask(at)),
                parameter.register_hook(
                    lambda grad, at=place: grad.mul_(self._on(grad.device, at))
                ),
            ]

    def _on(self, device: Any, place: int) -> Any:
        self.param_masks[place] = self.param_masks[place].to(device)
        return self.param_masks[place]

    def _mask(self, place: int) -> None:
        data = self._params[place].data
        data.mul_(self._on(data.device, place))

    def apply(self) -> None:
        """Set the pruned weights to zero, where the masks are on."""
        for place in range(len(self._params)) if self.enabled else ():
            self._mask(place)

    def set_param_masks(self, masks: Sequence[Any]) -> None:
        self.param_masks = list(masks)
        self.apply()


@PyTorchModifierYAML()
class ConstantPruningModifier(ScheduledUpdateModifier):
    """Keeps the zeros of a sparse model while it trains."""

    sparsification_types = kinds(SparsificationTypes.pruning)
    params = prop("params")
    leave_enabled = global_sparsity = False
    # Saved, and nothing else than this between two steps.
    _applied_sparsity, _pre_step_completed, _sparsity_applied = None, False, False

    def __init__(
        self,
        params: Any,
        start_epoch: float = -1.0,
        end_epoch: float = -1.0,
        update_frequency: float = -1.0,
    ) -> None:
        # An int, as in SparseML: the text of it is part of the identifier.
        span = {"start_epoch": start_epoch, "end_epoch": end_epoch}
        super().__init__(**span, end_comparator=-1, update_frequency=-1)
        self._params = names_of(self, params)
        self.module_masks: HookedMasks | None = None

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        super().initialize(module, epoch, loggers, **kwargs)
        patterns = self._params
        if ALL in patterns:
            patterns = ["re:.*"]
        elif ALL_PRUNABLE in patterns:
            patterns = [
                f"{name}.weight"
                for name, layer in module.named_modules()
                if {cls.__name__ for cls in type(layer).__mro__} & {*_PRUNABLE}
            ]
        found = named_parameters(module, patterns)
        if not found:
            raise ValueError(
                f"params={self._params} names no parameter; expected names or re: "
                "patterns of the model; correct them"
            )
        self.module_masks = HookedMasks(found)
        if epoch == float("inf"):
            self._take(epoch)

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().update(module, optimizer, epoch, steps_per_epoch)
        self._take(epoch)

    def _take(self, epoch: float) -> None:
        masks, starts = self.module_masks, self.start_pending(epoch, 1)
        if starts:
            masks.enabled = True
        if self._started or starts:
            masks.set_param_masks([(d != 0).to(d.dtype) for d in masks.params_data])
        if self.end_pending(epoch, 1):
            masks.enabled = False

    def log_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().log_update(module, optimizer, epoch, steps_per_epoch)
        masks = self.module_masks
        names = zip(masks.layer_names, masks.param_names, strict=True)
        for (layer, name), data in zip(names, masks.params_data, strict=True):
            share = 1.0 - float((data != 0).sum()) / data.numel()
            where = {"epoch": epoch, "steps_per_epoch": steps_per_epoch}
            self.log_scalar(share, f"ParamPruning/{layer}.{name}", **where)

    def optimizer_post_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().optimizer_post_step(module, optimizer, epoch, steps_per_epoch)
        self.module_masks.apply()

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        super().finalize(module, reset_loggers, **kwargs)
        if module is not None:  # else Python may be ending
            self.module_masks.apply()
        self.module_masks.enabled = False
        self.module_masks = None

    def state_dict(self) -> dict[str, Any]:
        masks = self.module_masks
        return dict(zip(masks.names, masks.param_masks, strict=True))

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        names = self.module_masks.names
        if strict and set(names) != set(state_dict):
            extra, missing = set(state_dict) - set(names), set(names) - set(state_dict)
            raise IndexError(f"Found extra keys: {extra} and missing keys: {missing}")
        self.module_masks.set_param_masks([state_dict[name] for name in names])
