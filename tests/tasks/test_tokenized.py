"""Upstream data: several data sets, whose tokens are made once and kept on disk."""

import json
import os
import platform
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from obert_modifiers import cli
from obert_modifiers.tasks.data import tokenized
from obert_modifiers.tasks.masked_language_modeling import TASK, MaskedArguments
from obert_modifiers.training import RecipeStepper
from tests import tiny
from tests.hosts import ROOT, environment
from tests.tasks import inputs
from tests.tasks.inputs import refused, unmasked, words_of

TEXTS = [" ".join(["Fine", *tiny.GOOD[i % 3 :], *tiny.BAD[: i % 4]]) for i in range(30)]


@pytest.fixture
def prepare(small, tmp_path):
    """Return what makes the samples of two data sets, in blocks of 16 tokens."""
    rows = [{"text": text} for text in TEXTS[:20]]
    inputs.write(tmp_path / "books" / "train.json", rows)
    rows = [{"sentence": text, "title": "a"} for text in TEXTS[20:]]
    inputs.write(tmp_path / "wiki" / "train.parquet", rows)
    both = f"{tmp_path / 'books'},{tmp_path / 'wiki'}"

    def prepare(model=small.model, **flags):
        flags = {"dataset_name": both, "max_seq_length": 16} | flags
        flags |= {"tokenized_dir": str(tmp_path / "kept")}
        return inputs.prepare(TASK.name, tmp_path, model, 7, **flags)[0].train

    return prepare


def test_several_data_sets_are_one(prepare, small) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    expected = sum(tokenizer(TEXTS)["input_ids"], [])
    found = unmasked(prepare())
    assert sum(found, []) == expected
    assert [len(ids) for ids in found[:-1]] == [16] * (len(found) - 1)


def test_each_has_its_configuration() -> None:
    flags = MaskedArguments(dataset_name="books, wiki", dataset_config_name=",2020.en")
    assert flags.data_sets() == [("books", None), ("wiki", "2020.en")]
    assert MaskedArguments(dataset_name="a,b").data_sets() == [("a", None), ("b", None)]
    assert MaskedArguments(dataset_name="a").data_sets() == [("a", None)]
    for name, config in (("a,b", "c"), ("a,b", "c,d,e"), ("a,", None)):
        with refused("dataset_config_name=.* configurations for"):
            MaskedArguments(dataset_name=name, dataset_config_name=config).check()


def test_tokens_are_made_once_and_stay_on_the_disk(prepare, tmp_path, monkeypatch):
    first = prepare()
    monkeypatch.setattr(tokenized, "_make", None)
    again = prepare()
    assert [again[i] for i in range(len(again))] == [
        first[i] for i in range(len(first))
    ]
    [file] = again.blocks.cache_files  # mapped into memory
    assert file["filename"] == str(tmp_path / "kept" / "train" / "blocks.arrow")
    assert again.token_counts() == [len(ids) for ids in again.blocks["input_ids"]]
    shuffled = again.blocks.select([3, 0])
    assert type(again)(shuffled, again.masking, 1).token_counts() == [16, 16]


def test_without_a_folder_each_has_its_own(small, tmp_path) -> None:
    path = inputs.write(tmp_path / "a.json", [{"text": text} for text in TEXTS])
    for length in (16, 24, 16):
        flags = {"train_file": path, "max_seq_length": length}
        inputs.prepare(TASK.name, tmp_path, small.model, **flags)
    assert len(list((tmp_path / "cache" / "tokenized").iterdir())) == 2


def test_what_the_tokens_are_made_from_is_checked(prepare, small, tmp_path) -> None:
    prepare()
    for flags in ({"max_seq_length": 20}, {"line_by_line": True}):
        [name] = flags
        with refused(f"is made with {name}=.*; expected {flags[name]}"):
            prepare(**flags)
    with refused("is made with rows=30; expected 20"):
        prepare(max_train_samples=20)
    other = tmp_path / "other"
    tiny.save_model(other)
    words, config = other / "tokenizer.json", other / "tokenizer_config.json"
    one, two = tiny.GOOD[:2]
    text = words.read_text(encoding="utf-8")
    swapped = text.replace(f'"{one}"', "?").replace(f'"{two}"', f'"{one}"')
    words.write_text(swapped.replace("?", f'"{two}"'), encoding="utf-8")
    with refused("is made with vocabulary="):
        prepare(other)
    words.write_text(text, encoding="utf-8")
    cased = json.loads(config.read_text(encoding="utf-8")) | {"do_lower_case": False}
    config.write_text(json.dumps(cased), encoding="utf-8")
    with refused("is made with tokens="):  # the same words, otherwise read
        prepare(other)


@pytest.mark.parametrize("whole", [tokenized.WHOLE, 0])
def test_an_edited_text_is_told(prepare, tmp_path, monkeypatch, whole) -> None:
    """Any row of a small data set; of a large one, by its bytes."""
    monkeypatch.setattr(tokenized, "WHOLE", whole)
    monkeypatch.setattr(tokenized, "SAMPLED", 2)
    prepare()
    prepare()
    texts = [*TEXTS[:3], f"{TEXTS[3]} {tiny.BAD[0]}", *TEXTS[4:20]]
    rows = [{"text": text} for text in texts]
    inputs.write(tmp_path / "books" / "train.json", rows)
    with refused("is made with texts="):
        prepare()


def test_damage_is_told(prepare, tmp_path) -> None:
    prepare()
    folder = tmp_path / "kept" / "train"
    blocks = folder / "blocks.arrow"
    blocks.write_bytes(blocks.read_bytes()[:-8])
    with refused("blocks.arrow is missing or damaged"):
        prepare()
    (folder / tokenized.MANIFEST).write_text("{")
    with refused(f"has no {tokenized.MANIFEST} that can be read"):
        prepare()


def test_workers_keep_the_order(prepare, tmp_path, small) -> None:
    found = sum(unmasked(prepare(preprocessing_num_workers=2)), [])
    files = sorted(p.name for p in (tmp_path / "kept" / "train").glob("*.arrow"))
    assert len(files) == 2
    tokenizer = AutoTokenizer.from_pretrained(small.model)
    assert found == sum(tokenizer(TEXTS)["input_ids"], [])


KILLED = """
import os, signal, sys
from pathlib import Path
from obert_modifiers.tasks.data import tokenized

def make(folder):
    (folder / "blocks.arrow").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

tokenized.stored(Path(sys.argv[1]), {}, make)
"""


def test_a_run_that_is_killed_leaves_nothing_that_is_read(prepare, tmp_path) -> None:
    folder = tmp_path / "kept" / "train"
    command = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and not folder.exists()
    assert len(list(folder.parent.glob("*.partial"))) == 1
    living = folder.with_name(f"train.{platform.node()}.{os.getppid()}.partial")
    living.mkdir()
    prepare()
    assert list(folder.parent.glob("*.partial")) == [living]
    assert sorted(p.name for p in folder.iterdir()) == [
        "blocks.arrow",
        tokenized.MANIFEST,
    ]


def test_another_process_may_be_faster(tmp_path) -> None:
    folder = tmp_path / "train"

    def make(partial) -> None:
        (partial / "ours").touch()
        folder.mkdir()
        (folder / tokenized.MANIFEST).write_text('{"made_from": {"a": 1}, "files": {}}')

    with refused("is made with a=1; expected 2"):
        tokenized.stored(folder, {"a": 2}, make)
    assert [path.name for path in folder.iterdir()] == [tokenized.MANIFEST]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_stopped_run_goes_on_with_the_same_bits(
    prepare, small, tmp_path, monkeypatch
):
    prepare()  # writes the data sets, and their tokens
    words = ["train", TASK.name, "--use_cpu", "--do_train"] + words_of(
        model_name_or_path=small.model,
        dataset_name=f"{tmp_path / 'books'},{tmp_path / 'wiki'}",
        tokenized_dir=tmp_path / "kept",
        cache_dir=small.cache,
        max_seq_length=16,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        seed=7,
    )
    monkeypatch.setattr(tokenized, "_make", None)  # they are only read
    assert cli.main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    step = RecipeStepper.step

    def stopping(self):
        if self.steps == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    stopped = [*words, "--output_dir", str(tmp_path / "stopped")]
    with monkeypatch.context() as patched:
        patched.setattr(RecipeStepper, "step", stopping)
        assert cli.main(stopped) == 0
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    assert cli.main([*stopped, "--resume_from_checkpoint", "last"]) == 0
    whole, resumed = (
        load_file(tmp_path / name / "model.safetensors")
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())
