"""OpenVINO, which reads its own IR and ONNX files."""

from pathlib import Path
from typing import Any

from obert_modifiers.cpu import Cpu
from obert_modifiers.deploy.engines.engine import Engine, Opened, Setting, Target

# Weights of which less is zero are left dense; the papers' least sparsity is 0.8.
LEAST_SPARSITY = 0.7
_PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVino(Engine):
    """IRs and ONNX files; any sizes unless the file fixes them."""

    name, title, colour = "openvino", "OpenVINO", "#228833"
    reads = ("onnx", "openvino")
    target = Target(
        saturating="float",
        saturating_note="they are stored as float32, in which every CPU computes them",
    )
    bf16 = True

    def load(self, module: Any, path: Path, setting: Setting | None) -> Opened:
        core = module.Core()
        graph = core.read_model(str(path))
        # In bfloat16, its default where the CPU has it, outputs are not the file's.
        config: dict[str, Any] = {_PRECISION: "f32"}
        if setting is not None:
            shape = [setting.batch, setting.seq]
            graph.reshape({one.any_name: shape for one in graph.inputs})
            config = {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": setting.cores,
                _PRECISION: "bf16" if setting.bf16 else "f32",
                "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": LEAST_SPARSITY,
            }
        compiled = core.compile_model(graph, "CPU", config)
        request = compiled.create_infer_request()
        outputs = tuple(one.any_name for one in compiled.outputs)

        def compute(given: Any) -> dict[str, Any]:
            found = request.infer(given, share_inputs=True)
            return {name: found[name] for name in outputs}

        inputs = {
            one.any_name: tuple(
                n.get_length() if n.is_static else None for n in one.partial_shape
            )
            for one in compiled.inputs
        }
        facts = {
            "version": module.__version__,
            "precision": compiled.get_property(_PRECISION).to_string(),
            "sparse_weights_rate": LEAST_SPARSITY if setting else None,
        }
        return Opened(inputs, outputs, compute, facts)

    def advice(self, cpu: Cpu) -> str:
        line = "INT8 pays"
        if cpu.saturates:
            line = (
                "INT8 gains little over float32 without VNNI; layers that could "
                "saturate run in float32"
            )
        if "amx-bf16" in cpu.features:
            line += "; so does bfloat16 (--bf16), most of all for dense models"
        return line


ENGINE = OpenVino()
