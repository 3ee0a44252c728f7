"""Numbers as the report prints them."""

from pathlib import Path

NONE = "–"


def number(value: float | None, digits: int) -> str:
    """Format a number.

    Args:
        value: The number, or None.
        digits: Digits after the point; tiny numbers get an exponent.

    Returns:
        The text; a dash for None.
    """
    if value is None:
        return NONE
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 2) -> str:
    """Format a share.

    Args:
        value: A share in [0, 1], or None.
        digits: Digits after the point.

    Returns:
        Percent; a dash for None.
    """
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def memory(size: int) -> str:
    """Format a number of bytes.

    Args:
        size: Bytes.

    Returns:
        GB of 1,000,000,000 bytes.
    """
    return f"{size / 1e9:.2f} GB"


def figure(value: float | None) -> str:
    """Format a task's figure: a share, a percentage or a perplexity.

    Args:
        value: The figure, or None.

    Returns:
        Three digits after the point for shares, two for larger numbers.
    """
    return number(value, 3 if value is not None and abs(value) <= 1.0 else 2)


def short_path(value: str | None) -> str:
    """Shorten what may be a path, or several with commas.

    Args:
        value: The text, or None.

    Returns:
        The last part of each absolute path; other texts as they are.
    """
    if not value:
        return ""
    parts = [part.strip() for part in value.split(",")]
    return ", ".join(
        Path(part).name if part.startswith("/") else part for part in parts
    )


def listed(texts: list[str]) -> str:
    """Join texts to one.

    Args:
        texts: Some.

    Returns:
        ``a, b and c``.
    """
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
