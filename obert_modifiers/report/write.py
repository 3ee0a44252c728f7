"""Put pictures, tables and the record of runs on one self-contained page."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from obert_modifiers.deploy.artefact import names_of
from obert_modifiers.deploy.bench.results import Setting
from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.report import tradeoff
from obert_modifiers.report.compare import measure_runs, size_points, speed_points
from obert_modifiers.report.draw import layers_size, save_png, svg
from obert_modifiers.report.panels import (
    COLOURS,
    layers_panel,
    metric_panel,
    plain,
    sparsity_panel,
)
from obert_modifiers.report.read import Run, read_run
from obert_modifiers.report.sizes import HEAD
from obert_modifiers.report.text import NONE, figure, number, percent, short_path

_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_EVENT_HEAD = (
    *("modifier", "epoch", "step", "before", "planned", "after", "pruned weights"),
    *("predicted loss increase", "gradients", "skipped", "seconds", "peak memory"),
)
_AXES = {"smaller": "size", "faster": "speed"}

Rows = Sequence[Sequence[str]]  # of a table; the first row is the head


@dataclass(frozen=True)
class Picture:
    """A picture, and its numbers where no other table of the page has them."""

    svg: str
    rows: Rows = ()


def write_report(
    runs: Sequence[Path] | Mapping[str, Path],
    out: Path | None = None,
    *,
    title: str | None = None,
    table: Rows = (),
    notes: Sequence[str] = (),
    bench: Sequence[Path] = (),
    evaluated: Sequence[Path] = (),
) -> Path:
    """Write ``report.html`` and ``report.png`` about finished runs.

    Args:
        runs: Their folders, by name where they have other names than the folders'; the
            others are compared with the first.
        out: Where the page goes: the folder of a single run, else ``runs/report``.
        title: What stands on top.
        table: The table of the runs, in the place of the usual one.
        notes: Sentences below it.
        bench: JSON files of `obert bench`, for the speeds.
        evaluated: JSON files of `obert evaluate`, for the figures of exported files.
    """
    found = _read(runs)
    first, many = found[0], len(found) > 1
    out = out or (Path("runs/report") if many else first.folder)
    measured, lost = measure_runs(found, bench, evaluated)
    points = size_points(measured)
    gains = [_smaller(points, first.metric)] if len(points) > 1 else []
    for setting, points in speed_points(measured).items():
        gains.append(_faster(points, first.metric, setting))
    title = title or (f"{len(found)} runs" if many else f"Run {first.name}")
    model, data = (short_path(first.record.get(name)) for name in ("model", "data"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        colours=COLOURS,
        title=title,
        subtitle=f"{model} on {data}",
        figures=() if many else headline(first),
        table_of_runs=table or (_run_rows(found) if many else ()),
        notes=[*notes, *lost],
        gains=gains,
        sizes=[HEAD, *(size.cells() for own in measured for size in own.sizes)],
        course=_course(found),
        runs=[_sections(run) for run in found],
        messages=() if many else [*first.record.get("notes", []), *first.messages],
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page, encoding="utf-8")
    save_png(out / "report.png", found, f"{title}: {model} on {data}")
    return out / "report.html"


def _read(folders: Sequence[Path] | Mapping[str, Path]) -> list[Run]:
    if isinstance(folders, Mapping):
        return [read_run(path, name) for name, path in folders.items()]
    runs = [read_run(path) for path in folders]
    first = runs[0]
    for run in runs:
        if run.metric != first.metric:
            raise ValueError(
                f"run={run.folder} has the figure {run.metric} and run={first.folder} "
                f"{first.metric}; expected runs of one task; report them separately"
            )
    names = names_of([run.folder for run in runs])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _run_rows(runs: Sequence[Run]) -> Rows:
    metric = runs[0].metric
    base = runs[0].record.get(metric)
    rows = [("", metric, "loss", "of the first", "sparsity", "minutes")]
    for run in runs:
        own = run.record.get(metric)
        rows.append((
            run.name,
            figure(own),
            number(run.record.get("loss"), 4),
            percent(own / base if own is not None and base else None, 1),
            percent(run.record.get("sparsity")),
            number(run.record.get("minutes"), 1),
        ))
    return rows


def headline(run: Run) -> list[tuple[str, str, str]]:
    """Return name, value and unit of the figures on top of a run's page."""
    record, metric = run.record, run.metric
    return [
        (metric, number(record.get(metric), 3), ""),
        ("validation loss", number(record.get("loss"), 4), ""),
        ("sparsity", percent(record.get("sparsity")), "of the prunable weights"),
        ("checkpoint", number(record.get("size_mb"), 1), "MB"),
        ("gzipped", number(record.get("gzip_mb"), 1), "MB"),
        ("time", number(record.get("minutes"), 1), "min"),
    ]


def _smaller(points: Sequence[tradeoff.Point], metric: str) -> Picture:
    return _gain(points, metric, "smaller", "gzip MB", "gzipped")


def _faster(points: Sequence[tradeoff.Point], metric: str, setting: Setting) -> Picture:
    engine = setting.engine
    engine = ENGINES[engine].title if engine in ENGINES else engine
    cores = f"{setting.cores} core{'' if setting.cores == 1 else 's'}"
    how = f"{engine}, batch {setting.batch}, {setting.sequence} tokens, {cores}"
    return _gain(points, metric, "faster", "samples a second", how)


def _gain(
    points: Sequence[tradeoff.Point], metric: str, gain: str, value: str, how: str
) -> Picture:
    metric = metric.replace("_", " ")
    title = f"{metric.capitalize()} against {_AXES[gain]}"
    axis = f"times {gain} than {plain(points[0].name)} ({how})"
    drawn = svg(
        lambda ax, points: tradeoff.tradeoff_panel(ax, points, title, metric, axis),
        points,
        f"{title}: times {gain} than {points[0].name} ({how})",
    )
    return Picture(drawn, tradeoff.rows(points, metric, value))


def _course(runs: Sequence[Run]) -> list[Picture]:
    """Draw sparsity and metric over the epochs, where anything is pruned."""
    if not any(run.prunes for run in runs):
        return []
    metric = runs[0].metric
    evals = [
        (run.name, number(line["epoch"], 2), figure(line[metric]))
        for run in runs
        for line in run.evals
        if line.get(metric) is not None
    ]
    return [
        Picture(svg(sparsity_panel, runs, "Sparsity of the prunable weights by epoch")),
        Picture(
            svg(metric_panel, runs, f"{metric} on the validation data by epoch"),
            [("", "epoch", metric), *evals] if evals else (),
        ),
    ]


def _sections(run: Run) -> dict[str, Any]:
    layers = ""
    if any(layer["pruned"] for layer in run.layers):
        label = f"Sparsity of each matrix of {run.name}"
        layers = svg(layers_panel, [run], label, layers_size(run))
    return {
        "name": run.name,
        "layers": layers,
        "events": [_EVENT_HEAD, *event_rows(run)],
        "recipe": run.recipe,
        "facts": facts(run),
    }


def event_rows(run: Run) -> list[list[str]]:
    """Format the pruning events of a run for the table."""
    rows = []
    targets = [target for _, target in run.planned][: len(run.prunes)]
    for event, target in zip_longest(run.prunes, targets):
        pruned = sum(layer["pruned"] for layer in event.get("layers") or ())
        gradients = event["num_gradients"]
        rows.append([
            event["modifier"],
            number(event["epoch"], 2),
            str(event["step"]),
            percent(event["sparsity_before"]),
            percent(target),
            percent(event["sparsity_after"]),
            f"{pruned:,}" if event.get("layers") else NONE,
            number(event["predicted_loss_increase"], 4),
            f"{gradients:,}" if gradients else NONE,
            f"{event['skipped_gradients']:,}" if gradients else NONE,
            number(event["seconds"], 1),
            f"{event['peak_memory_bytes'] / 1e9:.2f} GB",
        ])
    return rows


def facts(run: Run) -> list[tuple[str, str]]:
    """Return name and value of what somebody needs to repeat a run."""
    record = run.record
    machine = record.get("machine", {})
    device = machine.get("gpu") or machine.get("cpu", "unknown")
    versions = record.get("versions", {}).items()
    training = f"{record.get('steps', 0):,}"
    if record.get("train_seconds"):
        training += f" in {record['train_seconds']:,.1f} s"
        if run.prunes:
            seconds = sum(event["seconds"] for event in run.prunes)
            training += f"; pruning events: {seconds:,.1f} s"
    found = {
        "command": shlex.join(record.get("command", [])),
        "seed": record.get("seed"),
        "training samples": f"{record.get('train_samples', 0):,}",
        "validation samples": f"{record.get('samples', 0):,}",
        "optimizer steps": training,
        "teacher": short_path(record.get("teacher")),
        "machine": f"{device}, {machine.get('cores', '?')} cores, "
        f"{machine.get('processes', 1)} process(es)",
        "versions": ", ".join(f"{name} {value}" for name, value in versions),
    }
    return [
        (name, str(value)) for name, value in found.items() if value not in (None, "")
    ]
