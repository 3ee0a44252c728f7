"""``obert export``, ``evaluate``, ``bench`` and ``sizes``: models on disk."""

import os
import tempfile
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from obert_modifiers.cli.common import (
    JsonFile,
    draw_table,
    flag,
    table_console,
    write_json,
)
from obert_modifiers.cli.progress import reporting
from obert_modifiers.deploy.engines import ENGINES, targets
from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.sizes import MB, check_there

_MODELS = "Runs' folders and exported files; the others are compared with the first."
Models = Annotated[list[Path], typer.Argument(help=_MODELS)]


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    form: Annotated[str, flag(f"One of {', '.join(FORMATS)}.", "--format")] = "onnx",
    out: Annotated[
        Path | None, flag("The file or folder; RUN/export/... if unset.")
    ] = None,
    target: Annotated[
        str, flag(f"Engine of an ONNX file: {', '.join(targets())}.")
    ] = "onnxruntime",
    shape: Annotated[
        str | None, flag("Fixed sizes, such as 32x128; 32x128 for deepsparse.")
    ] = None,
    int8: Annotated[bool, flag("Fail unless the weights are INT8.", "--int8")] = False,
    integer_bias: Annotated[
        bool, flag("INT32 biases: faster, less exact.", "--integer-bias")
    ] = False,
) -> None:
    """Write a run as ONNX, OpenVINO IR, sparse, 2:4 or packed weights."""
    check_there(run)
    from obert_modifiers.deploy.export import export_run
    from obert_modifiers.deploy.formats.format import Options

    options = Options(target, parse_shape(shape), int8, integer_bias)
    found = export_run(run, form, out, options)
    typer.echo(f"{found.path}: {found.size_bytes / MB:.1f} MB")
    for fact in found.facts:
        typer.echo(f"  {fact}")


def parse_shape(text: str | None) -> tuple[int, int] | None:
    """Read a batch size and a sequence length, such as ``32x128``."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(
            f"--shape={text} is no batch size and sequence length; expected two numbers"
            " with an x; write 32x128"
        )
    return int(parts[0]), int(parts[1])


def evaluate(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(help="A run's folder or an exported file; comes first.")
    ],
    task: Annotated[str | None, flag("The task; that of the run if unset.")] = None,
    engine: Annotated[
        str | None, flag(f"One of {', '.join(ENGINES)}; the format's own if unset.")
    ] = None,
    run: Annotated[
        Path | None, flag("Folder of configuration and tokenizer, if elsewhere.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Evaluate a model on its task's validation data.

    Further flags are those of the data, as for `obert train TASK`; where they name no
    data, it is that of the run's own command.
    """
    if str(model).startswith("-"):
        raise ValueError(
            f"model={model} is a flag; expected the model first; write `obert evaluate "
            "MODEL` and the flags after it"
        )
    check_there(model)
    with reporting():
        from obert_modifiers.deploy.evaluate import Request, evaluate_file

        request = Request(model, task, engine, run, tuple(context.args))
        record = evaluate_file(request)
    if json_file is not None:
        write_json(json_file, record)
    figures = [
        f"{name} {record[name]:.4f}"
        for name in (*record["headline"], "loss")
        if record.get(name) is not None
    ]
    figures.append(f"{record['samples']} samples")
    said = ", ".join(figures)
    typer.echo(f"{model} ({record['format']}, {record['engine']}): {said}")


def bench(
    models: Models,
    engine: Annotated[str, flag(f"Some of {','.join(ENGINES)}.")] = "onnxruntime",
    batch: Annotated[str, flag("Batch sizes, with commas.")] = "1,32",
    seq: Annotated[str, flag("Sequence lengths, with commas.")] = "128",
    cores: Annotated[int | None, flag("How many cores; all if unset.")] = None,
    seconds: Annotated[float, flag("Seconds of each model, over all rounds.")] = 20.0,
    rounds: Annotated[int, flag("How often each model gets its turn.", min=1)] = 10,
    bf16: Annotated[
        bool, flag("Let OpenVINO compute in bfloat16 too.", "--bf16")
    ] = False,
    json_file: JsonFile = None,
    plot_file: Annotated[
        Path | None, flag("A picture, such as bench.png.", "--plot")
    ] = None,
    advise: Annotated[
        bool, flag("Try every engine here and say which to serve with.", "--advise")
    ] = False,
) -> None:
    """Measure throughput and latency of models in turns on the same cores."""
    sizes = list(product(_numbers("--batch", batch), _numbers("--seq", seq)))
    if not seconds > 0:
        raise ValueError(
            f"--seconds={seconds} leaves nothing to measure; expected more than 0; "
            "give a larger one"
        )
    for model in models:
        check_there(model)
    from obert_modifiers.cpu import host_cpu
    from obert_modifiers.deploy.bench import show
    from obert_modifiers.deploy.bench.advise import advice, candidates, with_bf16
    from obert_modifiers.deploy.bench.cases import plan_cases
    from obert_modifiers.deploy.bench.rounds import Effort, measure, pick_cores

    pick_cores(cores)
    effort = Effort(seconds, rounds, cores=cores)
    engines = [name.strip() for name in engine.split(",")]
    if advise:
        engines = candidates()
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_cases(models, engines, sizes, Path(folder), bf16)
        for note in plan.notes:
            typer.echo(f"left out: {note}")
        before = os.getloadavg()[0]
        cases = with_bf16(plan.cases, host_cpu()) if advise else plan.cases
        found = measure(cases, effort, tell=typer.echo)
    loads = (before, os.getloadavg()[0])
    for rows in show.tables(found):
        table_console().print(rows)
    for line in advice(found, host_cpu()) if advise else ():
        typer.echo(line)
    if json_file is not None:
        show.write_json(json_file, show.record(found, effort, loads))
    if plot_file is not None:
        show.plot(plot_file, found)


def _numbers(flag: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(
            f"{flag}={text} is no list of sizes; expected whole numbers of 1 at least, "
            "with commas; write 1,32"
        )
    return [int(part) for part in parts]


def sizes(
    models: Models,
    reference: Annotated[
        Path | None, flag("What ratios are taken to; the first of several if unset.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Count parameters and zeros, and measure MB, gzip MB and their ratio."""
    for model in (*models, *([reference] if reference else ())):
        check_there(model)
    from obert_modifiers.report.sizes import HEAD, measure_all

    found = measure_all(models, reference)
    rows = [HEAD, *(size.cells() for size in found)]
    table_console().print(draw_table(rows, left=2))
    if json_file is not None:
        write_json(json_file, [size.record() for size in found])
