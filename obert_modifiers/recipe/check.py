"""Check each modifier's keys and values, and build it."""

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from obert_modifiers.core.pruning.schedule import INTERPOLATIONS
from obert_modifiers.faults import Fault, FaultError, Rule, nearest
from obert_modifiers.host import ONLY_SPARSEML, only_sparseml
from obert_modifiers.host.bases import Modifier, modifier_classes
from obert_modifiers.modifiers.keys import KeyedModifier
from obert_modifiers.modifiers.rules import (
    CYCLE,
    EPOCH,
    FRACTION,
    INIT_SPARSITY,
    Reader,
    check_pattern,
    choice,
    number,
    refuse,
)
from obert_modifiers.modifiers.shared_keys import starts_before_it_ends
from obert_modifiers.recipe_text.problems import Problem
from obert_modifiers.recipe_text.replacing import Translate, Translated, translation_of
from obert_modifiers.recipe_text.values import ModifierSettings

_IGNORED_KEY = "log_types"  # from old recipes; SparseML drops it too
_EPOCHS = ("start_epoch", "end_epoch")
_MASK_WORDS = ("unstructured", "block4", "tensorrt", "filter", "channel")
_N_M = re.compile(r"[1-9][0-9]*:[1-9][0-9]*")


def _theirs(key: str, value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2 and {*map(type, value)} == {int}:
        return value
    if value in _MASK_WORDS or _N_M.fullmatch(str(value)):
        return value
    fix = f"write {(nearest(str(value), _MASK_WORDS) or _MASK_WORDS)[0]}"
    if type(value) is int and value > 60 and value % 60:  # YAML reads 2:4 in base 60
        fix = f"write '{value // 60}:{value % 60}' in quotes"
    expected = f"one of {', '.join(_MASK_WORDS)}, N:M or a list of two numbers"
    refuse(Rule.MASK_TYPE, key, value, "is unknown", expected, fix)


# What the constructors of SparseML's modifiers miss, or report without a remedy.
_THEIR_RULES: dict[str, Reader] = {
    "cycle_epochs": CYCLE,
    "inter_func": choice(*INTERPOLATIONS),
    "mask_type": Reader("SparseML's words", _theirs),
}


class ModifierBuilder:
    """Checks modifiers and builds them.

    Attributes:
        problems: What is wrong with them.
        replaced: What stands in for a modifier, by ``id`` of its settings.
    """

    def __init__(self, file: str):
        self.problems: list[Problem] = []
        self.replaced: dict[int, tuple[Translated, ModifierSettings]] = {}
        self._file = file
        self._classes = modifier_classes()

    def build(self, settings: ModifierSettings) -> Modifier | None:
        """Check one modifier and build it; None if there is a problem with it."""
        translate = translation_of(settings.name)
        if translate is not None:
            return self._build_replacement(settings, translate)
        if settings.name not in self._classes and settings.name in ONLY_SPARSEML:
            return self._report(settings, only_sparseml(settings.name))
        if settings.name not in self._classes:
            near = nearest(settings.name, {*self._classes, *ONLY_SPARSEML})
            fault = Fault(
                Rule.UNKNOWN,
                broken=f"there is no modifier {settings.name}",
                expected="one of SparseML's or obert_modifiers' modifiers",
                fix=f"write !{near[0]}" if near else "remove it",
            )
            return self._report(settings, fault)
        cls = target_class(settings.name, settings.values)
        values = {k: v for k, v in settings.values.items() if k != _IGNORED_KEY}
        keys = _parameters(cls)
        given = {*values, *settings.faulty} - {_IGNORED_KEY}
        faults = [*_key_faults(settings.name, keys, given)]
        faulty = settings.faulty | {fault.key for fault in faults}
        values = {k: v for k, v in values.items() if k not in faulty}
        if issubclass(cls, KeyedModifier):
            faults += cls.read_keys(values, faulty)[1]
        else:
            faults += _their_faults(keys, values)
        first = {fault.key: fault for fault in reversed(faults)}  # one for a key
        for fault in reversed(first.values()):
            self._report(settings, fault)
        if faults or settings.faulty:
            return None
        try:
            return cls(**{k: _as_floats(k, v) for k, v in values.items()})
        except Exception as error:  # of other people's, who raise whatever they raise
            return self._report(settings, _refused(cls, error, values))

    def _build_replacement(
        self, settings: ModifierSettings, translate: Translate
    ) -> Modifier | None:
        values = {k: v for k, v in settings.values.items() if k != _IGNORED_KEY}
        found = translate(values)
        for fault in found.faults:
            if fault.key not in settings.faulty:
                self._report(settings, fault)
        if found.faults or settings.faulty:
            return None
        lines = {
            key: settings.line_of(found.origin.get(key, "")) for key in found.values
        }
        inner = ModifierSettings(
            found.name, settings.stage, settings.line, found.values, lines
        )
        self.replaced[id(settings)] = found, inner
        return self.build(inner)

    def _report(self, settings: ModifierSettings, fault: Fault) -> None:
        key = fault.key
        if key == "start_epoch" and key not in settings.lines:  # a default's
            key = "end_epoch" if "end_epoch" in settings.lines else key
        self.problems.append(settings.problem(self._file, fault, key))


def target_class(name: str, values: dict[str, Any]) -> type:
    """Return the class that SparseML builds for a tag.

    SparseML's quantization modifier has two classes and picks one by the keys given.
    """
    constructor = yaml.SafeLoader.yaml_constructors[f"!pytorch.{name}"]
    loader = yaml.SafeLoader(yaml.safe_dump(dict.fromkeys(values)))
    # The constructor first yields the bare object and only then calls __init__.
    return type(next(constructor(loader, loader.get_single_node())))


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(cls.__init__).parameters)
    found.pop("self", None)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: one for key, one in found.items() if one.kind in named}


def _key_faults(
    name: str, keys: dict[str, inspect.Parameter], given: set[str]
) -> Iterator[Fault]:
    """Find unknown and missing keys."""
    for key in sorted(given - set(keys)):
        near = nearest(key, set(keys) - given) or nearest(key, keys)
        yield Fault(
            Rule.UNKNOWN,
            key,
            broken=f"{key} is not a key of {name}",
            expected=f"one of {', '.join(sorted(keys))}",
            fix=f"write {near[0]}" if near else "remove it",
        )
    for key in sorted(set(keys) - given):
        if keys[key].default is inspect.Parameter.empty:
            yield Fault(
                Rule.MISSING,
                key,
                broken=f"{key} is missing",
                expected="a value, since it has no default",
                fix=f"add '{key}: ...' to the modifier on this line",
            )


def _their_faults(
    keys: dict[str, inspect.Parameter], values: dict[str, Any]
) -> Iterator[Fault]:
    for key, value in values.items():
        try:
            _check_theirs(key, value)
        except FaultError as error:
            yield from error.faults
    default = {key: keys[key].default for key in _EPOCHS if key in keys}
    start, end = (number({**default, **values}.get(key)) for key in _EPOCHS)
    if start is not None and end is not None:
        yield from starts_before_it_ends(start, end)


def _check_theirs(key: str, value: Any) -> None:
    if _is_sparsity(key):
        for one in value if isinstance(value, dict) else [value]:
            if one is not None:
                (INIT_SPARSITY if key == "init_sparsity" else FRACTION)(key, one)
    elif key in _EPOCHS and value not in (math.inf, -math.inf):
        EPOCH(key, value)
    elif key in _THEIR_RULES:
        _THEIR_RULES[key](key, value)
    for text in _texts(value):
        check_pattern(key, text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _is_sparsity(key: str) -> bool:
    return key.endswith("_sparsity") and key != "global_sparsity"


def _as_floats(key: str, value: Any) -> Any:
    """Return whole sparsities as floats, which SparseML tells apart from them."""
    if _is_sparsity(key) and type(value) is int:
        return float(value)
    if _is_sparsity(key) and isinstance(value, dict):
        return {_as_floats(key, one): below for one, below in value.items()}
    return value


def _refused(cls: type, error: Exception, values: dict[str, Any]) -> Fault:
    """Say what a constructor refuses; the first key that it names is taken."""
    what = " ".join(str(error).split()) or type(error).__name__
    named = (word for word in re.findall(r"\w+", what) if word in values)
    return Fault(
        Rule.REFUSED,
        next(named, ""),
        broken=f"{cls.__name__} refuses its values ({what})",
        expected="values as in its documentation",
        fix="correct them",
    )
