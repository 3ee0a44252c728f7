"""How large the encoder's weights are: histograms of those that are not zero."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from safetensors import safe_open

from obert_modifiers.deploy.artefact import RUN, find_artefact
from obert_modifiers.deploy.weight import in_a_layer
from obert_modifiers.report.panels import colour, plain
from obert_modifiers.report.read import Run
from obert_modifiers.report.text import listed, percent

_BINS = 60
_RANGE = (1e-5, 1e1)  # |w|; beyond it weights fall into the outermost bins


@dataclass(frozen=True)
class Magnitudes:
    """The magnitudes of a run's encoder weights.

    Attributes:
        name: The run.
        total: Encoder weights.
        nonzero: Those that are not zero.
        counts: Of the non-zero ones by bin, evenly spaced in log |w|.
        edges: The bins' borders, one more.
        low: |w| below which 1 % of the non-zero ones are.
        median: |w| below which half of them are.
    """

    name: str
    total: int
    nonzero: int
    counts: np.ndarray
    edges: np.ndarray
    low: float
    median: float


def magnitudes(run: Run) -> Magnitudes | None:
    """Read the magnitudes of a run's encoder weights from its file.

    Args:
        run: The run.

    Returns:
        Them; None where the folder has no weights any more, or no encoder's.
    """
    try:
        artefact = find_artefact(run.folder)
    except (FileNotFoundError, ValueError):
        return None
    if artefact.kind != RUN:
        return None
    edges = np.geomspace(*_RANGE, _BINS + 1)
    total, parts = 0, []
    for path in artefact.files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith(".weight") and in_a_layer(name):
                    tensor = file.get_tensor(name)
                    if tensor.ndim == 2:
                        total += tensor.numel()
                        kept = tensor[tensor != 0].abs().float()
                        parts.append(kept.numpy())
    found = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not found.size:
        return None
    counts, _ = np.histogram(found.clip(*_RANGE), edges)
    low, median = np.quantile(found, (0.01, 0.5))
    return Magnitudes(
        run.name, total, found.size, counts, edges, float(low), float(median)
    )


def weights_panel(ax: Axes, found: Sequence[Magnitudes]) -> None:
    """Draw how many non-zero weights of each magnitude there are.

    Args:
        ax: The axes.
        found: For each run.
    """
    title = "Weights of the encoder that are not zero, by size"
    ax.set_title(title, pad=10)
    for number_, one in enumerate(found):
        width = np.diff(np.log10(one.edges))
        heights = one.counts / width / 1e6
        ink = colour(number_)
        ax.stairs(heights, one.edges, color=ink, linewidth=1.6, label=plain(one.name))
        ax.stairs(heights, one.edges, color=ink, fill=True, alpha=0.12)
    ax.set_xscale("log")
    used = np.flatnonzero(np.sum([one.counts for one in found], axis=0) > 0)
    edges = found[0].edges
    # The last thousandth at either end is not worth half of the picture.
    shares = np.cumsum(np.sum([one.counts for one in found], axis=0))
    first, last = np.searchsorted(shares, (1e-3 * shares[-1], (1 - 1e-5) * shares[-1]))
    ax.set_xlim(edges[max(used[0], first - 2)], edges[min(last + 3, _BINS)])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("|w|")
    ax.set_ylabel("million weights in a decade")
    ax.grid(axis="y", linewidth=0.8)
    ax.tick_params(length=0, which="both")
    if len(found) > 1:
        ax.legend(loc="upper left")


def finding(found: Sequence[Magnitudes]) -> str:
    """Say how many weights are left and how small they are.

    Args:
        found: For each run.

    Returns:
        The finding.
    """
    if len(found) == 1:
        (one,) = found
        return (
            f"{one.nonzero:,} of {one.total:,} weights are not zero, half of them "
            f"above {one.median:.3f} and 1 % below {one.low:.4f}."
        )
    pruned = [one for one in found if one.nonzero < 0.95 * one.total]
    if not pruned:
        halves = listed([f"{one.median:.3f} in {one.name}" for one in found])
        return f"Nothing is pruned; half of the weights are above {halves}."
    most = max(pruned, key=lambda one: one.low / one.median)
    border = most.low / most.median / 2
    small = [one.name for one in pruned if one.low / one.median < border]
    ends = listed([f"{one.low:.4f} in {one.name}" for one in pruned])
    text = f"Of the weights that are left 1 % are below {ends}"
    if small:
        text += f": {most.name} kept large ones alone, {listed(small)} small ones too"
    return f"{text}."


def rows(found: Sequence[Magnitudes]) -> list[list[str]]:
    """Give the picture's numbers as a table.

    Args:
        found: For each run.

    Returns:
        The head, and a row for each run.
    """
    head = ["", "weights", "not zero", "share", "1 % below", "median"]
    return [
        head,
        *(
            [
                one.name,
                f"{one.total:,}",
                f"{one.nonzero:,}",
                percent(one.nonzero / one.total),
                f"{one.low:.4f}",
                f"{one.median:.4f}",
            ]
            for one in found
        ),
    ]
