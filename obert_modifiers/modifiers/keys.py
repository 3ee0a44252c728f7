"""The keys of modifiers: each declared once, in the class that has it.

From the keys, :func:`recipe_modifier` makes the constructor, SparseML's properties and
the YAML tag; recipe checks, plans, edited recipes and the tables of the docs read them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from obert_modifiers.faults import Fault, FaultError
from obert_modifiers.host.bases import (
    SCHEDULE_KEY,
    ModifierProp,
    PyTorchModifierYAML,
    SparsificationTypes,
    check_initialized,
)
from obert_modifiers.modifiers._states import as_tensors, from_tensors
from obert_modifiers.modifiers.rules import Reader

if TYPE_CHECKING:
    from torch import Tensor

REQUIRED = inspect.Parameter.empty
_FOR_THE_HOST = ("start_epoch", "end_epoch", "update_frequency")
REGISTRY: dict[str, type] = {}


class Key(ModifierProp):
    """A recipe key of a modifier, and the read-only property of its value.

    Attributes:
        rule: How a value is read and checked.
        default: Its default, which is not checked, or :data:`REQUIRED`. None is taken
            where it is the default.
        later: Whether a resumed run may change it once the modifier has begun; or a
            function of the new value that tells so.
        name: Its name in recipes, that of the attribute of the class unless a method
            has that name; the attribute has an underscore then.
        silent: Whether YAML has it only where it is not the default, for a key that
            came later than checkpoints that are still resumed.
        meaning: What it means, in a line.
    """

    def __init__(
        self,
        rule: Reader,
        default: Any = REQUIRED,
        *,
        later: bool | Callable[[Any], bool] = False,
        name: str = "",
        silent: bool = False,
        meaning: str = "",
    ) -> None:
        super().__init__(
            func_get=lambda modifier: getattr(modifier, self.slot),
            no_serialize_val=default if silent else None,
        )
        self.rule, self.default, self.later = rule, default, later
        self.name, self.attribute, self.silent = name, "", silent
        self.means(meaning)

    def means(self, meaning: str) -> Key:
        """Say what it means."""
        self.meaning = self.__doc__ = meaning
        return self

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.attribute, self.name = attribute, self.name or attribute

    @property
    def slot(self) -> str:
        """Attribute of a modifier that holds the value."""
        return f"_{self.name}"

    def but(self, **changed: Any) -> Key:
        """Return the same key where a modifier has another default, rule or meaning."""
        names = ("rule", "default", "later", "name", "silent", "meaning")
        return Key(**{name: getattr(self, name) for name in names} | changed)

    def read(self, value: Any) -> Any:
        """Check a value; raises :class:`~obert_modifiers.faults.FaultError`."""
        if value is None and self.default is None:
            return None
        return self.rule(self.name, value)

    def may_become(self, value: Any) -> bool:
        """Tell whether a run that has begun may go on with another value."""
        return self.later(value) if callable(self.later) else self.later


@dataclass(frozen=True)
class Between:
    """A check of several keys; it runs where each of them can be read.

    Attributes:
        keys: Their names; ``given`` stands for what the recipe gives, unread.
        check: Takes their values and yields faults.
    """

    keys: tuple[str, ...]
    check: Callable[..., Iterable[Fault]]


def between(*keys: str) -> Callable[[Callable[..., Iterable[Fault]]], Between]:
    """Declare a check of several keys beside them, in the body of the class."""
    return partial(Between, keys)


class Values(dict):
    """Values by key that can be read and written as attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class KeyedModifier:
    """What a modifier has whose keys are declared; comes before the host's base.

    Attributes:
        KEYS: Its keys by name, in the order of the constructor.
        CHECKS: The checks between them.
        kind: What it does to a model, in the host's words.
        replaceable: True where a resumed run may have another one in its place.
    """

    KEYS: Mapping[str, Key] = {}
    CHECKS: tuple[Between, ...] = ()
    kind = SparsificationTypes.general
    replaceable = False
    _own: Mapping[str, Key | Between] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Note what a class declares in its body."""
        super().__init_subclass__(**kwargs)
        own = {k: v for k, v in vars(cls).items() if isinstance(v, (Key, Between))}
        for name in own.keys() & set(_FOR_THE_HOST):
            delattr(cls, name)  # the host's own properties stay, which can be set
        cls._own, declared = own, {}
        for base in reversed(cls.__mro__):  # what is declared again keeps its place
            declared |= vars(base).get("_own", {})
        cls.KEYS = {k.name: k for k in declared.values() if isinstance(k, Key)}
        cls.CHECKS = tuple(c for c in declared.values() if isinstance(c, Between))

    @classmethod
    def read_keys(
        cls, given: Mapping[str, Any], faulty: Iterable[str] = ()
    ) -> tuple[Values, list[Fault]]:
        """Read and check what a recipe gives; other modifiers' keys are ignored.

        Returns:
            The values of all keys that can be read, defaults among them, without those
            known to be ``faulty``; and everything that is wrong.
        """
        values, faults = Values(given=dict(given)), []
        for name, key in cls.KEYS.items():
            if name in faulty:
                continue
            try:
                if name in given:
                    values[name] = key.read(given[name])
                elif key.default is not REQUIRED:
                    values[name] = copy.copy(key.default)
            except FaultError as error:
                faults += error.faults
        for one in cls.CHECKS:
            if all(name in values for name in one.keys):
                faults += one.check(*(values[name] for name in one.keys))
        del values["given"]
        return values, faults

    @classmethod
    def derive(cls, values: Values) -> None:
        """Add what follows from the values of the keys, in place; nothing here."""

    def begin(self) -> None:
        """Set up what changes while the modifier runs; nothing here."""

    def _construct(self, given: Mapping[str, Any]) -> None:
        values, faults = self.read_keys(given)
        if faults:
            raise FaultError(*faults)
        self.derive(values)
        schedule = {key: values.pop(key) for key in _FOR_THE_HOST if key in values}
        if "update_frequency" in schedule:
            schedule["min_frequency"] = -1.0
        super().__init__(end_comparator=-1, **schedule)
        for name, value in values.items():
            setattr(self, f"_{name}", value)
        self.begin()

    def props(self, only_serializable: bool, **kwargs: bool) -> dict[str, Any]:
        """Collect the values of the recipe's keys, or of all properties."""
        found = super().props(only_serializable, **kwargs)
        for key in self.KEYS.values():
            value = getattr(self, key.slot)
            # The host does not find a key with the name of a method.
            if key.attribute.startswith("_") and value is not None:
                found[key.name] = value
        if not only_serializable:
            return found
        return {name: value for name, value in found.items() if name in self.KEYS}

    @ModifierProp(serializable=False)
    def sparsification_types(self) -> list[SparsificationTypes]:
        """Kinds of compression that this modifier applies."""
        return [self.kind]

    def state_dict(self) -> dict[str, Tensor]:
        """Return what :meth:`own_state` has, and where the schedule stands."""
        state = self.own_state()
        schedule = state.get(SCHEDULE_KEY, state)
        schedule.update(started=self._started, ended=self._ended)
        return as_tensors(state)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Continue where :meth:`state_dict` was taken; always strict."""
        check_initialized(self)
        state = from_tensors(state_dict)
        self.load_own_state(state)
        schedule = state.get(SCHEDULE_KEY, state)
        self._started, self._ended = schedule["started"], schedule["ended"]

    def own_state(self) -> dict[str, Any]:
        """Return what changes while the modifier runs; nothing here.

        Tensors by name, with all that is none below :data:`SCHEDULE_KEY`; or by name
        without it.
        """
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`own_state` returned; nothing here."""


def recipe_modifier(
    *, without: str = "", order: str = "", silent: str = ""
) -> Callable[[type], type]:
    """Make a modifier of a class: its constructor, its YAML tag, its entry here.

    Args:
        without: Names of inherited keys that it sets itself in ``derive``.
        order: Names of the keys that come first in the constructor, in their order;
            by default those that are required. The others come as they are declared,
            the base's first.
        silent: Names of inherited keys that are silent here.
    """

    def decorate(cls: type) -> type:
        keys = {
            name: key for name, key in cls.KEYS.items() if name not in without.split()
        }
        for name in silent.split():
            attribute, keys[name] = keys[name].attribute, keys[name].but(silent=True)
            keys[name].__set_name__(cls, attribute)
            setattr(cls, attribute, keys[name])
        first = order.split() or [n for n, k in keys.items() if k.default is REQUIRED]
        cls.KEYS = {name: keys[name] for name in dict.fromkeys([*first, *keys])}
        cls.__init__ = _constructor(cls)
        REGISTRY[cls.__name__] = cls
        return PyTorchModifierYAML()(cls)

    return decorate


def _constructor(cls: type) -> Callable[..., None]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    for name, key in cls.KEYS.items():
        parameters.append(inspect.Parameter(name, kind, default=key.default))
    signature = inspect.Signature(parameters)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}") from None
        given.pop("self")
        self._construct(given)

    __init__.__signature__ = signature
    __init__.__qualname__ = f"{cls.__name__}.__init__"
    __init__.__doc__ = "Check and keep the recipe's keys.\n\nArgs:\n" + "".join(
        f"    {name}: {key.meaning}\n" for name, key in cls.KEYS.items()
    )
    return __init__
