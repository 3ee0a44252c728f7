"""``obert export``: a run in a format that an engine reads."""

from pathlib import Path
from typing import Annotated

import typer

from obert_modifiers.cli._host import quiet_host

_MB = 1_000_000


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    form: Annotated[
        str, typer.Option("--format", help="onnx, openvino, torch24 or safetensors.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file or folder; RUN/export/... if unset."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="Engine of an ONNX file: onnxruntime, openvino, deepsparse."),
    ] = "onnxruntime",
    shape: Annotated[
        str | None,
        typer.Option(help="Fixed sizes, such as 32x128; 32x128 for deepsparse."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Fail unless the weights are INT8.")
    ] = False,
    integer_bias: Annotated[
        bool,
        typer.Option("--integer-bias", help="INT32 biases: faster, less exact."),
    ] = False,
) -> None:
    """Write a run as ONNX, OpenVINO IR, 2:4 weights or packed safetensors."""
    with quiet_host():
        from obert_modifiers.deploy.export import Options, export_run

        options = Options(target, parse_shape(shape), int8, integer_bias)
        found = export_run(run, form, out, options)
    typer.echo(f"{found.path}: {found.size_bytes / _MB:.1f} MB")
    for fact in found.facts:
        typer.echo(f"  {fact}")


def parse_shape(text: str | None) -> tuple[int, int] | None:
    """Read a batch size and a sequence length.

    Args:
        text: Such as ``32x128``, or None.

    Returns:
        Both numbers, or None.

    Raises:
        ValueError: If the text is anything else.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(
            f"--shape={text} is no batch size and sequence length; expected two numbers"
            " with an x; write 32x128"
        )
    return int(parts[0]), int(parts[1])
