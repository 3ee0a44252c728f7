"""Any number of classes for a sample: from lists in the data to exported files."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from obert_modifiers.core.losses import multi_label_loss
from obert_modifiers.deploy.evaluate import Request, evaluate_file
from obert_modifiers.deploy.onnx import export_onnx
from obert_modifiers.tasks.data import metrics
from obert_modifiers.tasks.data.labels import labels_of
from tests import tiny
from tests.tasks.inputs import labelled, refused

try:  # datasets 4 calls a list of values List
    from datasets import List as Values
except ImportError:
    from datasets import Sequence as Values

HOT = [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]


def data_of(labels, features=None):
    return labelled(features, "labels", train=labels)


@pytest.mark.parametrize(
    ("labels", "known", "names", "expected"),
    [
        ([["b"], ["a", "b"], []], {}, ("a", "b"), [[0, 1], [1, 1], [0, 0]]),
        ([["b"], ["A"]], {"b": 0, "a": 1}, ("b", "a"), [[1, 0], [0, 1]]),
        ([[2], [0, 5], [0]], {}, ("0", "2", "5"), [[0, 1, 0], [1, 0, 1], [1, 0, 0]]),
        ([[0], [1], [0]], {}, ("0", "1"), [[1, 0], [0, 1], [1, 0]]),
        (HOT, {}, ("0", "1"), HOT),
        ([[1, 0, 0], [0, 1, 1]], {}, ("0", "1", "2"), [[1, 0, 0], [0, 1, 1]]),
        ([[True, False], [True, True]], {}, ("0", "1"), [[1, 0], [1, 1]]),
        (HOT, {"food": 0, "place": 1}, ("food", "place"), HOT),
    ],
)
def test_lists_are_any_number_of_classes(labels, known, names, expected):
    found = labels_of(data_of(labels), known)
    assert found.multi and found.names == names
    assert found.problem_type == "multi_label_classification"
    assert found.numbers(labels) == expected


def test_a_data_sets_own_names_come_first():
    names = Values(ClassLabel(names=["z", "a", "m"]))
    features = Features(text=Value("string"), labels=names)
    labels = [[0, 2], [1, 2]]
    found = labels_of(data_of(labels, features), {})
    assert found.names == ("z", "a", "m")
    assert found.numbers(labels) == [[1, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0.3, 1.0], [0.0, 1.0]], "holds lists with 0.3; expected lists of classes"),
        ([[0.0, 1.0], [1.0]], "holds lists with 1, 2; expected .*all of one length"),
        ([["a"], ["a"]], "the one class a"),
        ([["a"], None], "column labels of rows.*is empty in 1 rows, first in row 1"),
    ],
)
def test_lists_that_say_nothing_are_an_error(labels, message):
    with refused(message):
        labels_of(data_of(labels), {})


def test_the_loss_is_the_binary_cross_entropy():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    chance = 1 / (1 + (-logits.double()).exp())
    expected = -torch.where(labels > 0, chance.log(), (1 - chance).log()).mean(-1)
    found = multi_label_loss({"logits": logits}, {"labels": labels})
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_figures_against_their_definitions():
    draw = np.random.default_rng(0)
    labels = draw.integers(2, size=(97, 3)).astype(np.float32)
    labels[:, 2] = 0  # of a class that no sample has the F1 is 0
    logits = draw.normal(size=(97, 3))
    found = metrics.multi_label_metrics(logits, labels)
    guess = (logits > 0).astype(int)
    hits, wrong = guess * labels, np.abs(guess - labels)
    each = 2 * hits.sum(0) / (2 * hits.sum(0) + wrong.sum(0))
    assert found["f1_macro"] == pytest.approx(each.mean())
    micro = 2 * hits.sum() / (2 * hits.sum() + wrong.sum())
    assert found["f1_micro"] == pytest.approx(micro)
    assert found["accuracy"] == pytest.approx((wrong.sum(1) == 0).mean())
    assert micro != pytest.approx(each.mean(), abs=1e-3)


def rows_with_lists(count, seed=0):
    """Sentences of plain, good and bad words; the classes are those of its words."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [name for name in ("bad", "good") if draw.random() < 0.5]
        words = draw.choices(tiny.OTHER, k=3)
        for name in labels:
            words += draw.choices({"bad": tiny.BAD, "good": tiny.GOOD}[name], k=3)
        draw.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": labels[::-1]})
    return rows


@pytest.fixture(scope="module")
def trained(small, run_in, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi")
    train = tiny.write_rows(folder / "train.json", rows_with_lists(640))
    test = tiny.write_rows(folder / "test.json", rows_with_lists(48, 7))
    record = run_in(
        folder / "run",
        "text_classification",
        "--do_train --do_eval --do_predict",
        train_file=train,
        validation_file=test,
        test_file=test,
        recipe=small.recipe,
    )
    return folder / "run", test, record


def rows_of(test) -> list[dict]:
    return [json.loads(line) for line in test.read_text().splitlines()]


def test_it_trains_prunes_and_predicts(trained):
    run, test, record = trained
    config = AutoConfig.from_pretrained(run)
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "bad", 1: "good"}
    assert record["headline"] == ["f1_micro", "f1_macro", "accuracy"]
    assert record["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert record["accuracy"] > 0.6 and record["f1_micro"] > 0.8
    with (run / "predictions.csv").open() as file:
        predicted = [row["prediction"] for row in csv.DictReader(file)]
    truth = ["|".join(sorted(row["label"])) for row in rows_of(test)]
    hits = sum(one == two for one, two in zip(predicted, truth, strict=True))
    assert hits / len(truth) == record["accuracy"]
    assert set(predicted) == {"", "bad", "good", "bad|good"}


def test_the_saved_model_has_transformers_own_loss(trained):
    run, test, record = trained
    model = AutoModelForSequenceClassification.from_pretrained(run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run)
    losses = []
    for row in rows_of(test):
        labels = torch.tensor([[float(c in row["label"]) for c in ("bad", "good")]])
        tokens = tokenizer(row["sentence"], return_tensors="pt")
        with torch.no_grad():
            losses.append(model(**tokens, labels=labels).loss.item())
    assert np.mean(losses) == pytest.approx(record["loss"], rel=1e-4)


def test_the_model_says_what_it_was_trained_to_tell(run_task, trained, tmp_path):
    run, test, _ = trained
    bare = [{"sentence": row["sentence"]} for row in rows_of(test)]
    flags = {"model_name_or_path": run}
    flags["test_file"] = tiny.write_rows(tmp_path / "new.json", bare)
    run_task("text_classification", "--do_predict", **flags)
    one, two = (x / "predictions.csv" for x in (tmp_path / "out", run))
    assert one.read_text() == two.read_text()


def test_exported_files_are_evaluated(trained, tmp_path):
    run, test, record = trained
    words = ("--validation_file", str(test), "--cache_dir", str(tmp_path / "cache"))
    model = AutoModelForSequenceClassification.from_pretrained(run).eval()
    sample = AutoTokenizer.from_pretrained(run)(["the film"], return_tensors="pt")
    export_onnx(model, dict(sample), tmp_path / "model.onnx")
    for path in (run, tmp_path / "model.onnx"):
        found = evaluate_file(Request(path, run=run, words=words))
        assert found["headline"] == record["headline"]
        for name in (*record["headline"], "loss"):
            assert found[name] == pytest.approx(record[name], rel=1e-4)
    single = tiny.write_rows(tmp_path / "single.json", tiny.sentences(8))
    request = Request(run, words=("--validation_file", str(single), *words[2:]))
    with refused("any number of classes and .* one class in"):
        evaluate_file(request)
