"""Accuracy against latency and size, with the frontier drawn; a picture a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks._data import ROOT
from studies import results
from studies.tables import Table, tasks
from studies.verdicts import frontier

FOLDER = ROOT / "docs" / "results"
Point = tuple[str, float, float]  # row, cost, accuracy
Line = Mapping[str, str]


def picture(task: str) -> Path:
    """Name the picture of a task."""
    return FOLDER / f"rivals_{task}.png"


def points(
    table: Table, lines: Sequence[Line], timed: Sequence[Line], task: str
) -> dict[str, list[Point]]:
    """Find each row's accuracy and costs, by the label of the cost.

    Accuracy and size are means over the seeds; of a row's engines the fastest counts,
    and bfloat16 is a row of its own. Latencies are the latest of the machine that was
    measured last, of runs as they are today.
    """
    jobs = table.jobs("small")
    current = {(job.row, job.run.key) for job in jobs if job.run.task == task}
    timed = [line for line in timed if line["task"] == task]
    timed = [line for line in timed if line["machine"] == timed[-1]["machine"]]
    accuracy = {
        row: cell.mean
        for (row, where), cell in results.cells(lines, jobs).items()
        if where == task
    }
    sizes = results.cells(lines, jobs, "gzip_mb")
    found: dict[str, list[Point]] = {}
    for row, y in accuracy.items():
        if (row, task) in sizes:
            found.setdefault("gzip MB", []).append((row, sizes[row, task].mean, y))
    for batch in dict.fromkeys(line["batch"] for line in timed):
        latest = {
            (line["row"], line["bf16"], line["engine"]): float(line["p50_ms"])
            for line in timed
            if line["batch"] == batch and (line["row"], line["run"]) in current
        }
        fastest: dict[tuple[str, str], float] = {}
        for (row, half, _), p50 in latest.items():
            fastest[row, half] = min(p50, fastest.get((row, half), p50))
        there = [
            (f"{row}, bf16" if int(half) else row, p50, accuracy[row])
            for (row, half), p50 in fastest.items()
            if row in accuracy
        ]
        found[f"p50 of a batch of {batch}, ms"] = there
    return {label: there for label, there in found.items() if there}


def draw(
    table: Table, lines: Sequence[Line], timed: Sequence[Line], task: str, path: Path
) -> bool:
    """Draw what there is of a task; tell whether there was anything."""
    from matplotlib.figure import Figure

    found = points(table, lines, timed, task)
    if not found:
        return False
    figure = Figure(figsize=(6.0 * len(found), 4.8), layout="constrained")
    for axes, (label, there) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        best = [there[i] for i in frontier([(cost, y) for _, cost, y in there])]
        steps = [cost for _, cost, _ in best], [y for *_, y in best]
        axes.step(*steps, where="post", color="C1")
        for row, *place in there:
            axes.plot(*place, "o", color="C0")
            axes.annotate(row, place, (4, 4), fontsize=7, textcoords="offset points")
        axes.set(xscale="log", xlabel=label, title=task)
        axes.set_ylabel(tasks("small")[task]["metric"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
