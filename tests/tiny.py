"""A tiny model, tokenizer and data set, made on the spot."""

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from obert_modifiers.modifiers._targets import encoder_weights
from tests.words import BAD, GOOD, OBERT, OTHER, SPECIAL, TWO_EPOCHS, sentences

__all__ = [
    "BAD",
    "GOOD",
    "OTHER",
    "RECIPE",
    "SHAPE",
    "SPECIAL",
    "WORDS",
    "save_model",
    "sentences",
    "sparsity",
    "write_rows",
]


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


def sparsity(model: torch.nn.Module) -> float:
    """Count the zeros among the encoder's linear weights."""
    weights = [model.get_parameter(name) for name in encoder_weights(model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


RECIPE = f"{TWO_EPOCHS}{OBERT}"
