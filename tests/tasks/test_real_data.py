"""Real data sets become the tokens and labels that they should."""

import itertools
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from obert_modifiers import embedded, tasks
from obert_modifiers.tasks.data.labels import labels_of
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run.models import find
from obert_modifiers.tasks.sentences import data
from obert_modifiers.tasks.task import Inputs
from tests.tasks import inputs
from tests.tasks.inputs import counts, tokenize, unmasked

PAIR = ("sentence1", "sentence2")
# Rows of the splits, columns of text, number of classes (0: a number).
GLUE = {
    "cola": ({"train": 8551, "validation": 1043}, ("sentence",), 2),
    "rte": ({"train": 2490, "validation": 277}, PAIR, 2),
    "stsb": ({"train": 5749, "validation": 1500}, PAIR, 0),
    "qnli": ({"validation": 5463}, ("question", "sentence"), 2),
    "qqp_subset": ({"train": 20000, "validation": 3497}, ("question1", "question2"), 2),
    "sst2": ({"train": 67349, "validation": 872}, ("sentence",), 2),
}
NAMES = "O,B-PER,I-PER,B-ORG,I-ORG,B-LOC,I-LOC,B-MISC,I-MISC"
CONLL = {"train": 14041, "validation": 3250, "test": 3453}
SOME = 50


@pytest.fixture
def load(data_set, tmp_path):
    def load(task, name, **flags):
        return inputs.load(task, tmp_path, dataset_name=data_set(name), **flags)

    return load


def some(data):
    """Keep the first rows of each split."""
    some = range(SOME)
    splits = {name: rows.select(some) for name, rows in data.splits.items()}
    return replace(data, splits=splits)


@pytest.mark.parametrize("name", GLUE)
def test_glue(load, name):
    sizes, columns, classes = GLUE[name]
    _, data = load("text_classification", name)
    assert counts(data.splits) == sizes
    assert data.text_columns == columns
    labels = labels_of(data, {})
    assert len(labels.names) == classes and labels.regression == (classes == 0)
    tokenizer = AutoTokenizer.from_pretrained(embedded.encoder_path())
    made = tokenize(some(data), labels, tokenizer, 512)
    for row, read in zip(made["validation"], data.splits["validation"], strict=False):
        parts = [tokenizer.tokenize(read[column]) for column in columns]
        words = ["[CLS]", *(w for part in parts for w in (*part, "[SEP]"))]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == words
        assert row["labels"] == read["label"]
        second = len(parts[1]) + 1 if len(parts) == 2 else 0
        assert sum(row["token_type_ids"]) == second


def test_conll(load):
    task = tasks.load("token_classification")
    flags, data = load(task.name, "conll2003", label_names=NAMES)
    assert counts(data.splits) == CONLL
    labels = task.labels(data, flags, {})
    assert labels.names == tuple(NAMES.split(","))
    given = Inputs(some(data), labels, find(ModelArguments()), flags, 0)
    samples = task.prepare(given).data
    tokenizer = given.pretrained.tokenizer
    for row, read in zip(samples.train, data.splits["train"], strict=False):
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        marked = [(token, label) for token, label in pairs if label != -100]
        assert [label for _, label in marked] == read["ner_tags"]
        starts = tokenizer.convert_ids_to_tokens([token for token, _ in marked])
        for start, word in zip(starts, read["tokens"], strict=True):
            assert word.lower().startswith(start)
    assert samples.headline == ("f1", "accuracy")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("wiki_paragraphs", {"train": 18896, "validation": 2067}),
        ("wikitext2_raw", {"validation": 3760, "test": 4358}),
    ],
)
@pytest.mark.parametrize("line_by_line", [False, True])
def test_plain_text(load, name, sizes, line_by_line):
    task = tasks.load("masked_language_modeling")
    options = {"line_by_line": line_by_line, "max_seq_length": 64}
    flags, data = load(task.name, name, **options)
    assert counts(data.splits) == sizes
    given = Inputs(some(data), None, find(ModelArguments()), flags, 0)
    samples = task.prepare(given).data.validation
    blocks, tokenizer = unmasked(samples), given.pretrained.tokenizer
    texts = itertools.islice(data.splits["validation"]["text"], SOME)
    words = [tokenizer.tokenize(text) for text in texts if text.strip()]
    if line_by_line:
        expected = [["[CLS]", *row[:62], "[SEP]"] for row in words]
        found = [tokenizer.convert_ids_to_tokens(block) for block in blocks]
    else:
        expected = [word for row in words for word in ("[CLS]", *row, "[SEP]")]
        assert {len(block) for block in blocks[:-1]} == {64}
        found = tokenizer.convert_ids_to_tokens(sum(blocks, []))
    assert found == expected
    masked = [label for i in range(len(samples)) for label in samples[i]["labels"]]
    assert 0.12 < sum(label != -100 for label in masked) / len(masked) < 0.18


def test_pairs_of_sentences(data_set, tmp_path) -> None:
    """STS-B has scores, SQuAD questions and paragraphs, Wikipedia texts."""
    given = {"train": "stsb", "validation": "squad", "test": "wiki_paragraphs"}
    files = {
        f"{split}_file": data_set(name) / "validation.parquet"
        for split, name in given.items()
    }
    _, read = inputs.load("sentence_embedding", tmp_path, **files)
    kinds = {split: data.kind_of(rows) for split, rows in read.splits.items()}
    assert kinds == {"train": "scores", "validation": "pairs", "test": "texts"}
    assert counts(read.splits) == {"train": 1500, "validation": 10570, "test": 2067}
    scaled = data.scaled_scores(read, None)["train"]
    assert min(scaled) == 0.0 and max(scaled) == 1.0
