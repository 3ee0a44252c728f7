"""``obert sizes``: how large models are, as the papers count."""

import json
from pathlib import Path
from typing import Annotated

import typer

from obert_modifiers.cli._host import quiet_host
from obert_modifiers.sizes import check_there


def show_sizes(
    models: Annotated[
        list[Path], typer.Argument(help="Runs' folders and exported files.")
    ],
    reference: Annotated[
        Path | None,
        typer.Option(help="What ratios are taken to; the first of several if unset."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A file to write them into.")
    ] = None,
) -> None:
    """Count parameters and zeros, and measure MB, gzip MB and their ratio."""
    for model in (*models, *([reference] if reference else ())):
        check_there(model)
    with quiet_host():
        from rich.table import Table

        from obert_modifiers.cli._console import table_console
        from obert_modifiers.report.sizes import HEAD, measure_all

        found = measure_all(models, reference)
    table = Table(*HEAD)
    for number, column in enumerate(table.columns):
        column.justify = "left" if number < 2 else "right"
        column.overflow = "fold"
    for sizes in found:
        table.add_row(*sizes.cells())
    table_console().print(table)
    if json_file is not None:
        rows = [sizes.record() for sizes in found]
        text = json.dumps(rows, indent=2, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")
