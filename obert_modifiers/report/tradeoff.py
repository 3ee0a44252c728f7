"""Accuracy against size and speed, as in Figure 2 of oBERT's paper."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from obert_modifiers.report.panels import COLOURS, colour, plain
from obert_modifiers.report.text import NONE, figure, number, percent

# Where a name goes beside its point, in heights of the panel; a line is a ninth of it.
_STEPS = (0.09, -0.11, 0.2, -0.22, 0.31, -0.33)


@dataclass(frozen=True)
class Point:
    """A model in the picture.

    Attributes:
        name: What it is called.
        metric: Its figure.
        value: Its size in gzip MB, or its items a second.
        gain: How many times as small or as fast as the reference it is.
        deviation: Standard deviation of the value.
        number: Its run's place among the runs, which chooses its colour.
    """

    name: str
    metric: float
    value: float
    gain: float
    deviation: float = 0.0
    number: int = 0

    @property
    def spread(self) -> float:
        """Standard deviation of the gain."""
        return self.gain * self.deviation / self.value


def tradeoff_panel(
    ax: Axes, points: Sequence[Point], title: str, metric: str, gain: str
) -> None:
    """Draw models by what they gain and what they keep; the first is the reference."""
    ax.set_title(title, pad=10)
    ax.axhline(
        points[0].metric, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3))
    )
    for point in points:
        ink = colour(point.number)
        ax.plot(point.gain, point.metric, "o", color=ink, markersize=8)
        if point.spread:
            ax.errorbar(
                point.gain, point.metric, xerr=point.spread, color=ink, capsize=3
            )
    _label(ax, points)
    ax.set_xlabel(gain)
    ax.set_ylabel(metric)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(linewidth=0.8)
    ax.tick_params(length=0)


def _label(ax: Axes, points: Sequence[Point]) -> None:
    """Write each name beside its point, inwards, where no other name is."""
    gains = [point.gain for point in points]
    metrics = [point.metric for point in points]
    left, low = min(gains), min(metrics)
    wide = (max(gains) - left) or 1.0
    high = (max(metrics) - low) or abs(metrics[0]) or 1.0
    first = min(point.gain - point.spread for point in points) - 0.12 * wide
    last = max(point.gain + point.spread for point in points) + 0.12 * wide
    ax.set_xlim(max(first, 0.0), last)
    ax.set_ylim(low - 0.25 * high, max(metrics) + 0.3 * high)
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.gain):
        x, y = (point.gain - left) / wide, (point.metric - low) / high
        for step in _STEPS:
            if all(abs(y + step - b) > 0.1 or abs(x - a) > 0.5 for a, b in taken):
                break
        taken.append((x, y + step))
        ax.annotate(
            plain(point.name),
            (point.gain, point.metric),
            xytext=(point.gain, point.metric + step * high),
            ha="right" if x > 0.55 else "left",
            va="center",
            fontsize=8.5,
            color=COLOURS["ink"],
            fontweight="bold",
        )


def rows(points: Sequence[Point], metric: str, value: str) -> list[list[str]]:
    """Give the picture's numbers as a table; the first row is the head."""
    base = points[0].metric
    table = [["", metric, "of the first", value, "ratio"]]
    for point in points:
        spread = f" ± {number(point.deviation, 1)}" if point.deviation else ""
        table.append([
            point.name,
            figure(point.metric),
            percent(point.metric / base, 1) if base else NONE,
            f"{number(point.value, 1)}{spread}",
            f"{point.gain:.2f}x",
        ])
    return table
