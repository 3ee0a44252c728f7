"""What a plan of a recipe is made of."""

from dataclasses import dataclass

from obert_modifiers.core.distributed.sharding import MemoryPlan
from obert_modifiers.recipe.counts import PoolCount


@dataclass(frozen=True)
class Event:
    """One pruning event.

    Attributes:
        epoch: When.
        sparsities: Target of each goal, in [0, 1]; None where the first sparsity is
            that of the weights as they are loaded.
    """

    epoch: float
    sparsities: tuple[float | None, ...]


@dataclass(frozen=True)
class PruningPlan:
    """What one pruning modifier does.

    Attributes:
        modifier: Its name.
        line: Its line in the recipe.
        goals: Its final sparsities, one unless the recipe maps sparsities to names.
        events: Its events; None where they depend on steps that are not given.
        num_grads: Gradients of an event; 0 where it needs none.
        grad_granularity: ``"sample"``, ``"batch"`` or empty.
        pools: With a model, what will be pruned of which parameters.
        memory: With a model, the Fisher state of an event on one process.
    """

    modifier: str
    line: int
    goals: tuple[float, ...]
    events: tuple[Event, ...] | None
    num_grads: int = 0
    grad_granularity: str = ""
    pools: tuple[PoolCount, ...] = ()
    memory: MemoryPlan | None = None

    @property
    def reaches_goal(self) -> bool:
        """Whether the last event prunes to the final sparsities."""
        if self.events is None:
            return True
        return bool(self.events) and self.events[-1].sparsities == self.goals


@dataclass(frozen=True)
class Span:
    """A modifier between two epochs.

    Attributes:
        modifier: Its name.
        start: First epoch.
        end: Epoch at which it stops; that of the recipe's end where it is left open.
        hardness: Of a distillation modifier, else None.
        temperature: Of a distillation modifier, else None.
        fixed: Epoch from which on the ranges of a quantizing modifier are fixed, None
            for its end and for other modifiers.
        quantizes: Whether it quantizes.
    """

    modifier: str
    start: float
    end: float
    hardness: float | None = None
    temperature: float | None = None
    fixed: float | None = None
    quantizes: bool = False


@dataclass(frozen=True)
class Phase:
    """Epochs in which one set of modifiers is at work.

    Attributes:
        start: First epoch.
        end: Last epoch, where the next phase starts.
        first_rate: Learning rate of its first step; None where no modifier sets it.
        last_rate: Learning rate of its last step.
        events: Pruning events in it.
        sparsities: Latest targets of each pruning modifier at its end; None before
            its first event.
        distillation: The distillation at work.
        others: Further modifiers at work.
    """

    start: float
    end: float
    first_rate: float | None
    last_rate: float | None
    events: int
    sparsities: tuple[tuple[float | None, ...] | None, ...]
    distillation: tuple[Span, ...]
    others: tuple[Span, ...]


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe does when.

    Attributes:
        file: The recipe.
        num_epochs: Epochs of the recipe; None where it sets none.
        steps_per_epoch: Optimizer steps of an epoch, where they are known.
        phases: The recipe from its start to its end.
        pruning: Its pruning modifiers that have a schedule.
        distillation: Its distillation.
        others: Modifiers beside pruning, distillation, learning rate and epochs.
        rates: Epochs and learning rates.
        notes: What will not go as the recipe says.
    """

    file: str
    num_epochs: float | None
    steps_per_epoch: int | None
    phases: tuple[Phase, ...]
    pruning: tuple[PruningPlan, ...]
    distillation: tuple[Span, ...]
    others: tuple[Span, ...]
    rates: tuple[tuple[float, float | None], ...]
    notes: tuple[str, ...]

    @property
    def num_events(self) -> int | None:
        """Pruning events of all modifiers; None where they depend on the steps."""
        counts = [None if p.events is None else len(p.events) for p in self.pruning]
        return None if None in counts else sum(counts)

    @property
    def end(self) -> float:
        """Where the last phase ends."""
        return self.phases[-1].end
