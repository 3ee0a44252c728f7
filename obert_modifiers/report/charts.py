"""The report's pictures, drawn by matplotlib without a display or global state.

Every colour is one of `COLOURS`, so that the SVG can take them from the page's style
sheet, which has a light and a dark set.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from obert_modifiers.report.read import Run

COLOURS = {
    "page": "#fdfdfc",
    "ink": "#1d1f23",
    "muted": "#6a6f77",
    "grid": "#e5e6e3",
    "on": "#fffffe",
    "c0": "#1f58bd",
    "c1": "#d2691e",
    "c2": "#1e8a5a",
}
_RUNS = ("c0", "c1", "c2")
# Where two runs coincide, the gaps of the one above show the one below.
_LINES = ("-", "-", (0, (4, 2.5)))
_PNG_DPI = 144
_ROW = 0.34  # inches for a row of the layers' chart

Panel = Callable[[Axes, Sequence[Run]], None]


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


def _colour(number: int) -> str:
    return COLOURS[_RUNS[number % len(_RUNS)]]


def _label(run: Run, runs: Sequence[Run], what: str) -> str:
    return what if len(runs) == 1 else run.name


def _frame(ax: Axes, runs: Sequence[Run], title: str) -> None:
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
    for epoch in sorted({event["epoch"] for run in runs for event in run.prunes}):
        ax.axvline(
            epoch, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3)), zorder=0
        )


def loss_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the loss: faint while training, with dots on the validation data.

    Args:
        ax: The axes.
        runs: One run, or several to compare.
    """
    one = len(runs) == 1
    _frame(ax, runs, "Loss" if one else "Loss on validation data (faint: training)")
    for number, run in enumerate(runs):
        ax.plot(
            [line["epoch"] for line in run.steps],
            [line["loss"] for line in run.steps],
            color=_colour(number),
            alpha=0.4,
            linewidth=1.1,
            label="training" if one else None,
        )
        _dots(ax, run, "loss", number, _label(run, runs, "validation"))
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper right")


def metric_panel(ax: Axes, runs: Sequence[Run]) -> None:
    """Draw the accuracy on the validation data, or the correlation.

    Args:
        ax: The axes.
        runs: One run, or several to compare.
    """
    metric = runs[0].metric
    _frame(ax, runs, f"Validation {metric}")
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
        ax.legend(loc="lower right")


def _dots(ax: Axes, run: Run, key: str, number: int, label: str) -> None:
    lines = [line for line in run.evals if key in line]
    ax.plot(
        [line["epoch"] for line in lines],
        [line[key] for line in lines],
        color=_colour(number),
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
    _frame(ax, runs, "Learning rate")
    for number, run in enumerate(runs):
        ax.plot(
            [line["epoch"] for line in run.steps],
            [line["learning_rate"] for line in run.steps],
            color=_colour(number),
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
    _frame(ax, runs, "Sparsity of the prunable weights")
    for number, run in enumerate(runs):
        epochs, sparsities = run.sparsity_curve()
        ax.plot(
            epochs,
            sparsities,
            drawstyle="steps-post",
            color=_colour(number),
            linestyle=_LINES[number % len(_LINES)],
            linewidth=1.8,
            label=_label(run, runs, "sparsity"),
        )
        ax.plot(
            [event["epoch"] for event in run.prunes],
            [event["sparsity_after"] for event in run.prunes],
            "o",
            color=_colour(number),
            markersize=4.5,
        )
    _name_events(ax, runs)
    ax.set_ylim(0, 1.08)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
    if len(runs) > 1:
        ax.legend(loc="lower right")


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
                facecolor=COLOURS["c0"],
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
    ax.set_xticks([x + 0.5 for x in range(len(columns))], columns)
    ax.set_yticks([y + 0.5 for y in range(len(rows))], rows)
    numbered = all(row.isdigit() for row in rows)
    ax.set_ylabel("encoder layer" if numbered else "")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


PANELS: tuple[Panel, ...] = (loss_panel, metric_panel, sparsity_panel, rate_panel)


def svg(panel: Panel, runs: Sequence[Run], size: tuple[float, float]) -> str:
    """Draw a panel as SVG that takes its colours from the page.

    Args:
        panel: Which one.
        runs: What to draw.
        size: Width and height in inches.

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
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def layers_svg(run: Run) -> str:
    """Draw the sparsity by layer as SVG.

    Args:
        run: The run.

    Returns:
        An ``<svg>`` element, or nothing where the run has no prunable parameters.
    """
    if not run.layers:
        return ""
    return svg(layers_panel, [run], (8.4, _layers_height(run)))


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
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        for number, panel in enumerate(PANELS):
            panel(figure.add_subplot(grid[number // 2, number % 2]), runs)
        if with_layers:
            axes = figure.add_subplot(grid[2, :])
            layers_panel(axes, runs[-1:])
            if len(runs) > 1:
                axes.set_title(f"Sparsity by layer: {runs[-1].name}", pad=10)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=_PNG_DPI)
