"""Our own modifiers' base classes: the life of a modifier as SparseML defined it.

Names, defaults, identifiers and the text of a modifier are those of SparseML 1.8.0:
states are kept by identifier, so that each host resumes what the other has saved.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import yaml

from obert_modifiers.host import ONLY_SPARSEML, TAG_PREFIX, only_sparseml
from obert_modifiers.host.loggers import LoggerManager
from obert_modifiers.recipe_text.arguments import parse_recipe_args
from obert_modifiers.recipe_text.outline import outline
from obert_modifiers.recipe_text.problems import Problem, RecipeError
from obert_modifiers.recipe_text.text import compose, read_source
from obert_modifiers.recipe_text.values import Resolver
from obert_modifiers.recipe_text.writing import flow

_IGNORED_KEY = "log_types"  # from old recipes


class SparsificationTypes(Enum):
    """What a modifier does to a model or a training."""

    general = "general"
    epoch = "epoch"
    learning_rate = "learning_rate"
    activation_sparsity = "activation_sparsity"
    pruning = "pruning"
    quantization = "quantization"
    distillation = "distillation"
    regularization = "regularization"
    structured = "structured"


class ModifierProp:
    """A property that is a key of recipes, or of ``props`` alone.

    Attributes:
        serializable: True for a key of recipes.
        no_serialize_val: The value that is not written.
    """

    def __init__(
        self,
        serializable: bool = True,
        restrict_initialized: bool = True,
        no_serialize_val: Any = None,
        func_get: Callable[[Any], Any] | None = None,
        func_set: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self.serializable, self.no_serialize_val = serializable, no_serialize_val
        self._fixed = restrict_initialized  # after ``initialize``
        self._get, self._set = func_get, func_set
        self.__doc__ = getattr(func_get, "__doc__", None)

    def __call__(self, getter: Callable[[Any], Any]) -> "ModifierProp":
        kept = self.serializable, self._fixed, self.no_serialize_val
        return ModifierProp(*kept, getter, self._set)

    def setter(self, setter: Callable[[Any, Any], None]) -> "ModifierProp":
        kept = self.serializable, self._fixed, self.no_serialize_val
        return ModifierProp(*kept, self._get, setter)

    def __get__(self, modifier: Any, owner: type | None = None) -> Any:
        return self if modifier is None else self._get(modifier)

    def __set__(self, modifier: Any, value: Any) -> None:
        if self._set is None:
            raise AttributeError("can't set attribute")
        if self._fixed and modifier._initialized:
            raise AttributeError(
                f"Cannot change {self._get.__name__} after initializing "
                f"{type(modifier).__name__}"
            )
        self._set(modifier, value)


def prop(name: str, check: str = "", **how: Any) -> ModifierProp:
    """Make the property of the attribute with an underscore in front of its name.

    It can be set where the method is named that then checks the modifier.
    """

    def read(modifier: Any) -> Any:
        return getattr(modifier, f"_{name}")

    def write(modifier: Any, value: Any) -> None:
        setattr(modifier, f"_{name}", value)
        getattr(modifier, check)()

    read.__name__ = name
    return ModifierProp(func_get=read, func_set=write if check else None, **how)


class PyTorchModifierYAML:
    """Class decorator that registers ``!pytorch.<name of the class>`` with YAML."""

    def __call__(self, cls: type) -> type:
        def construct(loader: Any, node: yaml.Node) -> Iterator[Any]:
            plain = isinstance(node, yaml.ScalarNode)
            values = {} if plain else loader.construct_mapping(node, deep=True)
            modifier = cls.__new__(cls)
            yield modifier
            values.pop(_IGNORED_KEY, None)
            modifier.__init__(**values)

        tag = f"{TAG_PREFIX}{cls.__name__}"
        for loader in (None, yaml.SafeLoader):  # None is all but the safe one
            yaml.add_constructor(tag, construct, loader)
        return cls


class _Loader(yaml.SafeLoader):
    """Reads ``!Name`` as the tag ``!pytorch.Name``."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag.startswith("!") and not node.tag.startswith(TAG_PREFIX):
            node.tag = f"{TAG_PREFIX}{node.tag[1:]}"
        return super().construct_object(node, deep)


class Modifier:
    """Something that is done to a model while it trains.

    Its life: ``initialize``, in each step ``loss_update``, ``update`` where it is due,
    ``optimizer_pre_step`` and ``optimizer_post_step``; ``finalize`` at the end. A hook
    gets the model, the optimizer, the progress as a float of epochs of optimizer steps,
    and the optimizer steps of an epoch.
    """

    def __init__(self, **unknown: Any) -> None:
        if unknown:
            raise ValueError(
                f"kwargs must be empty, extras passed in of {unknown} for "
                f"{type(self).__name__}"
            )
        self._initialized, self._enabled = False, True
        self._loggers: Any = None
        self._loggers_initialized = False

    def __del__(self) -> None:
        try:
            if self._initialized:
                self.finalize()
        except Exception:  # Python may be ending
            return

    @staticmethod
    def load_obj(yaml_str: str) -> Any:
        """Construct the modifier that a text describes."""
        return yaml.load(yaml_str, Loader=_Loader)

    def __str__(self) -> str:
        shown = self.props(only_serializable=True, format_str=True)
        keys = "\n".join(f"    {key}: {value}" for key, value in shown.items())
        return f"!{type(self).__name__}\n{keys}"

    def __repr__(self) -> str:
        shown = self.props(only_serializable=False, format_repr=True)
        return f"{type(self).__name__}({shown})"

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        return []

    initialized = prop("initialized", serializable=False)
    loggers_initialized = prop("loggers_initialized", serializable=False)

    @ModifierProp(serializable=False, restrict_initialized=False)
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value

    @ModifierProp(serializable=False)
    def loggers(self) -> Any:
        return [] if self._loggers is None else self._loggers

    def identifier(self, extra: Any = "") -> str:
        """Name the modifier by its class and a hash of its keys."""
        shown = self.props(only_serializable=True, format_str=True)
        keys = sorted(f"{key}:{value}" for key, value in shown.items())
        digest = hashlib.md5(str(keys).encode(), usedforsecurity=False).hexdigest()
        return f"{type(self).__name__}-{digest}{f'-{extra}' if extra else ''}"

    def props(
        self, only_serializable: bool, format_str: bool = False, format_repr=False
    ) -> dict[str, Any]:
        """Return the properties by name, without those that are None."""
        show = str if format_str else repr if format_repr else lambda value: value
        found = {}
        for name in dir(type(self)):
            prop = None if name.startswith("_") else getattr(type(self), name)
            if not isinstance(prop, ModifierProp):
                continue
            if prop.serializable or not only_serializable:
                value = getattr(self, name)
                if value != prop.no_serialize_val:
                    found[name] = show(value)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        if strict and state_dict:
            raise IndexError(f"found extra keys in state_dict {list(state_dict)}")

    def apply(
        self, module, epoch=math.inf, loggers=None, finalize=True, **kwargs
    ) -> None:
        """Do all of it at once, without training."""
        self.initialize(module, epoch, loggers=loggers, **kwargs)
        if finalize:
            self.finalize(module, **kwargs)

    def apply_structure(
        self, module, epoch=0.0, loggers=None, finalize=False, **kwargs
    ) -> None:
        """Change the model's structure, where the modifier does that."""
        if SparsificationTypes.structured in self.sparsification_types:
            self.apply(module, epoch, loggers, finalize, **kwargs)

    def initialize(self, module, epoch=0, loggers=None, **kwargs) -> None:
        self._initialized = True
        self.initialize_loggers(loggers)

    def initialize_loggers(self, loggers: Any) -> None:
        given = loggers or []
        self._loggers = LoggerManager(given) if isinstance(given, list) else given
        self._loggers_initialized = True

    def finalize(self, module=None, reset_loggers=True, **kwargs) -> None:
        self._check_called(enabled=False)
        self._initialized = False
        if reset_loggers:
            self._loggers, self._loggers_initialized = None, False

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        self._check_called()

    def log_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        self._check_called(loggers=True)

    def loss_update(
        self, loss, module, optimizer, epoch, steps_per_epoch, **kwargs
    ) -> Any:
        self._check_called()
        return loss

    def optimizer_pre_step(self, module, optimizer, epoch, steps_per_epoch) -> None:
        self._check_called()

    optimizer_post_step = optimizer_pre_step

    def _check_called(self, loggers: bool = False, enabled: bool = True) -> None:
        if not self._initialized:
            raise RuntimeError("modifier must be initialized first")
        if loggers and not self._loggers_initialized:
            raise RuntimeError("modifier must have loggers initialized first")
        if enabled and not self._enabled:
            raise RuntimeError("modifier must be enabled")


class ScheduledModifier(Modifier):
    """A modifier with a first and a last epoch; -1 is the beginning, or never.

    ``end_comparator`` says what ``end_epoch`` may be: after ``start_epoch`` (1), that
    too (0), -1 too (-1), or nothing but what it was made with (None).
    """

    def __init__(
        self, start_epoch=-1.0, end_epoch=-1.0, end_comparator=0, **unknown: Any
    ) -> None:
        super().__init__(**unknown)
        self._start_epoch, self._end_epoch = float(start_epoch), float(end_epoch)
        self._init_end, self._end_comparator = self._end_epoch, end_comparator
        self._started = self._ended = False
        self._schedule_called = self._scheduled_log_called = False
        self._last_log_epoch = -1.0
        self.validate_schedule()

    start_epoch = prop("start_epoch", "validate_schedule")
    end_epoch = prop("end_epoch", "validate_schedule")
    started = prop("started", serializable=False)
    ended = prop("ended", serializable=False)

    def validate_schedule(self) -> None:
        start, end, rule = self._start_epoch, self._end_epoch, self._end_comparator
        for key, value in (("start_epoch", start), ("end_epoch", end)):
            if value < -1.0:
                self._refuse(key, value, "at least -1.0")
        if rule is None and end != self._init_end:
            self._refuse("end_epoch", end, f"its first value {self._init_end}")
        open_end = rule == -1 and end == -1.0
        if rule in (-1, 0) and end < start and not open_end:
            self._refuse("end_epoch", end, f"at least start_epoch={start}")
        if rule == 1 and end <= start:
            self._refuse("end_epoch", end, f"more than start_epoch={start}")

    def _refuse(self, key: str, value: float, rule: str) -> None:
        name = type(self).__name__
        raise ValueError(f"{key}={value} breaks a rule of {name}; expected {rule}")

    def start_pending(self, epoch: float, steps_per_epoch: int) -> bool:
        self._check_called(enabled=False)
        due = epoch >= self._start_epoch >= 0.0 or self._start_epoch == -1.0
        return self._enabled and due and not self._started and not self._ended

    def end_pending(self, epoch: float, steps_per_epoch: int) -> bool:
        self._check_called(enabled=False)
        due = epoch >= self._end_epoch >= 0.0
        return self._enabled and due and self._started and not self._ended

    def update_ready(self, epoch: float, steps_per_epoch: int) -> bool:
        """Tell whether ``update`` is due."""
        where = epoch, steps_per_epoch
        return self.start_pending(*where) or self.end_pending(*where)

    def scheduled_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Call ``update``, and note that the modifier has started or ended."""
        self._check_called(enabled=False)
        if not self.update_ready(epoch, steps_per_epoch):
            raise RuntimeError(
                "update_ready returns False, this must be true to call scheduled_update"
            )
        self._schedule_called = True
        self.update(module, optimizer, epoch=epoch, steps_per_epoch=steps_per_epoch)
        self._schedule_called = False
        if self.start_pending(epoch, steps_per_epoch):
            self._started = True
        if self.end_pending(epoch, steps_per_epoch):
            self._ended = True

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        if not self._schedule_called:
            raise RuntimeError(
                "update should not be called directly, call scheduled_update instead"
            )

    def scheduled_log_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        """Call ``log_update``, where a logger is due."""
        self._check_called(loggers=True)
        if self.loggers and self.loggers.log_ready(epoch, self._last_log_epoch):
            self._last_log_epoch = epoch
            self._scheduled_log_called = True
            self.log_update(module, optimizer, epoch, steps_per_epoch)
            self._scheduled_log_called = False

    def log_update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        super().log_update(module, optimizer, epoch, steps_per_epoch)
        if not self._scheduled_log_called:
            raise RuntimeError(
                "log_update should not be called directly, call scheduled_log_update "
                "instead"
            )

    def log_scalar(self, value, tag=None, epoch=None, steps_per_epoch=None) -> None:
        counted = None not in (epoch, steps_per_epoch) and not math.isinf(epoch)
        step = self.loggers.epoch_to_step(epoch, steps_per_epoch) if counted else None
        self.loggers.log_scalar(tag or type(self).__name__, value, step=step)


class ScheduledUpdateModifier(ScheduledModifier):
    """A modifier that acts again and again between its first and last epoch."""

    def __init__(
        self, *span: Any, update_frequency=-1.0, min_frequency=-1.0, **more: Any
    ) -> None:
        self._update_frequency = update_frequency
        self._min_frequency = min_frequency
        self._last_update_epoch = -1.0
        super().__init__(*span, **more)
        self.validate_update()

    update_frequency = prop("update_frequency", "validate_update")

    def validate_update(self) -> None:
        if self._update_frequency < self._min_frequency:
            rule = f"at least {self._min_frequency}"
            self._refuse("update_frequency", self._update_frequency, rule)

    def update_ready(self, epoch: float, steps_per_epoch: int) -> bool:
        if not self._enabled:
            return False
        often, last = self._update_frequency, self._last_update_epoch
        again = often == -1.0 or (last >= 0.0 and epoch >= last + often)
        running = self._started and not self._ended and epoch > self._start_epoch
        return super().update_ready(epoch, steps_per_epoch) or (running and again)

    def update(self, module, optimizer, epoch, steps_per_epoch) -> None:
        self._last_update_epoch = epoch
        super().update(module, optimizer, epoch, steps_per_epoch)


def load_modifiers(
    source: Any, recipe_variables: Any = None
) -> tuple[Any, dict[str, dict[str, yaml.Node]]]:
    """Construct the modifiers of a recipe, its variables and expressions worked out.

    Returns:
        The modifiers, by stage where the recipe has stages; and the nodes of its
        variables by stage, ``""`` for those of the whole recipe.
    """
    text = read_source(source)
    parts = outline(text, compose(text))
    resolver = Resolver(parts, parse_recipe_args(recipe_variables))
    missing = [
        Problem(text.file, one.line, one.name, only_sparseml(one.name))
        for one in resolver.settings
        if one.name in ONLY_SPARSEML
        and f"{TAG_PREFIX}{one.name}" not in _Loader.yaml_constructors
    ]
    if missing or parts.problems:
        raise RecipeError([*parts.problems, *missing])
    groups: dict[str, list[Modifier]] = {}
    for one in resolver.settings:
        modifier = Modifier.load_obj(f"!{one.name} {flow(one.values)}")
        groups.setdefault(one.stage, []).append(modifier)
    return (groups if parts.staged else groups[""]), parts.variables
