"""An exported file against the model that it came from."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from obert_modifiers.engines import import_engine
from obert_modifiers.export.engines import open_graph

# Integer kernels sum exactly and torch in float32. All outputs agree to rounding but
# those behind an activation that this lifts over the border of its step.
SAME, FEW_STEPS = 1e-4, 0.1


def compare(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    path: Path,
    engine: str,
    int8: bool,
) -> str:
    """Run an exported file on an engine and hold its outputs against PyTorch's.

    Args:
        model: The model that it was written from.
        sample: Inputs by name, ``(batch, sequence)`` each.
        path: What was written.
        engine: What runs it.
        int8: Whether it has INT8 weights.

    Returns:
        What was seen, or that the engine is not installed.

    Raises:
        ValueError: If the outputs are not the model's.
    """
    try:
        import_engine(engine)
    except ValueError:
        return f"not run: {engine} is not installed"
    graph = open_graph(path, engine)
    longest = (*graph.inputs["input_ids"], None, None)[1]
    sample = {name: value[:, :longest] for name, value in sample.items()}
    ours = graph(**sample)
    with torch.no_grad():
        expected = model(**sample)
    away = max(_distance(ours[name], expected[name]) for name in graph.outputs)
    if not away <= (FEW_STEPS if int8 else SAME):
        raise ValueError(
            f"out={path} gives other outputs than the model: {away:.2g} of the "
            "largest; expected the same to rounding; report this model's class"
        )
    return f"outputs on {engine} within {away:.1g} of PyTorch's largest"


def _distance(ours: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max()) or 1.0
    return float((ours - expected).abs().max()) / largest
