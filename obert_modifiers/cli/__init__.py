"""L6: the ``obert`` command; light until a command needs more."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from obert_modifiers import __version__
from obert_modifiers.cli import evaluate
from obert_modifiers.cli._host import quiet_host
from obert_modifiers.cli.bench import bench
from obert_modifiers.cli.compat import run_script, show_doctor
from obert_modifiers.cli.export import export
from obert_modifiers.cli.launch import start_missing_processes
from obert_modifiers.cli.progress import LogLines, PlainReporter, make_reporter
from obert_modifiers.cli.recipe import recipe_app, spelt_out
from obert_modifiers.cli.sizes import show_sizes
from obert_modifiers.sparseml_cli.stacks import check_can_train
from obert_modifiers.tasks import TASKS, check_words, load
from obert_modifiers.tasks import main as run_task

PACKAGE = "obert_modifiers"

app = typer.Typer(
    name="obert",
    help="Prune BERT-class encoders with oBERT and GMP★, by SparseML recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train a model with a recipe.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(recipe_app, name="recipe")
app.command("sizes")(show_sizes)
app.command("export")(export)
app.command("bench")(bench)


@app.command("evaluate", context_settings=evaluate.SETTINGS)
@wraps(evaluate.evaluate_model)
def _evaluate(*args: Any, **kwargs: Any) -> None:
    with _reporting():
        evaluate.evaluate_model(*args, **kwargs)


# What the three sets of versions are made of.
_HOSTS = ("sparseml", "sparsezoo", "transformers", "datasets", "accelerate")
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"obert_modifiers {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Prune BERT-class encoders with oBERT and GMP★, by SparseML recipes."""


def _train(context: typer.Context) -> None:
    check_can_train()
    check_words(context.info_name, context.args)  # before torch is loaded
    with _reporting("--disable_tqdm" in context.args) as reporter:
        from obert_modifiers.training import TrainingStopped

        try:
            record = run_task(context.info_name, context.args, reporter)
        except TrainingStopped as stop:
            if _rank() == 0:
                command = load(context.info_name).resume_command(context.args)
                reporter.message(f"{stop}; go on with:\n{command}")
            return
        _finish(record, reporter)


for _name, _what in TASKS.items():
    train_app.command(
        _name,
        context_settings={**_PASS_ON, "help_option_names": []},
        help=f"{_what}; `--help` lists the flags.",
    )(_train)


@app.command("quickstart")
def _quickstart(
    output_dir: Annotated[
        Path, typer.Option("--output_dir", "--output-dir", help="Where it is written.")
    ] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of all runs.")] = 0,
    only: Annotated[
        str, typer.Option(help="Some of dense,gmp,obert,int8, with commas.")
    ] = "dense,gmp,obert,int8",
) -> None:
    """Prune the embedded encoder: dense, GMP★, oBERT and INT8, in one table."""
    check_can_train()
    with _reporting() as reporter:
        from obert_modifiers import quickstart
        from obert_modifiers.training import TrainingStopped

        names = tuple(name.strip() for name in only.split(","))
        try:
            quickstart.run(output_dir, seed=seed, only=names, reporter=reporter)
        except TrainingStopped as stop:
            # Its models are trained anew, from the one that was stopped on.
            stopped = stop.checkpoint.parent.name
            every = tuple(quickstart.TITLES)
            left = [n for n in every[every.index(stopped) :] if n in (*names, stopped)]
            words = ["--output_dir", str(output_dir), "--seed", str(seed)]
            command = ["obert", "quickstart", *words, "--only", ",".join(left)]
            reporter.message(
                f"stopped by SIGTERM while it trained {quickstart.TITLES[stopped]}; "
                f"what was finished stays; go on with:\n{shlex.join(command)}"
            )


@app.command("report")
def _report(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs' folders; the first is the reference.")
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output_dir",
            "--output-dir",
            help="Where the page goes; one run's own folder, else runs/report.",
        ),
    ] = None,
    bench: Annotated[
        list[Path] | None, typer.Option(help="JSON of `obert bench`, for speeds.")
    ] = None,
    evaluated: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of `obert evaluate`, for exported files."),
    ] = None,
) -> None:
    """Write report.html and report.png about runs that are finished."""
    with quiet_host():
        from obert_modifiers.report import write_report, write_runs

        if len(runs) == 1 and not (output_dir or bench or evaluated):
            page = write_report(runs[0])
        else:
            out = output_dir or (runs[0] if len(runs) == 1 else Path("runs/report"))
            page = write_runs(runs, out, bench=bench or (), evaluated=evaluated or ())
    typer.echo(page)


app.command(
    "run",
    context_settings={**_PASS_ON, "help_option_names": []},
    help="Run one of SparseML's own scripts, with our modifiers; `obert run` lists "
    "them.",
)(run_script)
app.command("doctor")(show_doctor)


def _finish(record: dict[str, Any], reporter: PlainReporter) -> None:
    """Write the report and say where everything is.

    Args:
        record: What the run wrote.
        reporter: Who prints.
    """
    if _rank() != 0:
        return
    figures = ", ".join(
        f"{name} {record[name]:.4f}"
        for name in (*record["headline"], "loss", "sparsity")
        if record.get(name) is not None
    )
    reporter.message(f"done in {record['minutes']:.1f} min: {figures}")
    if "sparsity" in record:
        from obert_modifiers.report import write_report

        page = write_report(record["config"]["output_dir"])
        reporter.message(f"model and metrics.json in {page.parent}, report in {page}")


@contextmanager
def _reporting(plain: bool = False) -> Iterator[PlainReporter]:
    """Show what the package logs, on the first process alone.

    Args:
        plain: Never show a bar.

    Yields:
        Who prints.
    """
    console = Console(highlight=False)
    reporter = make_reporter(console, plain)
    logger = logging.getLogger(PACKAGE)
    handler = LogLines(reporter)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if _rank() == 0 else logging.ERROR)
    try:
        with quiet_host():
            yield reporter
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def raised_on_purpose(error: BaseException) -> bool:
    """Tell errors that the package raised from those that came from below it.

    Args:
        error: What was caught.

    Returns:
        True where the innermost frame of the traceback is the package's.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


def main(argv: list[str] | None = None) -> int:
    """Run the command; a user's error is one message and exit code 2.

    Args:
        argv: The words after the program's name; those of this process without.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None and "MASTER_ADDR" in os.environ:
        start_missing_processes(words)
    debug = "--debug" in words or os.environ.get("OBERT_DEBUG", "") not in ("", "0")
    words = spelt_out([word for word in words if word != "--debug"])
    try:
        return app(words, prog_name="obert", standalone_mode=False) or 0
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        typer.echo("obert: interrupted", err=True)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        return _fail(error, debug)


def _fail(error: Exception, debug: bool) -> int:
    """Print an error: a message where the user can help it, else the traceback.

    Args:
        error: What ended the command.
        debug: Always print the traceback.

    Returns:
        The exit code.
    """
    if hasattr(error, "format_message"):  # a word that typer does not know
        if error.format_message():  # empty where the help was shown instead
            typer.echo(f"obert: {error.format_message()}", err=True)
        return 2
    missing = isinstance(error, ModuleNotFoundError) and error.name in _HOSTS
    expected = isinstance(error, (ValueError, OSError)) and raised_on_purpose(error)
    if missing and not debug:
        typer.echo(f"obert: {error}; `obert doctor` says what mends it", err=True)
        return 2
    if debug or not expected:
        traceback.print_exception(error)
        return 2 if expected else 1
    rank = f"[process {_rank()}] " if _rank() else ""
    typer.echo(f"obert: {rank}{error}", err=True)
    return 2
