"""Hold early stopping against what the other modifiers of a recipe do when."""

from collections.abc import Iterator, Sequence
from typing import Any

from obert_modifiers.host.bases import Modifier, SparsificationTypes
from obert_modifiers.modifiers import EarlyStoppingModifier


def stopping_faults(modifiers: Sequence[Modifier]) -> Iterator[tuple[Modifier, str]]:
    """Find early stopping that would end a recipe before it has compressed the model.

    Args:
        modifiers: All modifiers of a recipe.

    Yields:
        The modifier that stops, and what is wrong with its ``start_epoch``, or with
        its being there a second time.
    """
    stoppers = [m for m in modifiers if isinstance(m, EarlyStoppingModifier)]
    for again in stoppers[1:]:
        yield (
            again,
            f"metric={again.metric} is that of a second EarlyStoppingModifier; "
            "expected one in a recipe; remove one",
        )
    changes = [(_last_change(m), type(m).__name__) for m in modifiers]
    last, name = max(changes, default=(0.0, ""))
    for stopper in stoppers:
        if last > 0.0 and stopper.start_epoch <= last:
            yield (
                stopper,
                f"start_epoch={stopper.start_epoch:g} does not lie after epoch "
                f"{last:g}, at which {name} changes the model for the last time; "
                "expected a later epoch, as the best weights from before would undo "
                f"it; write {last + 1:g}",
            )


def _last_change(modifier: Any) -> float:
    """Return the epoch of the last pruning event, or that quantization begins at."""
    kinds = modifier.sparsification_types
    if SparsificationTypes.quantization in kinds:
        return modifier.start_epoch
    gradual = getattr(modifier, "final_sparsity", None) is not None
    if SparsificationTypes.pruning in kinds and gradual:
        return max(modifier.start_epoch, modifier.end_epoch)
    return 0.0
