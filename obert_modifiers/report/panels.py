"""The panels of the report: each draws runs into a pair of axes."""

import re
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

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
    """Choose the colour of a run.

    Args:
        number: Its place among the runs.

    Returns:
        One of `COLOURS`.
    """
    return COLOURS[_RUNS[number % len(_RUNS)]]


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or leaving it out.

    Args:
        text: A name.

    Returns:
        The name as matplotlib prints it letter by letter, without its middle where it
        is too long for a picture.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 + 1 :]}"
    text = text.replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def _label(run: Run, runs: Sequence[Run], what: str) -> str:
    return what if len(runs) == 1 else plain(run.name)


def frame(ax: Axes, runs: Sequence[Run], title: str) -> None:
    """Set what all panels over time share, and mark the pruning events.

    Args:
        ax: The axes.
        runs: The runs drawn in it.
        title: The panel's title.
    """
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
    for epoch in events if len(events) <= _MOST_LINES else ():
        ax.axvline(
            epoch,
            color=COLOURS["muted"],
            linewidth=0.8,
            linestyle=(0, (2, 3)),
            zorder=0,
        )


def loss_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the loss: faint while training, with dots on the validation data.

    Args:
        ax: The axes.
        runs: One run, or several to compare.
    """
    one = len(runs) == 1
    frame(ax, runs, "Loss" if one else "Loss on validation data (faint: training)")
    for number, run in enumerate(runs):
        ax.plot(
            [line["epoch"] for line in run.steps],
            [line["loss"] for line in run.steps],
            color=colour(number),
            alpha=0.4,
            linewidth=1.1,
            label="training" if one else None,
        )
        _dots(ax, run, "loss", number, _label(run, runs, "validation"))
    # The legend stands above the lines, a line of it to each run.
    ax.set_ylim(0, ax.get_ylim()[1] * (1 + 0.09 * max(2, len(runs))))
    ax.legend(loc="upper right")


def metric_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the accuracy on the validation data, or the correlation.

    Args:
        ax: The axes.
        runs: One run, or several to compare.
    """
    metric = runs[0].metric
    frame(ax, runs, f"Validation {metric}")
    for number, run in enumerate(runs):
        _dots(ax, run, metric, number, _label(run, runs, metric))
        if run.evals and len(runs) == 1:
            before, last = run.evals[-2:] if len(run.evals) > 1 else run.evals * 2
            rising = last[metric] >= before[metric]
            ax.annotate(
                f"{last[metric]:.3f}",
                (last["epoch"], last[metric]),
                xytext=(0, 8 if rising else -15),
                textcoords="offset points",
                ha="right",
            )
    ax.margins(y=0.25)
    if len(runs) > 1:
        ax.legend(loc="best")


def _dots(ax: Axes, run: Run, key: str, number: int, label: str) -> None:
    lines = [line for line in run.evals if key in line]
    ax.plot(
        [line["epoch"] for line in lines],
        [line[key] for line in lines],
        color=colour(number),
        marker="o",
        markersize=4.5,
        linewidth=1.8,
        label=label,
    )


def rate_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the learning rate.

    Args:
        ax: The axes.
        runs: One run, or several to compare.
    """
    frame(ax, runs, "Learning rate")
    for number, run in enumerate(runs):
        ax.plot(
            [line["epoch"] for line in run.steps],
            [line["learning_rate"] for line in run.steps],
            color=colour(number),
            linestyle=_LINES[number % len(_LINES)],
            linewidth=1.8,
            label=_label(run, runs, "learning rate"),
        )
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-3, 3))
    ax.yaxis.set_major_formatter(formatter)
    ax.set_ylim(bottom=0)
    if len(runs) > 1:
        ax.legend(loc="upper right")


def sparsity_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the sparsity, with a dot at every pruning event.

    Args:
        ax: The axes.
        runs: One run, or several to compare.
    """
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
            label=_label(run, runs, "sparsity"),
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
    """Draw what the recipe plans, under what was done and a little wider.

    Args:
        ax: The axes.
        run: The run.
        number: Its place among the runs.
    """
    if not run.planned:
        return
    epochs = [0.0, *(epoch for epoch, _ in run.planned)]
    sparsities = [0.0, *(sparsity for _, sparsity in run.planned)]
    if run.steps:
        epochs.append(run.steps[-1]["epoch"])
        sparsities.append(sparsities[-1])
    ax.plot(
        epochs,
        sparsities,
        drawstyle="steps-post",
        color=colour(number),
        alpha=0.3,
        linewidth=6,
        solid_joinstyle="miter",
    )


def _name_events(ax: Axes, runs: Sequence[Run]) -> None:
    """Write the sparsity over the first and last events, and others if there is room.

    Args:
        ax: The axes.
        runs: The runs drawn in it.
    """
    events = next((run.prunes for run in runs if run.prunes), [])
    few = len(events) <= 5
    for event in events if few else (events[0], events[-1]):
        ax.annotate(
            f"{event['sparsity_after']:.0%}".replace("%", " %"),
            (event["epoch"], event["sparsity_after"]),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )


def layer_grid(
    layers: Sequence[dict],
) -> tuple[list[str], list[str], dict[tuple[str, str], float]]:
    """Arrange parameters as layers by matrices.

    Args:
        layers: ``{"name", "numel", "pruned"}`` each.

    Returns:
        Row names, column names, and the sparsity by both. Where the names have no
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
    """Draw the sparsity of each layer's matrices as a table of shaded cells.

    Args:
        ax: The axes.
        runs: One run.
    """
    (run,) = runs
    rows, columns, cells = layer_grid(run.layers)
    ax.set_title("Sparsity by layer, counted from the saved file", pad=10)
    for (row, column), sparsity in cells.items():
        x, y = columns.index(column), rows.index(row)
        strength = 0.06 + 0.94 * sparsity**2
        ax.add_patch(
            Rectangle(
                (x + 0.02, y + 0.04),
                0.96,
                0.92,
                facecolor=COLOURS["heat"],
                alpha=strength,
                linewidth=0,
            )
        )
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
    numbered = all(row.isdigit() for row in rows)
    ax.set_ylabel("encoder layer" if numbered else "")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


PANELS: tuple[Panel, ...] = (loss_panel, metric_panel, sparsity_panel, rate_panel)
