"""An exported file against the model that it came from."""

import importlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from obert_modifiers.export.onnx import OnnxExport

# Integer kernels sum exactly and torch in float32. All outputs agree to rounding but
# those behind an activation that this lifts over the border of its step.
SAME, FEW_STEPS = 1e-4, 0.1


def compare(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    found: OnnxExport,
    shape: tuple[int, int] | None,
) -> str:
    """Run an ONNX file on ONNX Runtime and hold its outputs against PyTorch's.

    Args:
        model: The model that it was written from.
        sample: Inputs by name.
        found: What was written.
        shape: The file's only batch size and sequence length, or None.

    Returns:
        What was seen, or that ONNX Runtime is not installed.

    Raises:
        ValueError: If the outputs are not the model's.
    """
    try:
        engine = importlib.import_module("onnxruntime")
    except ImportError:
        return "not run: onnxruntime is not installed"
    if shape is not None:
        sample = {name: _fill(value, shape) for name, value in sample.items()}
    options = engine.SessionOptions()
    options.log_severity_level = 3
    session = engine.InferenceSession(
        str(found.path), options, providers=["CPUExecutionProvider"]
    )
    ours = session.run(list(found.outputs), {n: v.numpy() for n, v in sample.items()})
    with torch.no_grad():
        expected = model(**sample)
    away = max(
        _distance(one, expected[name].numpy())
        for name, one in zip(found.outputs, ours, strict=True)
    )
    if not away <= (FEW_STEPS if found.int8_weights else SAME):
        raise ValueError(
            f"out={found.path} gives other outputs than the model: {away:.2g} of the "
            "largest; expected the same to rounding; report this model's class"
        )
    return f"outputs on ONNX Runtime within {away:.1g} of PyTorch's largest"


def _fill(value: Tensor, shape: tuple[int, int]) -> Tensor:
    # Padded with zeros, which no attention mask lets through.
    whole = value.new_zeros(shape)
    rows, tokens = min(len(value), shape[0]), min(value.shape[1], shape[1])
    whole[:, :tokens] = value[:1, :tokens]
    whole[:rows, :tokens] = value[:rows, :tokens]
    return whole


def _distance(ours: np.ndarray, expected: np.ndarray) -> float:
    largest = float(np.abs(expected).max()) or 1.0
    return float(np.abs(ours - expected).max()) / largest
