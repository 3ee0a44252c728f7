"""Question answering, the whole way on a tiny model."""

import json
import math
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForQuestionAnswering

from obert_modifiers.resources import recipe_path
from tests import questions, tiny
from tests.hosts import TORCHRUN
from tests.tasks.inputs import refused, words_of

WINDOWS = {"max_seq_length": 24, "doc_stride": 6}
QUESTIONS = questions.rows(40, 1)
MAYBE = questions.rows(40, 3, 0.4)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Return paths of questions in three forms."""
    folder = tmp_path_factory.mktemp("asked")
    write = questions.write_document
    return SimpleNamespace(
        train=write(folder / "train.json", questions.rows(120)),
        validation=tiny.write_rows(folder / "valid.jsonl", QUESTIONS),
        train_2=tiny.write_rows(folder / "train2.jsonl", questions.rows(200, 2, 0.4)),
        validation_2=write(folder / "dev2.json", MAYBE),
    )


@pytest.fixture(scope="module")
def run(run_in, asked):
    flags = {
        "train_file": asked.train,
        "validation_file": asked.validation,
        "per_device_eval_batch_size": 16,
        "learning_rate": 5e-3,
        **WINDOWS,
    }
    return lambda out, do="", **other: run_in(
        out, "question_answering", do, **flags | other
    )


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """Return the folder and the record of a run without a recipe."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    return out, run(out, num_train_epochs=3)


def test_it_learns_and_the_saved_model_measures_the_same(run, trained, tmp_path):
    out, record = trained
    assert record["f1"] > 80 and record["samples"] == 40 < record["windows"]
    assert record["train_samples"] > 120  # windows
    assert record["headline"] == ["f1", "exact_match"]
    again = run(tmp_path, "--do_eval", model_name_or_path=out, train_file=None)
    for name in ("f1", "exact_match", "windows"):
        assert again[name] == record[name]
    assert again["loss"] == pytest.approx(record["loss"], rel=1e-5)
    written = json.loads((out / "metrics.json").read_text())
    assert all(written[name] == record[name] for name in ("f1", "exact_match"))


def test_predictions_are_those_that_were_measured(run, asked, trained, tmp_path):
    """Answers found without this package's search, in another process, agree."""
    out, record = trained
    flags = {"model_name_or_path": out, "train_file": None, "validation_file": None}
    found = run(tmp_path, "--do_predict", test_file=asked.validation, **flags)
    assert found["f1"] is None
    answers = json.loads((tmp_path / "predictions.json").read_text())
    nbest = json.loads((tmp_path / "nbest_predictions.json").read_text())
    assert not (tmp_path / "null_odds.json").exists()
    right = sum(answers[row["id"]] == row["answers"]["text"][0] for row in QUESTIONS)
    assert 100 * right / 40 == record["exact_match"]
    assert list(answers) == list(nbest) == [row["id"] for row in QUESTIONS]
    for name, candidates in nbest.items():
        assert candidates[0]["text"] == answers[name] and len(candidates) <= 20
        assert math.isclose(sum(one["probability"] for one in candidates), 1)
    model = BertForQuestionAnswering.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    short = [row for row in QUESTIONS if len(row["context"].split()) <= 18]
    assert len(short) > 5
    for row in short:
        encoded = tokenizer(row["question"], row["context"], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**encoded)
        words = row["context"].split()
        starts, ends = outputs.start_logits[0, 4:], outputs.end_logits[0, 4:]
        scores = {
            (first, last): starts[first] + ends[last]
            for first in range(len(words))
            for last in range(first, len(words))
        }
        first, last = max(scores, key=scores.get)
        assert answers[row["id"]] == " ".join(words[first : last + 1])


@pytest.mark.slow
def test_questions_without_an_answer(run, asked, tmp_path):
    record = run(
        tmp_path,
        "--version_2_with_negative --do_train --do_eval --do_predict",
        train_file=asked.train_2,
        validation_file=asked.validation_2,
        test_file=asked.validation_2,
        num_train_epochs=3,
    )
    empty = [row["id"] for row in MAYBE if not row["answers"]["text"]]
    assert record["NoAns_total"] == len(empty) and 5 < len(empty) < 35
    assert record["HasAns_total"] == 40 - len(empty)
    kinds = ("NoAns", "HasAns")
    exact = sum(record[f"{k}_exact_match"] * record[f"{k}_total"] for k in kinds)
    assert record["exact_match"] == pytest.approx(exact / 40)
    assert record["f1"] > 60
    answers = json.loads((tmp_path / "predictions.json").read_text())
    odds = json.loads((tmp_path / "null_odds.json").read_text())
    likely = {name for name in odds if odds[name] > 0}
    assert {name for name in answers if not answers[name]} == likely
    right = sum(not answers[name] for name in empty)
    assert 100 * right / len(empty) == pytest.approx(record["NoAns_f1"])
    # Where the threshold is out of reach, no answer is never given.
    found = run(
        tmp_path / "far",
        "--version_2_with_negative --null_score_diff_threshold 1e9 --do_eval",
        model_name_or_path=tmp_path,
        train_file=None,
        validation_file=asked.validation_2,
    )
    assert found["NoAns_f1"] == 0.0 and found["HasAns_f1"] >= record["HasAns_f1"]


RECIPE = {
    "num_epochs": 2.0,
    "lr_rewind_epoch": 1.5,
    "init_lr": 3e-3,
    "final_lr": 1e-3,
    "pruning_start_epoch": 0.5,
    "pruning_end_epoch": 1.5,
    "num_grads": 4,
    "grad_batch_size": 4,
    "fisher_block_size": 16,
}


@pytest.fixture(scope="module")
def run_recipe(run, trained):
    return lambda out, **values: run(
        out,
        recipe=recipe_path("bert-base_squad_obert-10ep_unstructured90"),
        distill_teacher=trained[0],
        max_train_samples=40,
        recipe_args=json.dumps(RECIPE | values),
    )


@pytest.fixture(scope="module")
def pruned(run_recipe, tmp_path_factory):
    """Return the folder and the record of a run with the paper's recipe."""
    out = tmp_path_factory.mktemp("runs") / "pruned"
    return out, run_recipe(out)


def test_the_papers_recipe_ends_with_its_sparsity(pruned):
    out, record = pruned
    weights = [layer["numel"] for layer in record["layers"]]
    zeros = [layer["pruned"] for layer in record["layers"]]
    assert sum(zeros) == round(Fraction(9, 10) * sum(weights)) and len(weights) == 12
    assert record["pruning_events"] == 3
    saved = load_file(out / "model.safetensors")
    for layer in record["layers"]:
        assert int((saved[layer["name"]] == 0).sum()) == layer["pruned"]


@pytest.mark.slow
def test_each_samples_gradient_and_the_teacher_matter(run_recipe, pruned, tmp_path):
    again = {"distill_hardness": 0.0}, {"grad_granularity": "sample"}
    for number, values in enumerate(again):
        record = run_recipe(tmp_path / str(number), **values)
        assert record["sparsity"] == pruned[1]["sparsity"]
        assert record["loss"] != pruned[1]["loss"]


@pytest.mark.slow
def test_two_processes_find_the_same_figures(small, asked, trained, tmp_path):
    out, record = trained
    words = words_of(
        model_name_or_path=out,
        validation_file=asked.validation,
        cache_dir=small.cache,
        output_dir=tmp_path,
        per_device_eval_batch_size=16,
        **WINDOWS,
    )
    launcher = [*TORCHRUN, "--nproc_per_node=2"]
    command = "train question_answering --do_eval --use_cpu".split()
    words = [*launcher, "-m", "obert_modifiers.cli", *command, *words]
    options = {"capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run([sys.executable, *words], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "eval_metrics.json").read_text())
    assert found["machine"]["processes"] == 2
    for name in ("f1", "exact_match", "samples", "windows"):
        assert found[name] == record[name]
    assert found["loss"] == pytest.approx(record["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"doc_stride": 23}, "--doc_stride=23 leaves no room.*use 8"),
        ({"doc_stride": -1}, "--doc_stride=-1 is negative"),
        ({"n_best_size": -1}, "--n_best_size=-1 is not positive"),
        ({"max_answer_length": -2}, "--max_answer_length=-2 is not positive"),
        ({"null_score_diff_threshold": 1}, "--version_2_with_negative beside"),
        ({"train_file": None, "validation_file": None}, "--dataset_name is miss"),
        ({"train_file": "none.json"}, "none.json does not exist"),
        ({"recipe_args": "{}"}, "has no recipe"),
    ],
)
def test_bad_input_is_an_error_before_training(run, tmp_path, replaced, message):
    with refused(message):
        run(tmp_path / "out", **replaced)
    assert not (tmp_path / "out").exists()


def test_unanswerable_questions_need_their_flag(run, asked, tmp_path):
    with refused("has no answer.*--version_2_with_negative"):
        run(tmp_path / "out", train_file=asked.train_2)
