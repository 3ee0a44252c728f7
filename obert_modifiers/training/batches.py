"""Batches of a task's data: for training, evaluation and gradient sampling."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from obert_modifiers.core.distributed.parallel import world
from obert_modifiers.core.outputs import LABELS, TEACHERS_OWN, UNLABELLED, logits_of
from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest

_LOGGER = logging.getLogger(__name__)

GRADIENT_BATCH_SIZE = 32
_GROUP_BATCHES = 50  # batches that are sorted by length together

Batch = dict[str, Tensor]
Samples = Sequence[dict[str, Any]]


def keep_logits(outputs: Any, batch: Batch) -> Batch:
    """Keep logits in float32 or wider and, where there are any, labels."""
    logits = logits_of(outputs)
    kept = {"logits": logits if logits.element_size() >= 4 else logits.float()}
    return kept | {name: batch[name] for name in ("labels",) if name in batch}


@dataclass(frozen=True)
class TaskData:
    """What training needs to know of a task.

    Attributes:
        train: Samples by index, each a dict with ``input_ids`` and ``labels``.
        validation: The same for evaluation.
        collate: Makes a batch of tensors by name, ``labels`` among them.
        sample_loss: Takes the model's outputs and a batch; gives the loss of each
            sample, ``(k,)``; for tokens, the mean over those with a label.
        metrics: Takes what `keep` kept of all samples, arrays by name, a row for each
            sample in their order; gives figures by name. ``loss`` and ``samples`` among
            them replace the mean of the losses and the row count.
        keep: Takes the model's outputs and a batch; gives tensors by name, a row for
            each sample. Short rows are filled up with -100 or, of floats, with -inf.
        headline: The figures that people look at first, the first one foremost.
        more_validation: Further samples to evaluate on, by what is put after the names
            of their figures.
        start_epoch: Called with the number of each epoch before its first batch.
        gradients: Another task of which second-order pruning takes the gradients, with
            the ``probes`` of a `GradientSource` as its losses; None for this one.
        texts: Samples without labels that are only distilled, with anything in the
            places of the labels; they join each batch of the training.
        texts_share: The share of a batch that they are, in (0, 1).
    """

    train: Samples
    validation: Samples
    collate: Callable[[list[dict[str, Any]]], Batch]
    sample_loss: Callable[[Any, Batch], Tensor]
    metrics: Callable[..., dict[str, float]]
    keep: Callable[[Any, Batch], Batch] = keep_logits
    headline: tuple[str, ...] = ("accuracy",)
    more_validation: Mapping[str, Samples] = field(default_factory=dict)
    start_epoch: Callable[[int], None] | None = None
    gradients: "TaskData | None" = None
    texts: Samples | None = None
    texts_share: float = 0.5


@dataclass(frozen=True)
class WithTexts:
    """Collates samples with a share of texts behind them, drawn anew for each batch.

    They are drawn by torch's generator, which whoever calls it seeds.
    """

    collate: Callable[[list[dict[str, Any]]], Batch]
    texts: Samples
    share: float

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        """Make a batch that tells the texts by `UNLABELLED`, ``(k,)``."""
        count = max(1, round(len(samples) * self.share / (1.0 - self.share)))
        drawn = torch.randint(len(self.texts), (count,)).tolist()
        rows = [*samples, *(self.texts[i] for i in drawn)]
        batch = dict(self.collate(rows))
        return batch | {UNLABELLED: torch.arange(len(rows)) >= len(samples)}


def mean_loss(losses: Tensor, batch: Batch) -> Tensor:
    """Return the mean over a batch of its samples' losses, 0 for texts without label.

    Losses are ``(k,)``.
    """
    alone = batch.get(UNLABELLED)
    return losses.mean() if alone is None else losses.masked_fill(alone, 0.0).mean()


def lengths_of(samples: Samples) -> list[int]:
    """Count the tokens of each sample, where possible without reading them all."""
    if hasattr(samples, "token_counts"):
        return samples.token_counts()
    if hasattr(samples, "column_names"):  # of the datasets library
        return [len(ids) for ids in samples["input_ids"]]
    lengths = [len(sample["input_ids"]) for sample in samples]
    if len(lengths) != len(samples):
        raise ValueError(
            f"data of {len(samples)} samples gives {len(lengths)}; expected as many as "
            "its len() says; look at the data set"
        )
    return lengths


@dataclass(eq=False)
class EpochBatches(Sampler[list[int]]):
    """Indices of shuffled batches, of similar lengths where that is wanted.

    The order depends only on seed and epoch, so that all processes have the same and a
    run can be repeated. `short_last` puts the batch with fewer samples at the end:
    where several processes share the batches, accelerate leaves out an earlier one.
    """

    lengths: Sequence[int]
    batch_size: int
    _: KW_ONLY
    seed: int
    by_length: bool
    short_last: bool = False
    drop_last: bool = False  # which accelerate reads
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + 7919 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.by_length:
            groups = _cut(order, self.batch_size * _GROUP_BATCHES)
            order = [i for group in groups for i in self._sorted(group)]
        batches = _cut(order, self.batch_size)
        if self.by_length:
            shuffled = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[i] for i in shuffled]
        if self.short_last:
            batches.sort(key=lambda batch: len(batch) < self.batch_size)
        yield from batches

    def _sorted(self, indices: list[int]) -> list[int]:
        return sorted(indices, key=self.lengths.__getitem__)


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut all samples into batches by length, for evaluation."""
    return _cut(sorted(range(len(lengths)), key=lengths.__getitem__), batch_size)


def gradient_source(
    data: TaskData,
    forward: Callable[..., Any],
    device: torch.device | str,
    *,
    seed: int,
    batch_size: int = GRADIENT_BATCH_SIZE,
    losses: Callable[[nn.Module, Any], Tensor] | None = None,
) -> GradientSource:
    """Draw gradient samples from a task's training data.

    Each draw takes other samples, by seed and number only, and is cut into the same
    batches however many processes there are; they take turns at the batches. They are
    sorted by length, which changes no sample's gradient and spares padding.

    Args:
        data: The task.
        forward: The model's forward function, in full precision.
        device: Where the model is.
        seed: Seed of the draws.
        batch_size: Samples of a batch where its mean is a gradient (granularity
            ``batch``) and the recipe names no size; as SparseML, that of training.
        losses: Called with model and batch; gives each sample's loss, ``(k,)``, where
            the model is not called with what the batch holds, and `forward` cannot be.
    """
    probes = data.gradients is not None
    data = data.gradients or data
    lengths = [0] * len(data.train) if losses is not None else lengths_of(data.train)

    def batches(request: SampleRequest) -> Iterable[Batch]:
        by_batch = request.granularity == "batch"
        size = check_sampling_options(request.options)
        if by_batch and "batch_size" not in (request.options or {}):
            size = batch_size
        wanted = request.num_samples * (size if by_batch else 1)
        if by_batch and wanted > len(lengths):
            _LOGGER.warning(
                "num_grads=%d: batches of %d are more than the %d training samples, "
                "which are gone through again",
                request.num_samples,
                size,
                len(lengths),
            )
        indices = _draw(len(lengths), wanted, seed + 104729 * (request.draw + 1))
        indices.sort(key=lengths.__getitem__)
        rank, ranks = world()
        for part in _cut(indices, size)[rank::ranks]:
            batch = data.collate([data.train[i] for i in part])
            yield {name: _moved(values, device) for name, values in batch.items()}

    def outputs(model: nn.Module, batch: Batch) -> Any:
        return forward(**inputs_of(batch))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return data.sample_loss(outputs(model, batch), batch)

    if losses is not None:
        return GradientSource(batches, losses, divides=True)
    return GradientSource(
        batches,
        loss,
        divides=True,
        forward=outputs,
        inputs=inputs_of,
        output_loss=data.sample_loss,
        probes=probes,
    )


def _moved(values: Any, device: torch.device | str) -> Any:
    return values.to(device) if isinstance(values, Tensor) else values


def check_sampling_options(options: dict[str, Any] | None) -> int:
    """Check a recipe's ``grad_sampler_kwargs``; return the size of gradient batches."""
    options = options or {}
    unknown = sorted(set(options) - {"batch_size"})
    if unknown:
        raise ValueError(
            f"grad_sampler_kwargs={unknown} is unknown; expected batch_size; leave the "
            "others out"
        )
    return int(options.get("batch_size", GRADIENT_BATCH_SIZE))


def inputs_of(batch: Batch) -> Batch:
    """Return what the model is called with: no labels, nothing of the teacher's."""
    return {
        name: values
        for name, values in batch.items()
        if name not in LABELS and not name.startswith(TEACHERS_OWN)
    }


def _draw(available: int, wanted: int, seed: int) -> list[int]:
    """Draw samples, all different while there are enough."""
    generator = torch.Generator().manual_seed(seed)
    indices: list[int] = []
    while len(indices) < wanted:
        indices += torch.randperm(available, generator=generator).tolist()
    return indices[:wanted]


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
