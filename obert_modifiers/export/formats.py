"""``obert export``: what each format writes for a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obert_modifiers.export.onnx import TARGETS


@dataclass(frozen=True)
class Options:
    """What a user asks for.

    Attributes:
        target: The engine that an ONNX file is for.
        shape: Batch size and sequence length, both fixed, or None.
        int8: True insists on INT8 weights.
        integer_bias: Round biases to INT32, for speed.
    """

    target: str = TARGETS[0]
    shape: tuple[int, int] | None = None
    int8: bool = False
    integer_bias: bool = False


@dataclass(frozen=True)
class Exported:
    """What a format wrote.

    Attributes:
        path: The file or folder.
        size_bytes: Its size.
        facts: Lines that a user wants to read.
    """

    path: Path
    size_bytes: int
    facts: tuple[str, ...] = ()


# DeepSparse is written for one shape; the papers measure this one.
DEFAULT_SHAPE = (32, 128)


def export_run(
    run: Path, form: str, out: Path | None = None, options: Options | None = None
) -> Exported:
    """Write a run in another format.

    Args:
        run: The output folder of ``obert train``.
        form: One of :data:`FORMATS`.
        out: The file or folder to write; the run's name with the format's ending, in
            ``export`` of the run's folder, if unset.
        options: What a user asks for.

    Returns:
        What was written.

    Raises:
        ValueError: If the format is unknown, does not fit the model, or needs what is
            not installed.
    """
    options = options or Options()
    if form not in FORMATS:
        raise ValueError(
            f"format={form} is unknown; expected one of {', '.join(FORMATS)}; name one"
        )
    return FORMATS[form](run, out, options)


def _onnx(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.export.checks import compare
    from obert_modifiers.export.onnx import export_onnx
    from obert_modifiers.export.run import load_run

    shape = options.shape
    if options.target == "deepsparse" and shape is None:
        shape = DEFAULT_SHAPE
    run = load_run(path)
    _check_int8(run.quantized, path, options)
    out = out or path / "export" / f"{options.target}.onnx"
    found = export_onnx(
        run.model, run.sample(), out, options.target, shape, options.integer_bias
    )
    facts = [_weights(found.int8_weights), _sizes(shape)]
    if found.integer_products:
        facts.append(f"{found.integer_products} products of integers")
    int8 = found.int8_weights > 0
    facts.append(compare(run.model, run.sample(), found.path, "onnxruntime", int8))
    return Exported(found.path, found.size_bytes, tuple(facts))


def _openvino(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.export.checks import compare
    from obert_modifiers.export.openvino import export_openvino
    from obert_modifiers.export.run import load_run

    run = load_run(path)
    _check_int8(run.quantized, path, options)
    out = out or path / "export" / "openvino.xml"
    found = export_openvino(run.model, run.sample(), out, options.shape)
    int8 = found.onnx.int8_weights > 0
    facts = (
        _weights(found.onnx.int8_weights),
        _sizes(options.shape),
        compare(run.model, run.sample(), found.path, "openvino", int8),
    )
    return Exported(found.path, found.size_bytes, facts)


def _packed(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.export.safetensors_packed import export_packed

    return _plain(export_packed(path, out or path / "export" / "packed"))


def _torch24(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.export.torch24 import export_torch24

    return _plain(export_torch24(path, out or path / "export" / "torch24"))


def _plain(found: Any) -> Exported:
    return Exported(found.path, found.size_bytes)


FORMATS: Mapping[str, Callable[[Path, Path | None, Options], Exported]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch24": _torch24,
    "safetensors": _packed,
}


def _check_int8(quantized: bool, path: Path, options: Options) -> None:
    if options.int8 and not quantized:
        raise ValueError(
            f"run={path} was not trained with INT8: it has no quantization.json; "
            "expected a recipe with !QATModifier; train with one, or leave out --int8"
        )


def _weights(count: int) -> str:
    return f"{count} weights as INT8" if count else "all weights in float32"


def _sizes(shape: tuple[int, int] | None) -> str:
    if shape is None:
        return "any batch size and sequence length"
    return f"batch size {shape[0]} and sequence length {shape[1]} alone"
