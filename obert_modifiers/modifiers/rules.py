"""How the values of recipe keys are read and checked; each rule is written once here.

A rule is called with the name of a key and a value, returns the value as it is used, or
raises :class:`~obert_modifiers.faults.FaultError`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
        read: Called with key and value.
    """

    says: str
    read: Callable[[str, Any], Any]

    def __call__(self, key: str, value: Any) -> Any:
        """Return the value as it is used, or raise a ``FaultError``."""
        return self.read(key, value)


def refuse(rule: Rule, key: str, value: Any, broken: str, expected: str, fix: str):  # noqa: ANN201
    """Raise a fault of a value."""
    raise FaultError(Fault.of(rule, key, value, broken, expected, fix))


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


def _number(key: str, value: Any) -> float:
    found = _finite(value)
    if found is None:
        fix = "write it without quotes or units"
        refuse(Rule.NUMBER, key, value, "is not a number", "a finite number", fix)
    return found


def _epoch(key: str, value: Any) -> float:
    found = _finite(value)
    if found is None:
        refuse(Rule.NUMBER, key, value, "is not a number", "an epoch", "write one")
    return found


def _count(key: str, value: Any) -> int:
    found = _number(key, value)
    if found != int(found) or found < 1:
        broken = "is not a positive whole number"
        refuse(Rule.COUNT, key, value, broken, "1 or more", "write a count")
    return int(found)


def _positive(key: str, value: Any) -> float:
    found = _number(key, value)
    if found <= 0.0:
        refuse(
            Rule.POSITIVE, key, value, "is not positive", "a number above 0", "raise it"
        )
    return found


def not_negative(fix: str) -> Reader:
    """Make the rule of a number of at least zero."""

    def read(key: str, value: Any) -> float:
        found = _number(key, value)
        if found < 0.0:
            refuse(Rule.NOT_NEGATIVE, key, value, "is negative", "0 or more", fix)
        return found

    return Reader("0 or more", read)


def _fraction(key: str, value: Any) -> float:
    percent = isinstance(value, str) and value.rstrip().endswith("%")
    found = number(value.rstrip().removesuffix("%") if percent else value)
    if found is None:
        fix = "write one in [0, 1]"
        refuse(Rule.FRACTION, key, value, "is not a number", "a fraction", fix)
    if percent or not 0.0 <= found <= 1.0:
        broken = "is a percentage" if percent else "is outside [0, 1]"
        fix = "write a number from 0 to 1"
        if (percent or found > 1.0) and 0.0 <= found <= 100.0:
            fix = f"write {found / 100.0:g}, not {value}"
        refuse(Rule.FRACTION, key, value, broken, "a fraction", fix)
    return found


def _init_sparsity(key: str, value: Any) -> float | str:
    return value if value == FROM_PARAM else _fraction(key, value)


def _frequency(key: str, value: Any) -> float:
    found = _number(key, value)
    if found <= 0.0 and found != -1.0:
        expected = "epochs between events, or -1 for every step"
        fix = "write a fraction of an epoch"
        refuse(Rule.FREQUENCY, key, value, "is not positive", expected, fix)
    return found


def _cycle(key: str, value: Any) -> float:
    found = number(value)
    if found is None or not found > 0.0:
        expected, fix = "the epochs of a cycle", "write a number above 0"
        refuse(Rule.POSITIVE, key, value, "is not positive", expected, fix)
    return found


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        expected, fix = "true or false", "write it without quotes"
        refuse(Rule.FLAG, key, value, "is not a truth value", expected, fix)
    return value


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
        f"{word}, or {rule.says}",
        lambda key, value: value if value == word else rule(key, value),
    )


def read_bytes(key: str, value: Any) -> int:
    """Read an amount of memory, such as ``8GB`` or ``8GiB``, in bytes."""
    found = _AMOUNT.fullmatch(str(value).strip())
    size = 0
    if found is not None:
        power = _UNITS.index(found[2].upper()) if found[2] else 0
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size < 1:
        expected, fix = "bytes, or a number with a unit", "write 8GB or 8GiB"
        refuse(Rule.BYTES, key, value, "is not an amount of memory", expected, fix)
    return size


def _amount(key: str, value: Any) -> Any:
    read_bytes(key, value)
    return value  # written to YAML as it was given


def _options(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        expected, fix = "options of the loader", "write batch_size: 32 below it"
        refuse(Rule.MAPPING, key, value, "is not a mapping", expected, fix)
    if "batch_size" in value:
        _count(key, value["batch_size"])
    return value


def _text(key: str, value: Any, expected: str, fix: str) -> str:
    if not (isinstance(value, str) and value.strip()):
        refuse(Rule.NAMES, key, value, "is not a name", expected, fix)
    return value


def name(expected: str, fix: str) -> Reader:
    """Make the rule of a text that is not empty."""
    return Reader(expected, lambda key, value: _text(key, value, expected, fix))


def listed(key: str, value: Any, *more: str) -> list[str]:
    """Read names or ``re:`` patterns, one or a list of them.

    Args:
        key: The key.
        value: What is written there.
        *more: Texts beside names that are taken, such as an empty one.
    """
    names = list(value) if isinstance(value, (list, tuple)) else [value]
    for one in names:
        if not isinstance(one, str) or not (one or one in more):
            expected, fix = "names or re: patterns", "write a list of strings"
            refuse(Rule.NAMES, key, one, "is not a name", expected, fix)
        check_pattern(key, one)
    return names


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
    if not value:
        return [] if value is None else value
    found = listed(key, value)
    return value if isinstance(value, str) else found


def _goal(key: str, value: Any) -> float | dict[Any, Any]:
    if not isinstance(value, dict):
        return _fraction(key, value)
    if not value:
        broken = "names no parameters"
        expected = "a sparsity, or a mapping from sparsities to lists of names"
        refuse(Rule.MAPPING, key, value, broken, expected, "write one")
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


def _layers(key: str, value: Any) -> int | list[int]:
    if not isinstance(value, (list, tuple)):
        found = _count(key, value)
        if found < 2:
            broken, fix = "does not say which layer", "write a list, as in keep: [0]"
            refuse(Rule.LAYERS, key, found, broken, "2 or more", fix)
        return found
    whole = all(type(one) is int and one >= 0 for one in value)
    if not whole or not value or list(value) != sorted(set(value)):
        expected = "different indices from 0 on, in increasing order"
        fix = "write [0, 6, 11]"
        broken = "is not a list of layers"
        refuse(Rule.LAYERS, key, list(value), broken, expected, fix)
    return list(value)


def _layer_names(key: str, value: Any) -> list[str]:
    named = isinstance(value, (list, tuple)) and value
    if not named or not all(isinstance(one, str) for one in value):
        expected, fix = "layers that the model has", "write [bert.encoder.layer.1]"
        refuse(Rule.LAYERS, key, value, "is not a list of names", expected, fix)
    return list(value)


def layer_map(*words: str) -> Reader:
    """Make the rule of a word, or a list of the teacher's layers."""

    def read(key: str, value: Any) -> str | list[int]:
        if isinstance(value, str):
            return choice(*words)(key, value)
        if not value or not all(type(one) is int and one >= 0 for one in value):
            expected = "indices of the teacher's layers from 0 on"
            broken = "is not a list of layers"
            refuse(Rule.LAYERS, key, value, broken, expected, "write uniform")
        return list(value)

    return Reader(f"{', '.join(words)}, or a list of layers", read)


def _inputs(key: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else list(value)
    if not found or not all(isinstance(one, str) for one in found):
        expected = "those of the model's inputs"
        fix = "write [input_ids, attention_mask], or leave it out for all"
        refuse(Rule.NAMES, key, value, "are not names", expected, fix)
    return found


NUMBER = Reader("a finite number", _number)
EPOCH = Reader("an epoch", _epoch)
COUNT = Reader("a whole number of 1 or more", _count)
POSITIVE = Reader("a number above 0", _positive)
FRACTION = Reader("a fraction in [0, 1]", _fraction)
INIT_SPARSITY = Reader(f"a fraction in [0, 1], or {FROM_PARAM}", _init_sparsity)
FINAL_SPARSITY = Reader("a fraction in [0, 1], or one by names", _goal)
FREQUENCY = Reader("epochs above 0, or -1 for every step", _frequency)
CYCLE = Reader("epochs above 0", _cycle)
FLAG = Reader("true or false", _flag)
BYTES = Reader("bytes, or as in 8GB", _amount)
OPTIONS = Reader("a mapping", _options)
PARAMS = Reader("names, re: patterns or a token", _params)
MASK_TYPE = Reader(
    "unstructured, block4, block:RxC or N:M", lambda k, v: read_pattern(k, v).name
)
LAYERS = Reader("2 or more, or a list of indices", _layers)
LAYER_NAMES = Reader("a list of names", _layer_names)
INPUTS = Reader("names of inputs", _inputs)
