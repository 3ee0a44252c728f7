"""OpenVINO's own format, with INT8 weights where the model has them."""

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from obert_modifiers.deploy.engines.engine import import_engine
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.formats.graph import Graph
from obert_modifiers.deploy.formats.ir_weights import ir_weights
from obert_modifiers.deploy.onnx.export import OnnxExport, export_onnx
from obert_modifiers.deploy.run import Run
from obert_modifiers.deploy.weight import Weight


class OpenVinoIr(Graph):
    """An ``.xml`` file, and its weights in a ``.bin`` file."""

    name, pattern = "openvino", "*.xml"
    takes = frozenset({"shape", "int8"})

    def default_out(self, run: Path, options: Options) -> Path:
        return run / "export" / "openvino.xml"

    def export(self, run: Run, out: Path, options: Options) -> OnnxExport:
        return export_openvino(run.model, run.sample(), out, options.shape)

    def engine(self, options: Options) -> str:
        return "openvino"

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, _weights_of(path))

    def weights(self, files: Sequence[Path]) -> list[Weight]:
        return ir_weights(*files)


def export_openvino(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    path: str | Path,
    shape: tuple[int, int] | None = None,
) -> OnnxExport:
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
        What was written; nodes are those of the ONNX graph that it was made from.

    Raises:
        ValueError: If OpenVINO is not installed, or the model cannot be exported.
    """
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
    size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return replace(found, path=path, size_bytes=size)


def _unread(path: Path, error: RuntimeError) -> str:
    lines = str(error).strip().splitlines()
    why = next((one for one in lines if one.startswith("While")), lines[-1])[:200]
    return (
        f"out={path} cannot be written: OpenVINO does not read the model's graph "
        f"({why}); expected one that it reads; fix its sizes with --shape, or report "
        "this model's class"
    )


def _weights_of(path: Path) -> Path:
    weights = path.with_suffix(".bin")
    try:
        root = ElementTree.parse(path).getroot().tag
    except ElementTree.ParseError as error:
        raise ValueError(
            f"model={path} is no whole XML file ({error}); expected an OpenVINO IR; "
            "export it again"
        ) from error
    if root != "net" or not weights.is_file():
        what = f"has no {weights.name} beside it" if root == "net" else "has no <net>"
        raise ValueError(
            f"model={path} {what}; expected an OpenVINO IR, an .xml file and a .bin "
            "file; export it again"
        )
    return weights


FORMAT = OpenVinoIr()
