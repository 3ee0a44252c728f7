"""Accuracy against latency and size, with the frontier drawn; a picture a task."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks._data import ROOT
from studies import results
from studies.results import Cell
from studies.tables import Table, tasks
from studies.verdicts import frontier

FOLDER = ROOT / "docs" / "results"
Point = tuple[str, float, float]  # row, cost, accuracy


def picture(task: str) -> Path:
    """Name the picture of a task."""
    return FOLDER / f"rivals_{task}.png"


def costs() -> dict[str, tuple[str, str]]:
    """Name the costs: what the lines have, and the label of the axis."""
    return {
        "gzip_mb": ("gzip_mb", "gzip MB"),
        "p50_1": ("p50_ms_batch1", "p50 of one sample, ms"),
        "p50_32": ("p50_ms_batch32", "p50 of 32 samples, ms"),
    }


def points(table: Table, lines: Sequence[dict[str, str]], task: str) -> dict[str, list[Point]]:
    """Find each row's accuracy and costs, means over the seeds."""
    jobs = table.jobs("small")
    accuracy = results.cells(lines, jobs)
    found: dict[str, list[Point]] = {}
    for name, (figure, _) in costs().items():
        cost = results.cells(lines, jobs, figure)
        found[name] = [
            (row, cost[row, task].mean, cell.mean)
            for (row, where), cell in accuracy.items()
            if where == task and cost.get((row, task), Cell()).values
        ]
    return found


def draw(table: Table, lines: Sequence[dict[str, str]], task: str, path: Path) -> bool:
    """Draw what there is of a task; tell whether there was anything."""
    from matplotlib.figure import Figure

    found = {name: there for name, there in points(table, lines, task).items() if there}
    if not found:
        return False
    figure = Figure(figsize=(6.0 * len(found), 4.8), layout="constrained")
    for axes, (name, there) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        best = [there[i] for i in frontier([(cost, y) for _, cost, y in there])]
        axes.step([c for _, c, _ in best], [y for *_, y in best], where="post", color="C1")
        for row, cost, y in there:
            axes.plot(cost, y, "o", color="C0")
            axes.annotate(row, (cost, y), (4, 4), fontsize=7, textcoords="offset points")
        axes.set(xscale="log", xlabel=costs()[name][1], title=task)
        axes.set_ylabel(tasks("small")[task]["metric"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
