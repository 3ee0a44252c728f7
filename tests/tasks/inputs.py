"""What a task makes its samples from, in one line of a test."""

import csv
from types import SimpleNamespace

import pytest
from datasets import Dataset

from obert_modifiers import tasks
from obert_modifiers.tasks import text_classification
from obert_modifiers.tasks.data import dataset
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run.models import find
from obert_modifiers.tasks.task import Inputs
from tests import tiny


def refused(match: str):
    """Expect a ValueError that says this."""
    return pytest.raises(ValueError, match=match)


def write(path, rows):
    """Write rows in the format that a file's name says, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix in (".json", ".jsonl"):
        tiny.write_rows(path, rows)
    else:
        tabs = "\t" if path.suffix == ".tsv" else ","
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=tabs)
            writer.writeheader()
            writer.writerows(rows)
    return path


def load(name: str, folder, **flags):
    """Read a data set as a task does; returns its flags and the data."""
    task = tasks.load(name)
    paths = {k: str(v) for k, v in flags.items() if k.endswith(("_file", "set_name"))}
    args = task.flags(**flags | paths)
    cache = str(folder / "cache")
    return args, dataset.load(args, cache, 0, task.columns, task.reader)


def counts(splits) -> dict[str, int]:
    """Count the rows of splits."""
    return {name: len(rows) for name, rows in splits.items()}


def labelled(features=None, column="label", **splits) -> dataset.TextData:
    """Make a data set of texts from the labels of its splits."""
    made = {
        name: Dataset.from_dict({"text": ["a"] * len(given), column: given}, features)
        for name, given in splits.items()
    }
    return dataset.TextData(made, ("text",), column, "rows")


def prepare(name: str, folder, model=None, seed=0, **flags):
    """Make the samples of a task for a model; returns them and the tokenizer."""
    args, data = load(name, folder, **flags)
    task = tasks.load(name)
    labels = None if task.labels is None else task.labels(data, args, {})
    named = None if model is None else str(model)
    pretrained = find(ModelArguments(named, cache_dir=str(folder / "cache")))
    made = task.prepare(Inputs(data, labels, pretrained, args, seed))
    return made.data, pretrained.tokenizer


def tokenize(data, labels, tokenizer, length, **flags):
    """Turn the texts of all splits into tokens."""
    pretrained = SimpleNamespace(tokenizer=tokenizer, max_length=lambda most: most)
    args = text_classification.TextArguments(max_seq_length=length, **flags)
    inputs = Inputs(data, labels, pretrained, args, 0)
    return {name: text_classification.tokenize(inputs, name) for name in data.splits}


def unmasked(samples) -> list[list[int]]:
    """Undo the masks of samples."""
    pairs = [
        zip(one["input_ids"], one["labels"], strict=True)
        for one in (samples[i] for i in range(len(samples)))
    ]
    return [[n if label == -100 else label for n, label in pair] for pair in pairs]


def words_of(**flags) -> list[str]:
    """Write flags (None for none) as the words of a command line."""
    given = {flag: value for flag, value in flags.items() if value is not None}
    return [str(word) for flag, value in given.items() for word in (f"--{flag}", value)]


def run(name: str, do: str = "", **flags):
    """Run `obert train NAME` with these flags (None for none); returns its record."""
    return tasks.main(name, [*words_of(**flags), *do.split()])
