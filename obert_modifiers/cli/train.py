"""``obert train``, ``quickstart``, ``report`` and ``card``: runs."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from obert_modifiers import hub, tasks
from obert_modifiers import quickstart as study
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
        from obert_modifiers.report.card import write_card
        from obert_modifiers.report.write import write_report

        folder = Path(record["config"]["output_dir"])
        page = write_report([folder])
        card = write_card(folder, record["hub_model_id"])
        reporter.message(
            f"model, metrics.json and {card.name} in {folder}, report in {page}"
        )
        if record["hub_model_id"] is not None:
            reporter.message(f"pushed to {hub.push(folder, record['hub_model_id'])}")


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


Benches = Annotated[list[Path] | None, flag("JSON of `obert bench`, for speeds.")]
Evaluations = Annotated[
    list[Path] | None, flag("JSON of `obert evaluate`, for exported files.")
]


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs' folders; the first is the reference.")
    ],
    output_dir: Annotated[
        Path | None, flag("Where the page goes; a run's own folder or runs/report.")
    ] = None,
    bench: Benches = None,
    evaluated: Evaluations = None,
) -> None:
    """Write report.html and report.png about runs that are finished."""
    for folder in runs:
        check_run(folder)
    from obert_modifiers.report.write import write_report

    page = write_report(runs, output_dir, bench=bench or (), evaluated=evaluated or ())
    typer.echo(page)


def card(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    bench: Benches = None,
    evaluated: Evaluations = None,
    push_to_hub: Annotated[
        bool, flag("Upload model and card to the hub.", "--push_to_hub")
    ] = False,
    hub_model_id: Annotated[
        str | None, flag("OWNER/NAME; as it was trained with, or the folder's name.")
    ] = None,
    hub_private_repo: Annotated[
        bool, flag("Make it private where it is new.", "--hub_private_repo")
    ] = False,
) -> None:
    """Write README.md, the model card of a finished run, and push both."""
    check_run(run)
    repository = hub_model_id
    if push_to_hub:
        record = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        repository = hub_model_id or record.get("hub_model_id") or run.resolve().name
        hub.check_ready(repository)
        repository = hub.open_repository(repository, hub_private_repo)
    from obert_modifiers.report.card import write_card

    page = write_card(run, repository, bench=bench or (), evaluated=evaluated or ())
    typer.echo(page)
    if push_to_hub:
        typer.echo(f"pushed to {hub.push(run, repository)}")
