"""One-shot pruning of a dense model in many ways, with one Fisher for all of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import _encoder as encoder
import torch
from torch import Tensor, nn

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import MaskPattern, parse_mask_type
from obert_modifiers.core.pruning.event import CANDIDATES, PruningEvent, plan_targets
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.fisher_state import FisherState
from obert_modifiers.core.pruning.pruning_step import (
    magnitude_step_,
    second_order_step_,
)
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.selection import Candidates, make_pools
from obert_modifiers.core.pruning.targets import restored, write_parameters_
from obert_modifiers.training.batches import TaskData

MAGNITUDE = "magnitude"
SPARSEML = "SparseML's rule"
OURS = "greedy, joint"
METHODS: dict[str, tuple[str, str] | None] = {
    MAGNITUDE: None,
    SPARSEML: ("independent", "independent"),
    "independent, joint": ("independent", "joint"),
    "greedy, independent": ("greedy", "independent"),
    OURS: ("greedy", "joint"),
}
SAMPLES_OF_BATCH = 8  # in a gradient, where gradients are those of batches


@dataclass(frozen=True)
class FisherOptions:
    """What a Fisher is collected from.

    Attributes:
        num_grads: Gradients m.
        fisher_block_size: Width B of a Fisher block.
        grad_granularity: ``"sample"`` or ``"batch"``.
        labels: ``"true"``, or ``"sampled"`` from the model's predictions.
        batch_samples: Samples of a gradient, where gradients are those of batches.
        fisher_dtype: Precision of the sums.
    """

    num_grads: int = 1024
    fisher_block_size: int = 48
    grad_granularity: str = "sample"
    labels: str = "true"
    batch_samples: int = SAMPLES_OF_BATCH
    fisher_dtype: str = "float64"


@dataclass(frozen=True)
class Job:
    """One way to prune a model in one shot.

    Attributes:
        method: A key of `METHODS`.
        pattern: The mask type.
        sparsity: Fraction of zeros.
        fisher: From what the Fisher is collected; unused for magnitude.
        damp_fraction: Dampening over the mean diagonal.
        num_recomputations: Sub-steps, each with a Fisher of its own.
        first_order: Whether the mean gradient counts.
    """

    method: str
    pattern: str
    sparsity: float
    fisher: FisherOptions = FisherOptions()
    damp_fraction: float = 0.01
    num_recomputations: int = 1
    first_order: bool = False

    @property
    def shares(self) -> bool:
        """Whether it can use a Fisher of the dense model."""
        return METHODS[self.method] is not None and self.num_recomputations == 1

    def identity(self, dataset: str, seed: int) -> dict[str, Any]:
        """Tell a row of the results from all others.

        Args:
            dataset: Name of the data set.
            seed: Seed of the gradient samples.

        Returns:
            The row without what is measured. Magnitude draws no samples, so that its
            seed and all about the Fisher is None.
        """
        options = asdict(self.fisher) | {
            "damp_fraction": self.damp_fraction,
            "num_recomputations": self.num_recomputations,
            "first_order": self.first_order,
        }
        found = {"seed": seed, **options}
        if METHODS[self.method] is None:
            found = dict.fromkeys(found)
        return {
            "dataset": dataset,
            "method": self.method,
            "pattern": self.pattern,
            "sparsity": self.sparsity,
            **found,
        }

    def config(self) -> SecondOrderConfig:
        """Say the same to the core.

        Returns:
            How an event has to work.
        """
        selection, update = METHODS[self.method] or METHODS[OURS]
        by_batch = self.fisher.grad_granularity == "batch"
        return SecondOrderConfig(
            num_grads=self.fisher.num_grads,
            fisher_block_size=self.fisher.fisher_block_size,
            damp_fraction=self.damp_fraction,
            grad_granularity=self.fisher.grad_granularity,
            selection=selection,
            update=update,
            num_recomputations=self.num_recomputations,
            first_order=self.first_order,
            fisher_dtype=self.fisher.fisher_dtype,
            options=(("batch_size", self.fisher.batch_samples),) if by_batch else (),
            pattern=parse_mask_type(self.pattern),
        )


class Ranking:
    """A selection rule that ranks a piece once for all sparsities and updates.

    Attributes:
        spared: Seconds that it took before what was not done again.
    """

    def __init__(self, rule: Callable[..., Candidates]) -> None:
        """Remember nothing yet.

        Args:
            rule: One of the core's selection rules.
        """
        self.spared = 0.0
        self._rule = rule
        self._known: WeakKeyDictionary[BlockFisher, tuple] = WeakKeyDictionary()

    def __call__(
        self,
        weights: Tensor,
        kept: Tensor,
        fisher: BlockFisher,
        damp: float,
        pattern: MaskPattern,
    ) -> Candidates:
        """Rank what can be pruned of a piece, as the rule does.

        Args:
            weights: ``(groups, Q)``.
            kept: ``(groups, Q)``, current mask, True = kept.
            fisher: State of the piece.
            damp: Dampening, larger than 0.
            pattern: Structure of the sparsity.

        Returns:
            What the rule returns.
        """
        total = float(weights.sum(dtype=torch.float64))
        key = (damp, pattern, int(kept.sum()), weights.dtype, total)
        known, found, seconds = self._known.get(fisher, (None, None, 0.0))
        if known == key:
            self.spared += seconds
            return found
        started = time.perf_counter()
        found = self._rule(weights, kept, fisher, damp, pattern)
        self._known[fisher] = key, found, time.perf_counter() - started
        return found


@contextmanager
def remembered_rankings() -> Iterator[list[Ranking]]:
    """Let the core's selection rules remember, while the body runs.

    Yields:
        The rules in use.
    """
    before = dict(CANDIDATES)
    rules = {name: Ranking(rule) for name, rule in before.items()}
    CANDIDATES.update(rules)
    try:
        yield list(rules.values())
    finally:
        CANDIDATES.update(before)


def warm_up(model: nn.Module, data: TaskData, patterns: Sequence[str]) -> None:
    """Run all methods on one parameter, so that nothing is compiled in a timed row.

    Args:
        model: The dense model; unchanged afterwards.
        data: The task.
        patterns: The mask types.
    """
    few = replace(data, validation=data.validation[:8])
    small = OneShot("", model, few, most_targets=1)
    fisher = FisherOptions(num_grads=8)
    jobs = [Job(method, name, 0.5, fisher) for name in patterns for method in METHODS]
    small.collect(jobs, 0)
    for job in jobs:
        small.measure(job, 0)


class OneShot:
    """A dense model that is pruned again and again, each time from its start.

    What `collect` found is used by the rows after it.
    """

    def __init__(
        self,
        dataset: str,
        model: nn.Module,
        data: TaskData,
        rankings: Sequence[Ranking] = (),
        *,
        most_targets: int | None = None,
    ) -> None:
        """Take a model; nothing is collected.

        Args:
            dataset: Name of the data set.
            model: The dense model; unchanged between two calls.
            data: The task.
            rankings: Selection rules in use.
            most_targets: Prune the first parameters only; None prunes all.
        """
        self.dataset, self.model, self.data = dataset, model, data
        self.targets = encoder.encoder_targets(model)[:most_targets]
        self._masks = [
            torch.ones_like(t.parameter, dtype=torch.bool) for t in self.targets
        ]
        self._rankings = rankings
        self._owner: FisherState | None = None
        self._seconds = 0.0

    def _source(self, fisher: FisherOptions, seed: int) -> GradientSource:
        source = encoder.source_of(self.model, self.data, seed)
        return (
            source if fisher.labels == "true" else encoder.sampled_labels(source, seed)
        )

    def release(self) -> None:
        """Free the Fisher that is held."""
        self._owner = None

    def collect(self, jobs: Sequence[Job], seed: int) -> str:
        """Collect the Fisher that some rows share, in place of the one that is held.

        Args:
            jobs: Rows with equal options of the Fisher.
            seed: Seed of the gradient samples.

        Returns:
            Where it is and how long it took.
        """
        self.release()  # before the next one is allocated
        with_mean = [job for job in jobs if job.first_order]
        config = (with_mean or jobs)[0].config()
        self._owner = FisherState(
            self.model,
            self.targets,
            self._masks,
            plan_targets(self.targets, config),
            config,
            self._source(jobs[0].fisher, seed),
        )
        started = time.perf_counter()
        for _ in self._owner.sweep():
            pass
        self._seconds = time.perf_counter() - started
        return f"{self._owner.plan.describe()}, {self._seconds:.0f} s"

    def measure(self, job: Job, seed: int) -> dict[str, Any]:
        """Prune, evaluate, and bring the weights back.

        Args:
            job: How to prune; the Fisher of a row that shares one is held.
            seed: Seed of the gradient samples.

        Returns:
            A row. Its seconds are those of the event on its own: the Fisher and the
            ranking that it shares with other rows are in it.
        """
        step = self._shared_step_ if job.shares else self._step_
        spared = sum(rule.spared for rule in self._rankings)
        with restored(self.targets, after_success=True):
            started = time.perf_counter()
            predicted = step(job, seed)
            seconds = time.perf_counter() - started
            figures = encoder.validation(self.model, self.data)
        seconds += sum(rule.spared for rule in self._rankings) - spared
        return {
            **job.identity(self.dataset, seed),
            **figures,
            "predicted_loss_increase": predicted,
            "seconds": seconds + (self._seconds if job.shares else 0.0),
            "fisher_seconds": self._seconds if job.shares else None,
            "validation_sentences": len(self.data.validation),
        }

    def _shared_step_(self, job: Job, seed: int) -> float:
        owner, config = self._owner, job.config()
        event = PruningEvent(owner, config)
        numels = [mask.numel() for mask in self._masks]
        goals = [job.sparsity] * len(numels)
        pools = make_pools(numels, goals, True, config.pattern.unit)
        found, _ = event.best_outcome(pools)
        write_parameters_(self.targets, found.values, found.masks)
        return found.predicted_loss_increase

    def _step_(self, job: Job, seed: int) -> float | None:
        config = job.config()
        step = partial(magnitude_step_, pattern=config.pattern)
        if METHODS[job.method] is not None:
            source = self._source(job.fisher, seed)
            step = partial(second_order_step_, self.model, config=config, source=source)
        goals = [job.sparsity] * len(self.targets)
        result = step(self.targets, self._masks, goals, global_sparsity=True)
        return result.predicted_loss_increase
