"""The metrics that take the place of the hub's scripts, counted by hand."""

import math

import pytest

from obert_modifiers.sparseml_cli.metrics import LocalMetric, is_local


def test_accuracy():
    found = LocalMetric("accuracy").compute(predictions=[1, 0, 1], references=[1, 1, 1])
    assert found == {"accuracy": pytest.approx(2 / 3)}


def test_glue():
    said, truth = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 hits of 1, 1 of 0
    paired = LocalMetric("glue", "mrpc").compute(predictions=said, references=truth)
    assert paired["accuracy"] == 3 / 5
    assert paired["f1"] == pytest.approx(2 / 3)
    found = LocalMetric("glue", "cola").compute(predictions=said, references=truth)
    # (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2)
    assert found == {"matthews_correlation": pytest.approx(1 / 6)}
    found = LocalMetric("glue", "sst2").compute(predictions=said, references=truth)
    assert found == {"accuracy": 3 / 5}
    found = LocalMetric("glue", "stsb").compute(
        predictions=[1.0, 2.0, 9.0], references=[1.0, 2.0, 3.0]
    )
    assert found["spearmanr"] == pytest.approx(1.0)
    # Sums of products about the means 4 and 2: 8, 38 and 2.
    assert found["pearson"] == pytest.approx(8 / math.sqrt(38 * 2))
    constant = LocalMetric("glue", "stsb").compute(
        predictions=[1.0, 1.0], references=[1.0, 2.0]
    )
    assert constant == {"pearson": 0.0, "spearmanr": 0.0}


def test_entities():
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    said = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "B-LOC"]]
    found = LocalMetric("seqeval").compute(predictions=said, references=truth)
    # Three entities, three said, two right; of words four of six.
    assert found["overall_precision"] == pytest.approx(2 / 3)
    assert found["overall_recall"] == pytest.approx(2 / 3)
    assert found["overall_f1"] == pytest.approx(2 / 3)
    assert found["overall_accuracy"] == pytest.approx(4 / 6)
    assert found["PER"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "number": 1}
    assert found["LOC"]["number"] == 2
    assert found["LOC"]["precision"] == found["LOC"]["recall"] == 0.5


def test_squad_goes_by_the_question():
    said = [
        {"id": "b", "prediction_text": "The cat!"},
        {"id": "a", "prediction_text": "red house"},
    ]
    truth = [
        {"id": "a", "answers": {"text": ["a house"], "answer_start": [0]}},
        {"id": "b", "answers": {"text": ["dog", "cat"], "answer_start": [0, 9]}},
    ]
    found = LocalMetric("squad").compute(predictions=said, references=truth)
    # The second is right; the first has one word of two, which is the whole truth.
    assert found == {"exact_match": 50.0, "f1": pytest.approx(100 * (2 / 3 + 1) / 2)}


def test_squad_v2_has_the_names_of_the_hubs():
    said = [
        {"id": "a", "prediction_text": "", "no_answer_probability": 0.0},
        {"id": "b", "prediction_text": "cat", "no_answer_probability": 0.0},
    ]
    truth = [
        {"id": "a", "answers": {"text": [], "answer_start": []}},
        {"id": "b", "answers": {"text": ["dog"], "answer_start": [3]}},
    ]
    found = LocalMetric("squad_v2").compute(predictions=said, references=truth)
    assert found == {
        "exact": 50.0,
        "f1": 50.0,
        "total": 2,
        "HasAns_exact": 0.0,
        "HasAns_f1": 0.0,
        "HasAns_total": 1,
        "NoAns_exact": 100.0,
        "NoAns_f1": 100.0,
        "NoAns_total": 1,
    }


def test_what_is_not_computed_here_is_left_to_datasets():
    assert not is_local("bleu") and not is_local("glue", "nothing")
    assert not is_local("glue")
    with pytest.raises(KeyError):
        LocalMetric("bleu")
