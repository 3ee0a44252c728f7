"""``obert evaluate``: the task's metric of any exported file."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from obert_modifiers.sizes import check_there

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def evaluate_model(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(help="A run's folder or an exported file; comes first.")
    ],
    task: Annotated[
        str | None, typer.Option(help="The task; that of the run if unset.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="onnxruntime, openvino or deepsparse, for graphs."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of configuration and tokenizer, if elsewhere."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A file to write the figures into.")
    ] = None,
) -> dict[str, Any]:
    """Evaluate a model on its task's validation data.

    Further flags are those of the data, as for `obert train TASK`; where they name no
    data, it is that of the run's own command.
    """  # noqa: DOC201, DOC501  typer shows the docstring
    if str(model).startswith("-"):
        raise ValueError(
            f"model={model} is a flag; expected the model first; write `obert evaluate "
            "MODEL` and the flags after it"
        )
    check_there(model)  # before torch is loaded
    from obert_modifiers.deploy.evaluate import Request, evaluate_file

    request = Request(model, task, engine, run, tuple(context.args))
    record = evaluate_file(request)
    if json_file is not None:
        text = json.dumps(record, indent=2, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")
    shown = [*record["headline"], "loss", "samples"]
    figures = ", ".join(
        f"{name} {record[name]:.4f}" if name != "samples" else f"{record[name]} samples"
        for name in shown
        if record.get(name) is not None
    )
    typer.echo(f"{model} ({record['format']}, {record['engine']}): {figures}")
    return record
