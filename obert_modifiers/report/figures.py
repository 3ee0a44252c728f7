"""The pictures of a page, each with what it shows and the numbers behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from obert_modifiers.deploy.bench.results import Setting
from obert_modifiers.report import findings, tradeoff, weights_panel
from obert_modifiers.report.draw import layers_svg, svg
from obert_modifiers.report.panels import PANELS, plain
from obert_modifiers.report.read import Run
from obert_modifiers.report.text import figure, number
from obert_modifiers.report.tradeoff import Point

_SIZE = (5.0, 3.0)
_WIDER = (6.4, 3.2)
_AXES = {"smaller": "size", "faster": "speed"}
_ENGINES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "deepsparse": "DeepSparse",
    "torch": "PyTorch",
}


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        svg: The picture.
        caption: What it shows.
        rows: Its numbers; the first row is the head. Empty where a table of the page
            has them.
    """

    svg: str
    caption: str
    rows: Sequence[Sequence[str]] = ()

    @property
    def text(self) -> str:
        """The caption, with no line break between a number and its unit."""
        return self.caption.replace(" %", "\N{NO-BREAK SPACE}%")


def course(runs: Sequence[Run]) -> list[Figure]:
    """Draw loss, metric, sparsity and learning rate over the epochs.

    Args:
        runs: One run, or several to compare.

    Returns:
        The pictures.
    """
    says = (findings.loss, findings.metric, findings.sparsity, findings.rate)
    tables = (_evals(runs, "loss"), _evals(runs, runs[0].metric), (), ())
    found = []
    for panel, say, table in zip(PANELS, says, tables, strict=True):
        caption = say(runs)
        found.append(Figure(svg(panel, runs, _SIZE, caption), caption, table))
    return found


def _evals(runs: Sequence[Run], key: str) -> list[list[str]]:
    rows = [
        [run.name, number(line["epoch"], 2), figure(line[key])]
        for run in runs
        for line in run.evals
        if line.get(key) is not None
    ]
    return [["", "epoch", key], *rows] if rows else []


def heat_map(run: Run) -> Figure | None:
    """Draw the sparsity of each matrix.

    Args:
        run: The run.

    Returns:
        The picture, None where nothing is pruned.
    """
    if not any(layer["pruned"] for layer in run.layers):
        return None
    caption = findings.layers(run)
    return Figure(layers_svg(run, caption), caption)


def histogram(runs: Sequence[Run]) -> Figure | None:
    """Draw how large the weights are.

    Args:
        runs: One run, or several to compare.

    Returns:
        The picture, None where no run's folder holds weights of an encoder.
    """
    found = [one for one in map(weights_panel.magnitudes, runs) if one is not None]
    if not found:
        return None
    caption = weights_panel.finding(found)
    drawn = svg(weights_panel.weights_panel, found, _WIDER, caption)
    return Figure(drawn, caption, weights_panel.rows(found))


def against_size(points: Sequence[Point], metric: str) -> Figure:
    """Draw a metric against the size of the model.

    Args:
        points: The models; the first is the reference.
        metric: Its name.

    Returns:
        The picture.
    """
    return _tradeoff(points, metric, "smaller", "gzip MB", "gzipped")


def against_speed(points: Sequence[Point], metric: str, setting: Setting) -> Figure:
    """Draw a metric against the speed of the model.

    Args:
        points: The models; the first is the reference.
        metric: Its name.
        setting: How they were timed.

    Returns:
        The picture.
    """
    engine = _ENGINES.get(setting.engine, setting.engine)
    where = f"{engine}, batch {setting.batch}, {setting.sequence} tokens"
    if setting.cores is not None:
        where += f", {setting.cores} core{'' if setting.cores == 1 else 's'}"
    return _tradeoff(points, metric, "faster", "samples a second", where)


def _tradeoff(
    points: Sequence[Point], metric: str, gain: str, value: str, how: str
) -> Figure:
    caption = findings.tradeoff(points, metric, gain)
    metric = metric.replace("_", " ")
    title = f"{metric.capitalize()} against {_AXES[gain]}"
    axis = f"times {gain} than {plain(points[0].name)} ({how})"

    def panel(ax, points):
        tradeoff.tradeoff_panel(ax, points, title, metric, axis)

    drawn = svg(panel, points, _SIZE, caption)
    return Figure(drawn, caption, tradeoff.rows(points, metric, value))
