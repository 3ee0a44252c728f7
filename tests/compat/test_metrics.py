"""The metrics that take the place of the hub's scripts, counted by hand."""

import math

import pytest

from obert_modifiers.sparseml_cli.metrics import LocalMetric, is_local

approx = pytest.approx
SAID, TRUTH = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 hits of 1, 1 of 0


def text(one: str, said: str, **more) -> dict:
    return {"id": one, "prediction_text": said, **more}


def answers(one: str, *texts: str) -> dict:
    starts = [9 * place for place in range(len(texts))]
    return {"id": one, "answers": {"text": list(texts), "answer_start": starts}}


NO_ANSWER = {"no_answer_probability": 0.0}
CASES = [
    (("accuracy",), [1, 0, 1], [1, 1, 1], {"accuracy": approx(2 / 3)}),
    (("glue", "mrpc"), SAID, TRUTH, {"accuracy": 3 / 5, "f1": approx(2 / 3)}),
    # (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2)
    (("glue", "cola"), SAID, TRUTH, {"matthews_correlation": approx(1 / 6)}),
    (("glue", "sst2"), SAID, TRUTH, {"accuracy": 3 / 5}),
    (
        ("glue", "stsb"),
        [1.0, 2.0, 9.0],
        [1.0, 2.0, 3.0],
        # Sums of products about the means 4 and 2: 8, 38 and 2.
        {"spearmanr": approx(1.0), "pearson": approx(8 / math.sqrt(38 * 2))},
    ),
    (("glue", "stsb"), [1.0, 1.0], [1.0, 2.0], {"pearson": 0.0, "spearmanr": 0.0}),
    (  # It goes by the question.
        ("squad",),
        [text("b", "The cat!"), text("a", "red house")],
        [answers("a", "a house"), answers("b", "dog", "cat")],
        # The second is right; the first has one word of two, which is the whole truth.
        {"exact_match": 50.0, "f1": approx(100 * (2 / 3 + 1) / 2)},
    ),
    (  # The names are the hub's.
        ("squad_v2",),
        [text("a", "", **NO_ANSWER), text("b", "cat", **NO_ANSWER)],
        [answers("a"), answers("b", "dog")],
        {"exact": 50.0, "f1": 50.0, "total": 2}
        | {"HasAns_exact": 0.0, "HasAns_f1": 0.0, "HasAns_total": 1}
        | {"NoAns_exact": 100.0, "NoAns_f1": 100.0, "NoAns_total": 1},
    ),
]
assert len(CASES) == 8


@pytest.mark.parametrize(("name", "said", "truth", "expected"), CASES)
def test_figures(name, said, truth, expected):
    found = LocalMetric(*name).compute(predictions=said, references=truth)
    assert found == expected


def test_entities():
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    said = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "B-LOC"]]
    found = LocalMetric("seqeval").compute(predictions=said, references=truth)
    # Three entities, three said, two right; of words four of six.
    for figure in ("precision", "recall", "f1", "accuracy"):
        assert found[f"overall_{figure}"] == approx(2 / 3)
    assert found["PER"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "number": 1}
    assert found["LOC"]["number"] == 2
    assert found["LOC"]["precision"] == found["LOC"]["recall"] == 0.5


def test_what_is_not_computed_here_is_left_to_datasets():
    assert not is_local("bleu") and not is_local("glue", "nothing")
    assert not is_local("glue")
    with pytest.raises(KeyError):
        LocalMetric("bleu")
