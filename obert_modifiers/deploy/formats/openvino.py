"""OpenVINO's own format, with INT8 weights where the model has them."""

import os
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from obert_modifiers.core.embedding_folder import is_sentence_folder
from obert_modifiers.deploy.engines.engine import import_engine
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.formats.graph import Graph
from obert_modifiers.deploy.formats.ir_weights import ir_weights
from obert_modifiers.deploy.onnx.export import OnnxExport, export_onnx
from obert_modifiers.deploy.run import Run
from obert_modifiers.deploy.weight import Weight
from obert_modifiers.sizes import plain_bytes


class OpenVinoIr(Graph):
    """An ``.xml`` file, and its weights in a ``.bin`` file."""

    name, pattern = "openvino", "*.xml"
    takes = frozenset({"shape", "int8"})

    def default_out(self, run: Path, options: Options) -> Path:
        if is_sentence_folder(run):
            return run / "openvino" / "openvino_model.xml"  # as sentence-transformers
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
    """Write a model as OpenVINO IR, an ``.xml`` and a ``.bin`` file, as `export_onnx`.

    Weights are INT8 where they are quantized, else float32: nothing is rounded to
    float16. Zeros are written as they are. That the engine packs sparse INT8 weights
    in memory is a property of how it is run, ``CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE``,
    that no file can hold. What is returned counts the nodes of the ONNX graph.
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
            lines = str(error).strip().splitlines()
            why = next((one for one in lines if one.startswith("While")), lines[-1])
            raise ValueError(
                f"out={path} is of a graph that OpenVINO does not read ({why[:200]}); "
                "expected one that it reads; fix its sizes with --shape, or report "
                "this model's class"
            ) from error
        whole = Path(folder) / path.name  # a part of it is never at `path`
        openvino.save_model(graph, str(whole), compress_to_fp16=False)
        del graph, core
        for ending in (".bin", ".xml"):
            os.replace(whole.with_suffix(ending), path.with_suffix(ending))
    size = plain_bytes([path, path.with_suffix(".bin")])
    return replace(found, path=path, size_bytes=size)


def _weights_of(path: Path) -> Path:
    weights, what = path.with_suffix(".bin"), None
    try:
        if ElementTree.parse(path).getroot().tag != "net":
            what = "has no <net>"
        elif not weights.is_file():
            what = f"has no {weights.name} beside it"
    except ElementTree.ParseError as error:
        what = f"is no whole XML file ({error})"
    if what is not None:
        raise ValueError(
            f"model={path} {what}; expected an OpenVINO IR, an .xml and a .bin file; "
            "export it again"
        )
    return weights


FORMAT = OpenVinoIr()
