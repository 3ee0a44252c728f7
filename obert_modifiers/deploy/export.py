"""``obert export``: what each format writes for a run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_modifiers.deploy.onnx.export import TARGETS

if TYPE_CHECKING:
    from obert_modifiers.deploy.onnx.export import OnnxExport
    from obert_modifiers.deploy.run import Run


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
    _check_options(form, options)
    return FORMATS[form](run, out, options)


def _onnx(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.deploy.onnx.export import export_onnx
    from obert_modifiers.deploy.run import load_run

    shape = options.shape
    if options.target == "deepsparse" and shape is None:
        shape = DEFAULT_SHAPE
    run = load_run(path)
    _check_int8(run.quantized, path, options)
    out = out or path / "export" / f"{options.target}.onnx"
    found = export_onnx(
        run.model, run.sample(), out, options.target, shape, options.integer_bias
    )
    facts = [_weights(found.int8_weights), _sizes(shape), *_saturating(found)]
    if found.integer_products:
        facts.append(f"{found.integer_products} products of integers")
    facts.append(
        _compared(run, found.path, "onnxruntime", found.int8_weights > 0, options)
    )
    return Exported(found.path, found.size_bytes, tuple(facts))


def _openvino(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.deploy.formats.openvino import export_openvino
    from obert_modifiers.deploy.run import load_run

    run = load_run(path)
    _check_int8(run.quantized, path, options)
    out = out or path / "export" / "openvino.xml"
    found = export_openvino(run.model, run.sample(), out, options.shape)
    facts = (
        _weights(found.onnx.int8_weights),
        _sizes(options.shape),
        *_saturating(found.onnx),
        _compared(run, found.path, "openvino", found.onnx.int8_weights > 0, options),
    )
    return Exported(found.path, found.size_bytes, facts)


def _packed(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.core.quantization.scales import FILE_NAME
    from obert_modifiers.deploy.formats.safetensors_packed import export_packed

    _check_int8((path / FILE_NAME).is_file(), path, options)
    return _plain(export_packed(path, out or path / "export" / "packed"))


def _torch24(path: Path, out: Path | None, options: Options) -> Exported:
    from obert_modifiers.deploy.formats.torch24 import export_torch24

    return _plain(export_torch24(path, out or path / "export" / "torch24"))


def _plain(found: Any) -> Exported:
    return Exported(found.path, found.size_bytes)


FORMATS: Mapping[str, Callable[[Path, Path | None, Options], Exported]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch24": _torch24,
    "safetensors": _packed,
}


# What each format makes use of.
_TAKES = {
    "onnx": {"target", "shape", "int8", "integer_bias"},
    "openvino": {"shape", "int8"},
    "torch24": set(),
    "safetensors": {"int8"},
}


def _check_options(form: str, options: Options) -> None:
    for name, default in asdict(Options()).items():
        value = getattr(options, name)
        if value == default or name in _TAKES[form]:
            continue
        takes = ", ".join(one for one in FORMATS if name in _TAKES[one])
        raise ValueError(
            f"{name}={value} has no meaning for format={form}; expected it with "
            f"{takes}; leave out --{name.replace('_', '-')}"
        )
    if options.integer_bias and options.target == "openvino":
        raise ValueError(
            "integer_bias=True has no meaning for target=openvino, which adds biases in"
            " floating point; expected another target; leave out --integer-bias"
        )


def _compared(run: "Run", path: Path, engine: str, int8: bool, options: Options) -> str:
    """Compare a file with its run; one that computes something else is removed.

    Returns:
        What was seen.

    Raises:
        ValueError: If it computes something else.
    """
    from obert_modifiers.deploy.artefact import find_artefact
    from obert_modifiers.deploy.checks import compare

    fix = "report this model's class"
    if options.shape is None and options.target != "deepsparse":
        fix = f"fix its sizes with --shape BATCHxLENGTH, or {fix}"
    if options.integer_bias:
        fix = "leave out --integer-bias, which is less exact"
    try:
        return compare(run.model, run.sample(), path, engine, int8, fix)
    except BaseException:
        for file in find_artefact(path).files:  # an IR has two
            file.unlink()
        raise


def _check_int8(quantized: bool, path: Path, options: Options) -> None:
    if options.int8 and not quantized:
        raise ValueError(
            f"run={path} was not trained with INT8: it has no quantization.json; "
            "expected a recipe with !QATModifier; train with one, or leave out --int8"
        )


def _weights(count: int) -> str:
    return f"{count} weights as INT8" if count else "all weights in float32"


def _saturating(found: "OnnxExport") -> list[str]:
    """Say which layers a CPU without VNNI would sum wrongly, and what became of them.

    Returns:
        A line, or none.
    """
    if not found.saturating:
        return []
    from obert_modifiers.deploy.onnx.saturation import describe

    done = {
        "onnxruntime": "they are stored as UINT8, which ONNX Runtime sums exactly on "
        "every CPU",
        "openvino": "they are stored as float32, in which every CPU computes them",
        "deepsparse": "outputs there may be wrong",
    }
    return [
        f"{len(found.saturating)} layers have sums beyond 16 bits, which INT8 kernels "
        f"without VNNI cannot hold: {describe(found.saturating)}; "
        f"{done[found.target]}; train with reduce_range: true in QATModifier, where "
        "none can"
    ]


def _sizes(shape: tuple[int, int] | None) -> str:
    if shape is None:
        return "any batch size and sequence length"
    return f"batch size {shape[0]} and sequence length {shape[1]} alone"
