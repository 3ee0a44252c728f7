"""The ``obert`` command; light until a subcommand needs more."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError:
    sys.stderr.write(
        "obert: the command needs the extra train; run "
        "pip install 'obert-modifiers[train]'\n"
    )
    raise SystemExit(2) from None

from obert_modifiers import __version__
from obert_modifiers.cli import models, recipe, sparseml, train
from obert_modifiers.cli.common import flag, rank
from obert_modifiers.cli.host import settle_host
from obert_modifiers.cli.launch import start_missing_processes
from obert_modifiers.tasks import TASKS

PACKAGE = "obert_modifiers"
# What the three sets of versions are made of.
_HOSTS = ("sparseml", "sparsezoo", "transformers", "datasets", "accelerate")
_MORE_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
_OWN_FLAGS = {"context_settings": {**_MORE_FLAGS, "help_option_names": []}}

GROUPS = {"train": "Train a model with a recipe.", "recipe": "Work on recipes."}
# Each subcommand: its function, and what typer is told beside it.
COMMANDS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    **{
        f"train {name}": (
            train.train,
            {**_OWN_FLAGS, "help": f"{what}; `--help` lists the flags."},
        )
        for name, what in TASKS.items()
    },
    "recipe check": (recipe.check, {}),
    "recipe plan": (recipe.plan, {}),
    "recipe convert": (recipe.convert, {}),
    "quickstart": (train.quickstart, {}),
    "export": (models.export, {}),
    "evaluate": (models.evaluate, {"context_settings": _MORE_FLAGS}),
    "bench": (models.bench, {}),
    "sizes": (models.sizes, {}),
    "report": (train.report, {}),
    "card": (train.card, {}),
    "run": (sparseml.run, _OWN_FLAGS),
    "doctor": (sparseml.doctor, {}),
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # A flag may be written with underscores too, as those of `obert train` are.
    context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"obert_modifiers {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, flag("Show.", "--version", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", "--debug")] = False,
) -> None:
    """Prune BERT-class encoders with oBERT and GMP★, by SparseML recipes."""


def _register() -> None:
    groups = {"": app}
    for name, what in GROUPS.items():
        groups[name] = typer.Typer(help=what, no_args_is_help=True)
        app.add_typer(groups[name], name=name)
    for path, (function, settings) in COMMANDS.items():
        group, _, name = path.rpartition(" ")
        groups[group].command(name, **settings)(function)


_register()


def main(argv: list[str] | None = None) -> int:
    """Run the command, with this process's words unless given; return the exit code.

    A user's error is one message and exit code 2.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None and "MASTER_ADDR" in os.environ:
        start_missing_processes(words)
    debug = "--debug" in words or os.environ.get("OBERT_DEBUG", "") not in ("", "0")
    words = recipe.spelt_out([word for word in words if word != "--debug"])
    settle_host(words)
    try:
        with warnings.catch_warnings():
            # What SparseML's import says on every start.
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            return app(words, prog_name="obert", standalone_mode=False) or 0
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("obert: interrupted", err=True)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        return _fail(error, debug)


def _fail(error: Exception, debug: bool) -> int:
    """Print a message where the user can help it, else the traceback."""
    if hasattr(error, "format_message"):  # a word that typer does not know
        if error.format_message():  # empty where the help was shown instead
            typer.echo(f"obert: {error.format_message()}", err=True)
        return 2
    missing = isinstance(error, ModuleNotFoundError) and error.name in _HOSTS
    if missing and not debug:
        typer.echo(f"obert: {error}; `obert doctor` says what mends it", err=True)
        return 2
    expected = isinstance(error, (ValueError, OSError)) and _raised_on_purpose(error)
    if debug or not expected:
        traceback.print_exception(error)
        return 2 if expected else 1
    process = f"[process {rank()}] " if rank() else ""
    typer.echo(f"obert: {process}{error}", err=True)
    return 2


def _raised_on_purpose(error: BaseException) -> bool:
    """Tell errors that the package raised from those that came from below it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE
