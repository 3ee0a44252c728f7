"""The plain modifiers that recipes use beside ours, as SparseML has them.

Keys, figures and the attributes that :mod:`obert_modifiers.host.state` saves are
SparseML 1.8.0's.
"""

import math
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from obert_modifiers.host.modifier import (
    ModifierProp,
    PyTorchModifierYAML,
    ScheduledModifier,
    ScheduledUpdateModifier,
    SparsificationTypes,
    prop,
)

ALL = "__ALL__"
ALL_PRUNABLE = "__ALL_PRUNABLE__"


def kinds(*found: SparsificationTypes) -> ModifierProp:
    """Make the property that says what a modifier does."""
    return ModifierProp(serializable=False)(lambda self: list(found))


def names_of(modifier: Any, params: Any) -> Any:
    """Read names of parameters: a token, or a list that may have lists in it."""
    text = isinstance(params, str)
    if text and params.upper() in (ALL, ALL_PRUNABLE):
        return params.upper()
    if text or not isinstance(params, Iterable):
        kind, name = "string" if text else "type", type(modifier).__name__
        raise ValueError(f"unsupported {kind} ({params}) given in {name} for params")
    return list(_flat(params))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        nested = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        yield from _flat(value) if nested else [value]


def named_parameters(
    model: Any, patterns: Iterable[str], strict: bool = True
) -> list[tuple[Any, str, str]]:
    """Find parameters by names and ``re:`` patterns, in the order of the layers.

    Returns:
        The layer that has it, the layer's name and its own; one that layers share comes
        once for each.
    """

    def matches(pattern: str, name: str) -> bool:
        if pattern.startswith("re:"):
            return bool(re.match(pattern[len("re:") :], name))
        return pattern == name

    everything = [
        (layer, layer_name, name)
        for layer_name, layer in model.named_modules()
        for name, _ in layer.named_parameters(recurse=False)
    ]
    full = [f"{layer_name}.{name}" for _, layer_name, name in everything]
    patterns = list(patterns)
    missing = [p for p in patterns if not any(matches(p, name) for name in full)]
    if missing and strict:
        raise RuntimeError(
            f"params={', '.join(missing)} matches no parameter; expected names or re: "
            "patterns of the model; correct them"
        )
    return [
        one
        for one, name in zip(everything, full, strict=True)
        if any(matches(pattern, name) for pattern in patterns)
    ]


def _flag(value: Any) -> bool:
    """Read a flag; text is true unless it holds an f or a 0."""
    if isinstance(value, str):
        return bool(value) and not {"f", "0"} & set(value.lower())
    return bool(value)


def _rate(name: str, value: Any, least: float = -math.inf) -> float:
    value = float(value) if isinstance(value, str) else value
    if value is None or not 0.0 <= value <= 1.0 or value <= least:
        raise ValueError(f"{name} must be within range [0.0, 1.0], given {value}")
    return value


class _LearningRate:
    """What the modifiers of the learning rate share: groups of parameters, and logs."""

    sparsification_types = kinds(SparsificationTypes.learning_rate)
    _param_groups: list[int] | None = None
    _constant_logging = False
    _last_logged_lr: float | None = None

    def _groups(self, optimizer: Any) -> list[tuple[int, dict[str, Any]]]:
        wanted = self._param_groups
        groups = enumerate(optimizer.param_groups)
        return [(i, group) for i, group in groups if not wanted or i in wanted]

    def _set_rate(self, optimizer: Any, rate: float) -> None:
        for _, group in self._groups(optimizer):
            group["lr"] = rate

    def log_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().log_update(module, optimizer, epoch, steps_per_epoch)
        rates = [(f"ParamGroup{i}", g["lr"]) for i, g in self._groups(optimizer)]
        if not rates:
            raise ValueError(
                f"param_groups={self._param_groups} are not in the optimizer; expected "
                "numbers of its groups; correct them"
            )
        if self._constant_logging or self._last_logged_lr != rates[-1][1]:
            self._last_logged_lr = rates[-1][1]
            where = {"epoch": epoch, "steps_per_epoch": steps_per_epoch}
            for name, rate in rates:
                self.log_scalar(rate, f"{type(self).__name__}/{name}", **where)


@PyTorchModifierYAML()
class EpochRangeModifier(ScheduledModifier):
    """Says how long a training is."""

    sparsification_types = kinds(SparsificationTypes.general, SparsificationTypes.epoch)

    def __init__(self, start_epoch: float, end_epoch: float) -> None:
        super().__init__(start_epoch, end_epoch=end_epoch, end_comparator=-1)


@PyTorchModifierYAML()
class SetLearningRateModifier(_LearningRate, ScheduledModifier):
    """Sets the learning rate once."""

    learning_rate, param_groups = prop("learning_rate"), prop("param_groups")
    constant_logging = prop("constant_logging")

    def __init__(
        self,
        learning_rate: float,
        param_groups: list[int] | None = None,
        start_epoch: float = -1.0,
        end_epoch: float = -1.0,
        constant_logging: bool = False,
    ) -> None:
        super().__init__(start_epoch, end_comparator=None)
        self._learning_rate = _rate("learning_rate", learning_rate, 0.0)
        self._param_groups = param_groups
        self._constant_logging = _flag(constant_logging)
        self._lr_set, self._applied = False, -1.0

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().update(module, optimizer, epoch, steps_per_epoch)
        due = self._start_epoch - epoch < sys.float_info.epsilon
        if (due or self._start_epoch < 0.0) and not self._lr_set:
            self._set_rate(optimizer, self._learning_rate)
            self._applied, self._lr_set = self._learning_rate, True


@PyTorchModifierYAML()
class LearningRateFunctionModifier(_LearningRate, ScheduledUpdateModifier):
    """Moves the learning rate from one value to another, once or in cycles."""

    lr_func, init_lr, final_lr = prop("lr_func"), prop("init_lr"), prop("final_lr")
    cycle_epochs, param_groups = prop("cycle_epochs"), prop("param_groups")

    def __init__(
        self,
        lr_func: str,
        init_lr: float,
        final_lr: float,
        start_epoch: float,
        end_epoch: float,
        cycle_epochs: float = 1.0,
        param_groups: list[int] | None = None,
        update_frequency: float = -1.0,
    ) -> None:
        super().__init__(start_epoch, end_epoch=end_epoch, end_comparator=1)
        known = ["linear", "cosine", "cyclic_linear"]
        if lr_func not in known:
            raise ValueError(f"lr_func must be one of {known}")
        self._lr_func, self._cycle_epochs = lr_func, cycle_epochs
        self._init_lr = _rate("init_lr", init_lr)
        self._final_lr = _rate("final_lr", final_lr)
        self._param_groups = param_groups
        self._learning_rate: float | None = None

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().update(module, optimizer, epoch, steps_per_epoch)
        at = getattr(self, f"_{self._lr_func}")
        # The step that ends it may come late; SparseML then goes past the last rate,
        # below zero where that is zero.
        self._learning_rate = at(min(epoch, self._end_epoch), steps_per_epoch)
        self._set_rate(optimizer, self._learning_rate)

    # The order of the operations is SparseML's, for the same bits.
    def _share(self, epoch: float) -> float:
        start = max(self._start_epoch, 0.0)
        return (epoch - start) / (self._end_epoch - start)

    def _linear(self, epoch: float, steps_per_epoch: int) -> float:
        change = self._final_lr - self._init_lr
        return self._init_lr + self._share(epoch) * change

    def _cosine(self, epoch: float, steps_per_epoch: int) -> float:
        low, high = sorted((self._init_lr, self._final_lr))
        shift = 0 if self._final_lr < self._init_lr else math.pi
        span = high - low
        turn = math.cos(self._share(epoch) * math.pi + shift)
        return turn * span / 2 + span / 2 + low

    def _cyclic_linear(self, epoch: float, steps_per_epoch: int) -> float:
        first, last = (
            e * steps_per_epoch for e in (self._start_epoch, self._end_epoch)
        )
        cycle = self._cycle_epochs * steps_per_epoch
        step = (epoch - self._start_epoch) * steps_per_epoch
        if step > int((last - first) / cycle) * cycle:
            cycle = (last - first) % cycle
        fall = self._init_lr - self._final_lr
        return self._init_lr - (step % cycle / (cycle - 1)) * fall


_SCHEDULERS = {  # the keys that each wants
    "StepLR": ("gamma", "step_size"),
    "MultiStepLR": ("gamma", "milestones"),
    "CosineAnnealingWarmRestarts": ("lr_min", "cycle_epochs"),
}


@PyTorchModifierYAML()
class LearningRateModifier(_LearningRate, ScheduledUpdateModifier):
    """Runs one of torch's schedulers, whose epochs it counts in steps."""

    lr_class, lr_kwargs = prop("lr_class"), prop("lr_kwargs")
    init_lr, constant_logging = prop("init_lr"), prop("constant_logging")

    def __init__(
        self,
        lr_class: str,
        lr_kwargs: dict[str, Any],
        init_lr: float,
        start_epoch: float,
        end_epoch: float = -1.0,
        update_frequency: float = -1.0,
        constant_logging: bool = False,
    ) -> None:
        super().__init__(start_epoch, end_epoch=end_epoch, end_comparator=-1)
        if lr_class == "ExponentialLR":
            lr_class, lr_kwargs = "StepLR", {**lr_kwargs, "step_size": 1.0}
        if lr_class not in _SCHEDULERS:
            raise ValueError(f"unknown lr_class given of {lr_class}")
        for wanted in _SCHEDULERS[lr_class]:
            if wanted not in lr_kwargs:
                raise ValueError(f"{wanted} must be in lr_kwargs for {lr_class}")
        self._lr_class, self._lr_kwargs = lr_class, lr_kwargs
        self._init_lr = _rate("init_lr", init_lr, 0.0)
        self._constant_logging = _flag(constant_logging)
        self._lr_scheduler: Any = None
        self._scheduler_steps = 0

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().update(module, optimizer, epoch, steps_per_epoch)
        end = self._end_epoch
        if self._lr_scheduler is None:
            self._set_rate(optimizer, self._init_lr)
        if epoch <= sys.float_info.epsilon:
            self._scheduler_steps -= 1  # torch wants the optimizer's first step before
            return
        if end >= 0.0 and abs(end - epoch) <= sys.float_info.epsilon:
            return
        if self._lr_scheduler is None:
            self._lr_scheduler = self._scheduler(optimizer, steps_per_epoch)
            self._scheduler_steps += round(epoch * steps_per_epoch)
        if self._lr_class == "CosineAnnealingWarmRestarts":
            begun = self._start_epoch >= 0.0
            self._lr_scheduler.step(epoch - self._start_epoch if begun else 0.0)
            return
        reached = round((epoch if end < 0.0 else min(epoch, end)) * steps_per_epoch)
        for _ in range(reached - self._scheduler_steps):
            self._lr_scheduler.step()
        self._scheduler_steps = max(reached, self._scheduler_steps)

    def _scheduler(self, optimizer: Any, steps_per_epoch: int) -> Any:
        from torch.optim import lr_scheduler

        keys, start, end = dict(self._lr_kwargs), self._start_epoch, self._end_epoch
        if self._lr_class == "StepLR":
            keys["step_size"] = round(keys["step_size"] * steps_per_epoch)
        elif self._lr_class == "MultiStepLR":
            wrong = [m for m in keys["milestones"] if m <= start or 0.0 <= end <= m]
            if wrong:
                raise ValueError(
                    f"milestones={wrong} lie outside the modifier's epochs; expected "
                    f"epochs between {start} and {end}; move them"
                )
            keys["milestones"] = [
                round((m - start) * steps_per_epoch) for m in keys["milestones"]
            ]
        else:
            keys["eta_min"], keys["T_0"] = keys.pop("lr_min"), keys.pop("cycle_epochs")
        made = getattr(lr_scheduler, self._lr_class)(optimizer=optimizer, **keys)
        if hasattr(optimizer, "_step_count"):
            optimizer._step_count += 1  # torch warns where it has seen no step
        return made


@PyTorchModifierYAML()
class SetWeightDecayModifier(ScheduledModifier):
    """Sets the weight decay once."""

    sparsification_types = kinds(SparsificationTypes.regularization)
    weight_decay, param_groups = prop("weight_decay"), prop("param_groups")
    constant_logging = prop("constant_logging")

    def __init__(
        self,
        weight_decay: float,
        start_epoch: float = -1.0,
        param_groups: list[int] | None = None,
        end_epoch: float = -1.0,
        constant_logging: bool = False,
    ) -> None:
        super().__init__(start_epoch, end_comparator=-1)
        self._weight_decay, self._param_groups = weight_decay, param_groups
        self._constant_logging = _flag(constant_logging)
        self._update_since_last_log = False

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().update(module, optimizer, epoch, steps_per_epoch)
        groups = optimizer.param_groups
        chosen = [groups[i] for i in self._param_groups or range(len(groups))]
        if self.start_pending(epoch, steps_per_epoch):
            for group in chosen:
                group["weight_decay"] = self._weight_decay
        self._update_since_last_log = True

    def log_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().log_update(module, optimizer, epoch, steps_per_epoch)
        if self._constant_logging or self._update_since_last_log:
            first = (self._param_groups or [0])[0]
            value = optimizer.param_groups[first]["weight_decay"]
            step = self.loggers.epoch_to_step(epoch, steps_per_epoch)
            self.loggers.log_scalar("Modifier Weight Decay", value, step)
            self._update_since_last_log = False


@PyTorchModifierYAML()
class TrainableParamsModifier(ScheduledModifier):
    """Makes parameters trainable or not, until ``end_epoch`` where it has one."""

    sparsification_types = kinds(SparsificationTypes.general)
    params, trainable = prop("params"), prop("trainable")
    params_strict = prop("params_strict")

    def __init__(
        self,
        params: Any,
        trainable: bool,
        params_strict: bool = True,
        start_epoch: float = -1.0,
        end_epoch: float = -1.0,
    ) -> None:
        super().__init__(start_epoch, end_epoch=end_epoch, end_comparator=-1)
        self._params = names_of(self, params)
        self._trainable, self._params_strict = _flag(trainable), _flag(params_strict)
        self._module_params: list[Any] = []
        self._original: list[bool] = []

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        super().initialize(module, epoch, loggers, **kwargs)
        patterns = ["re:.*"] if ALL in self._params else self._params
        found = named_parameters(module, patterns, self._params_strict)
        self._module_params += [getattr(layer, name) for layer, _, name in found]
        self._switch(epoch, 1)

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().update(module, optimizer, epoch, steps_per_epoch)
        self._switch(epoch, steps_per_epoch)

    def _switch(self, epoch: float, steps_per_epoch: int) -> None:
        if self.start_pending(epoch, steps_per_epoch) and not self._original:
            for parameter in self._module_params:
                self._original.append(parameter.requires_grad)
                _set_trainable(parameter, self._trainable)
        elif self.end_pending(epoch, steps_per_epoch):
            for parameter, before in zip(
                self._module_params, self._original, strict=False
            ):
                _set_trainable(parameter, before)


def _set_trainable(parameter: Any, trainable: bool) -> None:
    parameter.requires_grad_(trainable)
    if not trainable:
        parameter.grad = None  # or the optimizer would still move it
