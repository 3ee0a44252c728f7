"""One model on one engine, in a process of its own, that waits to be told to run.

The first line on standard input says what to open; each further line how many seconds
to run. Answers are lines of JSON on what was standard output; what engines print goes
to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import numpy as np


def main() -> None:
    """Open what the first line says, then run as the others say."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    spec = json.loads(sys.stdin.readline())
    # Before the engine is loaded: it counts its cores then.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, spec["cores"])
    try:
        facts, once = _open(spec)
    except (ValueError, OSError, MemoryError) as error:
        _say(answers, {"error": str(error) or type(error).__name__})
        return
    _say(answers, {"facts": facts})
    for line in sys.stdin:
        _say(answers, _run(once, float(line)))


def make_batch(
    names: Iterable[str], batch: int, seq: int, lengths: Sequence[int] | None = None
) -> dict[str, "np.ndarray"]:
    """Make int64 inputs, padded behind `lengths`; the ids do not change the time."""
    import numpy as np

    generator = np.random.default_rng(0)
    values = {
        "input_ids": generator.integers(5, 25, (batch, seq)),  # in every vocabulary
        "attention_mask": np.ones((batch, seq), np.int64),
    }
    if lengths is not None:
        mask = np.arange(seq) < np.asarray(lengths)[:, None]
        values = {name: one * mask for name, one in values.items()}
    zeros = np.zeros((batch, seq), np.int64)
    return {name: values.get(name, zeros) for name in names}


def _open(spec: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], Any]]:
    from obert_modifiers.deploy.engines import ENGINES
    from obert_modifiers.deploy.engines.engine import Setting

    setting = Setting(spec["batch"], spec["seq"], len(spec["cores"]), spec["bf16"])
    started = time.perf_counter()
    opened = ENGINES[spec["engine"]].open(Path(spec["path"]), setting)
    loaded = time.perf_counter() - started
    precision = opened.facts.get("precision")
    if setting.bf16 and precision != "bf16":  # it does not refuse what the CPU lacks
        raise ValueError(
            f"bf16=True of {spec['engine']} is computed in {precision} on this CPU; "
            "expected a CPU with bfloat16; leave out --bf16"
        )
    batch = make_batch(opened.inputs, setting.batch, setting.seq, spec.get("lengths"))

    def once() -> Any:
        return opened.compute(batch)

    runs = len(_run(once, spec["warm_up"])["latencies"])
    return {**opened.facts, "seconds_to_open": loaded, "warm_up_runs": runs}, once


def _run(once: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Run batches for some seconds, one at least; processors' time is of all."""
    latencies: list[float] = []
    processors = time.process_time()
    started = now = time.perf_counter()
    while now - started < seconds or not latencies:
        once()
        after = time.perf_counter()
        latencies.append(after - now)
        now = after
    return {"latencies": latencies, "cpu": time.process_time() - processors}


def _say(answers: TextIO, record: dict[str, Any]) -> None:
    answers.write(json.dumps(record) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
