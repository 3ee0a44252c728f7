"""Put pictures, tables and the record of runs on one self-contained page."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from obert_modifiers.deploy.artefact import names_of
from obert_modifiers.report import findings
from obert_modifiers.report.compare import measure_runs, size_points, speed_points
from obert_modifiers.report.draw import save_png
from obert_modifiers.report.figures import (
    Figure,
    against_size,
    against_speed,
    course,
    heat_map,
    histogram,
)
from obert_modifiers.report.panels import COLOURS
from obert_modifiers.report.read import Run, read_run
from obert_modifiers.report.sizes import HEAD, cells
from obert_modifiers.report.text import (
    NONE,
    figure,
    memory,
    number,
    percent,
    short_path,
)

_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_RUN_HEAD = ("", "loss", "of the first", "sparsity", "minutes")


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.png`` into the folder of a run.

    Args:
        folder: The output folder of a finished run.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
    """  # noqa: DOC502  raised by read_run
    return write_runs([folder], folder)


def write_comparison(
    folder: str | Path,
    title: str,
    runs: Mapping[str, str | Path],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> Path:
    """Write ``report.html`` and ``report.png`` about several runs.

    Args:
        folder: Where the page goes.
        title: What stands on top.
        runs: The folder of each run by the name it is called.
        rows: The table of the runs; its first row is the head.
        notes: Sentences below the table.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
    """  # noqa: DOC502  raised by read_run
    found = [read_run(Path(path), name) for name, path in runs.items()]
    context = {
        "title": title,
        "subtitle": _subtitle(found[0]),
        "comparison": {"head": rows[0], "rows": rows[1:], "notes": notes},
        **_measured(found)[0],
    }
    return _write(Path(folder), found, context)


def write_runs(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    bench: Sequence[Path] = (),
    evaluated: Sequence[Path] = (),
) -> Path:
    """Write ``report.html`` and ``report.png`` about runs, their sizes and speeds.

    Args:
        folders: The runs' folders; the others are compared with the first.
        out: Where the page goes.
        bench: JSON files of `obert bench`, for the speeds.
        evaluated: JSON files of `obert evaluate`, for the figures of exported files.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        ValueError: If the runs are of different tasks, or a file cannot be read.
    """
    runs = [read_run(Path(path)) for path in folders]
    names = names_of([run.folder for run in runs])
    runs = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    first = runs[0]
    other = next((run for run in runs if run.metric != first.metric), None)
    if other is not None:
        raise ValueError(
            f"run={other.folder} has the figure {other.metric} and run={first.folder} "
            f"{first.metric}; expected runs of one task; report them separately"
        )
    measured, notes = _measured(runs, bench, evaluated)
    many = len(runs) > 1
    run_head = ("", first.metric, *_RUN_HEAD[1:])
    context = {
        "title": f"{len(runs)} runs" if many else f"Run {first.name}",
        "subtitle": _subtitle(first),
        "figures": () if many else headline(first),
        "comparison": {"head": run_head, "rows": _run_rows(runs), "notes": notes}
        if many
        else None,
        "messages": [] if many else [*first.record.get("notes", []), *first.messages],
        **measured,
    }
    return _write(Path(out), runs, context)


def _measured(
    runs: Sequence[Run], bench: Sequence[Path] = (), evaluated: Sequence[Path] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Draw what is gained, and list the sizes.

    Args:
        runs: The runs; the first is the reference.
        bench: JSON files of `obert bench`.
        evaluated: JSON files of `obert evaluate`.

    Returns:
        The page's ``tradeoffs`` and ``sizes``, and what belongs to no run.
    """
    metric = runs[0].metric
    measured, notes = measure_runs(runs, bench, evaluated)
    points = size_points(runs, measured)
    tradeoffs = [against_size(points, metric)] if len(points) > 1 else []
    tradeoffs += [
        against_speed(found, metric, setting)
        for setting, found in speed_points(runs, measured).items()
    ]
    rows = [cells(one) for own in measured for one in own.sizes]
    sizes = {"head": HEAD, "rows": rows} if rows else None
    return {"tradeoffs": tradeoffs, "sizes": sizes}, notes


def _subtitle(run: Run) -> str:
    model, data = (short_path(run.record.get(name)) for name in ("model", "data"))
    return f"{model} on {data}"


def _run_rows(runs: Sequence[Run]) -> list[list[str]]:
    base = runs[0].record.get(runs[0].metric)
    rows = []
    for run in runs:
        own = run.record.get(run.metric)
        kept = own / base if own is not None and base else None
        rows.append([
            run.name,
            figure(own),
            number(run.record.get("loss"), 4),
            percent(kept, 1),
            percent(run.record.get("sparsity")),
            number(run.record.get("minutes"), 1),
        ])
    return rows


def _write(folder: Path, runs: list[Run], context: dict[str, Any]) -> Path:
    """Fill the template and draw the picture.

    Args:
        folder: Where both go.
        runs: The runs on the page.
        context: What is on top of the page.

    Returns:
        The page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        light=COLOURS,
        panels=course(runs),
        pruned=any(run.prunes for run in runs),
        histogram=histogram(runs),
        runs=[_sections(run) for run in runs],
        facts=[(run.name, facts(run)) for run in runs],
        **context,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    save_png(folder / "report.png", runs, f"{context['title']}: {context['subtitle']}")
    return path


def _sections(run: Run) -> dict[str, Figure | Any]:
    return {
        "name": run.name,
        "layers": heat_map(run),
        "events": [event_cells(event) for event in run.prunes],
        "events_say": findings.events(run) if run.prunes else "",
        "recipe": run.recipe,
    }


def headline(run: Run) -> list[tuple[str, str, str]]:
    """Choose the figures that stand on top of a run's page.

    Args:
        run: The run.

    Returns:
        Name, value and unit of each.
    """
    record, metric = run.record, run.metric
    return [
        (metric, number(record.get(metric), 3), ""),
        ("validation loss", number(record.get("loss"), 4), ""),
        ("sparsity", percent(record.get("sparsity")), "of the prunable weights"),
        ("checkpoint", number(record.get("size_mb"), 1), "MB"),
        ("gzipped", number(record.get("gzip_mb"), 1), "MB"),
        ("time", number(record.get("minutes"), 1), "min"),
    ]


def event_cells(event: Mapping[str, Any]) -> list[str]:
    """Format a pruning event for the table.

    Args:
        event: A ``prune`` line of ``metrics.jsonl``.

    Returns:
        One text for each column.
    """
    return [
        event["modifier"],
        number(event["epoch"], 2),
        str(event["step"]),
        percent(event["sparsity_before"]),
        percent(event["sparsity_after"]),
        _pruned(event),
        number(event["predicted_loss_increase"], 4),
        f"{event['num_gradients']:,}" if event["num_gradients"] else NONE,
        f"{event['skipped_gradients']:,}" if event["num_gradients"] else NONE,
        number(event["seconds"], 1),
        memory(event["peak_memory_bytes"]),
    ]


def _pruned(event: Mapping[str, Any]) -> str:
    layers = event.get("layers") or []
    if not layers:
        return NONE
    return f"{sum(layer['pruned'] for layer in layers):,}"


def facts(run: Run) -> list[tuple[str, str]]:
    """Collect what somebody needs to repeat a run.

    Args:
        run: The run.

    Returns:
        Name and value of each fact.
    """
    record = run.record
    machine = record.get("machine", {})
    device = machine.get("gpu") or machine.get("cpu", "unknown")
    found = {
        "command": shlex.join(record.get("command", [])),
        "seed": record.get("seed"),
        "training samples": f"{record.get('train_samples', 0):,}",
        "validation samples": f"{record.get('samples', 0):,}",
        "optimizer steps": f"{record.get('steps', 0):,}",
        "teacher": short_path(record.get("teacher")),
        "machine": f"{device}, {machine.get('cores', '?')} cores, "
        f"{machine.get('processes', 1)} process(es)",
        "versions": ", ".join(
            f"{name} {value}" for name, value in record.get("versions", {}).items()
        ),
    }
    return [
        (name, str(value)) for name, value in found.items() if value not in (None, "")
    ]
