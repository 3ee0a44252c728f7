"""What was measured as a table, a picture and JSON."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from obert_modifiers import __version__
from obert_modifiers.cpu import host_cpu
from obert_modifiers.deploy.bench.cases import Size
from obert_modifiers.deploy.bench.rounds import Effort, Measured, pick_cores
from obert_modifiers.deploy.engines import ENGINES

HEAD = ("model", "engine", "items/s", "median", "mean", "p99", "sd ms", "speed")


def record(
    found: Sequence[Measured], effort: Effort, loads: tuple[float, float]
) -> dict[str, Any]:
    """Collect everything that was measured, and where.

    `loads` are the machine's before and after, in cores' worth of work.
    """
    cpu = host_cpu()
    cores = len(pick_cores(effort.cores))
    first = {size: group[0] for size, group in _by_size(found)}
    return {
        "machine": {
            "cpu": cpu.name,
            "family": cpu.family,
            "model": cpu.model,
            "cores": os.cpu_count(),
            "instructions": list(cpu.instruction_sets),
        },
        "versions": _versions(),
        "effort": asdict(effort),
        "load_before_and_after": loads,
        "results": [
            {
                "model": one.case.name,
                "path": str(one.case.source or one.case.path),
                "engine": one.case.engine,
                "bf16": one.case.bf16,
                "batch": one.case.batch,
                "seq": one.case.seq,
                "cores": cores,
                **one.summary(),
                **one.ratio_to(first[one.case.size]),
                "rounds_ms": [[1e3 * value for value in turn] for turn in one.rounds],
                "facts": one.facts,
            }
            for one in found
        ],
    }


def tables(found: Sequence[Measured]) -> Iterator[Table]:
    """Draw the figures for a terminal, a table for each size."""
    for size, group in _by_size(found):
        rows = Table(*HEAD, title=_title(size), title_justify="left")
        for number, column in enumerate(rows.columns):
            column.justify = "left" if number < 2 else "right"
            column.overflow = "fold"
            column.no_wrap = number > 0
        for one in group:
            rows.add_row(*_cells(one, group[0]))
        yield rows


def _title(size: Size) -> str:
    return "batch {}, sequence {}".format(*size)


def _cells(one: Measured, reference: Measured) -> list[str]:
    figures, ratio = one.summary(), one.ratio_to(reference)
    return [
        one.case.name,
        f"{one.case.engine}{' bf16' if one.case.bf16 else ''}",
        f"{figures['items_per_second']:.1f}",
        *(f"{figures[key]:.1f}" for key in ("median_ms", "mean_ms", "p99_ms", "sd_ms")),
        f"{ratio['speedup']:.2f}x",
    ]


def _by_size(found: Sequence[Measured]) -> list[tuple[Size, list[Measured]]]:
    """Group what was measured; the first of a size is what others are compared with."""
    groups: dict[Size, list[Measured]] = {}
    for one in found:
        groups.setdefault(one.case.size, []).append(one)
    return list(groups.items())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a record."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def plot(path: Path, found: Sequence[Measured]) -> None:
    """Draw how many items a second each model does, a panel for each size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _by_size(found)
    heights = [0.5 + 0.34 * len(group) for _, group in groups]
    figure = Figure(figsize=(9, 0.8 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
    for axes, (size, group) in zip(panels[:, 0], groups, strict=True):
        _draw(axes, group)
        axes.set_title(_title(size), loc="left", fontsize=10)
    panels[-1, 0].set_xlabel("items a second, and speed beside the first")
    figure.savefig(path, dpi=120)


def _draw(axes: Any, group: Sequence[Measured]) -> None:
    speeds = [one.summary()["items_per_second"] for one in group]
    places = range(len(group))
    colours = [ENGINES[one.case.engine].colour for one in group]
    axes.barh(places, speeds, color=colours, height=0.7)
    axes.set_yticks(places, [one.case.label for one in group], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(speeds))
    axes.spines[["top", "right"]].set_visible(False)
    for place, one, speed in zip(places, group, speeds, strict=True):
        ratio = one.ratio_to(group[0])["speedup"]
        axes.text(speed, place, f" {speed:.1f}  {ratio:.2f}x", va="center", fontsize=8)


def _versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the engines."""
    found = {"python": platform.python_version(), "obert_modifiers": __version__}
    for name in (*ENGINES, "numpy", "onnx"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
