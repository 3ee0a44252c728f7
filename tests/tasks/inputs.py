"""What a task makes its samples from, in one line of a test."""

import csv
from types import SimpleNamespace

from datasets import Dataset

from obert_modifiers import tasks
from obert_modifiers.tasks import text_classification
from obert_modifiers.tasks.data import dataset
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run.models import find
from obert_modifiers.tasks.task import Inputs
from tests import tiny


def write(path, rows):
    """Write rows in the format that a file's name says."""
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
    args = task.flags(**flags)
    cache = str(folder / "cache")
    return args, dataset.load(args, cache, 0, task.columns, task.reader)


def prepare(name: str, folder, model=None, seed=0, **flags):
    """Make the samples of a task for a model; returns them and the tokenizer."""
    args, data = load(name, folder, **flags)
    task = tasks.load(name)
    labels = None if task.labels is None else task.labels(data, args, {})
    pretrained = find(ModelArguments(None if model is None else str(model)))
    made = task.prepare(Inputs(data, labels, pretrained, args, seed))
    return made.data, pretrained.tokenizer


def tokenize(data, labels, tokenizer, length, **flags):
    """Turn the texts of all splits into tokens."""
    pretrained = SimpleNamespace(tokenizer=tokenizer, max_length=lambda most: most)
    args = text_classification.TextArguments(max_seq_length=length, **flags)
    inputs = Inputs(data, labels, pretrained, args, 0)
    return {name: text_classification.tokenize(inputs, name) for name in data.splits}


def run(name: str, do: str = "", **flags):
    """Run `obert train NAME` with these flags (None for none); returns its record."""
    given = {flag: value for flag, value in flags.items() if value is not None}
    words = [
        str(word) for flag, value in given.items() for word in (f"--{flag}", value)
    ]
    return tasks.main(name, [*words, *do.split()])
