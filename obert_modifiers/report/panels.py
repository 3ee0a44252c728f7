"""The panels of the report: each draws runs into a pair of axes."""

import re
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from obert_modifiers.report.read import Run

# The page replaces these by its own, light or dark.
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
_RUNS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
# Where two runs coincide, the gaps of the one above show the one below.
_LINES = ("-", "-", (0, (4, 2.5)))
_LONGEST = 28  # letters of a name in a picture
_MOST_LINES = 40  # events that are marked in every panel; more would be a grey area

Panel = Callable[[Axes, Sequence[Run]], None]


def colour(number: int) -> str:
    """Return the colour of a run by its place among the runs."""
    return COLOURS[_RUNS[number % len(_RUNS)]]


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or leaving it out.

    The middle of a name that is too long for a picture is dropped.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 + 1 :]}"
    text = text.replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def frame(ax: Axes, runs: Sequence[Run], title: str) -> None:
    """Set what all panels over time share, and mark the pruning events."""
    ax.set_title(title, pad=10)
    per_epoch = {round(run.steps_per_epoch) for run in runs if run.steps_per_epoch}
    steps = f" ({per_epoch.pop()} optimizer steps each)" if len(per_epoch) == 1 else ""
    ax.set_xlabel(f"epoch{steps}")
    ax.grid(axis="y", linewidth=0.8)
    ax.tick_params(length=0)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    last = max((run.steps[-1]["epoch"] for run in runs if run.steps), default=1.0)
    ax.set_xlim(-0.02 * last, 1.02 * last)
    events = sorted({event["epoch"] for run in runs for event in run.prunes})
    style = {"color": COLOURS["muted"], "linewidth": 0.8, "linestyle": (0, (2, 3))}
    for epoch in events if len(events) <= _MOST_LINES else ():
        ax.axvline(epoch, zorder=0, **style)


def sparsity_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the sparsity as applied, and wide and pale below it as planned."""
    frame(ax, runs, "Sparsity of the prunable weights")
    for number, run in enumerate(runs):
        _plan(ax, run, number)
        epochs, sparsities = run.sparsity_curve()
        ax.plot(
            epochs,
            sparsities,
            drawstyle="steps-post",
            color=colour(number),
            linestyle=_LINES[number % len(_LINES)],
            linewidth=1.8,
            label=plain(run.name),
        )
        ax.plot(
            [event["epoch"] for event in run.prunes],
            [event["sparsity_after"] for event in run.prunes],
            "o",
            color=colour(number),
            markersize=4.5,
        )
    _name_events(ax, runs)
    ax.set_ylim(0, 1.08)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
    if len(runs) > 1:
        ax.legend(loc="best")


def _plan(ax: Axes, run: Run, number: int) -> None:
    if not run.planned:
        return
    points = [(0.0, 0.0), *run.planned]
    if run.steps:
        points.append((run.steps[-1]["epoch"], points[-1][1]))
    ax.plot(
        *zip(*points, strict=True),
        drawstyle="steps-post",
        color=colour(number),
        alpha=0.3,
        linewidth=6,
        solid_joinstyle="miter",
    )


def _name_events(ax: Axes, runs: Sequence[Run]) -> None:
    """Write the sparsity over the first and last events, and over few also others."""
    events = next((run.prunes for run in runs if run.prunes), [])
    for event in events if len(events) <= 5 else (events[0], events[-1]):
        ax.annotate(
            f"{event['sparsity_after']:.0%}".replace("%", " %"),
            (event["epoch"], event["sparsity_after"]),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )


def metric_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the metric on the validation data: what events cost and training regains."""
    metric = runs[0].metric
    frame(ax, runs, f"Validation {metric}")
    for number, run in enumerate(runs):
        lines = [line for line in run.evals if line.get(metric) is not None]
        ax.plot(
            [line["epoch"] for line in lines],
            [line[metric] for line in lines],
            color=colour(number),
            marker="o",
            markersize=4.5,
            linewidth=1.8,
            label=plain(run.name),
        )
    ax.margins(y=0.25)
    if len(runs) > 1:
        ax.legend(loc="best")


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


def layers_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the sparsity of each matrix of one run as a table of shaded cells."""
    (run,) = runs
    rows, columns, cells = layer_grid(run.layers)
    ax.set_title("Sparsity by layer, counted from the saved file", pad=10)
    for (row, column), sparsity in cells.items():
        x, y = columns.index(column), rows.index(row)
        strength = 0.06 + 0.94 * sparsity**2
        cell = {"facecolor": COLOURS["heat"], "alpha": strength, "linewidth": 0}
        ax.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, **cell))
        ax.text(
            x + 0.5,
            y + 0.5,
            f"{100 * sparsity:.1f}",
            ha="center",
            va="center_baseline",
            color=COLOURS["on" if strength > 0.75 else "ink"],
        )
    ax.set_xlim(0, len(columns))
    ax.set_ylim(len(rows), 0)
    ax.set_xticks([x + 0.5 for x in range(len(columns))], map(plain, columns))
    ax.set_yticks([y + 0.5 for y in range(len(rows))], map(plain, rows))
    ax.set_ylabel("encoder layer" if all(row.isdigit() for row in rows) else "")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
