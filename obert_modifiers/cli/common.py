"""What several subcommands share; light."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 120  # of text that no terminal wraps


def flag(text: str, *names: str, **rules: Any) -> Any:
    """Declare a flag by its help, with names where they are not the parameter's."""
    return typer.Option(*names, help=text, **rules)


JsonFile = Annotated[Path | None, flag("A file to write all figures into.", "--json")]


def rank() -> int:
    """Return the number of this process among those that a launcher started."""
    return int(os.environ.get("RANK", "0"))


def figures(record: Mapping[str, Any], *names: str) -> str:
    """Format a record's figures of some names, those that it has."""
    named = [(name, record[name]) for name in names if record.get(name) is not None]
    return ", ".join(f"{name} {value:.4f}" for name, value in named)


def table_console() -> Console:
    """Make a console whose tables stay readable in a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def draw_table(
    rows: Sequence[Sequence[str]], left: int = 1, title: str | None = None
) -> Table:
    """Make a table; the first row is the head, the first `left` columns are text."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for number, (name, *cells) in enumerate(zip(*rows, strict=True)):
        if number < left:
            table.add_column(name, overflow="fold")
        else:  # numbers are never cut
            least = max(map(len, [*name.split(), *cells]))
            table.add_column(name, justify="right", min_width=least)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def write_json(path: Path, content: Any) -> None:
    """Write figures into a file."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
