"""``obert train``, ``quickstart`` and ``report``: runs."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from obert_modifiers import quickstart as study
from obert_modifiers import tasks
from obert_modifiers.cli.common import figures, flag, rank
from obert_modifiers.cli.progress import Reporter, reporting
from obert_modifiers.report.read import check_run
from obert_modifiers.sparseml_cli.stacks import check_can_train


def train(context: typer.Context) -> None:
    """Train a model for the task that the command is named after."""
    check_can_train()
    name = context.info_name
    tasks.check_words(name, context.args)  # before torch is loaded
    bar = False if "--disable_tqdm" in context.args else None
    with reporting(bar) as reporter:
        from obert_modifiers.training import TrainingStopped

        try:
            record = tasks.main(name, context.args, reporter)
        except TrainingStopped as stop:
            if rank() == 0:
                command = tasks.load(name).resume_command(context.args)
                reporter.message(f"{stop}; go on with:\n{command}")
            return
        if rank() == 0:
            _finish(record, reporter)


def _finish(record: dict[str, Any], reporter: Reporter) -> None:
    """Write the report and say where everything is."""
    said = figures(record, *record["headline"], "loss", "sparsity")
    reporter.message(f"done in {record['minutes']:.1f} min: {said}")
    if "sparsity" in record:
        from obert_modifiers.report.write import write_report

        page = write_report([Path(record["config"]["output_dir"])])
        reporter.message(f"model and metrics.json in {page.parent}, report in {page}")


def quickstart(
    output_dir: Annotated[Path, flag("Where it is written.")] = Path("runs/quickstart"),
    seed: Annotated[int, flag("Seed of all runs.")] = 0,
    only: Annotated[
        str, flag(f"Some of {','.join(study.STEPS)}, with commas.")
    ] = ",".join(study.STEPS),
) -> None:
    """Prune the embedded encoder: dense, GMP★, oBERT and INT8, in one table."""
    check_can_train()
    names = [name.strip() for name in only.split(",")]
    study.check_names(names)
    with reporting() as reporter:
        from obert_modifiers.training import TrainingStopped

        try:
            study.run(output_dir, seed=seed, only=names, reporter=reporter)
        except TrainingStopped as stop:
            # Models are trained anew, from that which the signal stopped.
            stopped = stop.checkpoint.parent.name
            later = list(study.STEPS)[list(study.STEPS).index(stopped) :]
            left = ",".join(name for name in later if name in (*names, stopped))
            words = ["--output_dir", str(output_dir), "--seed", str(seed)]
            command = shlex.join(["obert", "quickstart", *words, "--only", left])
            reporter.message(
                f"stopped by SIGTERM while it trained {study.STEPS[stopped].title}; "
                f"what was finished stays; go on with:\n{command}"
            )


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs' folders; the first is the reference.")
    ],
    output_dir: Annotated[
        Path | None, flag("Where the page goes; a run's own folder or runs/report.")
    ] = None,
    bench: Annotated[
        list[Path] | None, flag("JSON of `obert bench`, for speeds.")
    ] = None,
    evaluated: Annotated[
        list[Path] | None, flag("JSON of `obert evaluate`, for exported files.")
    ] = None,
) -> None:
    """Write report.html and report.png about runs that are finished."""
    for folder in runs:
        check_run(folder)
    from obert_modifiers.report.write import write_report

    page = write_report(runs, output_dir, bench=bench or (), evaluated=evaluated or ())
    typer.echo(page)
