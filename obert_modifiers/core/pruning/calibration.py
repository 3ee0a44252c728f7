"""How long the parts of a second-order pruning event take on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.sharding import (
    FOLD_SAMPLES,
    PIECE_WEIGHTS,
    MemoryPlan,
)
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.event import PruningEvent, plan_targets
from obert_modifiers.core.pruning.fisher_state import FisherState
from obert_modifiers.core.pruning.gradients import collect_gradients
from obert_modifiers.core.pruning.layer_signals import Signals
from obert_modifiers.core.pruning.per_sample import BatchGradients
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.selection import make_pools
from obert_modifiers.core.pruning.targets import Target

TIMED_WEIGHTS = 4 * PIECE_WEIGHTS
_ENOUGH = 2.0  # seconds of forward and backward passes after which no more are made
_SEED = 0


@dataclass(frozen=True)
class StepCost:
    """Seconds to ``collect`` a gradient of a weight in its Fisher block, and the rest.

    To ``solve`` for a weight takes inverse, saliency, selection and update.
    """

    collect: float
    solve: float


@dataclass(frozen=True)
class EventSeconds:
    """Seconds of an event on one process: forward and backward passes, and the rest."""

    passes: float
    collect: float
    solve: float

    @property
    def total(self) -> float:
        """All of it, in seconds."""
        return self.passes + self.collect + self.solve


def measure_step(
    config: SecondOrderConfig,
    width: int,
    positions: int,
    device: torch.device | str = "cpu",
) -> StepCost:
    """Return the seconds of an event on a matrix of :data:`TIMED_WEIGHTS` weights.

    It has ``width`` inputs, a multiple of its groups' columns, and samples have so many
    ``positions``. Changes no global random state. Time: about a second, and what
    compiling the kernels takes where they have not run here. Memory: about 0.5 GB.
    """
    generator = torch.Generator().manual_seed(_SEED)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    pattern, count = config.pattern, FOLD_SAMPLES
    out = max(1, TIMED_WEIGHTS // (width * pattern.rows)) * pattern.rows
    layer = nn.Linear(width, out, bias=False, device=device)
    with torch.no_grad():
        layer.weight.copy_(random(out, width) * 0.02)
    part: Signals | Tensor
    if config.grad_granularity == "sample":
        part = Signals(random(count, positions, width), random(count, positions, out))
    else:
        part = random(count, out * width)
    batch, inputs = BatchGradients(count, (part,)), random(count, width)
    # Its own gradients are few and cheap, as what follows takes the same time on any.
    config = replace(
        config,
        num_grads=count,
        grad_granularity="sample",
        options=(),
        damp=None,
        damp_fraction=0.01,
        damp_grid=(),
        memory_budget=None,
    )
    source = GradientSource(
        lambda request: [inputs], lambda model, batch: model(batch).square().sum(1)
    )
    targets = [Target("weight", layer.get_parameter("weight"))]
    masks = [torch.ones_like(layer.weight, dtype=torch.bool)]
    plan = plan_targets(targets, config, ranks=1)
    state = FisherState(layer, targets, masks, plan, config, source)
    event, size = PruningEvent(state), out * width
    goal = 0.5 if pattern.n_m is None else pattern.limit
    pools = make_pools([size], [goal], True, pattern.unit)

    def collect() -> None:
        collector.add(batch)
        collector.finish()

    for _ in range(2):  # the first pays for memory and compiled kernels
        collector = state.collector(0, state.allocate(0))
        collected = _timed(collect)
        solved = _timed(lambda: event.best_outcome(pools))
    return StepCost(collected / (count * size), solved / size)


def measure_passes(
    model: nn.Module,
    parameters: list[nn.Parameter],
    batch_of: Callable[[int], Any],
    losses: Callable[[nn.Module, Any], Tensor],
    batch_size: int,
    granularity: str = "sample",
) -> tuple[float, int]:
    """Return the seconds of an event's passes for a sample, and the samples timed.

    Begins with one sample and takes as many more as fit into a few seconds, up to
    ``batch_size``; ``batch_of`` is called with a number of samples.
    """

    def run(size: int) -> float:
        batches = [batch_of(size)]
        return _timed(
            lambda: collect_gradients(
                model,
                parameters,
                batches,
                losses,
                lambda found: None,
                granularity=granularity,
            )
        )

    seconds = run(1)
    size = max(1, min(batch_size, int(_ENOUGH / max(seconds, 1e-6))))
    return run(size) / size, size


def estimate_event(
    cost: StepCost,
    config: SecondOrderConfig,
    plan: MemoryPlan,
    sample_seconds: float,
    batch_size: int = 1,
) -> EventSeconds:
    """Return measured seconds scaled to an event, all its sub-steps.

    Every turn makes all passes and adds up its part of the weights. What does not stay
    in memory is collected again for each sweep: for the dampening where it is a
    fraction, for the selection and for the update. With batch gradients each is the
    mean over ``batch_size`` samples.
    """
    turns = plan.turns
    sweeps = 3 if config.damp is None else 2
    if plan.keeps == "nothing":  # a sweep begins with the turn that is at hand
        turns += (sweeps - 1) * (plan.turns - 1)
    weights = sum(piece.numel for piece in plan.pieces)
    grads = config.num_grads * config.num_recomputations
    samples = grads * (batch_size if config.grad_granularity == "batch" else 1)
    solved = config.num_recomputations * max(1, len(config.damp_grid))
    return EventSeconds(
        passes=turns * samples * sample_seconds,
        collect=turns / plan.turns * grads * weights * cost.collect,
        solve=solved * weights * cost.solve,
    )


def _timed(call: Callable[[], Any]) -> float:
    before = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - before
