"""A console whose tables stay readable in a pipe."""

from rich.console import Console

_PIPE_WIDTH = 120  # of text that no terminal wraps


def table_console() -> Console:
    """Make a console that is as wide as the terminal, or wide where there is none.

    Returns:
        The console, without highlighting.
    """
    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=_PIPE_WIDTH)
