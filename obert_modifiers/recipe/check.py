"""Check each modifier's keys and values, and build it."""

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from obert_modifiers.core.pruning.schedule import INTERPOLATIONS
from obert_modifiers.host import ONLY_SPARSEML, only_sparseml
from obert_modifiers.host.bases import Modifier, modifier_classes
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.recipe.problems import Problem, nearest
from obert_modifiers.recipe.replacing import Translate, Translated, translation_of
from obert_modifiers.recipe.values import ModifierSettings

_IGNORED_KEY = "log_types"  # from old recipes; SparseML drops it too
_MASK_WORDS = ("unstructured", "block4", "tensorrt", "filter", "channel")
_N_M = re.compile(r"[1-9][0-9]*:[1-9][0-9]*")
_FROM_PARAM = "__FROM_PARAM__"
# Values that stand in for faulty ones, so that the constructor can look at the rest.
# Keys that a constructor compares with each other are replaced together.
_STAND_INS: tuple[dict[str, Any], ...] = (
    {"init_sparsity": 0.0, "final_sparsity": 0.5, "params": "__ALL_PRUNABLE__"},
    {
        "start_epoch": 0.0,
        "end_epoch": 1.0,
        "update_frequency": 0.5,
        "disable_observer_epoch": None,
    },
)


class ModifierBuilder:
    """Checks modifiers and builds them.

    Attributes:
        problems: What is wrong with them.
        replaced: What stands in for a modifier, by ``id`` of its settings.
    """

    def __init__(self, file: str):
        """Look up the modifiers that there are.

        Args:
            file: Name of the recipe's file.
        """
        self.problems: list[Problem] = []
        self.replaced: dict[int, tuple[Translated, ModifierSettings]] = {}
        self._file = file
        self._classes = modifier_classes()

    def build(self, settings: ModifierSettings) -> Modifier | None:
        """Check one modifier and build it.

        Args:
            settings: Its name and values.

        Returns:
            The modifier, or None if there is a problem with it.
        """
        translate = translation_of(settings.name)
        if translate is not None:
            return self._build_replacement(settings, translate)
        if settings.name not in self._classes and settings.name in ONLY_SPARSEML:
            self._report(settings, "", only_sparseml(settings.name))
            return None
        if settings.name not in self._classes:
            near = nearest(settings.name, {*self._classes, *ONLY_SPARSEML})
            fix = f"write !{near[0]}" if near else "remove it"
            self._report(
                settings,
                "",
                f"there is no modifier {settings.name}; expected one of SparseML's or "
                f"obert_modifiers' modifiers; {fix}",
            )
            return None
        cls = target_class(settings.name, settings.values)
        values = {k: v for k, v in settings.values.items() if k != _IGNORED_KEY}
        faulty = set(settings.faulty)
        faulty |= self._check_keys(settings, cls, values)
        for key, message in _value_faults(cls, values):
            if key not in faulty:
                faulty.add(key)
                self._report(settings, key, message)
        values = {
            key: _float_sparsity(key, value)
            for key, value in values.items()
            if key not in faulty
        }
        return self._construct(settings, cls, values, faulty)

    def _build_replacement(
        self, settings: ModifierSettings, translate: Translate
    ) -> Modifier | None:
        """Return the modifier that stands in, or None after reporting problems."""
        values = {k: v for k, v in settings.values.items() if k != _IGNORED_KEY}
        found = translate(values)
        for key, message in found.faults:
            if key not in settings.faulty:
                self._report(settings, key, message)
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

    def _check_keys(
        self, settings: ModifierSettings, cls: type, values: dict[str, Any]
    ) -> set[str]:
        """Return unknown and missing keys, after reporting them."""
        parameters = _parameters(cls)
        given = {*values, *settings.faulty} - {_IGNORED_KEY}
        unknown = given - set(parameters)
        for key in sorted(unknown):
            near = nearest(key, set(parameters) - given) or nearest(key, parameters)
            self._report(
                settings,
                key,
                f"{key} is not a key of {settings.name}; expected one of "
                f"{', '.join(sorted(parameters))}; "
                f"{f'write {near[0]}' if near else 'remove it'}",
            )
        missing = {
            key
            for key, parameter in parameters.items()
            if parameter.default is parameter.empty and key not in given
        }
        for key in sorted(missing):
            self._report(
                settings,
                key,
                f"{key} is missing; expected a value, since it has no default; add "
                f"'{key}: ...' to the modifier on this line",
            )
        return unknown | missing

    def _construct(
        self,
        settings: ModifierSettings,
        cls: type,
        values: dict[str, Any],
        faulty: set[str],
    ) -> Modifier | None:
        """Return the modifier, or None after reporting what its constructor refuses."""
        parameters = _parameters(cls)
        # Each round takes out the value that the constructor complained about last.
        while True:
            stand_ins = _stand_ins(faulty, parameters)
            try:
                modifier = cls(**{**values, **stand_ins})
            # Constructors of other people's modifiers raise whatever they raise.
            except Exception as error:
                key, named = _key_in(str(error), values)
                if key in stand_ins or (faulty and not named):
                    return None  # the complaint may be about a stand-in
                self._report(settings, key, _constructor_fault(cls, error, named))
                if not named:
                    return None
                faulty.add(key)
                del values[key]
            else:
                return None if faulty else modifier

    def _report(self, settings: ModifierSettings, key: str, message: str) -> None:
        line = settings.line_of(key)
        self.problems.append(Problem(self._file, line, settings.name, key, message))


def target_class(name: str, values: dict[str, Any]) -> type:
    """Return the class that SparseML builds for a tag.

    SparseML's quantization modifier has two classes and picks one by the keys given.

    Args:
        name: A registered modifier.
        values: Value by key.

    Returns:
        The class.
    """
    constructor = yaml.SafeLoader.yaml_constructors[f"!pytorch.{name}"]
    loader = yaml.SafeLoader(yaml.safe_dump(dict.fromkeys(values)))
    # The constructor first yields the bare object and only then calls __init__.
    return type(next(constructor(loader, loader.get_single_node())))


def number(value: Any) -> float | None:
    """Read a number, also one written as text.

    Args:
        value: Any value from a recipe.

    Returns:
        The number, or None for anything else, booleans included.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(cls.__init__).parameters)
    found.pop("self", None)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: one for key, one in found.items() if one.kind in named}


def _value_faults(cls: type, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    # What constructors miss, or report without saying what to write.
    for key, value in values.items():
        if _is_sparsity(key):
            for one in value if isinstance(value, dict) else [value]:
                wrong = _sparsity_fault(key, one)
                if wrong:
                    yield key, wrong
        yield from ((key, wrong) for wrong in _pattern_faults(key, value))
    yield from _schedule_faults(cls, values)
    cycle = values.get("cycle_epochs", 1.0)
    if number(cycle) is None or not number(cycle) > 0.0:
        yield (
            "cycle_epochs",
            f"cycle_epochs={cycle} is not positive; expected the epochs of a cycle; "
            "write a number above 0",
        )
    mask_type = values.get("mask_type", "unstructured")
    # Our constructors know their own words, and say what is wrong.
    if not issubclass(cls, GradualPruningModifier) and not _is_mask_type(mask_type):
        yield "mask_type", _mask_type_fault(mask_type)
    func = values.get("inter_func", "linear")
    if func not in INTERPOLATIONS:
        near = nearest(str(func), INTERPOLATIONS) or ["cubic"]
        yield (
            "inter_func",
            f"inter_func={func} is unknown; expected one of "
            f"{', '.join(INTERPOLATIONS)}; write {near[0]}",
        )


def _mask_type_fault(value: Any) -> str:
    near = nearest(str(value), _MASK_WORDS) or ["unstructured"]
    fix = f"write {near[0]}"
    if type(value) is int and value > 60 and value % 60:  # YAML reads 2:4 in base 60
        fix = f"write '{value // 60}:{value % 60}' in quotes"
    return (
        f"mask_type={value} is unknown; expected one of {', '.join(_MASK_WORDS)}, N:M "
        f"or a list of two numbers; {fix}"
    )


def _is_mask_type(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(type(one) is int for one in value)
    return value in _MASK_WORDS or bool(_N_M.fullmatch(str(value)))


def _is_sparsity(key: str) -> bool:
    return key.endswith("_sparsity") and key != "global_sparsity"


def _float_sparsity(key: str, value: Any) -> Any:
    """Return whole numbers as floats, which SparseML tells apart from them."""
    if _is_sparsity(key) and type(value) is int:
        return float(value)
    if _is_sparsity(key) and isinstance(value, dict):
        return {_float_sparsity(key, one): below for one, below in value.items()}
    return value


def _sparsity_fault(key: str, value: Any) -> str:
    if value is None or (value == _FROM_PARAM and key == "init_sparsity"):
        return ""
    percent = isinstance(value, str) and value.rstrip().endswith("%")
    found = number(value.rstrip().removesuffix("%") if percent else value)
    if found is None:
        return (
            f"{key}={value} is not a number; expected a fraction; write one in [0, 1]"
        )
    if not percent and 0.0 <= found <= 1.0:
        return ""
    fix = "write a number from 0 to 1"
    if (percent or found > 1.0) and 0.0 <= found <= 100.0:
        fix = f"write {found / 100.0:g}, not {value}"
    rule = "is a percentage" if percent else "is outside [0, 1]"
    return f"{key}={value} {rule}; expected a fraction; {fix}"


def _pattern_faults(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _pattern_faults(key, item)
    elif isinstance(value, str) and value.startswith("re:"):
        try:
            re.compile(value[len("re:") :])
        except re.error as error:
            yield (
                f"{key}={value} is not a regular expression ({error}); expected one "
                "after re:; correct it"
            )


def _schedule_faults(cls: type, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    epochs = {}
    parameters = _parameters(cls)
    for key in ("start_epoch", "end_epoch"):
        default = parameters[key].default if key in parameters else None
        value = values.get(key, default)
        epochs[key] = number(value)
        wrong = epochs[key] is None or math.isnan(epochs[key])
        if wrong and key in values:
            yield key, f"{key}={value} is not a number; expected an epoch; write one"
    start, end = epochs["start_epoch"], epochs["end_epoch"]
    if start is not None and end is not None and 0.0 <= end < start:
        yield (
            "start_epoch" if "start_epoch" in values else "end_epoch",
            f"start_epoch={start:g} comes after end_epoch={end:g}; expected the start "
            "before the end; swap them or move one",
        )


def _stand_ins(
    faulty: set[str], parameters: dict[str, inspect.Parameter]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in _STAND_INS:
        if faulty & set(group):
            found.update({k: v for k, v in group.items() if k in parameters})
    return found


def _key_in(message: str, values: dict[str, Any]) -> tuple[str, bool]:
    """Return the key that a complaint is about, and whether about that key alone.

    Ours begin with ``<key>=<value>``; of others' the first key that they name is taken.
    """
    begins = re.match(r"(\w+)=", message)
    if begins and begins[1] in values:
        return begins[1], True
    words = (word for word in re.findall(r"\w+", message) if word in values)
    return next(words, ""), False


def _constructor_fault(cls: type, error: Exception, named: bool) -> str:
    what = " ".join(str(error).split()) or type(error).__name__
    if named:
        return what
    return (
        f"{cls.__name__} refuses its values ({what}); expected values as in its "
        "documentation; correct them"
    )
