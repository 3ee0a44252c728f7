"""An exported file against the model that it came from."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from obert_modifiers.core.positions import usable_length
from obert_modifiers.engines import import_engine
from obert_modifiers.export.engines import GraphModel, open_graph

# What an engine rounds lifts single activations over the border of their step, and so
# does torch: a trained model of six layers was 0.11 of its largest output away in
# float32 from itself in float64, and each engine within 0.02 of one of the two.
SAME, FEW_STEPS = 1e-4, 0.1
_MASK = "attention_mask"
_MOST_TOKENS = 512  # of a comparison; models with more positions are compared up to it


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
    fixed = (*graph.inputs["input_ids"], None, None)[1]
    lengths = _lengths(model, sample, fixed)
    furthest = 0.0
    for tokens in lengths:
        batch = of_length(sample, tokens)
        away, why = _away(model, graph, batch, int8)
        if not away <= (FEW_STEPS if int8 else SAME):
            why = why or f"{away:.2g} of the largest"
            free = "" if fixed else "fix its sizes with --shape BATCHxTOKENS, or "
            raise ValueError(
                f"out={path} gives other outputs than the model at {tokens} tokens: "
                f"{why}; expected the same to rounding; {free}{fix}"
            )
        furthest = max(furthest, away)
    seen = f"outputs on {engine} within {furthest:.1g} of PyTorch's largest"
    return f"{seen}, at {', '.join(map(str, lengths))} tokens"


def of_length(
    sample: Mapping[str, Tensor], tokens: int, rows: int = 3
) -> dict[str, Tensor]:
    """Make a batch of some length from a sample; the second row is half padding.

    Args:
        sample: Inputs by name, ``(batch, sequence)`` each.
        tokens: The length of each row.
        rows: How many rows.

    Returns:
        Inputs by name, ``(rows, tokens)`` each.
    """
    batch = {}
    for name, value in sample.items():
        repeats = -(-(tokens + rows) // value.shape[1])
        long = value[:1].repeat(1, repeats)
        batch[name] = torch.cat([long[:, i : i + tokens] for i in range(rows)])
    if _MASK in batch and rows > 1:
        for value in batch.values():
            value[1, tokens // 2 + 1 :] = 0
    return batch


def _lengths(
    model: nn.Module, sample: Mapping[str, Tensor], fixed: int | None
) -> list[int]:
    """Choose the lengths that are compared: the sample's, and the longest of the file.

    Returns:
        Numbers of tokens.
    """
    longest = fixed or min(usable_length(model) or _MOST_TOKENS, _MOST_TOKENS)
    own = next(iter(sample.values())).shape[1]
    return sorted({min(own, longest), max(longest // 3, 1), longest})


def _away(
    model: nn.Module, graph: GraphModel, batch: Mapping[str, Tensor], int8: bool
) -> tuple[float, str]:
    """Compare a graph and its model on a batch.

    Returns:
        The largest difference, as a share of the largest output, and what the engine
        said where it ended.
    """
    try:
        ours = graph(**batch)
    except Exception as error:  # engines have classes of their own
        return math.inf, (str(error).strip().splitlines() or [""])[0][:300]
    references = [_run(model, batch)]
    if int8:
        references.append(_exactly(model, batch))
    # What a padded position gives is of no use, and models differ in it.
    kept = batch[_MASK].bool() if _MASK in batch else None
    return min(
        max(_distance(ours[name], expected[name], kept) for name in graph.outputs)
        for expected in references
    ), ""


def _run(model: nn.Module, sample: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return model(**sample)


def _exactly(model: nn.Module, sample: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    try:
        return _run(model.double(), sample)
    finally:
        model.float()  # every float32 comes back as it was


def _distance(ours: Tensor, expected: Tensor, kept: Tensor | None) -> float:
    if kept is not None and expected.shape[:2] == kept.shape:
        ours, expected = ours[kept], expected[kept]
    largest = float(expected.abs().max()) or 1.0
    return float((ours - expected).abs().max()) / largest
