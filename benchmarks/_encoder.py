"""The embedded encoder, fine-tuned, with its data: what several benchmarks prune."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _common import ROOT
from _data import DATA_VARIABLE, data_folder, shuffled
from datasets import load_dataset
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from obert_modifiers import quickstart
from obert_modifiers.cli.progress import Reporter
from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest
from obert_modifiers.core.pruning.targets import Target
from obert_modifiers.cpu import host_cpu
from obert_modifiers.embedded import movie_snippets
from obert_modifiers.modifiers._targets import encoder_weights, find_targets
from obert_modifiers.tasks.run.execute import run as run_task
from obert_modifiers.tasks.text_classification import TASK, TextArguments
from obert_modifiers.training.batches import (
    TaskData,
    gradient_source,
    inputs_of,
    sorted_batches,
)

MOVIES, SST2 = "movie_snippets", "sst2"
DATASETS = (MOVIES, SST2)
KEPT = ROOT / "runs" / "bench"
MAX_LENGTH = 128
SST2_SENTENCES = 20_000


@dataclass(frozen=True)
class DataSet:
    """Sentences with a label, and the encoder that is fine-tuned on them.

    Attributes:
        name: One of `DATASETS`.
        files: Parquet files of ``train`` and ``validation``.
        dense: Folder of the fine-tuned model.
        sentences: Training sentences, the first of the file.
    """

    name: str
    files: dict[str, Path]
    dense: Path
    sentences: int


def find(name: str, data: Path | None = None) -> DataSet | None:
    """Find a data set; where its files are missing, say so.

    Args:
        name: One of `DATASETS`.
        data: Folder of the data sets that are not shipped; None looks for it.

    Returns:
        The data set, or None.
    """
    if name == MOVIES:
        return DataSet(name, movie_snippets(), KEPT / "dense", 9072)
    folder = data_folder(data) / name
    files = {split: folder / f"{split}.parquet" for split in ("train", "validation")}
    if not all(path.is_file() for path in files.values()):
        print(
            f"{name} is skipped: no train.parquet and validation.parquet in {folder}; "
            f"name the folder above with --data or in {DATA_VARIABLE}"
        )
        return None
    part = shuffled(files["train"], KEPT / f"{name}_train.parquet", SST2_SENTENCES)
    return DataSet(name, files | {"train": part}, KEPT / name, SST2_SENTENCES)


def dense_model(dataset: DataSet | None = None) -> nn.Module:
    """Load the fine-tuned encoder, fine-tuning it where it is missing.

    Args:
        dataset: What it is fine-tuned on; None for movie_snippets.

    Returns:
        The model in eval mode.
    """
    dataset = dataset or find(MOVIES)
    if not (dataset.dense / "model.safetensors").is_file():
        settings = quickstart.Settings(
            sentences=dataset.sentences, bf16=host_cpu().has_bf16
        )
        flags = quickstart.arguments("dense", KEPT, 0, settings)
        flags.train.output_dir = str(dataset.dense)
        read = TextArguments(
            train_file=str(dataset.files["train"]),
            validation_file=str(dataset.files["validation"]),
            input_column_names="sentence",
            max_train_samples=dataset.sentences,
            max_seq_length=MAX_LENGTH,
        )
        run_task(TASK, replace(flags, data=read), Reporter(Console(), bar=False))
    return AutoModelForSequenceClassification.from_pretrained(dataset.dense).eval()


def encoder_targets(model: nn.Module) -> list[Target]:
    """List what is pruned.

    Args:
        model: The model.

    Returns:
        The linear weights of the encoder's layers.
    """
    return find_targets(model, encoder_weights(model))


def task_data(dataset: DataSet | None = None) -> TaskData:
    """Tokenize a data set.

    Args:
        dataset: Which; None for movie_snippets.

    Returns:
        The sentences of both splits.
    """
    dataset = dataset or find(MOVIES)
    tokenizer = AutoTokenizer.from_pretrained(dataset.dense)
    files = {split: str(path) for split, path in dataset.files.items()}
    rows = load_dataset("parquet", data_files=files)

    def samples(split: str) -> list[dict[str, Any]]:
        found = tokenizer(
            list(rows[split]["sentence"]), truncation=True, max_length=MAX_LENGTH
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

    train = samples("train")[: dataset.sentences]
    return TaskData(train, samples("validation"), collate, sample_loss, lambda *_: {})


def source_of(model: nn.Module, data: TaskData, seed: int = 0) -> GradientSource:
    """Make the source of gradients of a model.

    Args:
        model: The model.
        data: The task.
        seed: Seed of the draws.

    Returns:
        As in training.
    """
    return gradient_source(data, model.forward, model.device, seed=seed)


def sampled_labels(source: GradientSource, seed: int) -> GradientSource:
    """Take the gradients at labels that the model's own predictions draw.

    That is the Fisher in the strict sense; with the data's labels it is empirical.

    Args:
        source: Gradients at the true labels of a classification.
        seed: Seed of the draws; a batch gets the same labels whenever it comes.

    Returns:
        A source of the same samples.
    """

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        outputs = source.forward(model, batch)
        generator = torch.Generator().manual_seed(
            1_000_003 * (seed + 1) + int(batch["input_ids"].sum())
        )
        chances = outputs.logits.detach().double().softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        return source.output_loss(
            outputs, {**batch, "labels": drawn.to(outputs.logits.device)}
        )

    return replace(source, loss=loss)


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


def sparseml_sampler(
    model: nn.Module, data: TaskData, num_grads: int, batch_size: int, seed: int = 0
) -> dict[str, Any]:
    """Give SparseML's modifier the batches of which our step takes its gradients.

    Args:
        model: The model.
        data: The task.
        num_grads: Batches of the draw.
        batch_size: Sentences of a batch.
        seed: Seed of the draw.

    Returns:
        The ``grad_sampler`` dict of its ``initialize``. The batches come in random
        order, so that the first of them are as long as the others.
    """
    options = {"batch_size": batch_size}
    request = SampleRequest(num_grads, num_grads, 0, options, "batch")
    batches = list(source_of(model, data, seed).batches(request))
    order = torch.randperm(
        len(batches), generator=torch.Generator().manual_seed(seed)
    ).tolist()

    def build(options: dict[str, Any] | None) -> Iterable[tuple]:
        for i in order:
            yield [], inputs_of(batches[i]), batches[i]["labels"]

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels)

    return {"data_loader_builder": build, "loss_function": loss}
