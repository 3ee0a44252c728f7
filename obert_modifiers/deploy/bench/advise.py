"""Which engine and format to serve a run with on this CPU, by what was measured."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from obert_modifiers.cpu import Cpu
from obert_modifiers.deploy.bench.cases import Case
from obert_modifiers.deploy.bench.rounds import Measured
from obert_modifiers.deploy.engines import ENGINES

_BF16 = ("amx-bf16", "avx512bf16")


def candidates() -> list[str]:
    """Name the engines that are installed and made for serving."""
    serving = [n for n, one in ENGINES.items() if "run" not in one.reads]
    return [name for name in serving if ENGINES[name].installed]


def with_bf16(cases: Sequence[Case], cpu: Cpu) -> list[Case]:
    """Add bfloat16 where the engine and the CPU have it."""
    if cpu.features.isdisjoint(_BF16):
        return list(cases)
    found = []
    for case in cases:
        found.append(case)
        if ENGINES[case.engine].bf16 and not case.bf16:
            found.append(replace(case, bf16=True))
    return found


def advice(found: Sequence[Measured], cpu: Cpu) -> list[str]:
    """Say what is fastest at each size, with its figures, and how it is written."""
    lines = [f"on this CPU, {cpu.name}:"]
    for (batch, seq), group_ in itertools.groupby(found, lambda one: one.case.size):
        # By what the speeds beside it are of: one slow batch changes a mean.
        group = sorted(group_, key=lambda one: one.summary()["median_ms"])
        best, figures = group[0], group[0].summary()
        line = (
            f"batch {batch}, sequence {seq}: {best.case.label}, "
            f"{figures['items_per_second']:.4g} items/s, {figures['median_ms']:.3g} ms"
        )
        others = [
            f"{best.ratio_to(one)['speedup']:.2f} times {_engine(one.case)}"
            for one in group[1:]
        ]
        lines.append(line + "".join(f", {other}" for other in others))
        lines.append(f"  {_command(best.case)}")
    return lines


def _engine(case: Case) -> str:
    return f"{case.engine}{' (bf16)' if case.bf16 else ''}"


def _command(case: Case) -> str:
    engine = ENGINES[case.engine]
    if case.source is None:
        return f"it is there: {case.path}"
    if engine.target is None:
        return f"obert export {case.source} --format {engine.reads[0]}"
    shape = f" --shape {case.batch}x{case.seq}" if engine.target.fixed else ""
    return f"obert export {case.source} --target {case.engine}{shape}"
