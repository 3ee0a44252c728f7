"""Print the plan of a recipe."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from obert_modifiers.cli.common import draw_table, table_console
from obert_modifiers.core.pruning.calibration import TIMED_WEIGHTS
from obert_modifiers.recipe.counts import PoolCount, Timing
from obert_modifiers.recipe.plan import Phase, PruningPlan, RecipePlan, Span

_GRADIENT = {
    "sample": ", each of a sample",
    "batch": ", each the mean of a batch",
}


def show_plan(plan: RecipePlan, timings: Sequence[Timing] = ()) -> None:
    """Print a plan, with estimates for its second-order modifiers."""
    console = table_console()
    for line in _head(plan):
        console.print(line, soft_wrap=True)
    console.print(_phases(plan))
    for pruning in plan.pruning:
        for line in _pruning(pruning):
            console.print(line, soft_wrap=True)
        for timing in timings:
            if timing.line == pruning.line:
                console.print(_seconds(timing, pruning), soft_wrap=True)
        if len(pruning.pools) > 1:
            console.print(_counts(pruning.pools))
    for note in plan.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _head(plan: RecipePlan) -> Iterator[str]:
    epochs = plan.num_epochs
    text = "no number of epochs" if epochs is None else _times(epochs, "epoch")
    if plan.steps_per_epoch and plan.num_epochs:
        steps = round(plan.num_epochs * plan.steps_per_epoch)
        text += f" of {plan.steps_per_epoch:,} optimizer steps, {steps:,} in all"
    count = plan.num_events
    events = "pruning at every step"
    if count is not None:
        events = _times(count, "pruning event")
    yield f"{plan.file}: {text}; {events}"


def _phases(plan: RecipePlan) -> Table:
    """Draw a row for each phase; columns that say nothing are left out."""
    also = any(_also(phase) for phase in plan.phases)
    quantized = any(_quantization(phase) for phase in plan.phases)
    table = Table("epochs")
    if plan.steps_per_epoch:
        table.add_column("steps", justify="right")
    table.add_column("learning rate")
    table.add_column("events", justify="right")
    table.add_column("sparsity", justify="right")
    table.add_column("distillation")
    for name in ["quantization"] * quantized + ["also"] * also:
        table.add_column(name)
    for phase in plan.phases:
        cells = [f"{phase.start:g} to {phase.end:g}"]
        if plan.steps_per_epoch:
            first = round(phase.start * plan.steps_per_epoch)
            cells.append(f"{first:,} to {round(phase.end * plan.steps_per_epoch):,}")
        cells += [_rates(phase), str(phase.events or ""), _sparsity(phase)]
        cells.append("; ".join(map(_distils, phase.distillation)) or "off")
        cells += [_quantization(phase) or "off"] if quantized else []
        cells += [_also(phase)] if also else []
        table.add_row(*cells)
    return table


def _rates(phase: Phase) -> str:
    if phase.first_rate is None or phase.last_rate is None:
        return "-"
    if phase.first_rate == phase.last_rate:
        return f"{phase.first_rate:.1e}"
    return f"{phase.first_rate:.1e} to {phase.last_rate:.1e}"


def _sparsity(phase: Phase) -> str:
    return "; ".join("-" if s is None else _percent(s) for s in phase.sparsities)


def _also(phase: Phase) -> str:
    return ", ".join(span.modifier for span in phase.others if not span.quantizes)


def _quantization(phase: Phase) -> str:
    found = []
    for span in phase.others:
        if span.quantizes:
            fixed = span.fixed is not None and phase.start >= span.fixed
            found.append(f"on, ranges {'fixed' if fixed else 'follow'}")
    return "; ".join(found)


def _distils(span: Span) -> str:
    if span.hardness is None or span.temperature is None:
        return span.modifier
    return f"hardness {span.hardness:g}, temperature {span.temperature:g}"


def _pruning(plan: PruningPlan) -> Iterator[str]:
    events = plan.events
    said = "prunes at every step" if events is None else "no pruning event"
    if events:
        first, last = events[0], events[-1]
        where = f"at epoch {first.epoch:.4g}"
        to = _percent(last.sparsities)
        if len(events) > 1:
            where = f"from epoch {first.epoch:.4g} to {last.epoch:.4g}"
            to = f"{_percent(first.sparsities)} to {to}"
        said = f"{_times(len(events), 'pruning event')} {where}, {to}"
    yield f"{plan.modifier} (line {plan.line}): {said}"
    if plan.num_grads:
        total = "" if not events else f", {plan.num_grads * len(events):,} in all"
        kind = _GRADIENT.get(plan.grad_granularity, "")
        yield f"  {plan.num_grads:,} gradients for an event{total}{kind}"
    if plan.memory is not None:
        yield f"  {plan.memory.describe()}; on one process, with the memory it needs"
    if plan.pools:
        numel = sum(pool.numel for pool in plan.pools)
        pruned = sum(pool.pruned for pool in plan.pools)
        where = f" {_split(plan.pools[0])}" if len(plan.pools) == 1 else ":"
        yield f"  in the end {pruned:,} of {numel:,} weights are zero{where}"


def _seconds(timing: Timing, plan: PruningPlan) -> str:
    parts = timing.seconds
    total = ""
    if plan.events:
        total = f", {_duration(parts.total * len(plan.events))} in all"
    return (
        f"  estimated {_duration(parts.total)} for an event on this machine{total}: "
        f"{_duration(parts.passes)} forward and backward passes (timed on "
        f"{_times(timing.samples, 'random sample')} of {timing.tokens} tokens; shorter "
        f"texts take less), {_duration(parts.collect)} Fisher and "
        f"{_duration(parts.solve)} inverse, selection and update (timed on "
        f"{TIMED_WEIGHTS:,} weights), on one process"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _split(pool: PoolCount) -> str:
    if len(pool.names) == 1:
        return f"in {pool.names[0]}"
    return (
        f"in {len(pool.names)} parameters; how many in each is decided at run time, "
        "by the saliencies"
    )


def _counts(pools: Sequence[PoolCount]) -> Table:
    rows = [("parameter", "weights", "zero in the end", "sparsity")]
    for pool in pools:
        name = pool.names[0] if len(pool.names) == 1 else f"{len(pool.names)} together"
        share = f"{100 * pool.pruned / pool.numel:.2f} %"
        rows.append((name, f"{pool.numel:,}", f"{pool.pruned:,}", share))
    return draw_table(rows)


def _percent(sparsities: Sequence[Any]) -> str:
    return " / ".join(
        "as loaded" if s is None else f"{100 * s:.1f} %" for s in sparsities
    )


def _times(count: float, what: str) -> str:
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {what}" + ("" if count == 1 else "s")
