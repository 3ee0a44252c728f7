"""Read what `obert bench` and `obert evaluate` wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_ROW = {"model", "path", "engine", "bf16", "batch", "seq", "cores", "median_ms"}


class Setting(NamedTuple):
    """How something was timed; only speeds of one setting are compared."""

    engine: str  # with its precision where that is not the file's
    batch: int
    sequence: int
    cores: int
    source: str  # the benchmark's file


@dataclass(frozen=True)
class Speed:
    """One measured throughput."""

    path: str  # what was measured
    name: str  # what the table calls it
    setting: Setting
    # Samples a second, by the median latency: a neighbour that slows one batch changes
    # the mean.
    items: float
    # The same at the quartiles of the rounds' speed-ups; `items` without rounds.
    low: float
    high: float


def read_bench(path: Path) -> list[Speed]:
    """Read the rows of a file of `obert bench --json`."""
    found = _read(path)
    rows = found.get("results") if isinstance(found, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise _wrong("bench", path, "holds no results")
    return [_speed(row, path) for row in rows]


def read_machine(path: Path) -> str:
    """Name the CPU that a file of `obert bench --json` was measured on."""
    machine = _read(path).get("machine") or {}
    return machine.get("cpu") or "an unknown CPU"


def _speed(row: Any, path: Path) -> Speed:
    missing = _ROW - set(row if isinstance(row, Mapping) else ())
    if missing:
        raise _wrong("bench", path, f"has a row without {min(missing)}")
    milliseconds = row["median_ms"]
    if not isinstance(milliseconds, int | float) or milliseconds <= 0:
        raise _wrong("bench", path, f"has a row with median_ms={milliseconds}")
    engine = f"{row['engine']}{' bf16' * bool(row['bf16'])}"
    setting = Setting(engine, row["batch"], row["seq"], row["cores"], str(path))
    items = 1e3 * row["batch"] / milliseconds
    speedup = row.get("speedup", 1.0)
    low, high = (
        row.get(f"speedup_{end}", speedup) / speedup for end in ("low", "high")
    )
    return Speed(row["path"], row["model"], setting, items, items * low, items * high)


def read_evaluated(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Read files of `obert evaluate --json`: the record of each model by its path."""
    found = {}
    for path in paths:
        record = _read(path)
        if not isinstance(record, Mapping) or not {"model", "headline"} <= set(record):
            raise _wrong("evaluated", path, "is no evaluation", "evaluate")
        found[str(Path(record["model"]).resolve())] = dict(record)
    return found


def _wrong(flag: str, path: Path, what: str, command: str = "bench") -> ValueError:
    return ValueError(
        f"--{flag}={path} {what}; expected what `obert {command} --json` writes; give "
        "that file"
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"file={path} cannot be read as JSON ({error}); expected what `obert "
            "bench` or `obert evaluate` writes with --json; check the path"
        ) from error
