"""Put pictures, tables and the record of runs on one self-contained page."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from obert_modifiers.report.draw import layers_svg, save_png, svg
from obert_modifiers.report.panels import COLOURS, PANELS
from obert_modifiers.report.read import Run, read_run

_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_PANEL_SIZE = (5.0, 3.0)
_NONE = "–"


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.png`` into the folder of a run.

    Args:
        folder: The output folder of a finished run.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
    """  # noqa: DOC502  raised by read_run
    run = read_run(Path(folder))
    record = run.record
    context = {
        "title": f"Run {run.name}",
        "subtitle": f"{_path(record.get('model'))} on {_path(record.get('data'))}",
        "figures": headline(run),
        "messages": [*record.get("notes", []), *run.messages],
    }
    return _write(run.folder, [run], context)


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
    first = found[0].record
    context = {
        "title": title,
        "subtitle": f"{_path(first.get('model'))} on {_path(first.get('data'))}",
        "comparison": {"head": rows[0], "rows": rows[1:], "notes": notes},
    }
    return _write(Path(folder), found, context)


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
        panels=[svg(panel, runs, _PANEL_SIZE) for panel in PANELS],
        pruned=any(run.prunes for run in runs),
        runs=[_sections(run) for run in runs],
        facts=facts(runs[0]),
        **context,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    save_png(folder / "report.png", runs, f"{context['title']}: {context['subtitle']}")
    return path


def _sections(run: Run) -> dict[str, Any]:
    sparse = any(layer["pruned"] for layer in run.layers)
    return {
        "name": run.name,
        "layers_svg": layers_svg(run) if sparse else "",
        "events": [event_cells(event) for event in run.prunes],
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
        number(event["predicted_loss_increase"], 4),
        f"{event['num_gradients']:,}" if event["num_gradients"] else _NONE,
        f"{event['skipped_gradients']:,}" if event["num_gradients"] else _NONE,
        number(event["seconds"], 1),
        memory(event["peak_memory_bytes"]),
    ]


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
        "teacher": _path(record.get("teacher")),
        "machine": f"{device}, {machine.get('cores', '?')} cores, "
        f"{machine.get('processes', 1)} process(es)",
        "versions": ", ".join(
            f"{name} {value}" for name, value in record.get("versions", {}).items()
        ),
    }
    return [
        (name, str(value)) for name, value in found.items() if value not in (None, "")
    ]


def number(value: float | None, digits: int) -> str:
    """Format a number.

    Args:
        value: The number, or None.
        digits: Digits after the point; tiny numbers get an exponent.

    Returns:
        The text; a dash for None.
    """
    if value is None:
        return _NONE
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Format a sparsity.

    Args:
        value: A share in [0, 1], or None.

    Returns:
        Percent with two digits; a dash for None.
    """
    return _NONE if value is None else f"{100 * value:.2f} %"


def memory(size: int) -> str:
    """Format a number of bytes.

    Args:
        size: Bytes.

    Returns:
        GB of 1,000,000,000 bytes.
    """
    return f"{size / 1e9:.2f} GB"


def _path(value: str | None) -> str:
    """Shorten what may be a path, or several with commas.

    Args:
        value: The text, or None.

    Returns:
        The last part of each absolute path; other texts as they are.
    """
    if not value:
        return ""
    parts = [part.strip() for part in value.split(",")]
    return ", ".join(
        Path(part).name if part.startswith("/") else part for part in parts
    )
