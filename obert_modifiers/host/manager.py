"""Our own manager of modifiers, with the stages and the text of SparseML's."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from yaml.constructor import SafeConstructor

from obert_modifiers.host.modifier import Modifier, SparsificationTypes, load_modifiers

_METADATA = "__metadata__"


def _end(modifier: Any) -> float:
    return math.inf if modifier.end_epoch == -1 else modifier.end_epoch  # -1 is never


def _in_time(modifier: Any) -> tuple[float, float, str]:
    return _end(modifier), modifier.start_epoch, modifier.identifier()


def _stage_in_time(stage: tuple[str, list[Any]]) -> tuple[float, float, str]:
    last = max(stage[1], key=lambda m: m.end_epoch)  # -1 counts as early here
    names = (m.identifier() for m in stage[1])
    return _end(last), min(m.start_epoch for m in stage[1]), max(names)


def _by_kind(kind: SparsificationTypes) -> Any:
    def read(self: "ScheduledModifierManager") -> list[Modifier]:
        return [m for m in self.iter_modifiers() if kind in m.sparsification_types]

    return property(read)


class ScheduledModifierManager(Modifier):
    """Modifiers that are driven together, in the order of their ends and starts."""

    def __init__(
        self,
        modifiers: list[Any] | Mapping[str, list[Any]],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.metadata = metadata or None
        self._initialize_epoch = 0.0
        self._modifiers: Any
        if isinstance(modifiers, list):
            self._modifiers = sorted(modifiers, key=_in_time)
            return
        stages = [(name, sorted(m, key=_in_time)) for name, m in modifiers.items()]
        self._modifiers = dict(sorted(stages, key=_stage_in_time))

    @classmethod
    def from_yaml(
        cls, file_path, add_modifiers=None, recipe_variables=None, metadata=None
    ) -> "ScheduledModifierManager":
        """Load a recipe from its path or text."""
        modifiers, variables = load_modifiers(file_path, recipe_variables)
        if add_modifiers:
            modifiers.extend(add_modifiers)
        found = {}
        for stage in modifiers if isinstance(modifiers, dict) else [""]:
            node = variables[stage].get(_METADATA)
            own = node and SafeConstructor().construct_object(node, deep=True)
            found[stage or _METADATA] = metadata or own
        return cls(modifiers, found)

    def __del__(self) -> None:
        """Leave the modifiers to themselves; others may hold them."""

    def __str__(self) -> str:
        return "\n".join(self.to_string_lines())

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)

    def to_string_lines(self, include_metadata: bool = True) -> list[str]:
        """Write the recipe as SparseML does."""
        about = self.metadata if include_metadata else None
        lines = ["version: 1.1.0", ""]
        if isinstance(self._modifiers, list):
            if about:
                lines += [*_nested({_METADATA: about[_METADATA]}), ""]
            return [*lines, "modifiers:", *_listed(self._modifiers)]
        for stage, modifiers in self._modifiers.items():
            lines.append(f"{stage}:")
            if about:
                lines += [*_nested({_METADATA: about[stage]}, 1), ""]
            lines.append(f"  {stage}_modifiers:")
            lines += [f"  {line}" for line in _listed(modifiers)] + [""]
        return lines

    def save(self, file_path: str, include_metadata: bool = True) -> None:
        path = Path(file_path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self.to_string_lines(include_metadata))
        path.write_text(text, encoding="utf-8")

    @property
    def modifiers(self) -> Any:
        """The modifiers, by stage where there are stages."""
        return self._modifiers

    def iter_modifiers(self) -> Iterator[Any]:
        for stage in self._stages():
            yield from stage

    def _stages(self) -> Iterable[list[Any]]:
        one = isinstance(self._modifiers, list)
        return [self._modifiers] if one else self._modifiers.values()

    def num_stages(self) -> int:
        return len(list(self._stages()))

    epoch_modifiers = _by_kind(SparsificationTypes.epoch)
    learning_rate_modifiers = _by_kind(SparsificationTypes.learning_rate)
    pruning_modifiers = _by_kind(SparsificationTypes.pruning)
    quantization_modifiers = _by_kind(SparsificationTypes.quantization)
    distillation_modifiers = _by_kind(SparsificationTypes.distillation)
    structured_modifiers = _by_kind(SparsificationTypes.structured)

    @property
    def max_epochs(self) -> int:
        both = [(m.start_epoch, m.end_epoch) for m in self.iter_modifiers()]
        return max((math.ceil(e) for pair in both for e in pair if e > -1), default=-1)

    def state_dict(self) -> dict[str, Any]:
        return {m.identifier(): m.state_dict() for m in self.iter_modifiers()}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        known = {m.identifier(): m for m in self.iter_modifiers()}
        extra, missing = set(state_dict) - set(known), set(known) - set(state_dict)
        if strict and (extra or missing):
            raise IndexError(f"Found extra keys: {extra} and missing keys: {missing}")
        for name in state_dict.keys() & known.keys():
            known[name].load_state_dict(state_dict[name])

    def apply(
        self, module, epoch=math.inf, loggers=None, finalize=True, **kwargs
    ) -> None:
        if not self._initialized:
            super().initialize(module, epoch, loggers, **kwargs)
            self._initialize_epoch = epoch
        for stage in self._stages():
            self._initialize(stage, module, epoch, loggers, **kwargs)
            for modifier in stage if finalize else ():
                modifier.finalize(module, **kwargs)

    def apply_structure(
        self, module, epoch=0.0, loggers=None, finalize=False, **kwargs
    ) -> None:
        self._initialize_epoch = epoch
        for modifier in self.iter_modifiers():
            modifier.apply_structure(module, epoch, loggers, finalize, **kwargs)

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        super().initialize(module, epoch, loggers, **kwargs)
        self._initialize_epoch = epoch
        self._initialize(self.iter_modifiers(), module, epoch, loggers, **kwargs)

    @staticmethod
    def _initialize(modifiers: Iterable[Any], *where: Any, **kwargs: Any) -> None:
        for modifier in modifiers:
            if not modifier.initialized:  # it may be so since apply_structure
                modifier.initialize(*where, **kwargs)

    def initialize_loggers(self, loggers: Any) -> None:
        super().initialize_loggers(loggers)
        for modifier in self.iter_modifiers():
            modifier.initialize_loggers(self.loggers)

    def modify(
        self,
        module,
        optimizer,
        steps_per_epoch,
        wrap_optim=None,
        epoch=None,
        allow_parallel_module=True,
        **kwargs,
    ) -> "RecipeManagerStepWrapper":
        """Wrap an optimizer whose ``step`` then drives the modifiers."""
        epoch = self._initialize_epoch if epoch is None else epoch
        if not allow_parallel_module:
            module = getattr(module, "module", module)
        if not self._initialized:
            self.initialize(module, epoch, **kwargs)
        wrapped = optimizer if wrap_optim is None else wrap_optim
        where = epoch, steps_per_epoch
        return RecipeManagerStepWrapper(wrapped, optimizer, module, self, *where)

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        super().finalize(module, reset_loggers, **kwargs)
        for modifier in self.iter_modifiers():
            modifier.finalize(module, reset_loggers, **kwargs)

    def update(
        self, module, optimizer, epoch, steps_per_epoch, log_updates=True
    ) -> None:
        where = module, optimizer, epoch, steps_per_epoch
        super().update(*where)
        for modifier in self._enabled_modifiers():
            if modifier.update_ready(epoch, steps_per_epoch):
                modifier.scheduled_update(*where)
                if log_updates:
                    modifier.scheduled_log_update(*where)

    def loss_update(
        self, loss, module, optimizer, epoch, steps_per_epoch, **kwargs
    ) -> Any:
        where = module, optimizer, epoch, steps_per_epoch
        loss = super().loss_update(loss, *where)
        for modifier in self._enabled_modifiers():
            loss = modifier.loss_update(loss, *where, **kwargs)
        return loss

    def optimizer_pre_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        where = module, optimizer, epoch, steps_per_epoch
        super().optimizer_pre_step(*where)
        for modifier in self._enabled_modifiers():
            modifier.optimizer_pre_step(*where)

    def optimizer_post_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        where = module, optimizer, epoch, steps_per_epoch
        super().optimizer_post_step(*where)
        for modifier in self._enabled_modifiers():
            modifier.optimizer_post_step(*where)

    def _enabled_modifiers(self) -> Iterator[Any]:
        return (modifier for modifier in self.iter_modifiers() if modifier.enabled)


class RecipeManagerStepWrapper:
    """An optimizer whose ``step`` drives a manager; all else is the optimizer's."""

    def __init__(
        self, wrap, optimizer, module, manager, epoch: float, steps_per_epoch: int
    ) -> None:
        if steps_per_epoch <= 0:
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch} is not positive; expected the "
                "optimizer steps of an epoch"
            )
        # All names begin alike, as others are looked for in the optimizer.
        self._wrapped, self._wrapped_optimizer = wrap, optimizer
        self._wrapped_module, self._wrapped_manager = module, manager
        self._wrapped_steps_per_epoch = steps_per_epoch
        self._wrapped_epoch, self._wrapped_steps = epoch, round(epoch * steps_per_epoch)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("wrapped"):
            return self.__dict__[f"_{name}"]
        return getattr(self.__dict__["_wrapped"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_wrapped"):
            super().__setattr__(name, value)
        else:
            setattr(self._wrapped, name, value)

    def _where(self) -> tuple[Any, Any, float, int]:
        of = self._wrapped_module, self._wrapped_optimizer
        return *of, self._wrapped_epoch, self._wrapped_steps_per_epoch

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return self._step(lambda: self._wrapped.step(*args, **kwargs))

    def emulated_step(self) -> None:
        """Count a step, and drive the manager, without one of the optimizer."""
        self._step(lambda: None)

    def loss_update(self, loss: Any) -> Any:
        return self._wrapped_manager.loss_update(loss, *self._where())

    def _step(self, step: Any) -> Any:
        manager, where = self._wrapped_manager, self._where()
        if manager.enabled:
            manager.update(*where)
            manager.optimizer_pre_step(*where)
        returned = step()
        if manager.enabled:
            manager.optimizer_post_step(*where)
        self._wrapped_steps += 1
        epochs, rest = divmod(self._wrapped_steps, self._wrapped_steps_per_epoch)
        self._wrapped_epoch = float(epochs) + rest / self._wrapped_steps_per_epoch
        return returned


def _listed(modifiers: list[Any]) -> list[str]:
    lines = []
    for modifier in modifiers:
        tag, *keys = str(modifier).splitlines()
        lines += [f"    - {tag}", *(f"    {line}" for line in keys), ""]
    return lines


def _nested(values: Mapping[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for key, value in values.items():
        inside = isinstance(value, Mapping)
        bare = inside or (value is None and depth == 0)
        lines.append(f"{'  ' * depth}{key}:" + ("" if bare else f" {value}"))
        lines += _nested(value, depth + 1) if inside else []
    return lines
