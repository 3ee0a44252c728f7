"""An exported file against the model that it came from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from obert_modifiers.deploy.engines import import_engine
from obert_modifiers.deploy.graph_model import GraphModel, open_graph
from obert_modifiers.deploy.samples import IDS, MASK, compared_samples

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
    padding; at the one size that the file has, where it is fixed.

    Args:
        model: The model that it was written from.
        sample: What the tokenizer makes of a text, by name, ``(batch, sequence)``.
        path: What was written.
        engine: What runs it.
        int8: Whether it has INT8 weights.
        fix: What to do where it computes something else.

    Returns:
        What was seen and at which sizes, or that the engine is not installed.

    Raises:
        ValueError: If the outputs are not the model's, or the engine stops.
    """  # noqa: DOC502  raised by _computed too
    try:
        import_engine(engine)
    except ValueError:
        return f"not run: {engine} is not installed"
    graph = open_graph(path, engine)
    farthest, sizes = 0.0, []
    for given in _samples(model, sample, graph):
        rows, tokens = next(iter(given.values())).shape
        at = f"at batch size {rows} and {tokens} tokens"
        references = _references(model, given, int8)
        if not references:
            continue  # too short for the model itself
        ours = _computed(graph, given, f"out={path}", f"{engine} {at}", fix)
        away = min(
            max(_distance(ours[n], one[n], given.get(MASK)) for n in graph.outputs)
            for one in references
        )
        if not away <= (FEW_STEPS if int8 else SAME):
            raise ValueError(
                f"out={path} gives other outputs than the model: {away:.2g} of the "
                f"largest {at}; expected the same to rounding; {fix}"
            )
        farthest = max(farthest, away)
        sizes.append((rows, tokens))
    return (
        f"outputs on {engine} within {farthest:.1g} of PyTorch's largest, at "
        + ", ".join(dict.fromkeys(f"{rows}x{tokens}" for rows, tokens in sizes))
        + " tokens with padding" * (MASK in sample)
    )


def _samples(
    model: nn.Module, sample: Mapping[str, Tensor], graph: GraphModel
) -> Iterator[Mapping[str, Tensor]]:
    """Choose the batches at which outputs are compared.

    Yields:
        What the tokenizer made, and several lengths and batch sizes, or the fixed one.
    """
    fixed = (*graph.inputs[IDS], None, None)[:2]
    if fixed[1] is None:
        yield sample
    yield from compared_samples(model, sample, (fixed[0], fixed[1]))


def _references(
    model: nn.Module, sample: Mapping[str, Tensor], int8: bool
) -> list[Mapping[str, Tensor]]:
    try:
        found = [_run(model, sample)]
    except (RuntimeError, IndexError):
        return []
    return [*found, _exactly(model, sample)] if int8 else found


def _computed(
    graph: GraphModel, sample: Mapping[str, Tensor], out: str, where: str, fix: str
) -> Mapping[str, Tensor]:
    try:
        return graph(**sample)
    except Exception as error:  # engines raise classes of their own
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(
            f"{out} cannot be run by {where} ({why}); expected any size that the file "
            f"says; {fix}"
        ) from error


def _run(model: nn.Module, sample: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return model(**sample)


def _exactly(model: nn.Module, sample: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    try:
        return _run(model.double(), sample)
    finally:
        model.float()  # every float32 comes back as it was


def _distance(ours: Tensor, expected: Tensor, mask: Tensor | None) -> float:
    if ours.shape != expected.shape:
        return float("inf")
    if mask is not None and expected.shape[: mask.ndim] == mask.shape:
        # What stands at padding means nothing.
        expected, ours = expected[mask.bool()], ours[mask.bool()]
    largest = float(expected.abs().max()) or 1.0
    return float((ours - expected).abs().max()) / largest
