"""What the benchmarks share: the machine, the model, the data, the result file."""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from obert_modifiers.tasks.run.record import machine, versions

ROOT = Path(__file__).parents[1]


def parser(text: str) -> argparse.ArgumentParser:
    """Make a command line with the flags that every benchmark has.

    Args:
        text: The benchmark's docstring.

    Returns:
        A parser with ``--quick`` and ``--json``.
    """
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="under two minutes")
    made.add_argument("--json", type=Path, help="write the results there")
    return made


def environment() -> dict[str, Any]:
    """Tell on what a result was measured.

    Returns:
        Machine, versions, commit and torch's threads.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {
        "machine": machine(),
        "versions": versions(),
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "torch_threads": torch.get_num_threads(),
    }


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result where one is wanted.

    Args:
        path: The file, or None.
        result: Plain values.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Format mean and sample standard deviation.

    Args:
        values: One or more; a single one has no spread.
        digits: Digits behind the point.

    Returns:
        Such as ``0.853 ± 0.004``.
    """
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def cpu_seconds() -> float:
    """Count the processors' time of this process.

    Returns:
        Seconds, over all threads.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(function: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Time a function after one call to warm up.

    Args:
        function: What to time.
        repeats: Timed calls.

    Returns:
        Median, smallest and largest seconds.
    """
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
    }


def matrix_rate(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Measure the machine's matrix-product rate.

    Args:
        dtype: Type of the matrices.
        size: Rows and columns.

    Returns:
        Floating-point operations per second, best of five.
    """
    left = torch.from_numpy(np.random.default_rng(0).standard_normal((size, size)))
    left = left.to(dtype)
    best = timed(lambda: left @ left, repeats=5)["min_s"]
    return 2.0 * size**3 / best
