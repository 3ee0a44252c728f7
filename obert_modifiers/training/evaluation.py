"""Evaluation of a model on all validation samples, on one process or many."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from obert_modifiers.batches import (
    TaskData,
    inputs_of,
    lengths_of,
    sorted_batches,
)
from obert_modifiers.core.outputs import logits_of
from obert_modifiers.training.config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Make an accelerator with a run's precision.

    Args:
        config: Precision, device and accumulation.

    Returns:
        A fresh accelerator; the process group, if there is one, stays.
    """
    # accelerate keeps one precision per process; a second run may want another. The
    # process group stays.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )


def evaluate(model: nn.Module, data: TaskData, config: TrainConfig) -> dict[str, float]:
    """Evaluate a model on all validation samples.

    Args:
        model: The model; its train or eval mode comes back as it was.
        data: The task.
        config: Batch size, precision and device.

    Returns:
        ``loss`` (mean over samples), ``samples`` and the task's metrics, equal on all
        processes.
    """
    return evaluate_with(model, data, config, make_accelerator(config))


@torch.no_grad()
def evaluate_with(
    model: nn.Module, data: TaskData, config: TrainConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Evaluate as :func:`evaluate` does, with an accelerator that exists.

    Args:
        model: The model; its train or eval mode comes back as it was.
        data: The task.
        config: Batch size.
        accelerator: The run's accelerator.

    Returns:
        As :func:`evaluate`.
    """
    batches = sorted_batches(
        lengths_of(data.validation), config.per_device_eval_batch_size
    )
    own = batches[accelerator.process_index :: accelerator.num_processes]
    taken = sum(len(indices) for indices in own)
    was_training = model.training
    model.to(accelerator.device).eval()
    found = []
    # A process without a batch of its own still has to take part in gathering.
    for indices in own or batches[:1]:
        batch = data.collate([data.validation[i] for i in indices])
        batch = {name: values.to(accelerator.device) for name, values in batch.items()}
        with accelerator.autocast():
            outputs = model(**inputs_of(batch))
        losses = data.sample_loss(outputs, batch).double()
        found.append((logits_of(outputs).float(), batch["labels"], losses))
    model.train(was_training)
    columns = [torch.cat(column)[:taken] for column in zip(*found, strict=True)]
    logits, labels, losses = (_gather_rows(column, accelerator) for column in columns)
    metrics = data.metrics(logits.cpu().numpy(), labels.cpu().numpy())
    return {**metrics, "loss": float(losses.mean()), "samples": len(labels)}


def _gather_rows(rows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Concatenate the rows of all processes, which may have different numbers.

    Returns:
        All rows, equal on all processes.
    """
    count = torch.tensor([len(rows)], device=rows.device)
    counts = accelerator.gather(count).tolist()
    padded = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))
    parts = padded.split(max(counts))
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
