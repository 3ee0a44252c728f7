"""How the values of recipe keys are read and checked; each rule is written once."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from obert_modifiers.core.options import LAYER_MAPS
from obert_modifiers.core.patterns import MaskPattern, parse_mask_type
from obert_modifiers.faults import Fault, FaultError, Rule, nearest_word

FROM_PARAM = "__FROM_PARAM__"
ALL_ENCODER = "__ALL_ENCODER__"
_AMOUNT = re.compile(
    r"([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE
)
_UNITS = ("", "K", "M", "G", "T")


@dataclass(frozen=True)
class Reader:
    """A rule for values.

    Attributes:
        says: What is expected, for the tables of the docs.
        read: Called with key and value; returns the value as it is used, or raises a
            :class:`~obert_modifiers.faults.FaultError`.
    """

    says: str
    read: Callable[[str, Any], Any]

    def __call__(self, key: str, value: Any) -> Any:
        return self.read(key, value)


def refuse(
    rule: Rule, key: str, value: Any, broken: str, expected: str, fix: str
) -> NoReturn:
    raise FaultError(Fault.of(rule, key, value, broken, expected, fix))


def simple(
    rule: Rule,
    broken: str,
    expected: str,
    fix: str,
    first: Callable[[str, Any], Any] | None = None,
) -> Callable[[Callable[[Any], Any]], Reader]:
    """Make a rule of a function that returns None for a value that breaks it.

    ``first`` is a rule that is checked before it.
    """

    def decorate(take: Callable[[Any], Any]) -> Reader:
        def read(key: str, value: Any) -> Any:
            taken = take(first(key, value) if first else value)
            if taken is None:
                refuse(rule, key, value, broken, expected, fix)
            return taken

        return Reader(expected, read)

    return decorate


def number(value: Any) -> float | None:
    """Read a number, also one written as text: PyYAML reads ``1e-7`` as text.

    None for anything else, booleans included.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _finite(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


_NAN, _LOW = "is not a number", "is not positive"
NUMBER = simple(Rule.NUMBER, _NAN, "a finite number", "write it unquoted")(_finite)
_EPOCH = simple(Rule.NUMBER, _NAN, "an epoch", "write one")(_finite)


# The host takes what lies between -1 and 0 for neither: it would never come.
@simple(Rule.NOT_NEGATIVE, "is negative", "an epoch, or -1", "write 0", _EPOCH)
def EPOCH(value: float) -> float | None:
    return value if value >= 0.0 or value == -1.0 else None


@simple(Rule.COUNT, "is no count", "a whole number of 1 or more", "write one", NUMBER)
def COUNT(value: float) -> int | None:
    return int(value) if value == int(value) and value >= 1 else None


@simple(Rule.POSITIVE, _LOW, "a number above 0", "raise it", NUMBER)
def POSITIVE(value: float) -> float | None:
    return value if value > 0.0 else None


@simple(Rule.POSITIVE, _LOW, "the epochs of a cycle", "write a number above 0")
def CYCLE(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found > 0.0 else None


@simple(Rule.NOT_NEGATIVE, "is negative", "0 or more", "raise it", NUMBER)
def NOT_NEGATIVE(value: float) -> float | None:
    return value if value >= 0.0 else None


@simple(
    Rule.FRACTION, "is outside (0, 1)", "a number between 0 and 1", "write one", NUMBER
)
def INSIDE(value: float) -> float | None:
    return value if 0.0 < value < 1.0 else None


_OFTEN = "epochs between events, or -1 for every step"


@simple(Rule.FREQUENCY, _LOW, _OFTEN, "write a fraction of an epoch", NUMBER)
def FREQUENCY(value: float) -> float | None:
    return value if value > 0.0 or value == -1.0 else None


@simple(Rule.FLAG, "is not a truth value", "true or false", "write it without quotes")
def FLAG(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def name(expected: str) -> Reader:
    """Make the rule of a text that is not empty."""

    def take(value: Any) -> str | None:
        return value if isinstance(value, str) and value.strip() else None

    return simple(Rule.NAMES, "is not a name", expected, "write it as text")(take)


def choice(*words: str) -> Reader:
    """Make the rule of a value that is one of several words."""

    def read(key: str, value: Any) -> str:
        if value not in words:
            fix = f"use {nearest_word(str(value), words)}"
            expected = f"one of {', '.join(words)}"
            refuse(Rule.CHOICE, key, value, "is unknown", expected, fix)
        return value

    return Reader(", ".join(words), read)


def either(word: str, rule: Reader) -> Reader:
    """Make the rule of a value that is a certain word, or keeps another rule."""
    return Reader(
        f"{rule.says}, or {word}",
        lambda key, value: value if value == word else rule(key, value),
    )


def _fraction(key: str, value: Any) -> float:
    percent = isinstance(value, str) and value.rstrip().endswith("%")
    found = number(value.rstrip().removesuffix("%") if percent else value)
    if found is None:
        fix = "write one in [0, 1]"
        refuse(Rule.FRACTION, key, value, _NAN, "a fraction", fix)
    if percent or not 0.0 <= found <= 1.0:
        broken = "is a percentage" if percent else "is outside [0, 1]"
        fix = "write a number from 0 to 1"
        if (percent or found > 1.0) and 0.0 <= found <= 100.0:
            fix = f"write {found / 100.0:g}, not {value}"
        refuse(Rule.FRACTION, key, value, broken, "a fraction", fix)
    return found


FRACTION = Reader("a fraction in [0, 1]", _fraction)
INIT_SPARSITY = either(FROM_PARAM, FRACTION)


def read_bytes(value: Any) -> int | None:
    """Read an amount of memory, such as ``8GB`` or ``8GiB``, in bytes."""
    found = _AMOUNT.fullmatch(str(value).strip())
    if found is None:
        return None
    power = _UNITS.index(found[2].upper()) if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power) or None


_UNIT = "bytes, or a number with a unit"


@simple(Rule.BYTES, "is not an amount of memory", _UNIT, "write 8GB or 8GiB")
def BYTES(value: Any) -> Any:
    return value if read_bytes(value) else None  # written as it was given


def _options(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        expected, fix = "options of the loader", "write batch_size: 32 below it"
        refuse(Rule.MAPPING, key, value, "is not a mapping", expected, fix)
    if "batch_size" in value:
        COUNT(key, value["batch_size"])
    return value


OPTIONS = Reader("a mapping", _options)


def listed(key: str, value: Any, *more: str) -> list[str]:
    """Read names or ``re:`` patterns, one or a list; ``more`` are taken beside them."""
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    for text in texts:
        if not isinstance(text, str) or not (text or text in more):
            expected, fix = "names or re: patterns", "write a list of strings"
            refuse(Rule.NAMES, key, text, "is not a name", expected, fix)
        check_pattern(key, text)
    return texts


def check_pattern(key: str, text: str) -> None:
    """Check that what comes after ``re:`` is a regular expression."""
    if not text.startswith("re:"):
        return
    try:
        re.compile(text[len("re:") :])
    except re.error as error:
        broken = f"is not a regular expression ({error})"
        refuse(Rule.PATTERN, key, text, broken, "one after re:", "correct it")


def names(*more: str) -> Reader:
    """Make the rule of :func:`listed`."""
    return Reader("names or re: patterns", lambda k, value: listed(k, value, *more))


def _params(key: str, value: Any) -> str | list[str]:
    if value is None or value in ("", [], ()):
        return [] if value is None else value
    found = listed(key, value)
    return value if isinstance(value, str) else found


def _goal(key: str, value: Any) -> float | dict[Any, Any]:
    if not isinstance(value, dict):
        return _fraction(key, value)
    if not value:
        expected = "a sparsity, or a mapping from sparsities to lists of names"
        refuse(Rule.MAPPING, key, value, "names nothing", expected, "write one")
    read_goals(None, value)
    return value


def read_goals(
    params: str | Sequence[str] | None, final_sparsity: float | dict[float, list[str]]
) -> list[tuple[float, list[str]]]:
    """Bring ``params`` and ``final_sparsity`` into pairs of a sparsity and names."""
    if isinstance(final_sparsity, dict):
        key = "final_sparsity"
        return [(_fraction(key, s), listed(key, n)) for s, n in final_sparsity.items()]
    return [(final_sparsity, listed("params", params or ALL_ENCODER))]


def read_pattern(key: str, value: Any) -> MaskPattern:
    """Read a structure of sparsity; PyYAML gives ``2:4`` as the number 124.

    YAML 1.1 has numbers in base 60, written with colons. No other number is a
    structure, so that such a one is read back.
    """
    if type(value) is int and value > 60 and value % 60:
        value = f"{value // 60}:{value % 60}"
    try:
        return parse_mask_type(str(value))
    except ValueError as error:
        raise FaultError(Fault(Rule.MASK_TYPE, key, broken=str(error))) from error


PARAMS = Reader("names, re: patterns or a token", _params)
FINAL_SPARSITY = Reader("a fraction in [0, 1], or one by names", _goal)
MASK_TYPE = Reader(
    "unstructured, block4, block:RxC or N:M", lambda k, v: read_pattern(k, v).name
)


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], list[Any] | None]:
    """Take lists that are not empty and whose items keep a rule."""

    def take(value: Any) -> list[Any] | None:
        found = isinstance(value, (list, tuple)) and value and all(map(holds, value))
        return list(value) if found else None

    return take


_indices = _all(lambda item: type(item) is int and item >= 0)
_texts = _all(lambda item: isinstance(item, str))


def _layers(key: str, value: Any) -> int | list[int]:
    if not isinstance(value, (list, tuple)):
        return COUNT(key, value)
    if not _indices(value) or list(value) != sorted(set(value)):
        broken = "is not a list of layers"
        expected = "different indices from 0 on, in increasing order"
        refuse(Rule.LAYERS, key, list(value), broken, expected, "write [0, 6, 11]")
    return list(value)


LAYERS = Reader("a whole number of 1 or more, or a list of indices", _layers)
_MAP_WORD = choice(*LAYER_MAPS)
_MAP_LIST = simple(
    Rule.LAYERS,
    "is not a list of layers",
    "indices of the teacher's layers from 0 on",
    "write uniform",
)(_indices)
LAYER_MAP = Reader(
    f"{_MAP_WORD.says}, or a list of layers",
    lambda k, value: (_MAP_WORD if isinstance(value, str) else _MAP_LIST)(k, value),
)


@simple(
    Rule.LAYERS, "is no list of names", "a list of names", "write [encoder.layer.1]"
)
def LAYER_NAMES(value: Any) -> list[str] | None:
    return _texts(value)


@simple(Rule.NAMES, "are not names", "names of inputs", "write [input_ids]")
def INPUTS(value: Any) -> list[str] | None:
    return [value] if isinstance(value, str) else _texts(value)
