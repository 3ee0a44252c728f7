"""Checks of recipe values, with messages that say how to fix them."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from obert_modifiers.core.patterns import MaskPattern, parse_mask_type

_PATTERN_TOLERANCE = 1e-3  # 1:3 cannot be written exactly in decimals
_AMOUNT = re.compile(
    r"([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE
)
_UNITS = ("", "K", "M", "G", "T")


def as_float(name: str, value: Any) -> float:
    """Read a number; PyYAML gives ``1e-7`` as a string.

    Args:
        name: Key of the recipe.
        value: Number or string.

    Returns:
        The number.

    Raises:
        ValueError: If it is not a finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(
            f"{name}={value} is not a number; expected a finite number; write it "
            "without quotes or units"
        )
    return number


def as_count(name: str, value: Any) -> int:
    """Read a whole number of at least 1.

    Args:
        name: Key of the recipe.
        value: Number or string.

    Returns:
        The number.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    number = as_float(name, value)
    if number != int(number) or number < 1:
        raise ValueError(
            f"{name}={value} is not a positive whole number; expected 1 or more; "
            "write a count"
        )
    return int(number)


def as_positive(name: str, value: Any) -> float:
    """Read a number above zero.

    Args:
        name: Key of the recipe.
        value: Number or string.

    Returns:
        The number.

    Raises:
        ValueError: If it is not above zero.
    """
    number = as_float(name, value)
    if number <= 0.0:
        raise ValueError(
            f"{name}={value} is not positive; expected a number above 0; raise it"
        )
    return number


def as_fraction(name: str, value: Any) -> float:
    """Read a fraction in [0, 1], and recognise percent.

    Args:
        name: Key of the recipe.
        value: Number or string.

    Returns:
        The fraction.

    Raises:
        ValueError: If it is outside [0, 1].
    """
    number = as_float(name, value)
    if not 0.0 <= number <= 1.0:
        fix = f"write {number / 100:g}, not {number:g}" if 1 < number <= 100 else ""
        raise ValueError(
            f"{name}={value} is outside [0, 1]; expected a fraction; "
            f"{fix or 'write a number between 0 and 1'}"
        )
    return number


def as_density(value: Any, sparsity: float, pattern: MaskPattern) -> float:
    """Hold the share that each parameter keeps against what is to be pruned.

    Args:
        value: Number or string.
        sparsity: Highest final sparsity.
        pattern: Structure of the sparsity.

    Returns:
        A fraction.

    Raises:
        ValueError: If the sparsity cannot be reached with it.
    """
    density = as_fraction("min_density", value)
    if density and pattern.n_m is not None:
        raise ValueError(
            f"min_density={density:g} and mask_type={pattern.name} are both given; "
            "expected one of them: N:M prunes all parameters alike; leave min_density "
            "out"
        )
    if density > 1.0 - sparsity:
        raise ValueError(
            f"min_density={density:g} leaves no room for final_sparsity={sparsity:g}; "
            f"expected at most {1.0 - sparsity:g}; lower it"
        )
    return density


def as_bytes(name: str, value: Any) -> int:
    """Read an amount of memory.

    Args:
        name: Key of the recipe.
        value: Bytes as a number, or with a unit, such as ``8GB`` or ``8GiB``.

    Returns:
        Bytes.

    Raises:
        ValueError: If it is not an amount.
    """
    found = _AMOUNT.fullmatch(str(value).strip())
    size = 0
    if found is not None:
        power = _UNITS.index(found[2].upper()) if found[2] else 0
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size < 1:
        raise ValueError(
            f"{name}={value} is not an amount of memory; expected bytes, or a number "
            "with a unit; write 8GB or 8GiB"
        )
    return size


def as_frequency(name: str, value: Any) -> float:
    """Read the epochs from one event to the next.

    Args:
        name: Key of the recipe.
        value: Number or string.

    Returns:
        A number above 0, or -1 for every optimizer step.

    Raises:
        ValueError: If it is neither.
    """
    number = as_float(name, value)
    if number <= 0.0 and number != -1.0:
        raise ValueError(
            f"{name}={value} is not positive; expected epochs between events, or -1 "
            "for every step; write a fraction of an epoch"
        )
    return number


def as_flag(name: str, value: Any) -> bool:
    """Read a truth value.

    Args:
        name: Key of the recipe.
        value: ``true`` or ``false``.

    Returns:
        The value.

    Raises:
        ValueError: If it is not a truth value.
    """
    if not isinstance(value, bool):
        raise ValueError(
            f"{name}={value} is not a truth value; expected true or false; write it "
            "without quotes"
        )
    return value


def as_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Read one of several words.

    Args:
        name: Key of the recipe.
        value: The word.
        choices: Words that are known.

    Returns:
        The word.

    Raises:
        ValueError: If it is not one of them.
    """
    if value not in choices:
        raise ValueError(
            f"{name}={value} is unknown; expected one of {', '.join(choices)}; use "
            f"{nearest_word(str(value), choices)}"
        )
    return value


def nearest_word(word: str, words: Sequence[str]) -> str:
    """Return the word that looks most like one, the first where none does.

    Args:
        word: A word that is not among them.
        words: Words that are known, at least one.

    Returns:
        One of the words.
    """
    return (difflib.get_close_matches(word, words, n=1) or words)[0]


def check_range(start_epoch: float, end_epoch: float) -> None:
    """Check that a pruning schedule ends after it starts.

    Args:
        start_epoch: First epoch, at least 0 or -1 for at once.
        end_epoch: Last epoch.

    Raises:
        ValueError: If the schedule is empty or runs backwards.
    """
    if end_epoch < max(start_epoch, 0.0):
        raise ValueError(
            f"end_epoch={end_epoch:g} lies before start_epoch={start_epoch:g}; "
            "expected a schedule that ends after it starts; swap them or raise "
            "end_epoch"
        )


def check_end(start_epoch: float, end_epoch: float) -> None:
    """Check that what begins at an epoch ends at a later one, or never.

    Args:
        start_epoch: First epoch; -1 for the start of the training.
        end_epoch: Epoch from which on it is over; -1 for never.

    Raises:
        ValueError: If it would be over when it begins.
    """
    if 0.0 <= end_epoch <= max(start_epoch, 0.0):
        raise ValueError(
            f"end_epoch={end_epoch:g} does not lie after start_epoch={start_epoch:g}; "
            "expected a later epoch, or -1 for the end of the training; raise it"
        )


def check_rising(first: float, last: float) -> None:
    """Check that a schedule prunes more and more.

    Args:
        first: Sparsity of the first event.
        last: The largest of the last one.

    Raises:
        ValueError: If it does not.
    """
    if first > last:
        raise ValueError(
            f"init_sparsity={first:g} is above final_sparsity={last:g}; expected a "
            "schedule that prunes more and more; lower it or raise final_sparsity"
        )


def as_pattern(name: str, value: Any) -> MaskPattern:
    """Read a structure of sparsity; PyYAML gives ``2:4`` as the number 124.

    YAML 1.1 has numbers in base 60, written with colons. No other number is a
    structure, so that such a one is read back.

    Args:
        name: Key of the recipe.
        value: Word, or a number in base 60.

    Returns:
        The pattern.
    """
    if type(value) is int and value > 60 and value % 60:
        value = f"{value // 60}:{value % 60}"
    return parse_mask_type(str(value))


def as_pattern_sparsity(name: str, value: float, pattern: MaskPattern) -> float:
    """Hold a sparsity against what a structure can have.

    Args:
        name: Key of the recipe, ``init_sparsity`` or ``final_sparsity``.
        value: A fraction.
        pattern: Structure of the sparsity.

    Returns:
        The fraction; for ``final_sparsity`` the exact one of N:M.

    Raises:
        ValueError: If N:M ends at another sparsity, or starts above its own.
    """
    if pattern.n_m is None:
        return value
    exact = f"{pattern.limit:.4g}"
    if name == "final_sparsity":
        if abs(value - pattern.limit) > _PATTERN_TOLERANCE:
            raise ValueError(
                f"{name}={value} is not the sparsity of mask_type={pattern.name}; "
                f"expected {exact}; write {exact}"
            )
        return pattern.limit
    if value > pattern.limit + _PATTERN_TOLERANCE:
        raise ValueError(
            f"{name}={value} is above the sparsity of mask_type={pattern.name}; "
            f"expected at most {exact}; write {exact} to reach it in one step"
        )
    return min(value, pattern.limit)
