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
from obert_modifiers.deploy.formats import FORMATS
from obert_modifiers.report.read import Run
from obert_modifiers.report.sizes import Sizes, measure_all
from obert_modifiers.report.tradeoff import Point
from obert_modifiers.sizes import MB

_DEPLOYED = (*FORMATS, "run")  # a graph comes first


@dataclass
class Measured:
    """A run and what is known of it beside its own files.

    Attributes:
        run: The run.
        evaluated: Records of `obert evaluate` for files of this run, by path.
        speeds: Rows of `obert bench` for files of this run, by path.
        sizes: Of the run's folder and of those files.
    """

    run: Run
    evaluated: dict[str, dict[str, Any]] = field(default_factory=dict)
    speeds: list[tuple[str, Speed]] = field(default_factory=list)
    sizes: list[Sizes] = field(default_factory=list)

    @property
    def gzip_bytes(self) -> int | None:
        """The size of the form that would be deployed, None where nothing is left."""
        form = min(self.sizes, key=lambda s: _DEPLOYED.index(s.kind), default=None)
        return form and form.gzip_bytes

    def metric(self, path: str | None = None) -> float | None:
        """Return the metric of a file (of any that was evaluated), or of the run."""
        any_file = next(iter(self.evaluated.values()), None)
        record = self.evaluated.get(path) if path else any_file
        value = (record or {}).get(self.run.metric)
        value = self.run.record.get(self.run.metric) if value is None else value
        return None if value is None else float(value)


def measure_runs(
    runs: Sequence[Run], bench: Sequence[Path] = (), evaluated: Sequence[Path] = ()
) -> tuple[list[Measured], list[str]]:
    """Join runs, benchmarks and evaluations of their exported files.

    A file belongs to a run if it is in the run's folder, or if `obert evaluate` was
    told so; where a benchmark's path leads nowhere, its row belongs to the only run or
    file of that name. The second value names what could not be assigned.
    """
    found = [Measured(run) for run in runs]
    owners: dict[str, Measured] = {}
    notes = []
    for path, record in read_evaluated(evaluated).items():
        owner = _owner(path, found) or _owner(record.get("run"), found)
        if owner is None:
            notes.append(f"{record['model']} was evaluated and belongs to no run here.")
            continue
        owners[path] = owner
        owner.evaluated[path] = record
    lost = set()
    for speed in [row for path in bench for row in read_bench(path)]:
        path, owner = _place(speed, found, owners)
        if owner is None:
            lost.add(speed.name)
            continue
        if Path(path).exists():
            owners[path] = owner
        owner.speeds.append((path, speed))
    notes += [f"{name} was timed and belongs to no run here." for name in sorted(lost)]
    notes += _other_samples(found)
    _add_sizes(found, owners)
    return found, notes


def _owner(path: str | None, found: Sequence[Measured]) -> Measured | None:
    if path is None:
        return None
    parents = {Path(path).resolve(), *Path(path).resolve().parents}
    return next((own for own in found if own.run.folder.resolve() in parents), None)


def _place(
    speed: Speed, found: Sequence[Measured], owners: dict[str, Measured]
) -> tuple[str, Measured | None]:
    """Return the path of a benchmark's row, and the run that it belongs to."""
    path = str(Path(speed.path).resolve())
    if not Path(path).exists():
        folders = [own.run.folder.resolve() / "export" for own in found]
        exported = [
            str(file)
            for folder in folders
            for file in folder.rglob("*")
            if file.name == speed.name
        ]
        path = exported[0] if len(exported) == 1 else path
    owner = owners.get(path) or _owner(path, found)
    if owner is None:
        named = [
            own
            for own in found
            if speed.name in (own.run.name, own.run.folder.resolve().name)
            or any(Path(p).name == speed.name for p, o in owners.items() if o is own)
        ]
        owner = named[0] if len(named) == 1 else None
    return path, owner


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


def _add_sizes(found: Sequence[Measured], owners: dict[str, Measured]) -> None:
    paths: list[tuple[Measured, Path]] = []
    known: dict[Path, tuple[int, int]] = {}
    for own in found:
        folder, record = own.run.folder.resolve(), own.run.record
        if any(folder.glob("model*.safetensors")):  # else somebody made room
            paths.append((own, folder))
        if record.get("size_mb") and record.get("gzip_mb"):
            plain, packed = (
                round(record[f"{key}_mb"] * MB) for key in ("size", "gzip")
            )
            known[folder] = plain, packed
        files = sorted(Path(path) for path, owner in owners.items() if owner is own)
        paths += [(own, file) for file in files if file.exists() and file != folder]
    sizes = measure_all([path for _, path in paths], known=known)
    for (own, path), size in zip(paths, sizes, strict=True):
        name = own.run.name
        if path != own.run.folder.resolve():
            name = f"{name}: {path.name}"
        own.sizes.append(replace(size, model=name))


def size_points(found: Sequence[Measured]) -> list[Point]:
    """Make the points of accuracy against size, none without the reference's."""
    base = found[0].gzip_bytes
    if base is None or found[0].metric() is None:
        return []
    return [
        Point(own.run.name, own.metric(), size / MB, base / size, number=number)
        for number, own in enumerate(found)
        if own.metric() is not None and (size := own.gzip_bytes) is not None
    ]


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
            path, best = max(timed, key=lambda pair: pair[1].items, default=("", None))
            if best is None or (metric := own.metric(path)) is None:
                continue
            gain = best.items / (points[0].value if points else best.items)
            name, value, spread = own.run.name, best.items, best.deviation
            points.append(Point(name, metric, value, gain, spread, number))
        if len(points) > 1 and points[0].number == 0:
            panels[setting] = points
    return panels
