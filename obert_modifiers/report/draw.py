"""Turn panels into SVG for the page and into PNG, without a display.

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

from obert_modifiers.report.panels import (
    COLOURS,
    Panel,
    layer_grid,
    layers_panel,
    metric_panel,
    plain,
    sparsity_panel,
)
from obert_modifiers.report.read import Run

SIZE = (5.0, 3.0)  # inches of a panel
_PNG_DPI = 144
_ROW = 0.34  # inches for a row of the layers' panel
_STYLE = {
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


def svg(
    panel: Panel,
    runs: Sequence[Any],
    label: str,
    size: tuple[float, float] = SIZE,
) -> str:
    """Draw a panel as an ``<svg>`` element that takes its colours from the page.

    The label says what it shows to those who cannot see it.
    """
    with matplotlib.rc_context(_STYLE):
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


def layers_size(run: Run) -> tuple[float, float]:
    """Return width and height of the layers' panel in inches."""
    return 8.4, 0.9 + _ROW * len(layer_grid(run.layers)[0])


@contextmanager
def png(path: Path, title: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Give a figure with a title, and write it as PNG in the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_facecolor(COLOURS["page"])
        title = title.replace("$", r"\$")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        yield figure
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=_PNG_DPI)


def save_png(path: Path, runs: Sequence[Run], title: str) -> None:
    """Draw sparsity and metric of the runs, and the layers of the last, as a PNG."""
    last = runs[-1]
    heights = [2.9, *([layers_size(last)[1]] if last.layers else [])]
    with png(path, title, (10.0, sum(heights) + 0.5)) as figure:
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        sparsity_panel(figure.add_subplot(grid[0, 0]), runs)
        metric_panel(figure.add_subplot(grid[0, 1]), runs)
        if last.layers:
            axes = figure.add_subplot(grid[1, :])
            layers_panel(axes, [last])
            if len(runs) > 1:
                axes.set_title(f"Sparsity by layer: {plain(last.name)}", pad=10)
