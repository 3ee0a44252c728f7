"""``obert bench``: how fast models are, side by side."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from obert_modifiers.cli._host import quiet_host
from obert_modifiers.sizes import check_there


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(help="Runs' folders and exported files; the dense one first."),
    ],
    engine: Annotated[
        str, typer.Option(help="Some of onnxruntime,openvino,deepsparse,torch.")
    ] = "onnxruntime",
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,32",
    seq: Annotated[str, typer.Option(help="Sequence lengths, with commas.")] = "128",
    cores: Annotated[
        int | None, typer.Option(help="How many cores; all if unset.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Seconds of each model, over all rounds.")
    ] = 20.0,
    rounds: Annotated[
        int, typer.Option(help="How often each model gets its turn.")
    ] = 10,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Let OpenVINO compute in bfloat16 too.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A file for all figures.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="A picture, such as bench.png.")
    ] = None,
) -> None:
    """Measure throughput and latency of models in turns on the same cores."""
    for model in models:
        check_there(model)
    with quiet_host(), tempfile.TemporaryDirectory() as folder:
        from obert_modifiers.cli._console import table_console
        from obert_modifiers.deploy.bench import show
        from obert_modifiers.deploy.bench.cases import plan_cases
        from obert_modifiers.deploy.bench.rounds import Effort, measure, pick_cores

        console = table_console()
        effort = Effort(_positive("--seconds", seconds), rounds, cores=cores)
        _positive("--rounds", rounds)
        pick_cores(cores)
        sizes = [
            (one, two)
            for one in _numbers("--batch", batch)
            for two in _numbers("--seq", seq)
        ]
        engines = [name.strip() for name in engine.split(",")]
        plan = plan_cases(models, engines, sizes, Path(folder), bf16)
        for note in plan.notes:
            typer.echo(f"left out: {note}")
        before = os.getloadavg()[0]
        found = measure(plan.cases, effort, tell=lambda line: typer.echo(line))
        loads = (before, os.getloadavg()[0])
        for rows in show.tables(found):
            console.print(rows)
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


def _positive(flag: str, value: float) -> float:
    if not value > 0:
        raise ValueError(
            f"{flag}={value} leaves nothing to measure; expected more than 0; give a "
            "larger one"
        )
    return value
