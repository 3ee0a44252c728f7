"""A tiny model, tokenizer and data set, made on the spot."""

import json
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from obert_modifiers.modifiers._targets import encoder_weights

GOOD = "fine great lovely warm bright funny".split()
BAD = "dull poor awful cold grim boring".split()
OTHER = "the film a plot of cast is and story with it scene".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_model(folder: Path, **config) -> Path:
    """Save a random 2-layer BERT encoder of width 32 with a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*SPECIAL, *GOOD, *BAD, *OTHER]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=32)
    shape = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**shape | config))
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[dict]:
    """Make sentences whose label is which of the two word lists they draw from."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.randrange(2)
        words = draw.choices(OTHER, k=draw.randrange(3, 12))
        words += draw.choices(GOOD if label else BAD, k=2)
        draw.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows as json lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sparsity(model: torch.nn.Module) -> float:
    """Count the zeros among the encoder's linear weights."""
    weights = [model.get_parameter(name) for name in encoder_weights(model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


RECIPE = """\
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 2.0
  - !LearningRateFunctionModifier
      lr_func: linear
      init_lr: 5e-3
      final_lr: 0.0
      start_epoch: 0.0
      end_epoch: 2.0
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.5
      num_grads: 16
      fisher_block_size: 16
"""
