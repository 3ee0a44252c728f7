"""ONNX files, each written for one of the engines."""

from collections.abc import Sequence
from pathlib import Path

from obert_modifiers.core.embedding_folder import is_sentence_folder
from obert_modifiers.deploy.engines import ENGINES, targets
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.formats.graph import Graph
from obert_modifiers.deploy.onnx.export import OnnxExport, export_onnx
from obert_modifiers.deploy.onnx.file import external_files, onnx_weights
from obert_modifiers.deploy.registry import check_known
from obert_modifiers.deploy.run import Run
from obert_modifiers.deploy.weight import Weight

# Engines of one size only: the papers measure this one.
DEFAULT_SHAPE = (32, 128)


class Onnx(Graph):
    """ONNX; the target says for which engine."""

    name, pattern = "onnx", "*.onnx"
    takes = frozenset({"target", "shape", "int8", "integer_bias"})

    def default_out(self, run: Path, options: Options) -> Path:
        if options.target == "onnxruntime" and is_sentence_folder(run):
            return run / "onnx" / "model.onnx"  # where sentence-transformers looks
        return run / "export" / f"{options.target}.onnx"

    def export(self, run: Run, out: Path, options: Options) -> OnnxExport:
        check_known("target", options.target, targets())
        fixed = ENGINES[options.target].target.fixed
        shape = options.shape or (DEFAULT_SHAPE if fixed else None)
        return export_onnx(
            run.model, run.sample(), out, options.target, shape, options.integer_bias
        )

    def engine(self, options: Options) -> str:
        return "onnxruntime"  # which runs every target's

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, *external_files(path))

    def weights(self, files: Sequence[Path]) -> list[Weight]:
        return onnx_weights(files[0])


FORMAT = Onnx()
