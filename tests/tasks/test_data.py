"""Data sets: every format, the columns, the labels, and what is wrong with them."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

from obert_modifiers.core import losses
from obert_modifiers.tasks.data.dataset import TextData
from obert_modifiers.tasks.data.labels import Labels, labels_of
from obert_modifiers.tasks.text_classification import TextArguments, text_columns
from tests.tasks import inputs
from tests.tasks.inputs import counts, labelled, refused, tokenize, write

ROWS = [
    {"text": "a fine film", "label": "good"},
    {"text": "a dull film", "label": "bad"},
    {"text": "the plot", "label": "mixed"},
]


def load(tmp_path, **flags):
    return inputs.load("text_classification", tmp_path, **flags)[1]


def in_memory(rows, columns=("text",), **splits):
    splits = {"train": rows, **splits}
    made = {name: Dataset.from_list(more) for name, more in splits.items()}
    return TextData(made, columns, "label", "rows")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_reads_alike(tmp_path, suffix):
    data = load(tmp_path, train_file=write(tmp_path / f"rows{suffix}", ROWS))
    assert data.splits["train"].to_list() == ROWS
    assert data.text_columns == ("text",)


def test_a_folder_is_a_data_set(tmp_path):
    write(tmp_path / "set" / "train.parquet", ROWS)
    write(tmp_path / "set" / "validation.parquet", ROWS[:2])
    data = load(tmp_path, dataset_name=tmp_path / "set")
    assert counts(data.splits) == {"train": 3, "validation": 2}


def test_without_flags_the_embedded_data_is_read(tmp_path):
    data = load(tmp_path, max_train_samples=7)
    assert data.description == "the embedded movie_snippets"
    assert counts(data.splits) == {"train": 7, "validation": 1000}
    assert data.text_columns == ("sentence",)


def test_validation_ratio_splits_the_training_data(tmp_path):
    flags = {"train_file": write(tmp_path / "rows.json", ROWS * 10)}
    first, again = (load(tmp_path, validation_ratio=0.2, **flags) for _ in range(2))
    assert counts(first.splits) == {"train": 24, "validation": 6}
    assert first.splits["train"].to_list() == again.splits["train"].to_list()


@pytest.mark.parametrize(
    ("names", "flags", "expected"),
    [
        ("sentence label idx", {}, "sentence"),
        ("question sentence label", {}, "question sentence"),
        ("headline body label", {}, "headline body"),
        ("id review label", {}, "review"),
        ("a b c label", {"input_column_names": "c,a"}, "c a"),
        ("sentence1 sentence2 label", {"task_name": "rte"}, "sentence1 sentence2"),
    ],
)
def test_text_columns(names, flags, expected):
    rows = Dataset.from_list([dict.fromkeys(names.split(), "x")])
    found = text_columns(rows, TextArguments(**flags), "rows")
    assert found == tuple(expected.split())


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("label_column_name", "lable", "expected one of text, label.*mean label\\?"),
        ("input_column_names", "txet", "--input_column_names=txet.*mean text\\?"),
        ("input_column_names", "text,text,label", "names 3 columns"),
        ("train_file", "wide.json", "columns a, b, c, label, of which 3 could"),
        ("train_file", "rosw.json", "does not exist.*mean rows.json\\?"),
        ("train_file", "rows.xml", "unknown kind; expected a name that ends in"),
        ("train_file", "empty.csv", "cannot be read as csv|no rows"),
        ("train_file", "broken.json", "cannot be read as json"),
        ("task_name", "sst3", "no GLUE task.*mean sst2\\?"),
        ("task_name", "sst2", "hub did not give it.*--train_file"),
        ("dataset_name", "nobody/nothing", "hub did not give it.*--train_file"),
        ("dataset_name", "nothing", "has no data that can be read"),
    ],
)
def test_data_that_is_not_there(tmp_path, monkeypatch, flag, value, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.json", ROWS)
    write(tmp_path / "wide.json", [{"a": "x", "b": "x", "c": "x", "label": 0}])
    (tmp_path / "rows.xml").touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken.json").write_text('{"text": "a", \n')
    with refused(message):
        load(tmp_path, **{"train_file": "rows.json", flag: value})


@pytest.mark.parametrize(
    ("values", "ids", "names"),
    [
        (["good", "bad", "mixed"], {"bad": 0, "good": 1, "mixed": 2}, "bad good mixed"),
        ([1, 0, 1], {0: 0, 1: 1}, "0 1"),
        ([4, 0, 4], {0: 0, 4: 1}, "0 4"),
        ([-1, 1, 1], {-1: 0, 1: 1}, "-1 1"),
        ([True, False, True], {False: 0, True: 1}, "False True"),
    ],
)
def test_texts_and_whole_numbers_are_sorted_classes(values, ids, names):
    labels = labels_of(labelled(train=values), {})
    assert (labels.ids, labels.names) == (ids, tuple(names.split()))
    assert labels.num_labels == len(ids)


def test_floats_are_to_be_predicted():
    labels = labels_of(labelled(train=[2.5]), {})
    assert labels.regression and labels.num_labels == 1
    assert labels.numbers([2, 0.5]) == [2.0, 0.5]


def test_a_data_sets_own_classes_keep_their_order():
    features = Features(text=Value("string"), label=ClassLabel(names=["z", "a"]))
    assert labels_of(labelled(features, train=[1]), {}).names == ("z", "a")


def test_a_trained_model_keeps_its_classes():
    known = {"Mixed": 0, "Good": 1, "Bad": 2}
    labels = labels_of(in_memory(ROWS[:2]), known)
    assert labels.names == ("Mixed", "Good", "Bad")
    assert labels.ids == {"good": 1, "bad": 2}
    numbers = labelled(train=[1])
    assert labels_of(numbers, {"no": 0, "yes": 1}).names == ("no", "yes")


@pytest.mark.parametrize("column", ["text", "label"])
def test_an_empty_cell_is_an_error(small, column):
    data = in_memory([*ROWS, {**ROWS[0], column: None}])
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    with refused(f"column {column} of rows.*first in row 3"):
        tokenize(data, labels_of(data, {}), tokenizer, 16)


def test_tokens_of_pairs_and_labels(small):
    rows = [{"a": "fine film", "b": "a dull plot", "label": 1}]
    data = in_memory(rows * 2, ("a", "b"), test=[{"a": "x", "b": "y", "label": None}])
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    labels = Labels("label", {0: 0, 1: 1}, ("0", "1"))
    made = tokenize(data, labels, tokenizer, 7)
    row = made["train"][0]
    assert len(row["input_ids"]) == 7 and row["labels"] == 1
    assert tokenizer.decode(row["input_ids"]).count("[SEP]") == 2
    assert "labels" not in made["test"].column_names
    padded = tokenize(data, labels, tokenizer, 12, pad_to_max_length=True)
    assert len(padded["train"][0]["input_ids"]) == 12


def test_losses_are_those_of_each_sample():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    batch = {"labels": torch.tensor([0, 0])}
    expected = torch.logsumexp(logits.double(), -1) - logits.double()[:, 0]
    found = losses.classification_loss({"logits": logits}, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    numbers = {"labels": torch.tensor([1.0, 3.0])}
    squares = losses.regression_loss({"logits": torch.tensor([[0.0], [1.0]])}, numbers)
    assert squares.tolist() == [1.0, 4.0]
