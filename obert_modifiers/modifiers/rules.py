"""How the values of recipe keys are read and checked; each rule is written once here.

A rule is called with the name of a key and a value, returns the value as it is used, or
raises :class:`~obert_modifiers.faults.FaultError`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

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


def refuse(
    rule: Rule, key: str, value: Any, broken: str, expected: str, fix: str
) -> NoReturn:
    """Raise a fault of a value."""
    raise FaultError(Fault.of(rule, key, value, broken, expected, fix))


def simple(
    rule: Rule,
    take: Callable[[Any], Any],
    *said: str,
    first: Callable[[str, Any], Any] | None = None,
    says: str = "",
) -> Reader:
    """Make a rule of a function that returns None for a value that breaks it.

    Args:
        rule: Its name.
        take: Returns the value as it is used.
        *said: How it is broken, what is expected, and what to do.
        first: A rule that comes before it.
        says: What is expected, for the docs, where it is said otherwise there.
    """

    def read(key: str, value: Any) -> Any:
        found = take(value if first is None else first(key, value))
        if found is None:
            refuse(rule, key, value, *said)
        return found

    return Reader(says or said[1], read)


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


def _above_zero(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found > 0.0 else None


def _whole(found: float) -> int | None:
    return int(found) if found == int(found) and found >= 1 else None


NUMBER = simple(
    Rule.NUMBER,
    _finite,
    "is not a number",
    "a finite number",
    "write it without quotes or units",
)
EPOCH = simple(Rule.NUMBER, _finite, "is not a number", "an epoch", "write one")
COUNT = simple(
    Rule.COUNT,
    _whole,
    "is not a positive whole number",
    "1 or more",
    "write a count",
    first=NUMBER,
    says="a whole number of 1 or more",
)
POSITIVE = simple(
    Rule.POSITIVE,
    _above_zero,
    "is not positive",
    "a number above 0",
    "raise it",
    first=NUMBER,
)
CYCLE = simple(
    Rule.POSITIVE,
    _above_zero,
    "is not positive",
    "the epochs of a cycle",
    "write a number above 0",
)
FREQUENCY = simple(
    Rule.FREQUENCY,
    lambda found: found if found > 0.0 or found == -1.0 else None,
    "is not positive",
    "epochs between events, or -1 for every step",
    "write a fraction of an epoch",
    first=NUMBER,
)
FLAG = simple(
    Rule.FLAG,
    lambda value: value if isinstance(value, bool) else None,
    "is not a truth value",
    "true or false",
    "write it without quotes",
)


def not_negative(fix: str) -> Reader:
    """Make the rule of a number of at least zero."""
    said = "is negative", "0 or more", fix
    take = lambda found: found if found >= 0.0 else None  # noqa: E731
    return simple(Rule.NOT_NEGATIVE, take, *said, first=NUMBER)


def name(expected: str, fix: str) -> Reader:
    """Make the rule of a text that is not empty."""
    return simple(
        Rule.NAMES,
        lambda value: value if isinstance(value, str) and value.strip() else None,
        "is not a name",
        expected,
        fix,
    )


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
        refuse(Rule.FRACTION, key, value, "is not a number", "a fraction", fix)
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


BYTES = simple(
    Rule.BYTES,
    lambda value: value if read_bytes(value) else None,  # written as it was given
    "is not an amount of memory",
    "bytes, or a number with a unit",
    "write 8GB or 8GiB",
)


def _options(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        expected, fix = "options of the loader", "write batch_size: 32 below it"
        refuse(Rule.MAPPING, key, value, "is not a mapping", expected, fix)
    if "batch_size" in value:
        COUNT(key, value["batch_size"])
    return value


OPTIONS = Reader("a mapping", _options)


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


PARAMS = Reader("names, re: patterns or a token", _params)
FINAL_SPARSITY = Reader("a fraction in [0, 1], or one by names", _goal)
MASK_TYPE = Reader(
    "unstructured, block4, block:RxC or N:M", lambda k, v: read_pattern(k, v).name
)


def _indices(value: Any) -> list[int] | None:
    found = isinstance(value, (list, tuple)) and value
    whole = found and all(type(one) is int and one >= 0 for one in value)
    return list(value) if whole else None


def _layers(key: str, value: Any) -> int | list[int]:
    if not isinstance(value, (list, tuple)):
        found = COUNT(key, value)
        if found < 2:
            broken, fix = "does not say which layer", "write a list, as in keep: [0]"
            refuse(Rule.LAYERS, key, found, broken, "2 or more", fix)
        return found
    if not _indices(value) or list(value) != sorted(set(value)):
        expected = "different indices from 0 on, in increasing order"
        said = "is not a list of layers", expected, "write [0, 6, 11]"
        refuse(Rule.LAYERS, key, list(value), *said)
    return list(value)


LAYERS = Reader("2 or more, or a list of indices", _layers)


def layer_map(*words: str) -> Reader:
    """Make the rule of a word, or a list of the teacher's layers."""
    indices = simple(
        Rule.LAYERS,
        _indices,
        "is not a list of layers",
        "indices of the teacher's layers from 0 on",
        "write uniform",
    )
    word = choice(*words)
    return Reader(
        f"{word.says}, or a list of layers",
        lambda k, value: (word if isinstance(value, str) else indices)(k, value),
    )


def _texts(value: Any) -> list[str] | None:
    found = isinstance(value, (list, tuple)) and value
    return list(value) if found and all(isinstance(v, str) for v in value) else None


LAYER_NAMES = simple(
    Rule.LAYERS,
    _texts,
    "is not a list of names",
    "layers that the model has",
    "write [bert.encoder.layer.1]",
    says="a list of names",
)
INPUTS = simple(
    Rule.NAMES,
    lambda value: [value] if isinstance(value, str) else _texts(value),
    "are not names",
    "those of the model's inputs",
    "write [input_ids, attention_mask], or leave it out for all",
    says="names of inputs",
)
