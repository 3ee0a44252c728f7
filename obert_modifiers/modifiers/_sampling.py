"""SparseML's source of gradients as ours."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from obert_modifiers import core

if TYPE_CHECKING:
    from torch import Tensor, nn

    from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest


_LOGGER = logging.getLogger(__name__)


def find_source(offered: Mapping[str, Any]) -> GradientSource | None:
    """Find ``gradient_source`` or SparseML's ``grad_sampler`` in what is offered."""
    source = offered.get("gradient_source")
    if source is None and offered.get("grad_sampler"):
        source = from_sparseml(offered["grad_sampler"])
    return source


def from_sparseml(grad_sampler: Mapping[str, Any]) -> GradientSource:
    """Adapt SparseML's ``grad_sampler`` dict.

    ``data_loader_builder``, called with ``grad_sampler_kwargs``, gives ``(args, kwargs,
    target)`` items; ``loss_function`` gives the loss of outputs and target, for a batch
    as the mean over its samples.
    """
    missing = {"data_loader_builder", "loss_function"} - set(grad_sampler)
    if missing:
        raise RuntimeError(
            f"grad_sampler has no {', '.join(sorted(missing))}; expected "
            "data_loader_builder and loss_function; must be provided to initialize "
            "GradSampler"
        )
    build = grad_sampler["data_loader_builder"]
    loss_function = grad_sampler["loss_function"]

    def once(request: SampleRequest) -> Iterable[Any]:
        found = build(request.options or None)
        return found() if callable(found) else found

    def batches(request: SampleRequest) -> Iterable[Any]:
        if request.granularity == "sample":
            return once(request)
        return _cycled(lambda: once(request), request.share)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        args, kwargs, target = batch
        outputs = model(*args, **kwargs)
        # SparseML's convention for models that give (logits, probabilities).
        return loss_function(outputs[0] if type(outputs) is tuple else outputs, target)

    made = core.pruning.sampling.GradientSource
    return made(batches, loss, batch_size=_first_dimension)


def _cycled(batches: Callable[[], Iterable[Any]], wanted: int) -> Iterator[Any]:
    """Go through batches again, with a warning, until there are enough.

    SparseML's training scripts give batches without an end.
    """
    given, before = 0, -1
    while before < given < wanted:
        before = given
        for batch in itertools.islice(batches(), wanted - given):
            yield batch
            given += 1
        if before == 0 and 0 < given < wanted:
            _LOGGER.warning(
                "num_grads=%d: the loader gives %d batches; it is gone through again",
                wanted,
                given,
            )


def _first_dimension(batch: Any) -> int:
    args, kwargs, _ = batch
    for value in (*args, *kwargs.values()):
        if getattr(value, "ndim", 0):
            return value.shape[0]
    raise ValueError(
        "batch holds no tensor; expected model inputs with the sample as first "
        "dimension; check data_loader_builder"
    )
