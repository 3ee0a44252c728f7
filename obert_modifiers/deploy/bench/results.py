"""Read what `obert bench` and `obert evaluate` wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_NAMES = {
    "model": ("path", "model"),
    "engine": ("engine",),
    "batch": ("batch", "batch_size"),
    "sequence": ("seq", "sequence", "sequence_length", "seq_length"),
}
_RATES = ("median", "mean")


class Setting(NamedTuple):
    """How something was timed; times of two runs of a benchmark are not compared.

    Attributes:
        engine: What computed it.
        batch: Samples in a batch.
        sequence: Tokens of a sample.
        cores: Cores that were used, or None.
        source: The benchmark's file.
    """

    engine: str
    batch: int
    sequence: int
    cores: int | None
    source: str


@dataclass(frozen=True)
class Speed:
    """One measured throughput.

    Attributes:
        model: The path that was measured, or its name.
        name: What the table calls it.
        engine: What computed it, with its precision where that is not the file's.
        batch: Samples in a batch.
        sequence: Tokens of a sample.
        items: Samples a second, the median where it is there, else the mean.
        deviation: Standard deviation of it, or None.
        cores: Cores that were used, or None.
        source: The file that it is from.
    """

    model: str
    name: str
    engine: str
    batch: int
    sequence: int
    items: float
    deviation: float | None = None
    cores: int | None = None
    source: str = ""

    @property
    def setting(self) -> Setting:
        """What two rows must share to be compared."""
        return Setting(self.engine, self.batch, self.sequence, self.cores, self.source)


def read_bench(path: Path) -> list[Speed]:
    """Read the rows of a benchmark.

    Args:
        path: The JSON file of `obert bench`: a list of rows, or one under ``rows`` or
            ``results``.

    Returns:
        Its rows.

    Raises:
        ValueError: If it is no such file.
    """
    found = _read(path)
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("rows", "results") if key in found), found)
    if not isinstance(found, list) or not found:
        raise ValueError(
            f"--bench={path} holds no list of rows; expected what `obert bench --json` "
            "writes; give that file"
        )
    return [_speed(row, path) for row in found]


def _speed(row: Any, path: Path) -> Speed:
    values = {}
    for name, keys in _NAMES.items():
        key = next((k for k in keys if isinstance(row, Mapping) and k in row), None)
        if key is None:
            raise ValueError(
                f"--bench={path} has a row without {name}; expected what `obert bench "
                "--json` writes; give that file"
            )
        values[name] = row[key]
    items, spread = _throughput(row)
    if not isinstance(items, int | float) or items <= 0:
        raise ValueError(
            f"--bench={path} has a row without a throughput; expected samples a second;"
            " give what `obert bench --json` writes"
        )
    return Speed(
        str(values["model"]),
        str(row.get("model", values["model"])),
        f"{values['engine']}{' bf16' * bool(row.get('bf16'))}",
        int(values["batch"]),
        int(values["sequence"]),
        float(items),
        spread,
        row.get("cores"),
        str(path),
    )


def _throughput(row: Mapping[str, Any]) -> tuple[Any, float | None]:
    """Find the samples a second of a row, and their standard deviation.

    Returns:
        Both, None for what is not there.
    """
    if row.get("median_ms") and row.get("batch"):
        # As `obert bench` compares: a neighbour that slows one batch changes the mean.
        items = 1e3 * row["batch"] / row["median_ms"]
        return items, items * row.get("sd_ms", 0.0) / row["median_ms"] or None
    if row.get("items_per_second") is not None:
        return row["items_per_second"], None
    rate = row.get("throughput")
    if not isinstance(rate, Mapping):
        return row.get("throughput_median", row.get("throughput_mean", rate)), None
    found = [rate[key] for key in _RATES if rate.get(key) is not None]
    return (found or [None])[0], rate.get("sd", rate.get("std"))


def read_evaluated(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Read what `obert evaluate --json` wrote.

    Args:
        paths: Its files.

    Returns:
        The record of each model by its path.

    Raises:
        ValueError: If one is no such file.
    """
    found = {}
    for path in paths:
        record = _read(path)
        if not isinstance(record, Mapping) or not {"model", "headline"} <= set(record):
            raise ValueError(
                f"--evaluated={path} is no evaluation; expected what `obert evaluate "
                "--json` writes; give that file"
            )
        found[str(Path(record["model"]).resolve())] = dict(record)
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"file={path} cannot be read as JSON ({error}); expected what `obert "
            "bench` or `obert evaluate` writes with --json; check the path"
        ) from error
