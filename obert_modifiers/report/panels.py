"""The panels about runs: sparsity over the epochs and by layer, and what it gains."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from obert_modifiers.report.draw import COLOURS, Panel, colour, plain, short
from obert_modifiers.report.read import Run
from obert_modifiers.report.text import NONE, figure, number, percent

# Where two runs coincide, the gaps of the one above show the one below.
_LINES = ("-", "-", (0, (4, 2.5)))
_DOTTED = {"color": COLOURS["muted"], "linewidth": 0.8, "linestyle": (0, (2, 3))}
_MOST_LINES = 40  # events that are marked; more would be a grey area


def over_epochs(ax: Axes, runs: Sequence[Run], end: float) -> None:
    """Set what all panels over time share, and mark the pruning events."""
    ax.set_xlabel("epoch")
    ax.grid(axis="y", linewidth=0.8)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlim(-0.02 * end, 1.02 * end)
    events = {event["epoch"] for run in runs for event in run.prunes}
    for epoch in events if len(events) <= _MOST_LINES else ():
        ax.axvline(epoch, zorder=0, **_DOTTED)


def sparsity_panel(runs: Sequence[Run], end: float | None = None) -> Panel:
    """Draw the sparsity as applied, and wide and pale below it as planned."""
    end = end or max((run.end for run in runs), default=0.0) or 1.0

    def draw(ax: Axes) -> None:
        over_epochs(ax, runs, end)
        for place, run in enumerate(runs):
            style = {"color": colour(place), "drawstyle": "steps-post"}
            if run.planned:
                epoch, target = run.planned[-1]
                points = [(0.0, 0.0), *run.planned, (max(epoch, run.end), target)]
                ax.plot(
                    *zip(*points, strict=True),
                    **style,
                    alpha=0.3,
                    linewidth=6,
                    label=f"{plain(run.name)}, planned",
                )
            dashes = _LINES[place % len(_LINES)]
            ax.plot(
                *run.sparsity_curve(), **style, linestyle=dashes, label=plain(run.name)
            )
            epochs = [event["epoch"] for event in run.prunes]
            reached = [event["sparsity_after"] for event in run.prunes]
            ax.plot(epochs, reached, "o", color=colour(place))
        _write_sparsities(ax, runs)
        ax.set_ylim(0, 1.08)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
        if len(runs) > 1 or any(run.planned for run in runs):
            ax.legend()

    return Panel("Sparsity of the prunable weights", draw)


def _write_sparsities(ax: Axes, runs: Sequence[Run]) -> None:
    """Write the sparsity over the first and last events, and over few also others."""
    events = next((run.prunes for run in runs if run.prunes), [])
    for event in events if len(events) <= 5 else (events[0], events[-1]):
        ax.annotate(
            f"{100 * event['sparsity_after']:.0f} %",
            (event["epoch"], event["sparsity_after"]),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )


def layer_grid(
    layers: Sequence[dict],
) -> tuple[list[str], list[str], dict[tuple[str, str], float]]:
    """Arrange parameters (name, numel, pruned) as layers by matrices.

    Returns row names, column names and the sparsity by both. Where the names have no
    layer's number in them, there is one column and each parameter is a row.
    """
    cells: dict[tuple[str, str], float] = {}
    for layer in layers:
        name = layer["name"].removesuffix(".weight")
        found = re.search(r"\.(\d+)\.", name)
        row = str(int(found[1]) + 1) if found else name
        column = name[found.end() :] if found else ""
        column = re.sub(r"attention\.self\.", "", column)
        column = re.sub(r"\.?(dense|lin)$", "", column) or "sparsity"
        cells[row, column.replace(".", " ")] = layer["pruned"] / layer["numel"]
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    return rows, columns, cells


def layers_panel(run: Run) -> Panel:
    """Draw the sparsity of each matrix of a run as a table of shaded cells."""
    rows, columns, cells = layer_grid(run.layers)

    def draw(ax: Axes) -> None:
        for (row, column), sparsity in cells.items():
            x, y = columns.index(column), rows.index(row)
            alpha = 0.06 + 0.94 * sparsity**2
            cell = {"facecolor": COLOURS["heat"], "alpha": alpha, "linewidth": 0}
            ax.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, **cell))
            ink = COLOURS["on" if alpha > 0.75 else "ink"]
            place = {"ha": "center", "va": "center_baseline"}
            ax.text(x + 0.5, y + 0.5, f"{100 * sparsity:.1f}", color=ink, **place)
        ax.set_xlim(0, len(columns))
        ax.set_ylim(len(rows), 0)
        ax.set_xticks([x + 0.5 for x in range(len(columns))], map(plain, columns))
        ax.set_yticks([y + 0.5 for y in range(len(rows))], map(plain, rows))
        ax.set_ylabel("encoder layer" if all(row.isdigit() for row in rows) else "")
        ax.xaxis.tick_top()
        ax.spines[:].set_visible(False)

    title = f"Sparsity by layer of {short(run.name)}, counted from the saved file"
    return Panel(title, draw, (8.4, 0.9 + 0.34 * len(rows)))


@dataclass(frozen=True)
class Point:
    """A run in the picture."""

    number: int  # its place among the runs, which chooses its colour
    name: str
    metric: float
    gain: float  # how many times as small or as fast as the reference it is
    value: float  # its size in gzip MB, or its samples a second
    low: float  # quartiles of a value that was timed
    high: float


def tradeoff_panel(points: Sequence[Point], title: str, metric: str, how: str) -> Panel:
    """Draw runs by what they gain and what they keep, as in oBERT's Figure 2.

    The first is the reference.
    """

    def draw(ax: Axes) -> None:
        ax.axhline(points[0].metric, **_DOTTED)
        for point in points:
            ends = (point.value - point.low, point.high - point.value)
            scale = point.gain / point.value
            ax.errorbar(
                point.gain,
                point.metric,
                xerr=[[max(0.0, scale * end)] for end in ends],
                fmt="o",
                markersize=8,
                capsize=3,
                color=colour(point.number),
                label=plain(point.name),
            )
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
