"""Print the plan of a recipe."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from obert_modifiers.cli.common import draw_table, table_console
from obert_modifiers.core.pruning.calibration import TIMED_WEIGHTS
from obert_modifiers.recipe.counts import PoolCount, Timing
from obert_modifiers.recipe.plan import Phase, PruningPlan, RecipePlan, Span

_GRADIENT = {"sample": ", each of a sample", "batch": ", each the mean of a batch"}
_RIGHT = ("steps", "events", "sparsity")  # columns of figures


def show_plan(plan: RecipePlan, timings: Sequence[Timing] = ()) -> None:
    """Print a plan, with estimates for its second-order modifiers."""
    console = table_console()
    console.print(_head(plan), soft_wrap=True)
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


def _head(plan: RecipePlan) -> str:
    epochs, steps, events = plan.num_epochs, plan.steps_per_epoch, plan.num_events
    text = "no number of epochs" if epochs is None else _times(epochs, "epoch")
    if steps and epochs:
        total = round(epochs * steps)
        text += f" of {steps:,} optimizer steps, {total:,} in all"
    every_step = "pruning at every step"
    return (
        f"{plan.file}: {text}; "
        f"{every_step if events is None else _times(events, 'pruning event')}"
    )


def _phases(plan: RecipePlan) -> Table:
    """Draw a row for each phase; columns that say nothing are left out."""
    phases, steps = plan.phases, plan.steps_per_epoch
    columns = {
        "epochs": [f"{phase.start:g} to {phase.end:g}" for phase in phases],
        "steps": [
            f"{round(phase.start * steps):,} to {round(phase.end * steps):,}"
            for phase in phases
            if steps
        ],
        "learning rate": [_rates(phase) for phase in phases],
        "events": [str(phase.events or "") for phase in phases],
        "sparsity": [
            "; ".join("-" if s is None else _percent(s) for s in phase.sparsities)
            for phase in phases
        ],
        "distillation": [
            "; ".join(map(_distils, phase.distillation)) or "off" for phase in phases
        ],
    }
    quantization = [_quantization(phase) for phase in phases]
    if any(quantization):
        columns["quantization"] = [said or "off" for said in quantization]
    columns["also"] = [
        ", ".join(span.modifier for span in phase.others if not span.quantizes)
        for phase in phases
    ]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table()
    for name in shown:
        table.add_column(name, justify="right" if name in _RIGHT else "left")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def _rates(phase: Phase) -> str:
    rates = dict.fromkeys((phase.first_rate, phase.last_rate))
    return "-" if None in rates else " to ".join(f"{rate:.1e}" for rate in rates)


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
        where, to = f"at epoch {first.epoch:.4g}", _percent(last.sparsities)
        if len(events) > 1:
            where = f"from epoch {first.epoch:.4g} to {last.epoch:.4g}"
            to = f"{_percent(first.sparsities)} to {to}"
        said = f"{_times(len(events), 'pruning event')} {where}, {to}"
    yield f"{plan.modifier} (line {plan.line}): {said}"
    if plan.num_grads:
        first, later = plan.first_grads, plan.num_grads
        total = first + later * (len(events or ()) - 1)
        total = f", {total:,} in all" if events else ""
        kind = _GRADIENT.get(plan.grad_granularity, "")
        more = "" if first == later else f" and {first:,} for the first"
        yield f"  {later:,} gradients for an event{more}{total}{kind}"
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


def _percent(sparsities: Sequence[float | None]) -> str:
    return " / ".join(
        "as loaded" if s is None else f"{100 * s:.1f} %" for s in sparsities
    )


def _times(count: float, what: str) -> str:
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {what}" + ("" if count == 1 else "s")
