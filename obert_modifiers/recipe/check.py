"""Check each modifier's keys and values, and build it."""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from obert_modifiers.core.pruning.schedule import INTERPOLATIONS
from obert_modifiers.faults import Fault, FaultError, Rule, nearest, nearest_word
from obert_modifiers.host import ONLY_SPARSEML, TAG_PREFIX, only_sparseml
from obert_modifiers.host.bases import modifier_classes
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers.keys import KeyedModifier
from obert_modifiers.modifiers.shared_keys import starts_before_it_ends
from obert_modifiers.recipe.placed import Placed
from obert_modifiers.recipe_text.problems import Problem
from obert_modifiers.recipe_text.replacing import texts_in, translation_of
from obert_modifiers.recipe_text.values import ModifierSettings

_EPOCHS = ("start_epoch", "end_epoch")
_MASK_WORDS = ("unstructured", "block4", "tensorrt", "filter", "channel")
_N_M = re.compile(r"[1-9][0-9]*:[1-9][0-9]*")
_NO_DEFAULT = inspect.Parameter.empty
_KEYS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _mask_type(key: str, value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2 and {*map(type, value)} == {int}:
        return value
    if value in _MASK_WORDS or _N_M.fullmatch(str(value)):
        return value
    fix = f"write {nearest_word(str(value), _MASK_WORDS)}"
    if type(value) is int and value > 60 and value % 60:  # YAML reads 2:4 in base 60
        fix = f"write '{value // 60}:{value % 60}' in quotes"
    expected = f"one of {', '.join(_MASK_WORDS)}, N:M or a list of two numbers"
    rules.refuse(Rule.MASK_TYPE, key, value, "is unknown", expected, fix)


# What the constructors of SparseML's modifiers miss, or report without a remedy.
_THEIR_RULES: dict[str, rules.Reader] = {
    "cycle_epochs": rules.CYCLE,
    "inter_func": rules.choice(*INTERPOLATIONS),
    "mask_type": rules.Reader("SparseML's words", _mask_type),
}


class ModifierBuilder:
    """Checks modifiers and builds them."""

    def __init__(self, file: str):
        self.problems: list[Problem] = []
        self._file, self._classes = file, modifier_classes()

    def build(self, settings: ModifierSettings) -> Placed | None:
        """Check one modifier and build it; None if there is a problem with it."""
        translate = translation_of(settings.name)
        if translate is not None:
            found = translate(settings.values)
            known = (f for f in found.faults if f.key not in settings.faulty)
            self._report(settings, known)
            if found.faults or settings.faulty:
                return None
            settings.translated = found
            origin = {key: found.origin.get(key, "") for key in found.values}
            lines = {key: settings.line_of(old) for key, old in origin.items()}
            settings = replace(
                settings, name=found.name, values=found.values, lines=lines
            )
        if settings.name not in self._classes:
            return self._report(settings, [_unknown(settings.name, self._classes)])
        cls = target_class(settings.name, settings.values)
        first: dict[str, Fault] = {}  # of each key
        for fault in _faults(cls, settings):
            first.setdefault(fault.key, fault)
        self._report(settings, first.values())
        if first or settings.faulty:
            return None
        values = {key: _as_floats(key, one) for key, one in settings.values.items()}
        try:
            return Placed(cls(**values), settings)
        except Exception as error:  # of other people's, who raise whatever they raise
            return self._report(settings, [_refused(cls, error, values)])

    def _report(self, settings: ModifierSettings, faults: Iterable[Fault]) -> None:
        for fault in faults:
            key = fault.key
            if key == "start_epoch" and key not in settings.lines:  # a default's
                key = "end_epoch" if "end_epoch" in settings.lines else key
            self.problems.append(settings.problem(self._file, fault, key))


def _unknown(name: str, classes: Mapping[str, type]) -> Fault:
    if name in ONLY_SPARSEML:
        return only_sparseml(name)
    near = nearest(name, {*classes, *ONLY_SPARSEML})
    fix = f"write !{near[0]}" if near else "remove it"
    wrong = f"there is no modifier {name}; expected one of SparseML's or "
    return Fault(Rule.UNKNOWN, broken=f"{wrong}obert_modifiers' modifiers; {fix}")


def target_class(name: str, values: Mapping[str, Any]) -> type:
    """Return the class that SparseML builds for a tag.

    SparseML's quantization modifier has two classes and picks one by the keys given.
    """
    constructor = yaml.SafeLoader.yaml_constructors[f"{TAG_PREFIX}{name}"]
    loader = yaml.SafeLoader(yaml.safe_dump(dict.fromkeys(values)))
    # The constructor first yields the bare object and only then calls __init__.
    return type(next(constructor(loader, loader.get_single_node())))


def _faults(cls: type, settings: ModifierSettings) -> Iterator[Fault]:
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.kind in _KEYS}
    defaults.pop("self", None)
    wrong_keys = [*_key_faults(settings, defaults)]
    yield from wrong_keys
    faulty = settings.faulty | {fault.key for fault in wrong_keys}
    values = {k: v for k, v in settings.values.items() if k not in faulty}
    if issubclass(cls, KeyedModifier):
        yield from cls.read_keys(values, faulty)[1]
    else:
        yield from _their_faults(values, defaults)


def _key_faults(settings: ModifierSettings, keys: Mapping[str, Any]) -> Iterator[Fault]:
    """Find unknown and missing keys."""
    given = {*settings.values, *settings.faulty}
    for key in sorted(given - {*keys}):
        near = nearest(key, {*keys} - given) or nearest(key, keys)
        fix = f"write {near[0]}" if near else "remove it"
        wrong = f"{key} is not a key of {settings.name}; expected one of "
        wrong += f"{', '.join(sorted(keys))}; {fix}"
        yield Fault(Rule.UNKNOWN, key, broken=wrong)
    for key in sorted({*keys} - given):
        if keys[key] is _NO_DEFAULT:
            wrong = f"{key} is missing; expected a value, since it has no default; add "
            wrong += f"'{key}: ...' to the modifier on this line"
            yield Fault(Rule.MISSING, key, broken=wrong)


def _their_faults(
    values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Fault]:
    for key, value in values.items():
        try:
            _check_theirs(key, value)
        except FaultError as error:
            yield from error.faults
    start, end = (rules.number(values.get(k, defaults.get(k))) for k in _EPOCHS)
    if start is not None and end is not None:
        yield from starts_before_it_ends(start, end)


def _check_theirs(key: str, value: Any) -> None:
    if _is_sparsity(key):
        rule = rules.INIT_SPARSITY if key == "init_sparsity" else rules.FRACTION
        for one in value if isinstance(value, dict) else [value]:
            if one is not None:
                rule(key, one)
    elif key in _EPOCHS and value not in (math.inf, -math.inf):
        rules.EPOCH(key, value)
    elif key in _THEIR_RULES:
        _THEIR_RULES[key](key, value)
    for text in texts_in(value):
        rules.check_pattern(key, text)


def _is_sparsity(key: str) -> bool:
    return key.endswith("_sparsity") and key != "global_sparsity"


def _as_floats(key: str, value: Any) -> Any:
    """Return whole sparsities as floats, which SparseML tells apart from them."""
    if _is_sparsity(key) and type(value) is int:
        return float(value)
    if _is_sparsity(key) and isinstance(value, dict):
        return {_as_floats(key, one): below for one, below in value.items()}
    return value


def _refused(cls: type, error: Exception, values: Mapping[str, Any]) -> Fault:
    """Say what a constructor refuses; the first key that it names is taken."""
    what = " ".join(str(error).split()) or type(error).__name__
    key = next((word for word in re.findall(r"\w+", what) if word in values), "")
    wrong = f"{cls.__name__} refuses its values ({what}); expected values as in its "
    return Fault(Rule.REFUSED, key, broken=f"{wrong}documentation; correct them")
