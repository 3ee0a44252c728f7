"""Models in turns on the same cores, each on its engine in a process of its own."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import psutil

from obert_modifiers.deploy.bench.cases import Case
from obert_modifiers.sizes import MB, plain_bytes

# Of what a process needs beside its model: the widest values of all layers, and copies.
_BYTES_PER_TOKEN = 64 << 10
_COPIES = 2.0  # of the file while it is read and packed


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

    case: Case
    facts: dict[str, Any]  # what the engine said
    # Seconds of each batch, by round.
    rounds: list[list[float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # processors' seconds, by round

    @property
    def latencies(self) -> np.ndarray:
        """Seconds of all batches."""
        return np.concatenate(self.rounds)

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
        own, other = self._of_item(), reference._of_item()
        low, high = np.percentile(other["rounds"] / own["rounds"], [25, 75])
        return {
            "speedup": float(other["median"] / own["median"]),
            "speedup_low": float(low),
            "speedup_high": float(high),
            "speedup_cpu": float(other["cpu"] / own["cpu"]),
        }

    def _of_item(self) -> dict[str, Any]:
        """Return the seconds of an item."""
        seconds, batch = self.latencies, self.case.batch
        return {
            "median": np.median(seconds) / batch,
            "rounds": np.array([np.median(turn) for turn in self.rounds]) / batch,
            "cpu": sum(self.cpu) / (len(seconds) * batch),
        }


def measure(
    cases: Sequence[Case], effort: Effort, tell: Callable[[str], None] = lambda _: None
) -> list[Measured]:
    """Measure cases, those of one size in turns."""
    cores = pick_cores(effort.cores)
    for case in cases:  # not after hours with the others
        _check_memory(case)
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

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and read the answer."""
        try:
            self._process.stdin.write(line + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # what it said before it ended is read next
        answer = self._process.stdout.readline()  # type: ignore[union-attr]
        if not answer:
            raise self._ended()
        found = json.loads(answer)
        if "error" in found:
            raise ValueError(found["error"])
        return found

    def turn(self, seconds: float) -> None:
        found = self.ask(str(seconds))
        self.measured.rounds.append(found["latencies"])
        self.measured.cpu.append(found["cpu"])

    def _ended(self) -> ValueError:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        case = self._case
        if code == -9 or any("bad_alloc" in line for line in said):
            return _too_large(case, "more memory than there is; expected less")
        last = said[-1] if said else "nothing was printed"
        return ValueError(
            f"model={case.path} ended {case.engine} with code {code} ({last[:300]}); "
            f"expected a file that it can run; export it with --target {case.engine}"
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
            spec = {**asdict(case), "cores": cores, "warm_up": effort.warm_up}
            worker.measured.facts = worker.ask(json.dumps(spec, default=str))["facts"]
            yield worker
        finally:
            process.kill()
            process.communicate()


def _check_memory(case: Case) -> None:
    path = case.path
    files = [*path.glob("model*.safetensors")] if path.is_dir() else [path]
    if path.with_suffix(".bin").is_file():
        files.append(path.with_suffix(".bin"))
    need = _COPIES * plain_bytes(files) + case.batch * case.seq * _BYTES_PER_TOKEN
    there = psutil.virtual_memory().available
    if need > there:
        raise _too_large(
            case,
            f"about {need / MB:.0f} MB, and {there / MB:.0f} MB are free; expected as "
            "much",
        )


def _too_large(case: Case, what: str) -> ValueError:
    return ValueError(
        f"batch={case.batch} seq={case.seq} of {case.label} takes {what}; lower "
        "--batch, or measure fewer models at once"
    )
