"""``obert run`` and ``obert doctor``: SparseML's scripts, and what they need."""

import json
import os
import platform
from dataclasses import asdict
from typing import Annotated

import typer

from obert_modifiers import __version__
from obert_modifiers.cli.common import flag
from obert_modifiers.cpu import host_cpu
from obert_modifiers.deploy.engines import ENGINES, engine_advice

_USAGE = """\
Usage: obert run [--replace[=ours]] [--without=FIX,...] SCRIPT ...

Runs one of SparseML's own scripts with our modifiers and the fixes that it
needs; `obert run SCRIPT --help` shows the script's flags.

  --replace        SparseML's modifiers run on our code, with their meaning
  --replace=ours   the same, with our defaults; prints what changes
  --without=FIX    leave a fix out

Scripts:"""


def run(context: typer.Context) -> None:
    """Run a script of SparseML's, with our modifiers; without its name, list them."""
    words = context.args
    if not words or words[0] in ("-h", "--help"):
        from obert_modifiers.sparseml_cli.scripts import scripts

        try:
            known = sorted(scripts())
        except ValueError as error:  # without SparseML the help still says what it is
            known = [str(error)]
        typer.echo("\n  ".join([_USAGE, *known]))
        return
    from obert_modifiers.sparseml_cli.launch import run as run_script

    run_script(words)


def doctor(
    stack: Annotated[str | None, flag("A, B or C: which this should be.")] = None,
    as_json: Annotated[bool, flag("Print JSON.", "--json")] = False,
) -> None:
    """Say which stack and CPU this is, what is broken or slow, and what mends it."""
    from obert_modifiers.sparseml_cli.stacks import STACKS, diagnose, installed_versions

    found, cpu = diagnose(installed_versions(), stack), host_cpu()
    faults = [str(fault) for fault in found.faults]
    advice = engine_advice(cpu)
    if as_json:
        facts = {
            "name": cpu.name,
            "cores": os.cpu_count(),
            "instruction_sets": cpu.instruction_sets,
            "engines": advice,
        }
        record = {"obert_modifiers": __version__, **asdict(found)}
        typer.echo(json.dumps(record | {"cpu": facts, "faults": faults}, indent=1))
    else:
        typer.echo(f"obert_modifiers {__version__} on {platform.platform()}")
        for name, version in found.versions.items():
            typer.echo(f"  {name:<20} {version or '-'}")
        sets = ", ".join(cpu.instruction_sets) or "none that the engines know"
        typer.echo(f"{cpu.name}, {os.cpu_count()} cores: {sets}")
        for engine, line in advice.items():
            missing = "" if ENGINES[engine].installed else " [not installed]"
            typer.echo(f"  {engine:<20} {line}{missing}")
        nearest = STACKS[found.nearest]
        head = "stack" if found.stack else "no stack; nearest is"
        typer.echo(f"{head} {nearest.key}: {nearest.what}")
        for fault in faults:
            typer.echo(f"broken: {fault}")
        if found.command:
            typer.echo(f"mend it with: {found.command}")
    if not found.stack:
        raise typer.Exit(1)
