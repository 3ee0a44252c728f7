"""What a pruning event did, as plain values for the log."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerCount:
    """Weights of one parameter after an event.

    Attributes:
        name: Full name of the parameter.
        numel: Number of weights.
        pruned: Number of pruned weights.
    """

    name: str
    numel: int
    pruned: int


@dataclass(frozen=True)
class PruneReport:
    """What one pruning event did.

    Attributes:
        modifier: Class name of the modifier.
        epoch: Progress in epochs.
        step: Optimizer step before which it happened, counted from 0.
        sparsity_before: Fraction of pruned weights before, over all targets.
        sparsity_after: The same afterwards.
        predicted_loss_increase: In units of the loss; None for magnitude pruning.
        seconds: Wall-clock time of the event.
        peak_memory_bytes: Highest memory of the process (CPU) or device so far.
        num_gradients: Gradients used, over all processes.
        skipped_gradients: Gradients left out because they were not finite.
        damp: Dampening used; None for magnitude pruning.
        memory_plan: Where the Fisher state lived; empty for magnitude pruning.
        layers: Count of each target.
    """

    modifier: str
    epoch: float
    step: int
    sparsity_before: float
    sparsity_after: float
    predicted_loss_increase: float | None
    seconds: float
    peak_memory_bytes: int
    num_gradients: int = 0
    skipped_gradients: int = 0
    damp: float | None = None
    memory_plan: str = ""
    layers: tuple[LayerCount, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain Python values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PruneReport":
        """Make a report again of what :meth:`as_dict` returned.

        Args:
            values: Plain values by name.

        Returns:
            The report.
        """
        layers = tuple(LayerCount(**layer) for layer in values["layers"])
        return cls(**{**values, "layers": layers})
