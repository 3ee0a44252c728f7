"""Export to OpenVINO's own format, with INT8 weights where the model has them."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from obert_modifiers.deploy.engines import import_engine
from obert_modifiers.deploy.onnx.export import OnnxExport, export_onnx


@dataclass(frozen=True)
class OpenvinoExport:
    """What was written.

    Attributes:
        path: The ``.xml`` file; the weights are in a ``.bin`` file beside it.
        size_bytes: The size of both.
        onnx: The ONNX graph that it was made from; its path is where it was.
    """

    path: Path
    size_bytes: int
    onnx: OnnxExport


def export_openvino(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    path: str | Path,
    shape: tuple[int, int] | None = None,
) -> OpenvinoExport:
    """Write a model as OpenVINO IR, with free batch size and sequence length.

    Weights are INT8 where they are quantized, else float32: nothing is rounded to
    float16. Zeros are written as they are. That the engine packs sparse INT8 weights
    in memory is a property of how it is run, ``CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE``,
    that no file can hold.

    Args:
        model: As for `export_onnx`.
        sample: As for `export_onnx`.
        path: The ``.xml`` file to write; its folder is made where it is missing.
        shape: Batch size and sequence length, both fixed; None leaves them free.

    Returns:
        What was written.

    Raises:
        ValueError: If OpenVINO is not installed, or the model cannot be exported.
    """  # noqa: DOC502  raised by what is called
    openvino = import_engine("openvino")
    path = Path(path)
    if path.suffix != ".xml":
        raise ValueError(
            f"out={path} does not end in .xml; expected the name of an IR's graph; "
            f"write {path.with_suffix('.xml')}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "model.onnx"
        found = export_onnx(model, sample, file, "openvino", shape)
        core = openvino.Core()
        try:
            graph = core.read_model(str(file))
        except RuntimeError as error:
            raise ValueError(_unread(path, error)) from error
        openvino.save_model(graph, str(path), compress_to_fp16=False)
        del graph, core
    weights = path.with_suffix(".bin")
    size = path.stat().st_size + weights.stat().st_size
    return OpenvinoExport(path, size, replace(found, path=path))


def _unread(path: Path, error: RuntimeError) -> str:
    lines = str(error).strip().splitlines()
    why = next((one for one in lines if one.startswith("While")), lines[-1])[:200]
    return (
        f"out={path} cannot be written: OpenVINO does not read the model's graph "
        f"({why}); expected one that it reads; fix its sizes with --shape, or report "
        "this model's class"
    )
