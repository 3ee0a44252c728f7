"""A recipe's plan as the report's panels draw it, and a panel for its distillation."""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from obert_modifiers.recipe.plan import RecipePlan, Span
from obert_modifiers.report.panels import COLOURS, frame
from obert_modifiers.report.read import Run


def planned_runs(plan: RecipePlan) -> list[Run]:
    """Bring a plan into the form that the panels of the report draw.

    Args:
        plan: The plan.

    Returns:
        A run for each goal of each pruning modifier, all with the same learning
        rate; one without events where nothing is pruned.
    """
    rates = [
        {"epoch": epoch, "learning_rate": rate, "step": 0}
        for epoch, rate in plan.rates
        if rate is not None
    ]
    found = []
    for pruning in plan.pruning:
        for number, goal in enumerate(pruning.goals):
            events = [
                {"epoch": event.epoch, "sparsity_after": event.sparsities[number]}
                for event in pruning.events or ()
                if event.sparsities[number] is not None
            ]
            found.append(_run(f"{pruning.modifier} to {goal:.4g}", rates, events))
    return found or [_run(Path(plan.file).name, rates, [])]


def _run(name: str, rates: Sequence[dict], events: list[dict[str, Any]]) -> Run:
    epochs = [event["epoch"] for event in events]
    steps = []
    for step in rates:
        past = bisect.bisect_right(epochs, step["epoch"])
        sparsity = events[past - 1]["sparsity_after"] if past else 0.0
        steps.append({**step, "sparsity": sparsity})
    return Run(name, Path(), {}, steps=steps, prunes=events)


def distillation_panel(ax: Axes, runs: Sequence[Run], spans: Sequence[Span]) -> None:
    """Draw the hardness of the distillation, with its temperature beside it.

    Args:
        ax: The axes.
        runs: As from :func:`planned_runs`, for the range of epochs.
        spans: When there is distillation.
    """
    title = "Hardness of the distillation" if spans else "No distillation"
    frame(ax, runs, title)
    for span in spans:
        hardness = 1.0 if span.hardness is None else span.hardness
        ax.fill_between(
            [span.start, span.end],
            hardness,
            color=COLOURS["c2"],
            alpha=0.25,
            linewidth=0,
        )
        ax.plot([span.start, span.end], [hardness] * 2, color=COLOURS["c2"])
        if span.temperature is not None:
            ax.annotate(
                f"temperature {span.temperature:g}",
                (span.start, hardness),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )
    ax.set_ylim(0, 1.15)
