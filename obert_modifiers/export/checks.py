"""An exported file against the model that it came from."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from obert_modifiers.engines import import_engine
from obert_modifiers.export.engines import open_graph

# What an engine rounds lifts single activations over the border of their step, and so
# does torch: a trained model of six layers was 0.11 of its largest output away in
# float32 from itself in float64, and each engine within 0.02 of one of the two.
SAME, FEW_STEPS = 1e-4, 0.1


def compare(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    path: Path,
    engine: str,
    int8: bool,
    fix: str = "report this model's class",
) -> str:
    """Run an exported file on an engine and hold its outputs against PyTorch's.

    Args:
        model: The model that it was written from.
        sample: Inputs by name, ``(batch, sequence)`` each.
        path: What was written.
        engine: What runs it.
        int8: Whether it has INT8 weights.
        fix: What to do where it computes something else.

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
    references = [_run(model, sample)]
    if int8:
        references.append(_exactly(model, sample))
    away = min(
        max(_distance(ours[name], expected[name]) for name in graph.outputs)
        for expected in references
    )
    if not away <= (FEW_STEPS if int8 else SAME):
        raise ValueError(
            f"out={path} gives other outputs than the model: {away:.2g} of the "
            f"largest; expected the same to rounding; {fix}"
        )
    return f"outputs on {engine} within {away:.1g} of PyTorch's largest"


def _run(model: nn.Module, sample: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return model(**sample)


def _exactly(model: nn.Module, sample: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    try:
        return _run(model.double(), sample)
    finally:
        model.float()  # every float32 comes back as it was


def _distance(ours: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max()) or 1.0
    return float((ours - expected).abs().max()) / largest
