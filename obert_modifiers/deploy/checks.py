"""An exported file against the model that it came from."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.engines.engine import reason
from obert_modifiers.deploy.graph_model import open_graph
from obert_modifiers.deploy.samples import MASK, compared_samples

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

    That is done at several lengths and batch sizes, the longest among them, with
    padding; at the one size that the file has, where it is fixed. `sample` is what the
    tokenizer makes of a text, `fix` what to do where the file computes something else,
    which is a ValueError. Returns what was seen at which sizes, or that the engine is
    not installed.
    """
    try:
        ENGINES[engine].package()
    except ValueError:
        return f"not run: {engine} is not installed"
    graph = open_graph(path, engine)
    samples = [] if graph.sizes[1] else [sample]
    seen: list[tuple[str, list[dict[str, float]]]] = []
    largest: dict[str, float] = {}  # of all batches: in one, a number may be about 0
    for given in (*samples, *compared_samples(model, sample, graph.sizes)):
        references = _references(model, given, int8)
        if not references:
            continue  # too short for the model itself
        size = "{}x{}".format(*next(iter(given.values())).shape)
        try:
            ours = graph(**given)
        except Exception as error:  # engines raise classes of their own
            raise ValueError(
                f"out={path} cannot be run by {engine} at {size} ({reason(error)}); "
                f"expected any size that the file says; {fix}"
            ) from error
        compared = [_distances(ours, one, given.get(MASK)) for one in references]
        for name, (_, most) in compared[0].items():
            largest[name] = max(largest.get(name, 0.0), most)
        away = [{name: off for name, (off, _) in one.items()} for one in compared]
        seen.append((size, away))
    farthest, sizes = 0.0, [size for size, _ in seen]
    for size, distances in seen:
        share = min(_share(one, largest) for one in distances)
        if not share <= (FEW_STEPS if int8 else SAME):
            raise ValueError(
                f"out={path} gives other outputs than the model: {share:.2g} of the "
                f"largest at {size}; expected the same to rounding; {fix}"
            )
        farthest = max(farthest, share)
    return (
        f"outputs on {engine} within {farthest:.1g} of PyTorch's largest, at "
        + ", ".join(dict.fromkeys(sizes))
        + " tokens with padding" * (MASK in sample)
    )


@torch.no_grad()
def _references(
    model: nn.Module, sample: Mapping[str, Tensor], int8: bool
) -> list[Mapping[str, Tensor]]:
    """Compute the outputs in float32, and for INT8 in float64 too."""
    try:
        found = [model(**sample)]
    except (RuntimeError, IndexError):
        return []
    if int8:
        try:
            found.append(model.double()(**sample))
        finally:
            model.float()  # every float32 comes back as it was
    return found


def _distances(
    outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor], mask: Tensor | None
) -> dict[str, tuple[float, float]]:
    """Return how far each output is away at most, and the reference's largest."""
    found = {}
    for name, ours in outputs.items():
        expected = reference[name]
        if ours.shape != expected.shape:
            found[name] = math.inf, 0.0
            continue
        if mask is not None and expected.shape[: mask.ndim] == mask.shape:
            # What stands at padding means nothing.
            expected, ours = expected[mask.bool()], ours[mask.bool()]
        away = float((ours - expected).abs().max())  # NaN if any is
        found[name] = away, float(expected.abs().max())
    return found


def _share(distances: Mapping[str, float], largest: Mapping[str, float]) -> float:
    """Return the largest distance, in shares of the largest of its output."""
    shares = [away / (largest[name] or 1.0) for name, away in distances.items()]
    return float(torch.tensor(shares).max())  # NaN if any is
