"""Evaluation of a model on all validation samples, on one process or many."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import nn

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.core.pruning.gradients import sum_losses
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.training.batches import (
    GRADIENT_BATCH_SIZE,
    Batch,
    Samples,
    TaskData,
    inputs_of,
    lengths_of,
    sorted_batches,
)
from obert_modifiers.training.config import TrainConfig
from obert_modifiers.training.draws import SeededCollate

_LOSS = "_loss"
CALIBRATION_SAMPLES = 128


def make_accelerator(config: TrainConfig) -> Accelerator:
    # accelerate keeps one precision per process; a second run may want another. The
    # process group stays.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision,
        dynamo_backend=config.torch_compile,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )


def evaluate(
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Evaluate a model on all validation samples; its mode comes back as it was.

    Returns:
        The task's metrics, and where they do not have them ``loss`` (mean over samples)
        and ``samples``; equal on all processes.
    """
    accelerator = accelerator or make_accelerator(config)
    figures = {}
    for ending, samples in {"": data.validation, **data.more_validation}.items():
        rows = _rows(model, data, samples, config, accelerator, losses=True)
        losses = rows.pop(_LOSS)
        found = data.metrics(**rows).items()
        # A checkpoint takes plain numbers alone.
        own = {k: v.item() if isinstance(v, np.generic) else v for k, v in found}
        own.setdefault("loss", float(losses.mean()))
        own.setdefault("samples", len(losses))
        joint = "_" if ending else ""
        figures |= {f"{name}{joint}{ending}": value for name, value in own.items()}
    return figures


def predict(
    model: nn.Module, data: TaskData, samples: Samples, config: TrainConfig
) -> dict[str, np.ndarray]:
    """Collect what the task keeps of the model's outputs; samples need no labels.

    Returns:
        Arrays by name, a row for each sample in their order, equal on all processes.
    """
    return _rows(model, data, samples, config, make_accelerator(config), losses=False)


def calibration_loss(
    model: nn.Module, data: TaskData, seed: int, device: torch.device
) -> float:
    """Return a model's mean loss of some training samples, drawn by the seed.

    Every process takes all of them, and none asks another. The model goes to the
    device, and its mode comes back as it was.
    """
    if data.gradients is not None:
        raise ValueError(
            "choice=measured goes by a task's loss, and embeddings have none; expected "
            "labels; write the indices of the layers into keep"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(data.train), generator=generator)[:CALIBRATION_SAMPLES]
    lengths = lengths_of(data.train)
    parts = sorted_batches([lengths[i] for i in drawn], GRADIENT_BATCH_SIZE)

    def batches() -> Iterator[Batch]:
        for number, part in enumerate(parts):
            collate = SeededCollate(data.collate, seed, 0, number=number)
            batch = collate([data.train[int(drawn[i])] for i in part])
            yield {name: values.to(device) for name, values in batch.items()}

    def losses(trial: nn.Module, batch: Batch) -> torch.Tensor:
        return data.sample_loss(trial(**inputs_of(batch)), batch)

    source = GradientSource(lambda _: batches(), losses)
    total, count = sum_losses(model.to(device), batches(), source)
    return total / count


@torch.no_grad()
def _rows(
    model: nn.Module,
    data: TaskData,
    samples: Samples,
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    losses: bool,
) -> dict[str, np.ndarray]:
    """Return what is kept of all samples, shared by the processes, in their order."""
    batches = sorted_batches(lengths_of(samples), config.per_device_eval_batch_size)
    own = batches[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    model.to(accelerator.device).eval()
    parts = []
    # A process without a batch takes another's, as DDP exchanges buffers at first.
    for indices in own or batches[:1]:
        batch = data.collate([samples[i] for i in indices])
        batch = {name: values.to(accelerator.device) for name, values in batch.items()}
        with accelerator.autocast():
            outputs = model(**inputs_of(batch))
        kept = dict(data.keep(outputs, batch))
        if losses:
            kept[_LOSS] = data.sample_loss(outputs, batch).double()
        parts.append((indices, kept))
    model.train(was_training)
    parts = gather_object([
        (indices, {name: rows.cpu().numpy() for name, rows in kept.items()})
        for indices, kept in parts
    ])
    indices, kept = zip(*parts, strict=True)
    return {
        name: _in_order(indices, [rows[name] for rows in kept], len(samples))
        for name in kept[0]
    }


def _in_order(
    indices: Sequence[list[int]], parts: list[np.ndarray], count: int
) -> np.ndarray:
    """Put rows, which may have different widths, where their samples stand."""
    first = parts[0]
    filler = -np.inf if np.issubdtype(first.dtype, np.floating) else IGNORED_LABEL
    widest = max(part.shape[1:2] for part in parts)  # () where rows are numbers
    joined = np.full((count, *widest, *first.shape[2:]), filler, first.dtype)
    for places, part in zip(indices, parts, strict=True):
        joined[places, *map(slice, part.shape[1:2])] = part
    return joined
