"""Where gradient samples come from, and what is asked for."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class SampleRequest:
    """What a pruning event asks of the training data.

    So many samples over all processes, or batches where the granularity is ``"batch"``,
    of which this one is to give its share. Equal draws, counted from 0, give equal
    samples. Options are ``grad_sampler_kwargs`` of the recipe, such as ``batch_size``.
    """

    num_samples: int
    share: int
    draw: int
    options: dict[str, Any]
    granularity: str = "sample"


@dataclass(frozen=True)
class GradientSource:
    """Where second-order pruning gets its gradients from.

    Attributes:
        batches: Called with a :class:`SampleRequest`; gives the batches, any type.
        loss: Called with the model and a batch; gives the loss of each sample,
            ``(k,)``. A 0-dimensional result is taken as the mean over the batch,
            whose size ``batch_size`` then has to tell.
        batch_size: Number of samples of a batch; needed only for a scalar loss.
        divides: True if ``batches`` itself gives each process its part of one draw,
            in whole batches; False if each process takes its share of a draw of its
            own.
        forward: Called with the model and a batch; gives the outputs on which other
            losses can be built, or None.
        inputs: Called with a batch; gives the model's inputs by name.
        output_loss: Called with outputs and a batch; gives the same as ``loss``.
        other_losses: Losses beside ``loss`` by name, called as that one.
        probes: True if ``loss`` is a random linear function of the outputs, as
            :func:`~obert_modifiers.core.embedding.probe_losses`, of which only the
            products of gradients have a meaning: neither a value nor a mean gradient.
    """

    batches: Callable[[SampleRequest], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    batch_size: Callable[[Any], int] | None = None
    divides: bool = False
    forward: Callable[[nn.Module, Any], Any] | None = None
    inputs: Callable[[Any], Mapping[str, Tensor]] | None = None
    output_loss: Callable[[Any, Any], Tensor] | None = None
    other_losses: Mapping[str, Callable[[nn.Module, Any], Tensor]] | None = None
    probes: bool = False

    def of_loss(self, name: str) -> "GradientSource":
        """Return a source of the same samples, for the loss of that name."""
        if name == "task":
            return self
        losses = self.other_losses or {}
        if name not in losses:
            raise ValueError(
                f"fisher_loss={name} is not available from this source of gradients; "
                "expected a source that gives the model's outputs, and a distillation "
                "modifier in the recipe; use fisher_loss: task"
            )
        return replace(self, loss=losses[name], probes=False)

    def sample_losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of each sample, ``(k,)``, whose sum has its gradients."""
        losses = self.loss(model, batch)
        if losses.ndim:
            return losses.reshape(-1)
        if self.batch_size is None:
            raise ValueError(
                "loss=scalar does not tell the samples apart; expected one loss per "
                "sample, shape (k,); give GradientSource a batch_size function"
            )
        return losses.expand(self.batch_size(batch))
