"""Turn panels into SVG for the page and into one PNG, without a display.

Every colour is one of `COLOURS`, so that the SVG can take them from the page's style
sheet, which has a light and a dark set.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from obert_modifiers.recipe.plan import RecipePlan
from obert_modifiers.report.panels import (
    COLOURS,
    PANELS,
    Panel,
    layer_grid,
    layers_panel,
    plain,
    rate_panel,
    sparsity_panel,
)
from obert_modifiers.report.plan_panels import distillation_panel, planned_runs
from obert_modifiers.report.read import Run

_PNG_DPI = 144
_ROW = 0.34  # inches for a row of the layers' panel


@contextmanager
def _style() -> Iterator[None]:
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "obert",
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.edgecolor": COLOURS["grid"],
        "axes.facecolor": "none",
        "axes.titlesize": 10.0,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": COLOURS["muted"],
        "ytick.color": COLOURS["muted"],
        "grid.color": COLOURS["grid"],
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with matplotlib.rc_context(settings):
        yield


def svg(
    panel: Panel, runs: Sequence[Any], size: tuple[float, float], label: str = ""
) -> str:
    """Draw a panel as SVG that takes its colours from the page.

    Args:
        panel: Which one.
        runs: What to draw.
        size: Width and height in inches.
        label: What it shows, for those who cannot see it.

    Returns:
        An ``<svg>`` element.
    """
    with _style():
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0.0)
        panel(figure.add_subplot(), runs)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several pictures share a page: keep the ids that are referred to, drop the rest.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    said = html.escape(label, quote=True)
    text = text.replace("<svg", f'<svg role="img" aria-label="{said}"', 1)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def layers_svg(run: Run, label: str = "") -> str:
    """Draw the sparsity by layer as SVG.

    Args:
        run: The run.
        label: What it shows, for those who cannot see it.

    Returns:
        An ``<svg>`` element, or nothing where the run has no prunable parameters.
    """
    if not run.layers:
        return ""
    return svg(layers_panel, [run], (8.4, _layers_height(run)), label)


def _layers_height(run: Run) -> float:
    return 0.9 + _ROW * len(layer_grid(run.layers)[0])


def save_png(path: Path, runs: Sequence[Run], title: str) -> None:
    """Draw all panels into one picture.

    Args:
        path: The file.
        runs: One run, or several to compare; the layers are those of the last one.
        title: What stands above it.
    """
    with_layers = bool(runs[-1].layers)
    heights = [2.9, 2.9] + ([_layers_height(runs[-1])] if with_layers else [])
    with _style():
        figure = Figure(figsize=(10.0, sum(heights) + 0.5), layout="constrained")
        figure.patch.set_facecolor(COLOURS["page"])
        figure.suptitle(
            title.replace("$", r"\$"), x=0.01, ha="left", fontsize=12, fontweight="bold"
        )
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        for number, panel in enumerate(PANELS):
            panel(figure.add_subplot(grid[number // 2, number % 2]), runs)
        if with_layers:
            axes = figure.add_subplot(grid[2, :])
            layers_panel(axes, runs[-1:])
            if len(runs) > 1:
                axes.set_title(f"Sparsity by layer: {plain(runs[-1].name)}", pad=10)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=_PNG_DPI)


def save_plan_png(path: Path, plan: RecipePlan, title: str) -> None:
    """Draw sparsity, learning rate and distillation of a plan, one above the other.

    Args:
        path: The file.
        plan: The plan of a recipe.
        title: What stands above it.
    """
    runs = planned_runs(plan)
    with _style():
        figure = Figure(figsize=(9.0, 7.6), layout="constrained")
        figure.patch.set_facecolor(COLOURS["page"])
        figure.suptitle(
            title.replace("$", r"\$"), x=0.01, ha="left", fontsize=12, fontweight="bold"
        )
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        above, middle, below = figure.subplots(3, height_ratios=(3, 3, 2))
        sparsity_panel(above, runs)
        rate_panel(middle, runs[:1])
        distillation_panel(below, runs, plan.distillation)
        for axes in (above, middle, below):
            axes.set_xlim(-0.02 * plan.end, 1.02 * plan.end or 1.0)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=_PNG_DPI)
