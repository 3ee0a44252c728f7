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
from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.report.panels import Point
from obert_modifiers.report.read import Run
from obert_modifiers.report.sizes import Sizes, measure_all
from obert_modifiers.sizes import MB

_DEPLOYED = (*FORMATS, "run")  # a graph comes first


@dataclass
class Measured:
    """A run and what is known of it beside its own files."""

    run: Run
    evaluated: dict[Path, dict[str, Any]] = field(default_factory=dict)  # by its file
    speeds: list[tuple[Path, Speed]] = field(default_factory=list)  # of its files
    sizes: list[Sizes] = field(default_factory=list)  # of its folder and these files

    @property
    def folder(self) -> Path:
        return self.run.folder.resolve()

    @property
    def files(self) -> set[Path]:
        """What was evaluated or timed."""
        return {*self.evaluated, *(path for path, _ in self.speeds if path.exists())}

    @property
    def gzip_bytes(self) -> int | None:
        """The size of the form that would be deployed, None where nothing is left."""
        form = min(self.sizes, key=lambda s: _DEPLOYED.index(s.kind), default=None)
        return form and form.gzip_bytes

    def owns(self, path: Path) -> bool:
        """Tell whether a file is in the run's folder, or was said to be the run's."""
        return path in self.files or self.folder in (path, *path.parents)

    def is_named(self, name: str) -> bool:
        """Tell whether a name is that of the run or of one of its files."""
        names = {self.run.name, self.folder.name, *(path.name for path in self.files)}
        return name in names

    def metric(self, path: Path | None = None) -> float | None:
        """Return the metric of a file (of any that was evaluated), or of the run."""
        any_file = next(iter(self.evaluated.values()), None)
        record = self.evaluated.get(path) if path else any_file
        value = (record or {}).get(self.run.metric)
        value = self.run.record.get(self.run.metric) if value is None else value
        return None if value is None else float(value)


def engine_title(engine: str) -> str:
    """Return what people call an engine."""
    return ENGINES[engine].title if engine in ENGINES else engine


def measure_runs(
    runs: Sequence[Run], bench: Sequence[Path] = (), evaluated: Sequence[Path] = ()
) -> tuple[list[Measured], list[str]]:
    """Join runs, benchmarks and evaluations of their exported files.

    A file belongs to a run if it is in the run's folder, or if `obert evaluate` was
    told so; where a benchmark's path leads nowhere, its row belongs to the only run or
    file of that name. The second value names what could not be assigned.
    """
    found = [Measured(run) for run in runs]
    notes = []
    for name, record in read_evaluated(evaluated).items():
        path = Path(name)
        places = (path, Path(record.get("run") or path).resolve())
        owners = [own for place in places for own in found if own.owns(place)]
        if owners:
            owners[0].evaluated[path] = record
        else:
            notes.append(f"{record['model']} was evaluated and belongs to no run here.")
    lost = set()
    for speed in [row for path in bench for row in read_bench(path)]:
        path = _place(speed, found)
        owners = [own for own in found if own.owns(path)]
        if not owners:
            named = [own for own in found if own.is_named(speed.name)]
            owners = named if len(named) == 1 else []
        if owners:
            owners[0].speeds.append((path, speed))
        else:
            lost.add(speed.name)
    notes += [f"{name} was timed and belongs to no run here." for name in sorted(lost)]
    notes += _other_samples(found)
    _add_sizes(found)
    return found, notes


def _place(speed: Speed, found: Sequence[Measured]) -> Path:
    """Return what a benchmark measured: its path, or the only export of that name."""
    path = Path(speed.path).resolve()
    if path.exists():
        return path
    exported = [file for own in found for file in (own.folder / "export").rglob("*")]
    named = [file for file in exported if file.name == speed.name]
    return named[0] if len(named) == 1 else path


def _other_samples(found: Sequence[Measured]) -> list[str]:
    """Tell whether figures are of different numbers of samples."""
    counts = {}
    for own in found:
        for record in list(own.evaluated.values()) or [own.run.record]:
            if record.get("samples"):
                counts[f"{own.run.name} {record['samples']:,}"] = record["samples"]
    if len(set(counts.values())) <= 1:
        return []
    return [f"Evaluated on different numbers of samples: {', '.join(counts)}."]


def _add_sizes(found: Sequence[Measured]) -> None:
    paths: list[tuple[Measured, Path]] = []
    known: dict[Path, tuple[int, int]] = {}
    for own in found:
        files = [file for file in sorted(own.files - {own.folder}) if file.exists()]
        if any(own.folder.glob("model*.safetensors")):  # else somebody made room
            files.insert(0, own.folder)
        paths += [(own, file) for file in files]
        megabytes = [own.run.record.get(key) for key in ("size_mb", "gzip_mb")]
        if all(megabytes):
            size, packed = (round(value * MB) for value in megabytes)
            known[own.folder] = size, packed
    sizes = measure_all([path for _, path in paths], known=known)
    for (own, path), size in zip(paths, sizes, strict=True):
        file = "" if path == own.folder else f": {path.name}"
        own.sizes.append(replace(size, model=f"{own.run.name}{file}"))


def size_points(found: Sequence[Measured]) -> list[Point]:
    """Make the points of accuracy against size, none without the reference's."""
    base = found[0].gzip_bytes
    points = []
    for number, own in enumerate(found):
        metric, size = own.metric(), own.gzip_bytes
        if base is not None and metric is not None and size is not None:
            values = [size / MB] * 3
            points.append(Point(number, own.run.name, metric, base / size, *values))
    return points if points and points[0].number == 0 else []


def speed_points(found: Sequence[Measured]) -> dict[Setting, list[Point]]:
    """Make the points of accuracy against speed, the fastest file of each run.

    A list for each setting at which the reference and another run were timed.
    """
    settings = dict.fromkeys(speed.setting for own in found for _, speed in own.speeds)
    panels = {}
    for setting in settings:
        points: list[Point] = []
        for number, own in enumerate(found):
            timed = [pair for pair in own.speeds if pair[1].setting == setting]
            if not timed:
                continue
            path, best = max(timed, key=lambda pair: pair[1].items)
            metric = own.metric(path)
            if metric is not None:
                gain = best.items / (points[0].value if points else best.items)
                values = (best.items, best.low, best.high)
                points.append(Point(number, own.run.name, metric, gain, *values))
        if len(points) > 1 and points[0].number == 0:
            panels[setting] = points
    return panels
