"""Labels and columns that are not there, or are of several types."""

import csv
import json
import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoConfig, AutoTokenizer

from obert_modifiers.tasks.data.columns import as_text
from obert_modifiers.tasks.data.dataset import TextData
from obert_modifiers.tasks.data.labels import labels_of
from tests import tiny
from tests.tasks import inputs
from tests.tasks.inputs import tokenize

NAMES = {0: "bad", 1: "good"}
TEXT, TOKENS = "text_classification", "token_classification"


def data_of(features=None, **splits):
    made = {
        name: Dataset.from_dict(
            {"text": ["a"] * len(labels), "label": labels}, features
        )
        for name, labels in splits.items()
    }
    return TextData(made, ("text",), "label", "rows")


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A classifier of bad and good."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [row | {"label": NAMES[row["label"]]} for row in tiny.sentences(16)]
    path = inputs.write(folder / "train.json", rows)
    inputs.run(
        TEXT,
        "--do_train",
        model_name_or_path=small.model,
        train_file=path,
        output_dir=folder / "run",
        cache_dir=small.cache,
        num_train_epochs=1,
    )
    return folder / "run", path


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("label", ["none", None, -1])
@pytest.mark.parametrize("beside", [False, True])
def test_new_texts_are_predicted(run_task, trained, tmp_path, suffix, label, beside):
    model, train = trained
    more = {} if label == "none" else {"label": label}
    rows = [{"sentence": row["sentence"], **more} for row in tiny.sentences(5, 3)]
    test = inputs.write(tmp_path / f"new{suffix}", rows)
    flags = {"train_file": train} if beside else {}
    run_task(TEXT, "--do_predict", model_name_or_path=model, test_file=test, **flags)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        found = [row["prediction"] for row in csv.DictReader(file)]
    assert len(found) == 5 and set(found) <= {"bad", "good"}


def test_new_texts_need_a_model_with_classes(run_task, tmp_path):
    test = inputs.write(tmp_path / "new.csv", [{"sentence": "a fine film"}])
    with pytest.raises(ValueError, match="has BertModel, and test data alone names no"):
        run_task(TEXT, "--do_predict", test_file=test)


def test_new_texts_get_a_number_from_a_model_of_numbers(run_task, tmp_path):
    rows = [row | {"label": row["label"] + 0.5} for row in tiny.sentences(16)]
    run_task(
        TEXT,
        "--do_train",
        train_file=inputs.write(tmp_path / "train.csv", rows),
        output_dir=tmp_path / "run",
    )
    run_task(
        TEXT,
        "--do_predict",
        model_name_or_path=tmp_path / "run",
        test_file=inputs.write(tmp_path / "new.csv", [{"sentence": "a fine film"}]),
    )
    index, number = (
        (tmp_path / "out" / "predictions.csv").read_text().split()[1].split(",")
    )
    assert index == "0" and abs(float(number)) < 10


@pytest.mark.parametrize(
    ("splits", "known", "names"),
    [
        # Training data has it: a class, as before.
        ({"train": [-1, 1, 1], "validation": [-1]}, {}, ("-1", "1")),
        ({"train": [-1, 0, 1], "validation": [-1]}, {}, ("-1", "0", "1")),
        ({"train": [-1, 0, 1, 2], "validation": [-1, 0]}, {}, ("0", "1", "2")),
        ({"train": [0, 1], "validation": [0, -1]}, {}, ("0", "1")),
        ({"train": [0, 1], "validation": [1, 1]}, {}, ("0", "1")),
        # Without training data the model's classes tell.
        ({"validation": [0, 1, -1]}, {"no": 0, "yes": 1}, ("no", "yes")),
        ({"validation": [0, 1, -1]}, {"-1": 0, "0": 1, "1": 2}, ("-1", "0", "1")),
        ({"validation": [0, 1, -1]}, {"a": 0, "b": 1, "c": 2}, ("-1", "0", "1")),
    ],
)
def test_minus_one_is_no_label(splits, known, names):
    assert labels_of(data_of(**splits), known).names == names


def test_rows_without_a_label_are_left_out_and_counted(small, caplog):
    features = Features(text=Value("string"), label=ClassLabel(names=["z", "a"]))
    data = data_of(features, train=[0, -1, 1, 1], validation=[-1, 1], test=[-1, -1])
    labels = labels_of(data, {})
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    with caplog.at_level(logging.WARNING):
        made = tokenize(data, labels, tokenizer, 16)
    assert {name: len(rows) for name, rows in made.items()} == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }
    assert made["train"]["labels"][:] == [0, 1, 1]
    assert "1 of 4 rows of rows (train) are left out" in caplog.text


@pytest.mark.parametrize("labels", [[0, 1], [0.5, 2.5]])
def test_a_split_without_a_label_is_not_evaluated(labels):
    kind = type(labels[0])
    data = data_of(train=labels, validation=[kind(-1)] * 2)
    with pytest.raises(
        ValueError, match="column label of rows .validation. is -1 .*--do_predict"
    ):
        labels_of(data, {})


@pytest.mark.parametrize("eval_on_test", [True, False])
def test_the_error_names_the_split_or_file(run_task, tmp_path, eval_on_test):
    folder = tmp_path / "d"
    folder.mkdir()
    rows = tiny.sentences(8)
    inputs.write(folder / "train.csv", rows)
    inputs.write(folder / "test.csv", [row | {"label": -1} for row in rows])
    flags = {"dataset_name": folder, "do": "--eval_on_test"}
    place = rf"{folder} \(test\)"
    if not eval_on_test:
        place = folder / "test.csv"
        flags = {"train_file": folder / "train.csv", "validation_file": place}
    with pytest.raises(ValueError, match=f"label of {place} is -1 in each row"):
        run_task(TEXT, **flags)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [1, "x", 2],
            "holds 1 in row 0 of .*t.json and 'x' in row 1 of .*; expected te",
        ),
        ([["a"], "x"], "holds \\['a'\\] in row 0 of .* and 'x' in row 1"),
        ([["a"], [1]], "holds 'a' in row 0 .* and 1 in row 1"),
        ([True, 1], "holds True in row 0 .* and 1 in row 1"),
        ([{"a": 1}, {"a": 2}], "holds {'a': 1} in row 0 .*; expected text"),
        (
            ["a", None, "b"],
            "column label of .*t.json is empty in 1 rows, first in row 1",
        ),
        ([1, None, "b"], "column label of .*t.json is empty in 1 rows, first in row 1"),
        (["a", "", "b"], "column label of .*t.json is empty in 1 rows, first in row 1"),
        ([0.5, float("nan")], "column label of .*t.json is empty in 1 rows"),
    ],
)
def test_labels_of_several_types_and_missing_ones(run_task, tmp_path, lines, message):
    rows = [{"text": "a", "label": label} for label in lines]
    path = tmp_path / "t.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        run_task(TEXT, "--do_train", train_file=path)


def test_types_of_splits_are_compared_too():
    with pytest.raises(ValueError, match="holds 0 in row 0 of rows .train. and 'a' in"):
        labels_of(data_of(train=[0, 1], validation=["a", "b"]), {})
    whole = labels_of(data_of(train=[0, 1], validation=[1.0, 0.0]), {})
    assert whole.names == ("0", "1") and whole.numbers([1.0]) == [1]
    assert labels_of(data_of(train=[0, 1], validation=[1.5]), {}).regression


def test_a_class_may_be_called_none(run_task, tmp_path):
    rows = [row | {"label": [None, "None"][row["label"]]} for row in tiny.sentences(8)]
    rows = [row | {"label": row["label"] or "nan"} for row in rows]
    for suffix in (".csv", ".json"):
        out = tmp_path / f"out{suffix}"
        run_task(
            TEXT,
            "--do_train",
            train_file=inputs.write(tmp_path / f"t{suffix}", rows),
            output_dir=out,
        )
        assert AutoConfig.from_pretrained(out).id2label == {0: "None", 1: "nan"}


def test_numbers_in_a_column_of_text_are_read_as_text():
    rows = Dataset.from_dict({"a": [12, 7], "b": [["x"], ["y"]]})
    assert as_text(rows, "a", "f")["a"][:] == ["12", "7"]
    with pytest.raises(
        ValueError, match="b of f holds \\['x'\\] in row 0; expected te"
    ):
        as_text(rows, "b", "f")


WORDS = {"tokens": ["a", "fine", "film"], "ner_tags": ["O", "B-X", "O"]}


@pytest.mark.parametrize(
    ("task", "rows", "other", "missing"),
    [
        (
            TEXT,
            {"text": "a", "label": "x"},
            {"text": "a", "y": "x"},
            "label",
        ),
        (
            TEXT,
            {"text": "a", "label": "x"},
            {"b": "a", "label": "x"},
            "text",
        ),
        (TOKENS, WORDS, {"tokens": ["a"], "tags": ["O"]}, "ner_tags"),
        (TOKENS, WORDS, {"words": ["a"], "ner_tags": ["O"]}, "tokens"),
        ("masked_language_modeling", {"text": "a"}, {"sentence": "a"}, "text"),
    ],
)
def test_a_split_that_lacks_a_column_is_named(
    run_task, tmp_path, task, rows, other, missing
):
    more = {"label": "y"} if "label" in rows else {}
    train = inputs.write(tmp_path / "train.json", [rows, rows | more])
    validation = inputs.write(tmp_path / "other.json", [other])
    there = ", ".join(other)
    with pytest.raises(
        ValueError, match=f"data={validation} has no column {missing}, only {there}; ex"
    ):
        run_task(task, train_file=train, validation_file=validation)


def test_words_without_labels_are_predicted(run_task, tmp_path):
    train = inputs.write(tmp_path / "train.json", [WORDS] * 8)
    run_task(TOKENS, "--do_train", train_file=train, output_dir=tmp_path / "run")
    test = inputs.write(tmp_path / "new.json", [{"tokens": ["a", "dull", "film"]}] * 2)
    for number, more in enumerate(({}, {"train_file": train})):
        out = tmp_path / f"out{number}"
        run_task(
            TOKENS,
            "--do_predict",
            model_name_or_path=tmp_path / "run",
            test_file=test,
            output_dir=out,
            **more,
        )
        lines = (out / "predictions.txt").read_text().splitlines()
        assert [len(line.split()) for line in lines] == [3, 3]
