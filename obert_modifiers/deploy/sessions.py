"""ONNX Runtime sessions that sum INT8 products exactly on every CPU."""

import warnings
from pathlib import Path
from typing import Any

from obert_modifiers.cpu import host_cpu
from obert_modifiers.deploy.engines import import_engine
from obert_modifiers.deploy.onnx.file import load_onnx
from obert_modifiers.deploy.onnx.saturation import describe, saturating_layers

# Makes ONNX Runtime take INT8 weights for UINT8 ones, which it sums in 32 bits.
_EXACT = "session.x64quantprecision"


def open_session(path: Path, options: Any = None) -> Any:
    """Open a file in ONNX Runtime, with sums in 32 bits where the CPU needs telling.

    Files of ``obert export`` need nothing; those of other tools, and older ones, may.

    Args:
        path: The ONNX file.
        options: ``SessionOptions``, or None; changed in place.

    Returns:
        The session, on the CPU.

    Raises:
        ValueError: If ONNX Runtime is not installed, or the file is damaged.
    """  # noqa: DOC502  raised by what is called
    runtime = import_engine("onnxruntime")
    options = options or runtime.SessionOptions()

    def opened() -> Any:
        return runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    layers = saturating_layers(load_onnx(path)) if host_cpu().saturates else {}
    if not layers:
        return opened()
    options.add_session_config_entry(_EXACT, "1")
    try:
        return opened()
    except Exception:  # its own classes; some graphs do not open with it
        options.add_session_config_entry(_EXACT, "0")
        session = opened()
    warnings.warn(
        f"model={path} has INT8 products whose sums this CPU, without VNNI, cannot hold"
        f": {describe(layers)}; expected weights that fit; export the run again with "
        "`obert export`",
        stacklevel=2,
    )
    return session
