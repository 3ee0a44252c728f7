"""Labels and columns that are not there, or are of several types."""

import csv
import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoConfig, AutoTokenizer

from obert_modifiers.tasks.data.columns import as_text
from obert_modifiers.tasks.data.labels import labels_of
from tests import tiny
from tests.tasks.inputs import counts, labelled, refused, tokenize, write

NAMES = {0: "bad", 1: "good"}
TEXT, TOKENS = "text_classification", "token_classification"


@pytest.fixture(scope="module")
def trained(run_in, tmp_path_factory):
    """A classifier of bad and good."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [row | {"label": NAMES[row["label"]]} for row in tiny.sentences(16)]
    path = write(folder / "train.json", rows)
    run_in(folder / "run", TEXT, "--do_train", train_file=path)
    return folder / "run", path


def predictions(folder) -> list[str]:
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == [str(i) for i in range(len(rows))]
    return [row["prediction"] for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("label", ["none", None, -1])
@pytest.mark.parametrize("beside", [False, True])
def test_new_texts_are_predicted(run_task, trained, tmp_path, suffix, label, beside):
    model, train = trained
    more = {} if label == "none" else {"label": label}
    rows = [{"sentence": row["sentence"], **more} for row in tiny.sentences(5, 3)]
    test = write(tmp_path / f"new{suffix}", rows)
    flags = {"train_file": train} if beside else {}
    run_task(TEXT, "--do_predict", model_name_or_path=model, test_file=test, **flags)
    found = predictions(tmp_path / "out")
    assert len(found) == 5 and set(found) <= {"bad", "good"}


def test_new_texts_need_a_model_with_classes(run_task, tmp_path):
    test = write(tmp_path / "new.csv", [{"sentence": "a fine film"}])
    with refused("has BertModel, and test data names no"):
        run_task(TEXT, "--do_predict", test_file=test)


def test_new_texts_get_a_number_from_a_model_of_numbers(run_task, tmp_path):
    rows = [row | {"label": row["label"] + 0.5} for row in tiny.sentences(16)]
    train = write(tmp_path / "train.csv", rows)
    run_task(TEXT, "--do_train", out="run", train_file=train)
    test = write(tmp_path / "new.csv", [{"sentence": "a fine film"}])
    model = tmp_path / "run"
    run_task(TEXT, "--do_predict", model_name_or_path=model, test_file=test)
    [number] = predictions(tmp_path / "out")
    assert abs(float(number)) < 10


@pytest.mark.parametrize(
    ("splits", "known", "names"),
    [
        # Training data has it: a class, as before.
        ({"train": [-1, 1, 1], "validation": [-1]}, "", "-1 1"),
        ({"train": [-1, 0, 1], "validation": [-1]}, "", "-1 0 1"),
        ({"train": [-1, 0, 1, 2], "validation": [-1, 0]}, "", "0 1 2"),
        ({"train": [0, 1], "validation": [0, -1]}, "", "0 1"),
        ({"train": [0, 1], "validation": [1, 1]}, "", "0 1"),
        # Without training data the model's classes tell.
        ({"validation": [0, 1, -1]}, "no yes", "no yes"),
        ({"validation": [0, 1, -1]}, "-1 0 1", "-1 0 1"),
        ({"validation": [0, 1, -1]}, "a b c", "-1 0 1"),
    ],
)
def test_minus_one_is_no_label(splits, known, names):
    known = {name: number for number, name in enumerate(known.split())}
    assert labels_of(labelled(**splits), known).names == tuple(names.split())


def test_rows_without_a_label_are_left_out_and_counted(small, caplog):
    features = Features(text=Value("string"), label=ClassLabel(names=["z", "a"]))
    data = labelled(features, train=[0, -1, 1, 1], validation=[-1, 1], test=[-1, -1])
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    with caplog.at_level(logging.WARNING):
        made = tokenize(data, labels_of(data, {}), tokenizer, 16)
    assert counts(made) == {"train": 3, "validation": 1, "test": 2}
    assert made["train"]["labels"][:] == [0, 1, 1]
    assert "1 of 4 rows of rows (train) are left out" in caplog.text


UNLABELLED = "column label of rows .validation. is -1 .*--do_predict"


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([0, 1], [-1, -1], UNLABELLED),
        ([0.5, 2.5], [-1.0, -1.0], UNLABELLED),
        ([0, 1], ["a", "b"], "holds 0 in row 0 of rows .train. and 'a' in"),
        (["good"], ["good"], "holds the one class good"),
    ],
)
def test_labels_that_tell_nothing_are_refused(train, validation, message):
    with refused(message):
        labels_of(labelled(train=train, validation=validation), {})


@pytest.mark.parametrize("eval_on_test", [True, False])
def test_the_error_names_the_split_or_file(run_task, tmp_path, eval_on_test):
    folder, rows = tmp_path / "d", tiny.sentences(8)
    train = write(folder / "train.csv", rows)
    place = write(folder / "test.csv", [row | {"label": -1} for row in rows])
    flags = {"train_file": train, "validation_file": place}
    if eval_on_test:
        flags = {"dataset_name": folder, "do": "--eval_on_test"}
        place = rf"{folder} \(test\)"
    with refused(f"label of {place} is -1 in each row"):
        run_task(TEXT, **flags)


EMPTY = "column label of .*t.json is empty in 1 rows"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([1, "x"], "holds 1 in row 0 of .*t.json and 'x' in row 1 of .*; expected te"),
        ([["a"], "x"], "holds \\['a'\\] in row 0 of .* and 'x' in row 1"),
        ([["a"], [1]], "holds 'a' in row 0 .* and 1 in row 1"),
        ([True, 1], "holds True in row 0 .* and 1 in row 1"),
        ([{"a": 1}, {"a": 2}], "holds {'a': 1} in row 0 .*; expected text"),
        (["a", None, "b"], f"{EMPTY}, first in row 1"),
        ([1, None, "b"], f"{EMPTY}, first in row 1"),
        (["a", "", "b"], f"{EMPTY}, first in row 1"),
        ([0.5, float("nan")], EMPTY),
    ],
)
def test_labels_of_several_types_and_missing_ones(run_task, tmp_path, lines, message):
    rows = [{"text": "a", "label": label} for label in lines]
    path = tiny.write_rows(tmp_path / "t.json", rows)
    with refused(message):
        run_task(TEXT, "--do_train", train_file=path)


def test_whole_floats_are_classes_where_others_are_whole():
    whole = labels_of(labelled(train=[0, 1], validation=[1.0, 0.0]), {})
    assert whole.names == ("0", "1") and whole.numbers([1.0]) == [1]
    assert labels_of(labelled(train=[0, 1], validation=[1.5]), {}).regression


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_class_may_be_called_none(run_task, tmp_path, suffix):
    rows = [row | {"label": ["nan", "None"][row["label"]]} for row in tiny.sentences(8)]
    run_task(TEXT, "--do_train", train_file=write(tmp_path / f"t{suffix}", rows))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "None", 1: "nan"}


def test_numbers_in_a_column_of_text_are_read_as_text():
    rows = Dataset.from_dict({"a": [12, 7], "b": [["x"], ["y"]]})
    assert as_text(rows, "a", "f")["a"][:] == ["12", "7"]
    with refused("b of f holds \\['x'\\] in row 0; expected te"):
        as_text(rows, "b", "f")


WORDS = {"tokens": ["a", "fine", "film"], "ner_tags": ["O", "B-X", "O"]}
LABEL = {"text": "a", "label": "x"}


@pytest.mark.parametrize(
    ("task", "rows", "other", "missing"),
    [
        (TEXT, LABEL, {"text": "a", "y": "x"}, "label"),
        (TEXT, LABEL, {"b": "a", "label": "x"}, "text"),
        (TOKENS, WORDS, {"tokens": ["a"], "tags": ["O"]}, "ner_tags"),
        (TOKENS, WORDS, {"words": ["a"], "ner_tags": ["O"]}, "tokens"),
        ("masked_language_modeling", {"text": "a"}, {"sentence": "a"}, "text"),
    ],
)
def test_a_split_lacks_a_column(run_task, tmp_path, task, rows, other, missing):
    more = {"label": "y"} if "label" in rows else {}
    train = write(tmp_path / "train.json", [rows, rows | more])
    validation = write(tmp_path / "other.json", [other])
    with refused(f"={validation} has no column {missing}, only {', '.join(other)};"):
        run_task(task, train_file=train, validation_file=validation)


def test_words_without_labels_are_predicted(run_task, tmp_path):
    train = write(tmp_path / "train.json", [WORDS] * 8)
    run_task(TOKENS, "--do_train", out="run", train_file=train)
    test = write(tmp_path / "new.json", [{"tokens": ["a", "dull", "film"]}] * 2)
    flags = {"model_name_or_path": tmp_path / "run", "test_file": test}
    for number, more in enumerate(({}, {"train_file": train})):
        out = f"out{number}"
        run_task(TOKENS, "--do_predict", out=out, **flags, **more)
        lines = (tmp_path / out / "predictions.txt").read_text().splitlines()
        assert [len(line.split()) for line in lines] == [3, 3]
