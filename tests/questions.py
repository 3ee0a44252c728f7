"""Tiny questions whose answer is the one warm word of their context."""

import json
import random
from pathlib import Path

from tests.tiny import BAD, GOOD, OTHER


def rows(count: int, seed: int = 0, empty: float = 0.0) -> list[dict]:
    """Make rows as the hub has them; `empty` is the share without an answer."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        words = draw.choices([*OTHER, *BAD], k=draw.randrange(3, 40))
        place = draw.randrange(len(words))
        answered = draw.random() >= empty
        if answered:
            words[place] = draw.choice(GOOD)
        start = len(" ".join([*words[:place], ""]))
        made.append({
            "id": f"q{seed}-{number}",
            "title": "film",
            "context": " ".join(words),
            "question": "is it",
            "answers": {
                "text": [words[place]] * answered,
                "answer_start": [start] * answered,
            },
        })
    return made


def write_document(path: Path, made: list[dict]) -> Path:
    """Write rows as one of SQuAD's own files, two paragraphs to an article."""
    paragraphs = []
    for row in made:
        texts, starts = row["answers"].values()
        answers = zip(texts, starts, strict=True)
        question = {
            "id": row["id"],
            "question": row["question"],
            "is_impossible": not texts,
            "answers": [{"text": text, "answer_start": at} for text, at in answers],
        }
        paragraphs.append({"context": row["context"], "qas": [question]})
    pairs = [paragraphs[i : i + 2] for i in range(0, len(paragraphs), 2)]
    articles = [{"title": "film", "paragraphs": pair} for pair in pairs]
    document = {"version": "v2.0", "data": articles}
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path
