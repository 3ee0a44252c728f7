"""``obert run`` and ``obert doctor``."""

import json
import os
import platform
from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated

import typer

from obert_modifiers import __version__
from obert_modifiers.cli._host import quiet_host
from obert_modifiers.cpu import Cpu, host_cpu
from obert_modifiers.deploy.engines import engine_advice

_NO_STACK = 1  # exit status of `obert doctor`


def run_script(context: typer.Context) -> None:
    """Run one of SparseML's own scripts, with our modifiers in it."""  # noqa: DOC101  typer shows the docstring
    words = context.args
    if not words or words[0] in ("-h", "--help"):
        _show_scripts()
        return
    with quiet_host():
        from obert_modifiers.sparseml_cli.launch import run

        run(words)


def _show_scripts() -> None:
    from obert_modifiers.sparseml_cli.scripts import scripts

    typer.echo(
        "Usage: obert run [--replace[=ours]] [--without=FIX,...] SCRIPT ...\n\n"
        "Runs one of SparseML's own scripts with our modifiers and the fixes that it\n"
        "needs; `obert run SCRIPT --help` shows the script's flags.\n\n"
        "  --replace        SparseML's modifiers run on our code, with their meaning\n"
        "  --replace=ours   the same, with our defaults; prints what changes\n"
        "  --without=FIX    leave a fix out\n\nScripts:"
    )
    for name in sorted(scripts()):
        typer.echo(f"  {name}")


def show_doctor(
    stack: Annotated[
        str | None, typer.Option(help="A, B or C: the one that this should be.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which stack and CPU this is, what is broken or slow, and what mends it."""  # noqa: DOC501  typer shows the docstring
    from obert_modifiers.sparseml_cli.stacks import STACKS, diagnose, installed_versions

    found, cpu = diagnose(installed_versions(), stack), host_cpu()
    if as_json:
        report = {"obert_modifiers": __version__, **asdict(found)}
        report["cpu"] = {
            "name": cpu.name,
            "cores": os.cpu_count(),
            "instruction_sets": cpu.instruction_sets,
            "engines": engine_advice(cpu),
        }
        report["faults"] = [str(fault) for fault in found.faults]
        typer.echo(json.dumps(report, indent=1))
    else:
        typer.echo(f"obert_modifiers {__version__} on {platform.platform()}")
        for name, version in found.versions.items():
            typer.echo(f"  {name:<20} {version or '-'}")
        _show_cpu(cpu)
        nearest = STACKS[found.nearest]
        if found.stack:
            typer.echo(f"stack {nearest.key}: {nearest.what}")
        else:
            typer.echo(f"no stack; nearest is {nearest.key}: {nearest.what}")
            for fault in found.faults:
                typer.echo(f"broken: {fault}")
            typer.echo(f"mend it with: {found.command}")
    if not found.stack:
        raise typer.Exit(_NO_STACK)


def _show_cpu(cpu: Cpu) -> None:
    """Print what the CPU has, and what each engine makes of it."""
    sets = ", ".join(cpu.instruction_sets) or "none that the engines know"
    typer.echo(f"{cpu.name}, {os.cpu_count()} cores: {sets}")
    for engine, line in engine_advice(cpu).items():
        there = find_spec(engine) is not None
        typer.echo(f"  {engine:<20} {line}{'' if there else ' [not installed]'}")
