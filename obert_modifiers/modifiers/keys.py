"""The keys of modifiers: each declared once, in the class that has it.

A :class:`Key` in the body of a modifier's class says how a recipe's value is read and
checked, its default, what it means, and whether a resumed run may change it. From the
keys, :func:`recipe_modifier` makes the constructor, SparseML's properties and the YAML
tag; recipe checks, plans, edited recipes and the tables of the docs read them too.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers.faults import Fault, FaultError
from obert_modifiers.host.bases import (
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
        name: Its name in recipes, by default that of the attribute of the class.
        rule: How a value is read and checked.
        default: Its default, or :data:`REQUIRED`. None is taken where it is the
            default.
        meaning: What it means, in a line.
        later: Whether a resumed run may change it once the modifier has begun; or a
            function of the new value that tells so.
    """

    def __init__(
        self,
        rule: Reader,
        default: Any = REQUIRED,
        meaning: str = "",
        *,
        later: bool | Callable[[Any], bool] = False,
        name: str = "",
        silent: bool = False,
    ) -> None:
        """Declare a key.

        Args:
            rule: How a value is read and checked.
            default: Its default; it is not checked.
            meaning: What it means, in a line.
            later: As above.
            name: Where the name is taken by a method of the modifier; the attribute
                of the class has an underscore then.
            silent: True writes it to YAML only where it is not the default, for a key
                that came later than checkpoints that are still resumed.
        """
        super().__init__(
            func_get=lambda modifier: getattr(modifier, self.slot),
            no_serialize_val=default if silent else None,
        )
        self.rule, self.default, self.meaning = rule, default, meaning
        self.later, self.name, self.silent = later, name, silent
        self.__doc__ = meaning

    def __set_name__(self, owner: type, attribute: str) -> None:
        """Take the name of the attribute where none is given."""
        self.attribute = attribute
        self.name = self.name or attribute

    @property
    def slot(self) -> str:
        """Attribute of a modifier that holds the value."""
        return f"_{self.name}"

    def but(self, **changed: Any) -> Key:
        """Return the same key where a modifier has another default, rule or meaning."""
        names = ("rule", "default", "meaning", "later", "name", "silent")
        return Key(**{name: getattr(self, name) for name in names} | changed)

    def read(self, value: Any) -> Any:
        """Check a value; raises :class:`~obert_modifiers.faults.FaultError`."""
        if value is None and self.default is None:
            return None
        return self.rule(self.name, value)

    def may_become(self, value: Any) -> bool:
        """Tell whether a run that has begun may go on with another value."""
        return self.later(value) if callable(self.later) else self.later


class Between:
    """A check of several keys; it runs where each of them can be read.

    Attributes:
        keys: Their names; ``given`` stands for what the recipe gives, unread.
        check: Takes their values and yields faults.
    """

    def __init__(self, keys: tuple[str, ...], check: Callable[..., Iterable[Fault]]):
        self.keys, self.check = keys, check


def between(*keys: str) -> Callable[[Callable[..., Iterable[Fault]]], Between]:
    """Declare a check of several keys beside them, in the body of the class."""
    return lambda check: Between(keys, check)


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
        kinds = (Key, Between)
        own = {k: v for k, v in vars(cls).items() if isinstance(v, kinds)}
        for name in own.keys() & set(_FOR_THE_HOST):
            delattr(cls, name)  # the host's own properties stay, which can be set
        cls._own, found = own, {}
        for base in reversed(cls.__mro__):  # what is declared again keeps its place
            found |= vars(base).get("_own", {})
        cls.KEYS = {one.name: one for one in found.values() if isinstance(one, Key)}
        cls.CHECKS = tuple(one for one in found.values() if isinstance(one, Between))

    @classmethod
    def read_keys(
        cls, given: Mapping[str, Any], faulty: Iterable[str] = ()
    ) -> tuple[Values, list[Fault]]:
        """Read and check what a recipe gives.

        Args:
            given: Value by key; others than this modifier's are ignored.
            faulty: Keys whose values are known to be of no use.

        Returns:
            The values of all keys that can be read, defaults among them; and
            everything that is wrong.
        """
        values, faults = Values(given=dict(given)), []
        for name, key in cls.KEYS.items():
            if name not in given and name not in faulty:
                if key.default is not REQUIRED:
                    values[name] = copy.copy(key.default)
            elif name not in faulty:
                try:
                    values[name] = key.read(given[name])
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
        schedule = {"started": self._started, "ended": self._ended}
        return as_tensors(schedule | self.own_state())

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Continue where :meth:`state_dict` was taken; always strict."""
        check_initialized(self)
        state = from_tensors(state_dict)
        self.load_own_state(state)
        self._started, self._ended = state["started"], state["ended"]

    def own_state(self) -> dict[str, Any]:
        """Return what changes while the modifier runs; nothing here."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`own_state` returned; nothing here."""


def recipe_modifier(
    *,
    defaults: Mapping[str, Any] | None = None,
    without: Iterable[str] = (),
    order: str = "",
    silent: Iterable[str] = (),
) -> Callable[[type], type]:
    """Make a modifier of a class: its constructor, its YAML tag, its entry here.

    Args:
        defaults: Defaults of inherited keys that are others here.
        without: Inherited keys that it does not have, but sets itself in ``derive``.
        order: Names of the keys that come first in the constructor, in their order;
            by default those that are required. The others come as they are declared,
            the base's first.
        silent: Inherited keys that are written only where they are not the default.

    Returns:
        The decorator.
    """
    changes = {name: {"default": value} for name, value in (defaults or {}).items()}
    changes |= {name: {"silent": True} for name in silent}

    def decorate(cls: type) -> type:
        keys = {name: key for name, key in cls.KEYS.items() if name not in without}
        for name, change in changes.items():
            attribute, keys[name] = keys[name].attribute, keys[name].but(**change)
            keys[name].__set_name__(cls, attribute)
            if name not in _FOR_THE_HOST:
                setattr(cls, attribute, keys[name])
        first = order.split() or [n for n, k in keys.items() if k.default is REQUIRED]
        cls.KEYS = {name: keys[name] for name in dict.fromkeys([*first, *keys])}
        cls.__init__ = _constructor(cls)
        REGISTRY[cls.__name__] = cls
        return PyTorchModifierYAML()(cls)

    return decorate


def _constructor(cls: type) -> Callable[..., None]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    me = inspect.Parameter("self", kind)
    parameters = [
        inspect.Parameter(name, kind, default=key.default)
        for name, key in cls.KEYS.items()
    ]
    signature = inspect.Signature([me, *parameters])

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
