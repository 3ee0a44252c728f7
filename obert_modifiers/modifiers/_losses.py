"""Losses of which the Fisher can be taken, beside the task's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from obert_modifiers import core
from obert_modifiers.modifiers._teacher import TeacherModifier

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.pruning.sampling import GradientSource


def with_distillation(
    source: GradientSource,
    distillers: Sequence[TeacherModifier],
    epoch: Callable[[], float],
) -> GradientSource:
    """Add the losses of distillation to a source of gradients.

    That is ``"distillation"``, the distillation loss without the task's, and
    ``"train"``, the mix that is trained at the epoch that ``epoch`` tells. A source
    that does not give the model's outputs stays as it is.
    """
    forward, output_loss = source.forward, source.output_loss
    if None in (forward, output_loss, source.inputs) or not distillers:
        return source

    def inputs(batch: Any) -> dict[str, Tensor]:
        # The labels say which tokens count.
        known, own = core.outputs.LABELS, core.outputs.TEACHERS_OWN
        items = batch.items() if isinstance(batch, Mapping) else ()
        kept = {k: v for k, v in items if k in known or k.startswith(own)}
        return kept | dict(source.inputs(batch))

    def active() -> list[TeacherModifier]:
        return [one for one in distillers if one.active(epoch())]

    def train(model: nn.Module, batch: Any) -> Tensor:
        outputs = forward(model, batch)
        losses = output_loss(outputs, batch)
        for one in active():
            rows = one.sample_losses(outputs, inputs(batch))
            losses = core.distillation.mix_losses(losses, rows, one.hardness)
        return losses

    def distillation(model: nn.Module, batch: Any) -> Tensor:
        found = active()
        if not found:
            raise ValueError(
                f"fisher_loss=distillation at epoch {epoch():g}, where no modifier "
                "distils; expected a teacher at every pruning event; use fisher_loss: "
                "train"
            )
        outputs = forward(model, batch)
        rows = [one.sample_losses(outputs, inputs(batch)) for one in found]
        return sum(rows[1:], rows[0])

    return replace(source, other_losses={"distillation": distillation, "train": train})
