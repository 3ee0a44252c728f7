"""What the algorithms can be told, by name; without torch."""

from dataclasses import dataclass
from typing import Any

from obert_modifiers.core.patterns import UNSTRUCTURED, MaskPattern

SELECTIONS = ("independent", "greedy")
UPDATES = ("joint", "independent", "row")
FISHER_DTYPES = ("float32", "float64")
DAMP_GRID = (0.001, 0.01, 0.1, 1.0)  # of the mean diagonal, for damp: auto
LAYER_MAPS = ("uniform", "last")
MEASURED = "measured"
CHOICES = ("first_middle_last", "interleaved", MEASURED)  # of the layers that stay
WHOLE = ""  # the name of a model inside itself


@dataclass(frozen=True)
class SecondOrderConfig:
    """How a second-order pruning event works.

    Attributes:
        num_grads: Gradients m of the Fisher approximation, over all processes.
        fisher_block_size: Width B of a Fisher block.
        damp: Absolute dampening, or None.
        damp_fraction: Dampening as a fraction of the mean Fisher diagonal, or None.
        damp_grid: Fractions of which that of the lowest loss is taken; empty to use
            ``damp`` or ``damp_fraction``.
        grad_granularity: ``"sample"`` or ``"batch"``.
        selection: ``"independent"`` or ``"greedy"``.
        update: ``"joint"``, ``"independent"``, or ``"row"``: joint, then whole rows.
        num_recomputations: Sub-steps with a fresh Fisher each.
        fisher_dtype: Precision of the sums, ``"float64"`` or ``"float32"``.
        memory_budget: Bytes that an event may take on the device of one process,
            beside the model; None for nine tenths of what is free.
        first_order: True takes the mean gradient into account, for a model that is
            not at a minimum.
        min_density: Share of its weights that each parameter keeps at least.
        options: ``grad_sampler_kwargs`` of the recipe.
        pattern: Structure of the sparsity.
    """

    num_grads: int = 1024
    fisher_block_size: int = 48
    damp: float | None = None
    damp_fraction: float | None = 0.01
    damp_grid: tuple[float, ...] = ()
    grad_granularity: str = "sample"
    selection: str = "greedy"
    update: str = "joint"
    num_recomputations: int = 1
    fisher_dtype: str = "float64"
    memory_budget: int | None = None
    first_order: bool = False
    min_density: float = 0.0
    options: tuple[tuple[str, Any], ...] = ()
    pattern: MaskPattern = UNSTRUCTURED
