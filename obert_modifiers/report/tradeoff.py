"""Accuracy against size and speed, as in Figure 2 of oBERT's paper."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from obert_modifiers.report.panels import COLOURS, colour, plain
from obert_modifiers.report.text import figure, number, percent


@dataclass(frozen=True)
class Point:
    """A model in the picture.

    Attributes:
        name: What it is called.
        metric: Its figure.
        value: Its size in gzip MB, or its items a second.
        gain: How many times as small or as fast as the reference it is.
        deviation: Standard deviation of the value, or None.
        number: Its run's place among the runs, which chooses its colour.
    """

    name: str
    metric: float
    value: float
    gain: float
    deviation: float | None = None
    number: int = 0


def tradeoff_panel(
    ax: Axes, points: Sequence[Point], title: str, metric: str, gain: str
) -> None:
    """Draw models by what they gain and what they keep.

    Args:
        ax: The axes.
        points: The models; the first is the reference.
        title: The panel's title.
        metric: The name of the figure.
        gain: What the horizontal axis counts.
    """
    ax.set_title(title, pad=10)
    ax.axhline(
        points[0].metric, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3))
    )
    for point in points:
        ink = colour(point.number)
        ax.plot(point.gain, point.metric, "o", color=ink, markersize=8)
        if point.deviation:
            wide = point.gain * point.deviation / point.value
            ax.errorbar(point.gain, point.metric, xerr=wide, color=ink, capsize=3)
    _label(ax, points)
    ax.set_xlabel(gain)
    ax.set_ylabel(metric)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(linewidth=0.8)
    ax.tick_params(length=0)


def _label(ax: Axes, points: Sequence[Point]) -> None:
    """Write each name beside its point, where no other name is.

    Args:
        ax: The axes.
        points: The models.
    """
    gains = [point.gain for point in points]
    off = [p.gain * (p.deviation or 0.0) / p.value for p in points]
    metrics = [point.metric for point in points]
    wide = (max(gains) - min(gains)) or 1.0
    high = (max(metrics) - min(metrics)) or abs(metrics[0]) or 1.0
    ends = [g - d for g, d in zip(gains, off, strict=True)]
    far = [g + d for g, d in zip(gains, off, strict=True)]
    ax.set_xlim(min(ends) - 0.12 * wide, max(far) + 0.12 * wide)
    ax.set_ylim(min(metrics) - 0.25 * high, max(metrics) + 0.3 * high)
    taken: list[tuple[float, float]] = []
    order = sorted(range(len(points)), key=lambda i: gains[i])
    for i in order:
        x, y = (gains[i] - min(gains)) / wide, (metrics[i] - min(metrics)) / high
        # Names go inwards from the nearer side; above the point, below it, and so on
        # until there is room. A line of text is a ninth of the height.
        right = x > 0.55
        for step in (0.09, -0.11, 0.2, -0.22, 0.31, -0.33):
            if all(abs(y + step - b) > 0.1 or abs(x - a) > 0.5 for a, b in taken):
                break
        taken.append((x, y + step))
        ax.annotate(
            plain(points[i].name),
            (gains[i], metrics[i]),
            xytext=(gains[i], metrics[i] + step * high),
            ha="right" if right else "left",
            va="center",
            fontsize=8.5,
            color=COLOURS["ink"],
            fontweight="bold",
        )


def rows(points: Sequence[Point], metric: str, value: str) -> list[list[str]]:
    """Give the picture's numbers as a table.

    Args:
        points: The models; the first is the reference.
        metric: The name of the figure.
        value: What is gained in.

    Returns:
        The head, and a row for each model.
    """
    base = points[0].metric
    head = ["", metric, "of the first", value, "ratio"]
    return [
        head,
        *(
            [
                point.name,
                figure(point.metric),
                percent(point.metric / base, 1) if base else "–",
                number(point.value, 1)
                + (f" ± {number(point.deviation, 1)}" if point.deviation else ""),
                f"{point.gain:.2f}x",
            ]
            for point in points
        ),
    ]
