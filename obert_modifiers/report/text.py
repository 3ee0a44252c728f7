"""Numbers as the report prints them."""

from pathlib import Path

NONE = "–"


def number(value: float | None, digits: int) -> str:
    """Format a number, a tiny one with an exponent; a dash for None."""
    if value is None:
        return NONE
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 2) -> str:
    """Format a share in [0, 1]; a dash for None."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def figure(value: float | None) -> str:
    """Format a task's figure: three digits for a share, two for percent, perplexity."""
    return number(value, 3 if value is not None and abs(value) <= 1.0 else 2)


def short_path(value: str | None) -> str:
    """Shorten each absolute path in a text of paths with commas to its last part."""
    parts = [part.strip() for part in (value or "").split(",")]
    names = [Path(part).name if part.startswith("/") else part for part in parts]
    return ", ".join(dict.fromkeys(names))
