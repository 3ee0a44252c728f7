"""One model on one engine, in a process of its own, that waits to be told to run.

The first line on standard input says what to open; each further line how many seconds
to run. Answers are lines of JSON on what was standard output; what engines print goes
to standard error.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO


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


def _open(spec: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    from obert_modifiers.deploy.bench.engines import Setting, open_model

    setting = Setting(spec["batch"], spec["seq"], len(spec["cores"]), spec["bf16"])
    started = time.perf_counter()
    opened = open_model(spec["engine"], Path(spec["path"]), setting)
    loaded = time.perf_counter() - started
    warm = _run(opened.run, spec["warm_up"])
    runs = len(warm["latencies"])
    facts = opened.facts | {"seconds_to_open": loaded, "warm_up_runs": runs}
    return facts, opened.run


def _run(once: Any, seconds: float) -> dict[str, Any]:
    """Run batches for some seconds, one at least.

    Args:
        once: Runs a batch.
        seconds: How long.

    Returns:
        ``latencies`` of the batches and ``cpu``, the processors' time for all, in
        seconds.
    """
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
