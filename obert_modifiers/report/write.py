"""Put pictures, tables and the record of runs on one self-contained page."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import jinja2

from obert_modifiers.deploy.artefact import names_of
from obert_modifiers.report.compare import (
    Measured,
    engine_title,
    measure_runs,
    size_points,
    speed_points,
)
from obert_modifiers.report.draw import COLOURS, Panel, save_png
from obert_modifiers.report.panels import (
    layers_panel,
    sparsity_panel,
    tradeoff_panel,
    tradeoff_rows,
)
from obert_modifiers.report.read import Run, read_run
from obert_modifiers.report.sizes import HEAD
from obert_modifiers.report.text import NONE, figure, number, percent, short_path

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_EVENT_HEAD = (
    *("modifier", "epoch", "step", "before", "planned", "after", "pruned weights"),
    *("predicted loss increase", "gradients", "skipped", "seconds", "peak memory"),
)

Rows = Sequence[Sequence[str]]  # of a table; the first row is the head


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

    The runs, by name where they are not called as their folders, are compared with the
    first. The page goes to `out`: the folder of a single run, else ``runs/report``.
    `table` takes the place of the usual table of the runs, with `notes` below it.
    `bench` and `evaluated` are JSON files of the commands of that name.
    """
    found = _read(runs)
    first, many = found[0], len(found) > 1
    out = out or (Path("runs/report") if many else first.folder)
    measured, lost = measure_runs(found, bench, evaluated)
    gains = _gains(measured, first.metric)
    schedule = sparsity_panel(found)
    layers = {
        run.name: layers_panel(run)
        for run in found
        if any(layer["pruned"] for layer in run.layers)
    }
    title = title or (f"{len(found)} runs" if many else f"Run {first.name}")
    model, data = (short_path(first.record.get(name)) for name in ("model", "data"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        colours=COLOURS,
        title=title,
        subtitle=f"{model} on {data}",
        table=table or _run_rows(found),
        notes=[*notes, *lost],
        gains=gains,
        sizes=[HEAD, *(size.cells() for own in measured for size in own.sizes)],
        schedule=schedule if any(run.prunes for run in found) else None,
        layers=layers,
        events={run.name: [_EVENT_HEAD, *event_rows(run)] for run in found},
        facts={run.name: facts(run) for run in found},
        runs=found,
        messages=() if many else [*first.record.get("notes", []), *first.messages],
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page, encoding="utf-8")
    pictures = [*(panel for panel, _ in gains), schedule, *layers.values()]
    save_png(out / "report.png", f"{title}: {model} on {data}", pictures)
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


def _gains(measured: Sequence[Measured], metric: str) -> list[tuple[Panel, Rows]]:
    """Draw accuracy against size and speed, each with its numbers."""
    metric = metric.replace("_", " ")
    groups = [("size\ngzipped", "smaller", "gzip MB", size_points(measured))]
    for setting, points in speed_points(measured).items():
        engine = engine_title(setting.engine)
        size = f"batch {setting.batch}, {setting.sequence} tokens"
        name = f"speed\n{engine}, {size}, {setting.cores} core(s)"
        groups.append((name, "faster", "samples a second", points))
    return [
        (
            tradeoff_panel(
                points, f"{metric.capitalize()} against {name}", metric, how
            ),
            tradeoff_rows(points, metric, unit),
        )
        for name, how, unit, points in groups
        if len(points) > 1
    ]


def _run_rows(runs: Sequence[Run]) -> Rows:
    metric = runs[0].metric
    base = runs[0].record.get(metric)
    rows = [
        ("", metric, "loss", "sparsity", "MB", "gzip MB", "minutes", "of the first")
    ]
    for run in runs:
        own = run.record.get(metric)
        rows.append((
            run.name,
            figure(own),
            number(run.record.get("loss"), 4),
            percent(run.record.get("sparsity")),
            *(number(run.record.get(key), 1) for key in ("size_mb", "gzip_mb")),
            number(run.record.get("minutes"), 1),
            percent(own / base if own is not None and base else None, 1),
        ))
    return rows if len(runs) > 1 else [row[:-1] for row in rows]


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
    processes = machine.get("processes", 1)
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
        "machine": f"{device}, {machine.get('cores', '?')} cores, {processes} process"
        "(es)",
        "versions": ", ".join(f"{name} {value}" for name, value in versions),
    }
    return [
        (name, str(value)) for name, value in found.items() if value not in (None, "")
    ]
