"""Tiny models and data for SparseML's four scripts, made on the spot."""

import json
import random
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
)

from tests.words import BAD, GOOD, SPECIAL, sentences
from tests.words import OTHER as PLAIN

OTHER = [*PLAIN, "what"]
ENTITIES = ["B-BAD", "B-GOOD", "O"]  # SparseML sorts them
WIDTH, LAYERS, LENGTH = 32, 4, 32
# Query, key, value and output, then the two feed-forward matrices.
ENCODER_WEIGHTS = LAYERS * (4 * WIDTH * WIDTH + 2 * WIDTH * 2 * WIDTH)


def save_models(folder: Path) -> None:
    """Save an encoder, and a teacher for each of three tasks."""
    words = [*SPECIAL, *GOOD, *BAD, *OTHER]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=LENGTH)
    shape = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": LENGTH,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    named = dict(enumerate(ENTITIES))
    labels = {"id2label": named, "label2id": {v: k for k, v in named.items()}}
    models = {
        "encoder": BertModel(BertConfig(**shape)),
        "text_teacher": BertForSequenceClassification(BertConfig(**shape)),
        "qa_teacher": BertForQuestionAnswering(BertConfig(**shape)),
        "token_teacher": BertForTokenClassification(BertConfig(**shape, **labels)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def texts(count: int, seed: int) -> list[dict]:
    """Make sentences whose label is which word list they draw from."""
    return sentences(count, seed, OTHER)


def questions(count: int, seed: int) -> list[dict]:
    """Make contexts of which the one adjective is the answer."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = draw.choices(OTHER, k=8)
        answer, place = draw.choice(GOOD + BAD), draw.randrange(8)
        words[place] = answer
        start = len(" ".join([*words[:place], ""]))
        answers = {"text": [answer], "answer_start": [start]}
        row = {"id": f"{seed}-{number}", "question": "what is it", "answers": answers}
        rows.append(row | {"context": " ".join(words)})
    return rows


def tagged(count: int, seed: int) -> list[dict]:
    """Make lists of words with their labels."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(GOOD + BAD + OTHER, k=8)
        tags = ["B-GOOD" if w in GOOD else "B-BAD" if w in BAD else "O" for w in words]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def lines(count: int, seed: int) -> str:
    """Make lines of words."""
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(OTHER, k=10)) + "\n" for _ in range(count))


def save_data(folder: Path, train: int = 64, validation: int = 32) -> None:
    """Write a training and a validation file for each script."""
    folder.mkdir()
    for split, count, seed in (("train", train, 0), ("validation", validation, 1)):
        for name, make in (("text", texts), ("qa", questions), ("token", tagged)):
            rows = make(count, seed)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}_{split}.json").write_text(text, encoding="utf-8")
        (folder / f"mlm_{split}.txt").write_text(lines(count, seed), encoding="utf-8")
