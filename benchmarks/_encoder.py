"""The embedded encoder, fine-tuned, with its data: what several benchmarks prune."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from _common import DENSE
from datasets import load_dataset
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from obert_modifiers.batches import (
    TaskData,
    gradient_source,
    inputs_of,
    sorted_batches,
)
from obert_modifiers.core.gradients import GradientSource
from obert_modifiers.embedded import movie_snippets
from obert_modifiers.quickstart import Settings
from obert_modifiers.quickstart import run as run_quickstart

MAX_LENGTH = 128


def dense_model(folder: Path = DENSE) -> nn.Module:
    """Load the fine-tuned encoder, fine-tuning it where it is missing.

    Args:
        folder: Where it is kept.

    Returns:
        The model in eval mode.
    """
    if not (folder / "model.safetensors").is_file():
        settings = Settings(sentences=9072)
        run_quickstart(folder.parent, seed=0, only=("dense",), settings=settings)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def task_data(folder: Path = DENSE) -> TaskData:
    """Tokenize movie_snippets.

    Args:
        folder: Folder of the model, for its tokenizer.

    Returns:
        All sentences of both splits.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = {split: str(path) for split, path in movie_snippets().items()}
    rows = load_dataset("parquet", data_files=files)

    def samples(split: str) -> list[dict[str, Any]]:
        found = tokenizer(
            rows[split]["sentence"], truncation=True, max_length=MAX_LENGTH
        )
        pairs = zip(found["input_ids"], rows[split]["label"], strict=True)
        return [{"input_ids": ids, "labels": label} for ids, label in pairs]

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = {"input_ids": [item["input_ids"] for item in items]}
        batch = dict(tokenizer.pad(ids, return_tensors="pt"))
        batch["labels"] = torch.tensor([item["labels"] for item in items])
        return batch

    def sample_loss(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(
            outputs.logits, batch["labels"], reduction="none"
        )

    return TaskData(
        samples("train"), samples("validation"), collate, sample_loss, lambda *_: {}
    )


def source_of(model: nn.Module, data: TaskData, seed: int = 0) -> GradientSource:
    """Make the source of gradients of a model.

    Args:
        model: The model.
        data: The task.
        seed: Seed of the draws.

    Returns:
        As in training.
    """
    return gradient_source(data, model.forward, "cpu", seed=seed)


@torch.no_grad()
def validation(model: nn.Module, data: TaskData) -> dict[str, float]:
    """Evaluate on all validation sentences.

    Args:
        model: The model, in eval mode.
        data: The task.

    Returns:
        Accuracy and mean loss.
    """
    lengths = [len(item["input_ids"]) for item in data.validation]
    losses, right = [], 0
    for indices in sorted_batches(lengths, 64):
        batch = data.collate([data.validation[i] for i in indices])
        outputs = model(**inputs_of(batch))
        losses.append(data.sample_loss(outputs, batch).double())
        right += int((outputs.logits.argmax(-1) == batch["labels"]).sum())
    return {
        "accuracy": right / len(lengths),
        "loss": float(torch.cat(losses).mean()),
    }


def sparseml_sampler(data: TaskData, batch_size: int, seed: int = 0) -> dict[str, Any]:
    """Give SparseML's modifier the same sentences, in random order.

    Args:
        data: The task.
        batch_size: Sentences of a batch.
        seed: Seed of the order.

    Returns:
        The ``grad_sampler`` dict of its ``initialize``.
    """

    def build(options: dict[str, Any] | None) -> Iterable[tuple]:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data.train), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = data.collate([data.train[i] for i in part])
            yield [], inputs_of(batch), batch["labels"]

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels)

    return {"data_loader_builder": build, "loss_function": loss}
