"""DeepSparse, which runs ONNX files of one batch size and sequence length."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from obert_modifiers.cpu import Cpu
from obert_modifiers.deploy.engines.engine import (
    Engine,
    Opened,
    Setting,
    Shape,
    Target,
    import_engine,
)

if TYPE_CHECKING:
    import onnx


class DeepSparse(Engine):
    """ONNX files of fixed sizes, with products of integers."""

    name, title, colour = "deepsparse", "DeepSparse", "#ccbb44"
    reads = ("onnx",)
    # It knows a layer's norm by the operators that opset 17 makes one of. Its kernels
    # are not known, and take no other weights.
    target = Target(opset=14, fixed=True, products="integer")

    def open(self, path: Path, setting: Setting | None = None) -> Opened:
        import_engine(self.name)
        inputs, _ = _signature(path)
        if any(n is None for shape in inputs.values() for n in shape):
            raise ValueError(
                f"model={path} has free axes, on which DeepSparse runs nothing itself; "
                "expected fixed shapes; export it with --target deepsparse, or take "
                "--engine onnxruntime"
            )
        return super().open(path, setting)

    def load(self, module: Any, path: Path, setting: Setting | None) -> Opened:
        import numpy as np

        inputs, outputs = _signature(path)
        batch = next(iter(inputs.values()))[0]
        cores = None if setting is None else setting.cores
        # Not told the sizes: it would write them into the file.
        opened = module.Engine(str(path), batch_size=batch, num_cores=cores)
        checked = setting is None  # that takes time

        def compute(given: Any) -> dict[str, Any]:
            rows = [np.ascontiguousarray(given[name]) for name in inputs]
            found = opened.run(rows, val_inp=checked)
            return dict(zip(outputs, found, strict=True))

        facts = {
            "version": module.__version__,
            "fraction_of_supported_ops": opened.fraction_of_supported_ops,
            "instructions": opened.cpu_avx_type + " vnni" * bool(opened.cpu_vnni),
        }
        return Opened(inputs, outputs, compute, facts)

    def refusal(self, model: "onnx.ModelProto", name: str) -> str | None:
        from obert_modifiers.deploy.onnx.graph import Graph
        from obert_modifiers.deploy.onnx.qdq import has_qdq_products

        if not has_qdq_products(Graph(model)):
            return None
        return (
            f"deepsparse takes the Q and DQ nodes of {name} for floating point, or "
            "ends; export with --target deepsparse"
        )

    def advice(self, cpu: Cpu) -> str:
        if "avx512vnni" in cpu.features:
            return "zeros and INT8 pay"
        return "zeros pay, INT8 less without AVX-512 VNNI"


def _signature(path: Path) -> tuple[dict[str, Shape], tuple[str, ...]]:
    """Read the shapes of a file's inputs, and the names of its outputs."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    inputs = {
        one.name: tuple(a.dim_value or None for a in one.type.tensor_type.shape.dim)
        for one in graph.input
    }
    return inputs, tuple(one.name for one in graph.output)


ENGINE = DeepSparse()
