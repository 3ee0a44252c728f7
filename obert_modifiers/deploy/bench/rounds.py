"""Models in turns on the same cores, each on its engine in a process of its own."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from obert_modifiers.deploy.bench.cases import Case

# Of what a process needs beside its model: the widest values of all layers, and copies.
_BYTES_PER_TOKEN = 64 << 10
_COPIES = 2.0  # of the file while it is read and packed
_MB = 1_000_000


@dataclass(frozen=True)
class Effort:
    """How long is measured."""

    seconds: float = 20.0  # of each model, over all rounds
    rounds: int = 10  # how often each model gets its turn
    warm_up: float = 2.0  # seconds of each model before the first round
    cores: int | None = None  # how many cores; all that the process may use if None


@dataclass
class Measured:
    """What was measured of a case."""

    case: Case  # what was run
    facts: dict[str, Any]  # what the engine said
    # Seconds of each batch, by round.
    rounds: list[list[float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # processors' seconds, by round

    @property
    def latencies(self) -> np.ndarray:
        """Seconds of all batches."""
        return np.array([one for turn in self.rounds for one in turn])

    def summary(self) -> dict[str, float]:
        """Return the figures that the papers give."""
        seconds = self.latencies
        milliseconds = 1e3 * seconds
        return {
            "items_per_second": float(self.case.batch * len(seconds) / seconds.sum()),
            "mean_ms": float(milliseconds.mean()),
            "median_ms": float(np.median(milliseconds)),
            "p99_ms": float(np.percentile(milliseconds, 99)),
            "sd_ms": float(milliseconds.std(ddof=1)) if len(seconds) > 1 else 0.0,
            "batches": len(seconds),
            "cores_busy": float(sum(self.cpu) / seconds.sum()),
        }

    def ratio_to(self, reference: "Measured") -> dict[str, float]:
        """Return how many times as fast this is as another of the same rounds.

        ``speedup`` is that of the medians of all batches, ``speedup_low`` and
        ``speedup_high`` are quartiles of the rounds' own, and ``speedup_cpu`` is that
        of processors' time, which other work on the machine hardly changes.
        """
        own = np.array([np.median(turn) for turn in self.rounds]) / self.case.batch
        other = np.array([np.median(turn) for turn in reference.rounds])
        low, high = np.percentile(other / reference.case.batch / own, [25, 75])
        return {
            "speedup": reference._median_of_item() / self._median_of_item(),
            "speedup_low": float(low),
            "speedup_high": float(high),
            "speedup_cpu": reference._cpu_of_item() / self._cpu_of_item(),
        }

    def _median_of_item(self) -> float:
        return float(np.median(self.latencies)) / self.case.batch

    def _cpu_of_item(self) -> float:
        return sum(self.cpu) / (len(self.latencies) * self.case.batch)


def measure(
    cases: Sequence[Case], effort: Effort, tell: Callable[[str], None] = lambda _: None
) -> list[Measured]:
    """Measure cases, those of one size in turns."""
    cores = pick_cores(effort.cores)
    found: list[Measured] = []
    for (batch, seq), group_ in itertools.groupby(cases, lambda case: case.size):
        group = list(group_)
        models = f"{len(group)} models on {len(cores)} cores"
        tell(f"batch {batch}, sequence {seq}: {models}")
        with ExitStack() as stack:
            workers = []
            for case in group:
                tell(f"  opening {case.label}")
                workers.append(stack.enter_context(_worker(case, cores, effort)))
            for number in range(effort.rounds):
                tell(f"  round {number + 1} of {effort.rounds}")
                for worker in workers:
                    worker.turn(effort.seconds / effort.rounds)
            found += [worker.measured for worker in workers]
    return found


def pick_cores(count: int | None) -> list[int]:
    """Choose the cores that all models share."""
    if hasattr(os, "sched_getaffinity"):
        there = sorted(os.sched_getaffinity(0))
    else:
        there = list(range(os.cpu_count() or 1))
    if count is not None and not 1 <= count <= len(there):
        raise ValueError(
            f"--cores={count} is not what there is; expected 1 to {len(there)}; leave "
            "it out for all"
        )
    return there[:count]


class _Worker:
    """A process with one model."""

    def __init__(self, process: subprocess.Popen[str], case: Case, log: Any) -> None:
        self._process, self._case, self._log = process, case, log
        self.measured = Measured(case, {})

    def send(self, line: str) -> None:
        try:
            self._process.stdin.write(line + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # what it said before it ended is read next

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise self._ended()
        found = json.loads(line)
        if "error" in found:
            raise ValueError(found["error"])
        return found

    def turn(self, seconds: float) -> None:
        self.send(str(seconds))
        found = self.answer()
        self.measured.rounds.append(found["latencies"])
        self.measured.cpu.append(found["cpu"])

    def _ended(self) -> ValueError:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        case = self._case
        if code == -9 or any("bad_alloc" in line for line in said):
            return ValueError(
                f"batch={case.batch} seq={case.seq} of {case.label} takes more memory "
                "than there is; expected less; lower --batch, or measure fewer models "
                "at once"
            )
        last = said[-1] if said else "nothing was printed"
        return ValueError(
            f"model={case.path} ended {case.engine} with code {code} ({last[:300]}); "
            "expected a file that it can run; export it with --target "
            f"{case.engine}"
        )


@contextmanager
def _worker(case: Case, cores: list[int], effort: Effort) -> Iterator[_Worker]:
    _check_memory(case)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "obert_modifiers.deploy.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            worker = _Worker(process, case, log)
            spec = {
                "engine": case.engine,
                "path": str(case.path),
                "batch": case.batch,
                "seq": case.seq,
                "bf16": case.bf16,
                "cores": cores,
                "warm_up": effort.warm_up,
                "lengths": case.lengths,
            }
            worker.send(json.dumps(spec))
            worker.measured.facts = worker.answer()["facts"]
            yield worker
        finally:
            process.kill()
            process.communicate()


def _check_memory(case: Case) -> None:
    need = _COPIES * _size(case.path) + case.batch * case.seq * _BYTES_PER_TOKEN
    there = psutil.virtual_memory().available
    if need > there:
        raise ValueError(
            f"batch={case.batch} seq={case.seq} of {case.label} takes about "
            f"{need / _MB:.0f} MB, and {there / _MB:.0f} MB are free; expected as much;"
            " lower --batch, or measure fewer models at once"
        )


def _size(path: Path) -> int:
    files = path.glob("model*.safetensors") if path.is_dir() else [path]
    extra = path.with_suffix(".bin")
    size = sum(file.stat().st_size for file in files)
    return size + (extra.stat().st_size if extra.is_file() else 0)
