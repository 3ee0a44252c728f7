"""The lines of the results, a run each, and what they say together."""

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.tables import HERE, Job, digest, recipe_text, tasks

COLUMNS = (
    *("scale", "task", "row", "seed", "run", "form", "metric", "value"),
    *("recipe", "recipe_hash", "recipe_args", "commit", "versions", "machine"),
    *("threads", "minutes", "cpu_seconds", "figures"),
)
IDENTITY = ("scale", "task", "row", "seed", "run", "form")
RESULTS = HERE / "results"


def results_of(table: str) -> Path:
    """Return the file of a table's results."""
    return RESULTS / f"{table}.csv"


def read(path: Path) -> list[dict[str, str]]:
    """Read the lines; a missing file has none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def missing(jobs: Iterable[Job], lines: Iterable[Mapping[str, str]]) -> list[Job]:
    """Return the jobs that no line holds: the same run, seed, scale and row."""
    done = {tuple(line[name] for name in IDENTITY) for line in lines}
    return [job for job in jobs if job.identity not in done]


def append(
    path: Path, line: Mapping[str, Any], columns: Sequence[str] = COLUMNS
) -> None:
    """Add a line, and the head where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: line.get(name, "") for name in columns})


def line_of(job: Job, record: Mapping[str, Any], machine: str) -> dict[str, Any]:
    """Make the line of a job that has ended."""
    run, told = job.run, tasks(job.run.scale)[job.run.task]
    metric = told["metric"]
    own = record["forms"][job.form] if job.form else record
    figures = own["figures"]
    spent = {name: f"{own[name]:.3f}" for name in ("minutes", "cpu_seconds")}
    versions = "; ".join(f"{k} {v}" for k, v in record["versions"].items())
    return dict(zip(IDENTITY, job.identity, strict=True)) | {
        "metric": metric,
        "value": repr(figures[metric] * told.get("unit", 1.0)),
        "recipe": run.recipe or "",
        "recipe_hash": digest(recipe_text(run.recipe)) if run.recipe else "",
        "recipe_args": json.dumps(dict(run.args), sort_keys=True),
        "commit": record["commit"],
        "versions": versions,
        "machine": machine,
        "threads": record["torch_threads"],
        **spent,
        "figures": json.dumps(figures, sort_keys=True),
    }


@dataclass(frozen=True)
class Cell:
    """What was measured of a row on a task, over the seeds."""

    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """The sample standard deviation; 0 for a single value."""
        if not all(map(math.isfinite, self.values)):
            return math.nan
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def show(self, digits: int = 4) -> str:
        """Format mean, spread and seeds."""
        count = len(self.values)
        if not count:
            return "not measured yet"
        if count == 1:
            return f"{self.mean:.{digits}f} (1 seed)"
        return f"{self.mean:.{digits}f} ± {self.spread:.{digits}f} ({count} seeds)"


def cells(
    lines: Iterable[Mapping[str, str]], jobs: Iterable[Job], figure: str | None = None
) -> dict[tuple[str, str], Cell]:
    """Bring the seeds of each row and task together, lines of older runs left out."""
    current = {job.identity for job in jobs}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for line in lines:
        if tuple(line[name] for name in IDENTITY) not in current:
            continue
        value = line["value"] if figure is None else _figure(line, figure)
        if value is not None:
            place = found.setdefault((line["row"], line["task"]), {})
            place.setdefault(line["seed"], float(value))  # of a rerun the first counts
    return {key: Cell(tuple(by_seed.values())) for key, by_seed in found.items()}


def _figure(line: Mapping[str, str], name: str) -> float | None:
    return json.loads(line["figures"]).get(name)
