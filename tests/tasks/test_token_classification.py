"""Token classification: labels of words, whole entities, and the whole way."""

import json
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from obert_modifiers.core.losses import token_loss
from obert_modifiers.tasks import token_classification
from obert_modifiers.tasks.data.dataset import TextData
from obert_modifiers.tasks.token_classification import TokenArguments
from tests import tiny
from tests.tasks import inputs
from tests.tasks.inputs import refused

TASK = token_classification.TASK
NAMES = ("O", "B-GOOD", "I-GOOD", "B-BAD", "I-BAD")


def rows(count: int, seed: int = 0) -> list[dict]:
    """Sentences in which a run of good or bad words is an entity."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(draw.randrange(2, 5)):
            tokens.append(draw.choice(tiny.OTHER))
            tags.append("O")
            kind = draw.choice(("GOOD", "BAD"))
            for nth in range(draw.randrange(3)):
                tokens.append(draw.choice(getattr(tiny, kind)))
                tags.append(f"{'I' if nth else 'B'}-{kind}")
        made.append({"tokens": tokens, "ner_tags": tags})
    return made


def classes(tmp_path, lines, known=None, **flags):
    path = tiny.write_rows(tmp_path / "rows.json", lines)
    args, data = inputs.load(TASK.name, tmp_path, train_file=path, **flags)
    return TASK.labels(data, args, known or {})


def test_texts_are_classes_and_numbers_need_names(tmp_path) -> None:
    found = classes(tmp_path, rows(20))
    assert found.names == tuple(sorted(NAMES))
    numbers = [{"words": ["a", "b"], "tags": [0, 2]}]
    with refused("numbers without names.*--label_names O,B-"):
        classes(tmp_path, numbers)
    names = ("O", "B-X", "I-X")
    named = classes(tmp_path, numbers, label_names="O, B-X, I-X")
    assert (named.names, named.ids) == (names, {0: 0, 1: 1, 2: 2})
    with refused("names 2 classes, and tags.*holds 2"):
        classes(tmp_path, numbers, label_names="O,B-X")
    trained = {"O": 0, "B-X": 1, "I-X": 2}
    assert classes(tmp_path, numbers, trained).names == names
    turned, given = {"I-X": 0, "O": 1, "B-X": 2}, {"label_names": "O,B-X,I-X"}
    found = classes(tmp_path, numbers, turned, **given)
    assert (found.names, found.ids) == (tuple(turned), {0: 1, 1: 2, 2: 0})
    # Names that are given come before those of a model of another data set.
    other = {"a": 0, "b": 1, "c": 2}
    assert classes(tmp_path, numbers, other, **given).names == names


def test_a_data_sets_own_names_keep_their_order() -> None:
    features = Features({
        "tokens": Sequence(Value("string")),
        "ner_tags": Sequence(ClassLabel(names=list(NAMES))),
    })
    lines = {"tokens": [["a", "b"]], "ner_tags": [[3, 0]]}
    splits = {"train": Dataset.from_dict(lines, features=features)}
    data = TextData(splits, ("tokens",), "ner_tags", "rows")
    assert TASK.labels(data, TokenArguments(), {}).names == NAMES


@pytest.mark.parametrize(
    ("line", "flags", "message"),
    [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, {}, "row 0.*1 words and 2 labels"),
        ({"tokens": "a b", "ner_tags": ["O"]}, {}, "--text_column_name=tokens.*lists"),
        ({"tokens": ["a"], "labels": "O"}, {}, "--label_column_name=labels.*no lists"),
        ({"text": ["a"], "labels": ["O"]}, {}, "--text_column_name=tokens is no col"),
        ({"tokens": ["a"], "tags": ["O"]}, {"label_column_name": "tag"}, "tags\\?"),
    ],
)
def test_data_that_does_not_fit(tmp_path, line, flags, message) -> None:
    with refused(message):
        classes(tmp_path, [line], **flags)


def test_the_first_token_of_a_word_has_its_label(tmp_path) -> None:
    line = {"tokens": ["Reykjavikians", "saw", "O'Brien", "."]}
    line["ner_tags"] = ["B-BAD", "O", "B-GOOD", "O"]
    flags = {"max_seq_length": 7}
    flags["train_file"] = tiny.write_rows(tmp_path / "rows.json", [line, line])
    prepared, tokenizer = inputs.prepare(TASK.name, tmp_path, **flags)
    ids = {tag: i for i, tag in enumerate(sorted({*line["ner_tags"]}))}
    sample = prepared.train[0]
    assert all(len(one["input_ids"]) == 7 for one in prepared.train)
    starts, classes = [], []
    for one in prepared.train:  # a row in windows: each word is labelled once
        tokens = tokenizer.convert_ids_to_tokens(one["input_ids"])
        pairs = zip(tokens, one["labels"], strict=True)
        chosen = [(token, n) for token, n in pairs if n >= 0]
        starts += [token for token, _ in chosen]
        classes += [n for _, n in chosen]
    assert starts == 2 * ["reykjavik", "saw", "o", "."]
    assert classes == 2 * [ids[tag] for tag in line["ner_tags"]]
    short = {name: values[:5] for name, values in sample.items()}
    batch = prepared.collate([dict(sample), short])
    assert batch["labels"][1, 5:].tolist() == [-100] * 2
    assert batch["attention_mask"][1].sum() == 5


def spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """Read entities from B- and I- as CoNLL's script does: an I- may start one."""
    found, start, kind = set(), None, None
    for i, tag in enumerate([*tags, "O"]):
        part, _, name = tag.partition("-")
        goes_on = part == "I" and name == kind
        if start is not None and not goes_on:
            found.add((kind, start, i))
            start = kind = None
        if part in ("B", "I") and start is None:
            start, kind = i, name
    return found


def test_whole_entities_are_counted() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(len(NAMES), size=(40, 9))
    predicted = np.where(draw.random((40, 9)) < 0.7, labels, labels[::-1])
    lengths = draw.integers(1, 10, size=40)
    for row, length in zip(labels, lengths, strict=True):
        row[length:] = -100
    hits = guessed = there = right = tokens = 0
    for row, guess, length in zip(labels, predicted, lengths, strict=True):
        # What fills rows up is no class, and does not count.
        truth = spans([NAMES[i] for i in row[:length]])
        ours = spans([NAMES[i] for i in guess[:length]])
        hits += len(truth & ours)
        guessed, there = guessed + len(ours), there + len(truth)
        right += int((row == guess)[:length].sum())
        tokens += int(length)
    predicted[labels == -100] = draw.integers(-100, 5, size=(labels == -100).sum())
    found = token_classification.token_metrics(predicted, labels, NAMES)
    precision, recall = hits / guessed, hits / there
    assert found == {
        "precision": pytest.approx(precision),
        "recall": pytest.approx(recall),
        "f1": pytest.approx(2 * precision * recall / (precision + recall)),
        "accuracy": pytest.approx(right / tokens),
    }
    assert abs(found["f1"] - found["accuracy"]) > 0.05  # tokens are another figure


def test_classes_that_are_no_entities_have_accuracy_alone() -> None:
    labels = np.array([[0, 1, -100]])
    found = token_classification.token_metrics(labels * 0, labels, ("NOUN", "VERB"))
    assert found == {"accuracy": 0.5}
    none = token_classification.token_metrics(labels * 0, labels * 0, NAMES)
    assert none == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


def test_a_samples_loss_is_the_mean_over_its_labelled_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4, dtype=torch.float64)
    labels = torch.tensor([
        [-100, 2, 0, -100, 3],
        [-100, 1, -100, -100, -100],
        [-100, -100, -100, -100, -100],
    ])
    found = token_loss({"logits": logits}, {"labels": labels})
    expected = []
    for row, truth in zip(logits, labels, strict=True):
        kept = [(row[t], n) for t, n in enumerate(truth.tolist()) if n >= 0]
        losses = [float(torch.logsumexp(one, 0) - one[n]) for one, n in kept]
        expected.append(sum(losses) / max(len(losses), 1))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    # The mean over all tokens of the batch weighs samples by their length.
    batch = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)
    assert float(found[:2].mean()) != pytest.approx(float(batch), rel=1e-3)


def test_from_words_to_a_sparse_model_that_finds_entities(run_task, tmp_path) -> None:
    truth = rows(24, 1)
    train = tiny.write_rows(tmp_path / "train.json", rows(96))
    validation = tiny.write_rows(tmp_path / "validation.json", truth)
    test = tmp_path / "test.json"
    tiny.write_rows(test, [{"tokens": row["tokens"]} for row in truth])
    common = {"per_device_train_batch_size": 4, "num_train_epochs": None}

    def run(do="", **flags):
        return run_task(TASK.name, do, **common | flags)

    recipe = tmp_path / "recipe.yaml"
    distilled = "  - !LogitDistillationModifier\n      hardness: 0.1\n"
    text = tiny.RECIPE.replace("0.8", "0.6").replace("init_lr: 5e-3", "init_lr: 1e-2")
    recipe.write_text(text + distilled)
    out = tmp_path / "out"
    data = {"train_file": train, "validation_file": validation}
    taught = {"recipe": recipe, "distill_teacher": "self"}
    do = "--do_train --do_eval --do_predict"
    record = run(do, test_file=test, **taught, **data)
    assert record["headline"] == ["f1", "accuracy"]
    assert record["accuracy"] > 0.7 and record["samples"] == 24
    assert record["sparsity"] == round(0.6 * 16384) / 16384
    assert record["pruning_events"] == 3
    ids = AutoConfig.from_pretrained(out).label2id
    assert ids == {name: i for i, name in enumerate(sorted(NAMES))}
    flags = {"model_name_or_path": out, "validation_file": validation}
    again = run("--do_eval", out="again", **flags)
    assert all(again[name] == record[name] for name in ("f1", "accuracy", "loss"))
    # It can teach others that have its classes.
    some = {"recipe": recipe, "distill_teacher": out, "max_train_samples": 16}
    assert run(out="taught", **data, **some)["teacher"] == str(out)
    line = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
    fewer = tiny.write_rows(tmp_path / "fewer.json", [line])
    with refused("expected B-X, O; train it on"):
        run(out="no", train_file=fewer, validation_file=fewer, **some)
    # By the model alone, one sentence at a time.
    model = AutoModelForTokenClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    lines = (out / "predictions.txt").read_text().splitlines()
    hits = total = 0
    for row, line in zip(truth, lines, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(" ".join(row["tokens"]), return_tensors="pt"))[0]
        found = [model.config.id2label[int(i)] for i in logits[0, 1:-1].argmax(-1)]
        assert line.split() == found
        hits += sum(a == b for a, b in zip(found, row["ner_tags"], strict=True))
        total += len(found)
    assert record["accuracy"] == pytest.approx(hits / total)
    kinds = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    headlines = [line["headline"] for line in kinds if line["kind"] == "eval"]
    assert headlines == [["f1", "accuracy"]] * 2
