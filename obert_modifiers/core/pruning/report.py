"""What a pruning event did, as plain values for the log."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerCount:
    """Weights ``numel`` of a parameter after an event, and the pruned among them."""

    name: str
    numel: int
    pruned: int


@dataclass(frozen=True)
class PruneReport:
    """What the event of a modifier, by its class name, did before an optimizer step.

    Steps count from 0. Sparsities are over all targets, ``layers`` counts of each. The
    memory is the highest of the process (CPU) or device so far; gradients are of all
    processes, and skipped where they were not finite. Magnitude pruning has neither
    predicted loss increase (in units of the loss) nor dampening nor plan of a Fisher.
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
        """Make a report again of what :meth:`as_dict` returned."""
        layers = tuple(LayerCount(**layer) for layer in values["layers"])
        return cls(**{**values, "layers": layers})
