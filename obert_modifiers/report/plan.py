"""Draw a recipe's plan with the report's panels."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from obert_modifiers.recipe.plan import RecipePlan
from obert_modifiers.report.draw import COLOURS, Panel, colour, save_png
from obert_modifiers.report.panels import over_epochs, sparsity_panel
from obert_modifiers.report.read import Run


def save_plan_png(path: Path, plan: RecipePlan, title: str) -> None:
    """Draw sparsity, learning rate and distillation of a plan, one above the other."""
    runs, end = planned_runs(plan), plan.end or 1.0

    def draw_rate(ax: Axes) -> None:
        over_epochs(ax, runs, end)
        rates = [pair for pair in plan.rates if pair[1] is not None]
        if rates:
            ax.plot(*zip(*rates, strict=True), color=colour(0))
        formatter = ScalarFormatter(useMathText=True)
        formatter.set_powerlimits((-3, 3))
        ax.yaxis.set_major_formatter(formatter)
        ax.set_ylim(bottom=0)

    def draw_distillation(ax: Axes) -> None:
        over_epochs(ax, runs, end)
        for span in plan.distillation:
            hardness = 1.0 if span.hardness is None else span.hardness
            epochs = [span.start, span.end]
            ink = COLOURS["c2"]
            ax.fill_between(epochs, hardness, color=ink, alpha=0.25, linewidth=0)
            ax.plot(epochs, [hardness] * 2, color=ink)
            if span.temperature is not None:
                text = f"temperature {span.temperature:g}"
                ax.annotate(text, (span.start, hardness + 0.04), fontsize=8)
        ax.set_ylim(0, 1.15)

    what = "Hardness of the distillation" if plan.distillation else "No distillation"
    save_png(
        path,
        title,
        [
            sparsity_panel(runs, end),
            Panel("Learning rate", draw_rate, (9.0, 2.7)),
            Panel(what, draw_distillation, (9.0, 1.8)),
        ],
    )


def planned_runs(plan: RecipePlan) -> list[Run]:
    """Make a run for each goal of each pruning modifier.

    Where nothing is pruned there is a single run, without events.
    """
    steps = [{"epoch": plan.end}]
    runs = []
    for pruning in plan.pruning:
        for number, goal in enumerate(pruning.goals):
            events = [
                {"epoch": event.epoch, "sparsity_after": event.sparsities[number]}
                for event in pruning.events or ()
                if event.sparsities[number] is not None
            ]
            name = f"{pruning.modifier} to {goal:.4g}"
            runs.append(Run(name, Path(), {}, steps, prunes=events))
    return runs or [Run(Path(plan.file).name, Path(), {}, steps)]
