"""Accuracy against size and speed, as in Figure 2 of oBERT's paper."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from obert_modifiers.report.draw import Panel, colour, plain
from obert_modifiers.report.panels import DOTTED
from obert_modifiers.report.text import NONE, figure, number, percent


@dataclass(frozen=True)
class Point:
    """A run in the picture."""

    number: int  # its place among the runs, which chooses its colour
    name: str
    metric: float
    gain: float  # how many times as small or as fast as the reference it is
    value: float  # its size in gzip MB, or its samples a second
    low: float | None = None  # quartiles of a measured value
    high: float | None = None


def tradeoff_panel(points: Sequence[Point], title: str, metric: str, how: str) -> Panel:
    """Draw runs by what they gain and what they keep; the first is the reference."""

    def draw(ax: Axes) -> None:
        ax.axhline(points[0].metric, **DOTTED)
        for point in points:
            style = {"color": colour(point.number), "label": plain(point.name)}
            spread = None
            if point.low is not None and point.high is not None:
                ends = (point.value - point.low, point.high - point.value)
                scale = point.gain / point.value
                spread = [[max(0.0, scale * end)] for end in ends]
            place = (point.gain, point.metric)
            ax.errorbar(*place, xerr=spread, fmt="o", markersize=8, capsize=3, **style)
        ax.set_xlabel(f"times {how} than {plain(points[0].name)}")
        ax.set_ylabel(metric)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.margins(0.12, 0.25)
        ax.grid(linewidth=0.8)
        ax.legend()

    return Panel(title, draw)


def tradeoff_rows(points: Sequence[Point], metric: str, value: str) -> list[list[str]]:
    """Give the picture's numbers as a table; the first row is the head."""
    base = points[0].metric
    table = [["", metric, "of the first", value, "ratio"]]
    for point in points:
        spread = ""
        if point.low != point.high:
            spread = f" ({number(point.low, 1)} to {number(point.high, 1)})"
        table.append([
            point.name,
            figure(point.metric),
            percent(point.metric / base, 1) if base else NONE,
            f"{number(point.value, 1)}{spread}",
            f"{point.gain:.2f}x",
        ])
    return table
