"""ONNX Runtime, with INT8 products that are summed exactly on every CPU."""

import warnings
from pathlib import Path
from typing import Any

from obert_modifiers.cpu import Cpu, host_cpu
from obert_modifiers.deploy.engines.engine import (
    Engine,
    Opened,
    Setting,
    Target,
    import_engine,
)

# Makes ONNX Runtime take INT8 weights for UINT8 ones, which it sums in 32 bits.
EXACT_SUMS = "session.x64quantprecision"


class OnnxRuntime(Engine):
    """ONNX files; any sizes unless the file fixes them."""

    name, title, colour = "onnxruntime", "ONNX Runtime", "#4477aa"
    reads = ("onnx",)
    target = Target(
        products="gemm",
        saturating="unsigned",
        saturating_note="they are stored as UINT8, which ONNX Runtime sums exactly on "
        "every CPU",
    )

    def load(self, module: Any, path: Path, setting: Setting | None) -> Opened:
        options = module.SessionOptions()
        if setting is not None:
            options.intra_op_num_threads = setting.cores
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            # Threads that wait for the next batch would take time from other models.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        session = open_session(path, options)
        inputs = {
            one.name: tuple(n if isinstance(n, int) else None for n in one.shape)
            for one in session.get_inputs()
        }
        outputs = tuple(one.name for one in session.get_outputs())

        def compute(given: Any) -> dict[str, Any]:
            return dict(zip(outputs, session.run(None, given), strict=True))

        return Opened(inputs, outputs, compute, {"version": module.__version__})

    def advice(self, cpu: Cpu) -> str:
        if cpu.saturates:
            return "INT8 gains little over float32 without VNNI"
        return "INT8 pays"


def open_session(path: Path, options: Any = None) -> Any:
    """Open a file on the CPU, with sums in 32 bits where the CPU needs telling.

    Files of `obert export` need nothing; those of other tools, and older ones, may.
    `options`, ONNX Runtime's ``SessionOptions``, are changed in place.
    """
    runtime = import_engine("onnxruntime")
    options = options or runtime.SessionOptions()

    def opened() -> Any:
        kinds = ["CPUExecutionProvider"]
        return runtime.InferenceSession(str(path), options, providers=kinds)

    if not host_cpu().saturates:
        return opened()
    from obert_modifiers.deploy.onnx.file import load_onnx
    from obert_modifiers.deploy.onnx.graph import Graph
    from obert_modifiers.deploy.onnx.saturation import describe, saturating_layers

    layers = saturating_layers(Graph(load_onnx(path)))
    if not layers:
        return opened()
    options.add_session_config_entry(EXACT_SUMS, "1")
    try:
        return opened()
    except Exception:  # its own classes; some graphs do not open with it
        options.add_session_config_entry(EXACT_SUMS, "0")
        session = opened()
    warnings.warn(
        f"model={path} has INT8 products whose sums this CPU, without VNNI, cannot hold"
        f": {describe(layers)}; expected weights that fit; export the run again with "
        "`obert export`",
        stacklevel=2,
    )
    return session


ENGINE = OnnxRuntime()
