"""EM and F1 against a table of cases worked out by hand from their definitions."""

from collections.abc import Callable

import pytest

from obert_modifiers.tasks.squad import metrics
from obert_modifiers.tasks.squad.metrics import squad_metrics, squad_v2_metrics

# Answer, right answers, EM, F1. Words that are common, twice, over all words of both.
V1 = [
    ("The Denver Broncos!", ["denver broncos"], 1, 1),
    ("Denver Broncos of Colorado", ["Denver Broncos"], 0, 2 * 2 / 6),
    ("Denver", ["Carolina Panthers", "Denver Broncos"], 0, 2 * 1 / 3),
    ("wrong", ["right", "wrong"], 1, 1),
    ("Carolina", ["Denver"], 0, 0),
    ("New York New York", ["New York"], 0, 2 * 2 / 6),
    ("well-known", ["wellknown"], 1, 1),
    ("24–10", ["2410"], 0, 0),  # a dash that is not ASCII stays
    ("24-10", ["2410"], 1, 1),
    ("theatre", ["atre"], 0, 0),  # an article is a word
    ("two \n  words ", ["two words"], 1, 1),
    ("Café", ["cafe"], 0, 0),
    ("ÉTÉ", ["été"], 1, 1),
    ("", ["Denver"], 0, 0),
    ("a", ["the"], 1, 0),  # neither has words: the same, with none in common
    ("an apple, a pear", ["pear apple"], 0, 1),
]
V2 = [
    *[case for case in V1 if case[0] != "a"],
    ("", [], 1, 1),
    ("Denver", [], 0, 0),
    ("The", [], 1, 1),  # no words, so no answer
    ("a", ["the"], 1, 1),
    ("Denver", ["the"], 0, 0),
    ("", ["the", "Denver"], 0, 0),  # "the" is left out
]
TABLES = [(squad_metrics, V1, 16), (squad_v2_metrics, V2, 21)]


def check_table(measure: Callable, table: list) -> None:
    for predicted, truths, exact, overlap in table:
        found = measure([predicted], [truths])
        expected = (100 * exact, pytest.approx(100 * overlap))
        assert (found["exact_match"], found["f1"]) == expected, (predicted, truths)


@pytest.mark.parametrize(("measure", "table", "size"), TABLES)
def test_each_case_of_the_table(measure: Callable, table: list, size: int) -> None:
    assert len(table) == size
    check_table(measure, table)


@pytest.mark.parametrize(("measure", "table", "size"), TABLES)
def test_figures_are_means_in_percent(measure, table, size) -> None:
    found = measure([case[0] for case in table], [case[1] for case in table])
    assert found["exact_match"] == pytest.approx(100 * sum(c[2] for c in table) / size)
    assert found["f1"] == pytest.approx(100 * sum(c[3] for c in table) / size)


def test_v2_counts_both_kinds_alone() -> None:
    predicted = ["Denver", "Denver Broncos", "", "x", ""]
    truths = [["Denver"], ["Denver"], ["Denver"], [], []]
    found = squad_v2_metrics(predicted, truths)
    assert found == {
        "exact_match": pytest.approx(100 * 2 / 5),
        "f1": pytest.approx(100 * (1 + 2 / 3 + 1) / 5),
        "HasAns_exact_match": pytest.approx(100 / 3),
        "HasAns_f1": pytest.approx(100 * (1 + 2 / 3) / 3),
        "HasAns_total": 3,
        "NoAns_exact_match": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }
    assert not any("NoAns" in name for name in squad_v2_metrics(["x"], [["x"]]))
    # A right answer without words is still one, as in the official script.
    assert squad_v2_metrics([""], [["the"]])["HasAns_total"] == 1


def keep_articles(text: str) -> str:
    plain = text.lower().translate(metrics._PUNCTUATION)
    return " ".join(plain.split())


def keep_punctuation(text: str) -> str:
    return " ".join(metrics._ARTICLES.sub(" ", text.lower()).split())


def keep_case(text: str) -> str:
    plain = text.translate(metrics._PUNCTUATION)
    return " ".join(metrics._ARTICLES.sub(" ", plain).split())


def cut_articles_anywhere(text: str) -> str:
    plain = text.lower().translate(metrics._PUNCTUATION)
    return " ".join(plain.replace("the", " ").split())


def overlap_of_sets(predicted: str, truth: str) -> float:
    one = set(metrics.normalize(predicted).split())
    two = set(metrics.normalize(truth).split())
    return 2 * len(one & two) / (len(one) + len(two)) if one & two else 0.0


def first_alone(compare, predicted, truths) -> list[float]:
    pairs = zip(predicted, truths, strict=True)
    return [compare(answer, texts[0]) for answer, texts in pairs]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("normalize", keep_articles),
        ("normalize", keep_punctuation),
        ("normalize", keep_case),
        ("normalize", cut_articles_anywhere),
        ("f1", overlap_of_sets),
        ("_best", first_alone),
    ],
)
@pytest.mark.parametrize(("measure", "table", "size"), TABLES)
def test_a_planted_error_fails(monkeypatch, measure, table, size, name, wrong) -> None:
    monkeypatch.setattr(metrics, name, wrong)
    with pytest.raises(AssertionError):
        check_table(measure, table)


def test_v1_and_v2_are_not_the_same_rule() -> None:
    with pytest.raises(AssertionError):
        check_table(squad_v2_metrics, V1)
    with pytest.raises((AssertionError, ValueError)):
        check_table(squad_metrics, V2)
