"""Draw a recipe's plan with the report's panels."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from obert_modifiers.recipe.plan import RecipePlan, Span
from obert_modifiers.report.draw import png
from obert_modifiers.report.panels import COLOURS, colour, frame, sparsity_panel
from obert_modifiers.report.read import Run


def save_plan_png(path: Path, plan: RecipePlan, title: str) -> None:
    """Draw sparsity, learning rate and distillation of a plan, one above the other."""
    runs = planned_runs(plan)
    with png(path, title, (9.0, 7.6)) as figure:
        panels = figure.subplots(3, height_ratios=(3, 3, 2))
        sparsity_panel(panels[0], runs)
        _rate_panel(panels[1], runs[:1])
        _distillation_panel(panels[2], runs, plan.distillation)
        for axes in panels:
            axes.set_xlim(-0.02 * plan.end, 1.02 * plan.end or 1.0)


def planned_runs(plan: RecipePlan) -> list[Run]:
    """Make a run for each goal of each pruning modifier, all with one learning rate.

    Where nothing is pruned there is a single run, without events.
    """
    rates = [
        {"epoch": epoch, "learning_rate": rate, "step": 0}
        for epoch, rate in plan.rates
        if rate is not None
    ]
    runs = []
    for pruning in plan.pruning:
        for number, goal in enumerate(pruning.goals):
            events = [
                {"epoch": event.epoch, "sparsity_after": event.sparsities[number]}
                for event in pruning.events or ()
                if event.sparsities[number] is not None
            ]
            name = f"{pruning.modifier} to {goal:.4g}"
            runs.append(Run(name, Path(), {}, rates, prunes=events))
    return runs or [Run(Path(plan.file).name, Path(), {}, rates)]


def _rate_panel(ax: Axes, runs: Sequence[Run]) -> None:
    frame(ax, runs, "Learning rate")
    (run,) = runs
    epochs = [line["epoch"] for line in run.steps]
    rates = [line["learning_rate"] for line in run.steps]
    ax.plot(epochs, rates, color=colour(0), linewidth=1.8)
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-3, 3))
    ax.yaxis.set_major_formatter(formatter)
    ax.set_ylim(bottom=0)


def _distillation_panel(ax: Axes, runs: Sequence[Run], spans: Sequence[Span]) -> None:
    """Draw the hardness of the distillation, with its temperature beside it."""
    frame(ax, runs, "Hardness of the distillation" if spans else "No distillation")
    ink = COLOURS["c2"]
    for span in spans:
        hardness = 1.0 if span.hardness is None else span.hardness
        epochs = [span.start, span.end]
        ax.fill_between(epochs, hardness, color=ink, alpha=0.25, linewidth=0)
        ax.plot(epochs, [hardness] * 2, color=ink)
        if span.temperature is not None:
            ax.annotate(
                f"temperature {span.temperature:g}",
                (span.start, hardness),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )
    ax.set_ylim(0, 1.15)
