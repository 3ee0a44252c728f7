"""A tiny model, tokenizer and data set, made on the spot."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)

from obert_modifiers.core.losses import classification_loss
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.training import TaskData
from tests.words import BAD, GOOD, OBERT, OTHER, SPECIAL, TWO_EPOCHS, sentences

__all__ = ["BAD", "GOOD", "OTHER", "SPECIAL", "sentences"]

RECIPE = f"{TWO_EPOCHS}{OBERT}"
WORDS = [*SPECIAL, *GOOD, *BAD, *OTHER]
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}


def save_model(folder: Path, **config) -> Path:
    """Save a random 2-layer BERT encoder of width 32 with a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**SHAPE | config))
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows as json lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def flags(folder: Path, count: int = 0, rows: Path | None = None) -> dict[str, Path]:
    """Return flags of `obert train` for the recipe, a tiny model and sentences."""
    rows = rows or write_rows(folder / "rows.json", sentences(count))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return {
        "model_name_or_path": save_model(folder / "model"),
        "train_file": rows,
        "validation_file": rows,
        "recipe": recipe,
        "cache_dir": folder / "cache",
    }


def words_of(flags: dict[str, object]) -> list[str]:
    """Return flags as words of a command line."""
    pairs = ((f"--{name}", str(value)) for name, value in flags.items())
    return [word for pair in pairs for word in pair]


def sentence_task(folder: Path, rows: list[dict], **padding) -> TaskData:
    """Make a task of sentences and labels with the tokenizer of a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [row["sentence"] for row in rows]
    found = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    samples = [
        {"input_ids": ids, "labels": row["label"]}
        for ids, row in zip(found, rows, strict=True)
    ]

    def collate(items):
        ids = {"input_ids": [item["input_ids"] for item in items]}
        batch = dict(tokenizer.pad(ids, return_tensors="pt", **padding))
        return batch | {"labels": torch.tensor([item["labels"] for item in items])}

    return TaskData(samples, [], collate, classification_loss, lambda *_: {})


def sparsity(model: torch.nn.Module) -> float:
    """Count the zeros among the encoder's linear weights."""
    weights = [model.get_parameter(name) for name in encoder_weights(model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)
