"""Draw panels as SVG for the page and as PNG, without a display.

Every colour is one of `COLOURS`, so that the SVG can take them from the page's style
sheet, which has a light and a dark set.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {
    "page": "#fdfdfc",
    "ink": "#1d1f23",
    "muted": "#6a6f77",
    "grid": "#e5e6e3",
    "on": "#fffffe",
    "heat": "#1f58be",
    "c0": "#1f58bd",
    "c1": "#d2691e",
    "c2": "#1e8a5a",
    "c3": "#7b3fa0",
    "c4": "#b3244f",
    "c5": "#0b7a8a",
    "c6": "#6d6a12",
    "c7": "#7a4b2a",
}
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
    "axes.titlepad": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "grid.color": COLOURS["grid"],
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_LONGEST = 28  # letters of a name in a picture


def colour(number: int) -> str:
    """Return the colour of a run by its place among the runs."""
    return COLOURS[f"c{number % 8}"]


def short(name: str) -> str:
    """Drop the middle of a name that is too long for a picture."""
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 + 1 :]}"


def plain(name: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or leaving it out."""
    text = short(name).replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


@dataclass(frozen=True)
class Panel:
    """A picture: its title, what draws it into axes, and its size in inches."""

    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (5.0, 3.0)

    def draw_into(self, ax: Axes) -> None:
        """Draw it with its title."""
        ax.set_title(self.title.replace("$", r"\$"))
        self.draw(ax)

    def svg(self) -> str:
        """Draw it as an ``<svg>`` element that takes its colours from the page."""
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=self.size, layout="constrained")
            figure.patch.set_alpha(0.0)
            self.draw_into(figure.add_subplot())
            buffer = io.StringIO()
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        # Several share a page: keep the ids that are referred to, drop the rest.
        text = re.sub(r'<g id="[^"]*"', "<g", text)
        for side in ("width", "height"):
            text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
        label = html.escape(self.title.replace("\n", ", "), quote=True)
        text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        for name, value in COLOURS.items():
            text = text.replace(value, f"var(--{name})")
        return text


def save_png(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw panels one above the other into a PNG."""
    heights = [panel.size[1] for panel in panels]
    with matplotlib.rc_context(_STYLE):
        size = (max(panel.size[0] for panel in panels), sum(heights) + 0.5)
        figure = Figure(size, layout="constrained", facecolor=COLOURS["page"])
        title = title.replace("$", r"\$")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
        for panel, ax in zip(panels, axes[:, 0], strict=True):
            panel.draw_into(ax)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=144)
