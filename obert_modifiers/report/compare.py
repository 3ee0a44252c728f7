"""Which sizes and speeds belong to which run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from obert_modifiers.deploy.bench.results import (
    Setting,
    Speed,
    read_bench,
    read_evaluated,
)
from obert_modifiers.report.read import Run
from obert_modifiers.report.sizes import Sizes, measure_all
from obert_modifiers.report.tradeoff import Point
from obert_modifiers.sizes import MB

_FIRST = ("onnx", "openvino", "safetensors", "torch24", "run")


@dataclass(frozen=True)
class Measured:
    """What is known of a run beside its own files.

    Attributes:
        evaluated: Records of `obert evaluate` for files of this run, by path.
        speeds: Rows of `obert bench` for files of this run.
        sizes: Of the run's folder and of those files.
    """

    evaluated: dict[str, dict[str, Any]] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)
    sizes: list[Sizes] = field(default_factory=list)

    @property
    def exported(self) -> Sizes | None:
        """The sizes of the form that would be deployed: a graph before the run."""
        return min(self.sizes, key=lambda one: _FIRST.index(one.kind), default=None)


def measure_runs(
    runs: Sequence[Run], bench: Sequence[Path] = (), evaluated: Sequence[Path] = ()
) -> tuple[list[Measured], list[str]]:
    """Bring runs, benchmarks and evaluations of their exported files together.

    A file belongs to a run if it is in the run's folder, or if `obert evaluate` was
    told so; a row of a table that has a name alone, to the one run with that name.

    Args:
        runs: The runs.
        bench: Files of `obert bench --json`.
        evaluated: Files of `obert evaluate --json`.

    Returns:
        What is known of each run, and what could not be assigned.

    Raises:
        ValueError: If a file cannot be read.
    """  # noqa: DOC502  raised by what is called
    found = [Measured() for _ in runs]
    owners: dict[str, int] = {}
    notes = []
    for path, record in read_evaluated(evaluated).items():
        number = _owner(path, runs)
        if number is None and record.get("run"):
            number = _owner(str(Path(record["run"]).resolve()), runs)
        if number is None:
            notes.append(f"{record['model']} was evaluated and belongs to no run here.")
            continue
        owners[path] = number
        found[number].evaluated[path] = record
    lost = set()
    for speed in [one for path in bench for one in read_bench(path)]:
        if not Path(speed.model).exists():
            speed = replace(speed, model=_in_export(speed.name, runs) or speed.model)
        path = str(Path(speed.model).resolve())
        number = owners.get(path, _owner(path, runs))
        if number is None:
            number = _named(speed.name, runs, owners)
        elif Path(path).exists():
            owners[path] = number
        if number is None:
            lost.add(speed.name)
            continue
        found[number].speeds.append(speed)
    notes += [f"{name} was timed and belongs to no run here." for name in sorted(lost)]
    notes += _other_samples(runs, found)
    _add_sizes(runs, found, owners)
    return found, notes


def _other_samples(runs: Sequence[Run], found: Sequence[Measured]) -> list[str]:
    """Tell whether all figures are of as many samples.

    Returns:
        What to say of it, nothing where all have as many.
    """
    counts = []
    for run, measured in zip(runs, found, strict=True):
        records = list(measured.evaluated.values()) or [run.record]
        counts += [(run.name, one["samples"]) for one in records if one.get("samples")]
    if len({samples for _, samples in counts}) <= 1:
        return []
    said = ", ".join(f"{name} {samples:,}" for name, samples in dict.fromkeys(counts))
    return [f"Evaluated on different numbers of samples: {said}."]


def _owner(path: str, runs: Sequence[Run]) -> int | None:
    for number, run in enumerate(runs):
        folder = run.folder.resolve()
        if Path(path) == folder or folder in Path(path).parents:
            return number
    return None


def _in_export(name: str, runs: Sequence[Run]) -> str | None:
    """Find a file by its name where `obert export` puts it.

    Returns:
        Its path, None where there is not one alone.
    """
    found = [
        path
        for run in runs
        for path in (run.folder / "export").rglob("*")
        if path.name == name
    ]
    return str(found[0]) if len(found) == 1 else None


def _named(name: str, runs: Sequence[Run], owners: dict[str, int]) -> int | None:
    """Find the run of a table's row by the name in it alone.

    Returns:
        The run with such a folder or such a file, None where it is not one alone.
    """
    found = {
        number
        for number, run in enumerate(runs)
        if name in (run.name, run.folder.resolve().name)
    }
    found |= {number for path, number in owners.items() if Path(path).name == name}
    return found.pop() if len(found) == 1 else None


def _add_sizes(
    runs: Sequence[Run], found: list[Measured], owners: dict[str, int]
) -> None:
    paths: list[tuple[int, Path]] = []
    known: dict[Path, tuple[int, int]] = {}
    for number, run in enumerate(runs):
        own = run.folder.resolve()
        if any(own.glob("model*.safetensors")):  # else somebody made room
            paths.append((number, own))
        record = run.record
        if record.get("size_mb") and record.get("gzip_mb"):
            known[own] = round(record["size_mb"] * MB), round(record["gzip_mb"] * MB)
        named = [Path(path) for path, n in owners.items() if n == number]
        paths += [(number, p) for p in sorted(set(named)) if p.exists() and p != own]
    sizes = measure_all([path for _, path in paths], known=known)
    for (number, path), one in zip(paths, sizes, strict=True):
        name = runs[number].name
        if path != runs[number].folder.resolve():
            name = f"{name}: {path.name}"
        found[number].sizes.append(replace(one, model=name))


def size_points(runs: Sequence[Run], found: Sequence[Measured]) -> list[Point]:
    """Make the points of accuracy against size.

    Args:
        runs: The runs; the first is the reference.
        found: What is known of each.

    Returns:
        A point for each run whose metric is known, or none without the reference's.
    """
    points = []
    if found[0].exported is None:
        return points
    base = found[0].exported.gzip_bytes
    for number, (run, measured) in enumerate(zip(runs, found, strict=True)):
        sizes = measured.exported
        metric = _metric(run, measured)
        if metric is not None and sizes is not None:
            gain = base / sizes.gzip_bytes
            size = sizes.gzip_bytes / MB
            points.append(Point(run.name, metric, size, gain, number=number))
    return points if points and points[0].name == runs[0].name else []


def speed_points(
    runs: Sequence[Run], found: Sequence[Measured]
) -> dict[Setting, list[Point]]:
    """Make the points of accuracy against speed.

    Args:
        runs: The runs; the first is the reference.
        found: What is known of each.

    Returns:
        For each engine, batch size, sequence length and number of cores at which one
        benchmark timed the reference and another run, a point for each run.
    """
    settings = {speed.setting: None for one in found for speed in one.speeds}
    panels = {}
    for setting in settings:
        points = []
        for number, (run, measured) in enumerate(zip(runs, found, strict=True)):
            own = [s for s in measured.speeds if s.setting == setting]
            if not own:
                continue
            best = max(own, key=lambda speed: speed.items)
            path = str(Path(best.model).resolve())
            metric = _metric(run, measured, path)
            if metric is not None:
                speed = (best.items, 1.0, best.deviation)
                points.append(Point(run.name, metric, *speed, number))
        if len(points) > 1 and points[0].name == runs[0].name:
            base = points[0].value
            panels[setting] = [replace(p, gain=p.value / base) for p in points]
    return panels


def _metric(run: Run, measured: Measured, path: str | None = None) -> float | None:
    """Find the metric of a file, or else that of the run.

    Returns:
        The figure, None where nothing was evaluated.
    """
    records = measured.evaluated
    record = records.get(path) if path else next(iter(records.values()), None)
    if record is not None and record.get(run.metric) is not None:
        return float(record[run.metric])
    value = run.record.get(run.metric)
    return None if value is None else float(value)
