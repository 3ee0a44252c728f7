"""A label for each word, whatever a tokenizer makes of it and however long its row."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from obert_modifiers.tasks.token_classification import token_metrics
from obert_modifiers.tasks.words.conll import read_columns
from obert_modifiers.tasks.words.windows import by_word, cut_rows
from tests import tiny
from tests.tasks.inputs import refused

NAMES = ("O", "B-BAD", "B-GOOD")
TASK = "token_classification"


@pytest.mark.parametrize("most", [4, 5, 9, 64])
def test_every_word_is_labelled_once_in_order(small, most) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    words = [*tiny.GOOD, *tiny.BAD, "", "\u200b", *tiny.OTHER] * 2
    classes = [n % 3 for n in range(len(words))]
    made = cut_rows(tokenizer, [words, ["good"]], [classes, [2]], most)
    assert all(len(ids) <= most for ids in made["input_ids"])
    pairs = list(zip(made["row"], made["words"], strict=True))
    labelled = sorted((row, word) for row, part in pairs for word in part)
    without = {n for n, word in enumerate(words) if word in ("", "\u200b")}
    there = [n for n in range(len(words)) if n not in without]
    assert labelled == [*((0, n) for n in there), (1, 0)]
    # A model that is always right gives the classes back, and O where no token is.
    labels = [np.array(one) for one in made["labels"]]
    places = [{"row": row, "words": part} for row, part in pairs]
    found = by_word(labels, labels, places, [len(words), 1], 0)
    expected = [0 if n in without else one for n, one in enumerate(classes)]
    assert found[0].tolist() == expected and found[1].tolist() == [2]


def test_without_an_outside_class_neighbours_decide() -> None:
    labels = [np.array([-100, 1, 2, -100])]
    places = [{"row": 0, "words": [1, 3]}]
    found = by_word(labels, labels, places, [5, 0], None)
    assert found[0].tolist() == [1, 1, 1, 2, 2] and found[1].tolist() == []


def test_metrics_count_words_that_no_window_shows() -> None:
    truth = [np.array([0, 1, 2])]
    whole = token_metrics([np.array([0, 1, 2])], truth, NAMES)
    assert whole["f1"] == whole["accuracy"] == 1.0
    part = token_metrics([np.array([0, 1, 0])], truth, NAMES)
    assert part["accuracy"] == pytest.approx(2 / 3)
    assert part["f1"] == pytest.approx(2 / 3)  # precision 1, recall 1/2


def test_predictions_have_a_label_for_each_word(run_task, tmp_path) -> None:
    rows = [
        {"tokens": ["good", "", "\u200b", "bad"], "ner_tags": ["O", "O", "O", "B-X"]},
        {"tokens": [*tiny.OTHER] * 30, "ner_tags": ["O"] * (30 * len(tiny.OTHER))},
        {"tokens": [], "ner_tags": []},
    ] * 3
    names = ("train_file", "validation_file", "test_file")
    files = dict.fromkeys(names, tiny.write_rows(tmp_path / "rows.json", rows))
    record = run_task(TASK, "--use_cpu --do_train --do_eval --do_predict", **files)
    lines = (tmp_path / "out" / "predictions.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [len(row["tokens"]) for row in rows]
    assert record["samples"] == len(rows)


CONLL = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O

Peter NNP B-PER
"""


def test_columns_are_words_and_tags(tmp_path) -> None:
    file = tmp_path / "a.conll"
    file.write_text(CONLL)
    rows = read_columns("--train_file", file).to_list()
    assert rows == [
        {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "ner_tags": ["B-PER"]},
    ]
    file.write_text("New York\tB-LOC\n\nand\tO\n")
    assert read_columns("--train_file", file)["tokens"] == [["New York"], ["and"]]
    file.write_text("Peter\n\nsaw\nit\n")
    rows = read_columns("--test_file", file).to_list()
    assert rows == [{"tokens": ["Peter"]}, {"tokens": ["saw", "it"]}]
    file.write_text("EU B-ORG\nrejects\n")
    with refused(f"^--train_file={file} has 1 columns in line 2; expect"):
        read_columns("--train_file", file)


def test_a_conll_file_trains(run_task, tmp_path) -> None:
    text = "".join(f"{word} O\ngood B-GOOD\n\n" for word in tiny.OTHER * 4)
    file = tmp_path / "train.txt"
    file.write_text(text)
    record = run_task(TASK, "--use_cpu", train_file=file, validation_file=file)
    assert record["samples"] == 4 * len(tiny.OTHER)
    assert 0.0 <= record["f1"] <= 1.0
