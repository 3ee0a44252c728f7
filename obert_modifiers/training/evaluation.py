"""Evaluation of a model on all validation samples, on one process or many."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.training.batches import (
    TaskData,
    inputs_of,
    lengths_of,
    sorted_batches,
)
from obert_modifiers.training.config import TrainConfig

_INDEX, _LOSS = "_index", "_loss"


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


def evaluate(model: nn.Module, data: TaskData, config: TrainConfig) -> dict[str, float]:
    """Evaluate a model on all validation samples.

    Args:
        model: The model; its train or eval mode comes back as it was.
        data: The task.
        config: Batch size, precision and device.

    Returns:
        The task's metrics, and where they do not have them ``loss`` (mean over samples)
        and ``samples``; equal on all processes.
    """
    return evaluate_with(model, data, config, make_accelerator(config))


def evaluate_with(
    model: nn.Module, data: TaskData, config: TrainConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Evaluate with an accelerator that exists."""
    figures = _figures(model, data, data.validation, config, accelerator)
    for ending, samples in data.more_validation.items():
        more = _figures(model, data, samples, config, accelerator)
        figures |= {f"{name}_{ending}": value for name, value in more.items()}
    return figures


def predict(
    model: nn.Module,
    data: TaskData,
    samples: Sequence[dict[str, Any]],
    config: TrainConfig,
) -> dict[str, np.ndarray]:
    """Collect what the task keeps of the model's outputs; samples need no labels.

    Args:
        model: The model; its train or eval mode comes back as it was.
        data: The task.
        samples: What to predict.
        config: Batch size, precision and device.

    Returns:
        Arrays by name, a row for each sample in their order, equal on all processes.
    """
    return _rows(model, data, samples, config, make_accelerator(config), losses=False)


def _figures(
    model: nn.Module,
    data: TaskData,
    samples: Sequence[dict[str, Any]],
    config: TrainConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    rows = _rows(model, data, samples, config, accelerator, losses=True)
    losses = rows.pop(_LOSS)
    figures = dict(data.metrics(**rows))
    figures.setdefault("loss", float(losses.mean()))
    figures.setdefault("samples", len(losses))
    return figures


@torch.no_grad()
def _rows(
    model: nn.Module,
    data: TaskData,
    samples: Sequence[dict[str, Any]],
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    losses: bool,
) -> dict[str, np.ndarray]:
    """Return what is kept of all samples, shared by the processes, in their order."""
    batches = sorted_batches(lengths_of(samples), config.per_device_eval_batch_size)
    own = batches[accelerator.process_index :: accelerator.num_processes]
    taken = sum(len(indices) for indices in own)
    was_training = model.training
    model.to(accelerator.device).eval()
    parts: list[dict[str, Tensor]] = []
    # A process without a batch of its own still has to take part in gathering.
    for indices in own or batches[:1]:
        batch = data.collate([samples[i] for i in indices])
        batch = {name: values.to(accelerator.device) for name, values in batch.items()}
        with accelerator.autocast():
            outputs = model(**inputs_of(batch))
        kept = dict(data.keep(outputs, batch))
        kept[_INDEX] = torch.tensor(indices, device=accelerator.device)
        if losses:
            kept[_LOSS] = data.sample_loss(outputs, batch).double()
        parts.append(kept)
    model.train(was_training)
    gathered = {
        name: _gather_rows(_join([kept[name] for kept in parts])[:taken], accelerator)
        for name in parts[0]
    }
    order = gathered.pop(_INDEX).argsort()
    return {name: rows[order].cpu().numpy() for name, rows in gathered.items()}


def _filler(rows: Tensor) -> float:
    return -torch.inf if rows.is_floating_point() else IGNORED_LABEL


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate rows that may have different widths."""
    if parts[0].ndim < 2:
        return torch.cat(parts)
    width, count = max(part.shape[1] for part in parts), sum(map(len, parts))
    shape = (count, width, *parts[0].shape[2:])
    joined = parts[0].new_full(shape, _filler(parts[0]))
    start = 0
    for part in parts:
        joined[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return joined


def _gather_rows(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Concatenate the rows of all processes, which may have different shapes."""
    count = torch.tensor([len(rows)], device=rows.device)
    counts = accelerator.gather(count).tolist()
    if rows.ndim > 1:
        rows = accelerator.pad_across_processes(rows, dim=1, pad_index=_filler(rows))
    padded = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))
    parts = padded.split(max(counts))
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
