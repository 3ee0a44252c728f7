"""Text classification as GLUE has it: its figures, and MNLI's two validation sets."""

import json
import random

import numpy as np
import pytest

from obert_modifiers.cli.progress import evaluation_line
from obert_modifiers.tasks.data import metrics
from obert_modifiers.tasks.data.columns import GLUE_COLUMNS, GLUE_FIGURES, glue_task
from obert_modifiers.tasks.text_classification import TextArguments
from tests import tiny
from tests.tasks import inputs

TEXT = "text_classification"
# The rows of MNLI's splits.
MNLI = {"train": 48, "validation_matched": 17, "validation_mismatched": 9}
MNLI |= {"test_matched": 5, "test_mismatched": 6}


def mnli_rows(count, seed):
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.randrange(3)
        words = draw.choices((tiny.GOOD, tiny.BAD, tiny.OTHER)[label], k=4)
        pair = {"premise": "the film", "hypothesis": " ".join(words)}
        rows.append(pair | {"label": label})
    return rows


def test_both_validation_sets_of_mnli_are_measured(run_task, tmp_path):
    files = {split: f"mnli/{split}-00000-of-00001.parquet" for split in MNLI}
    for split, count in MNLI.items():
        unknown = {"label": -1} if split.startswith("test") else {}
        rows = [row | unknown for row in mnli_rows(count, seed=count)]
        inputs.write(tmp_path / files[split], rows)
    record = run_task(
        TEXT,
        "--do_train --do_eval --do_predict",
        dataset_name=tmp_path / "mnli",
        num_train_epochs=3,
        learning_rate=5e-3,
    )
    out = tmp_path / "out"
    assert record["headline"] == ["accuracy", "accuracy_mm"]
    assert (record["samples"], record["samples_mm"]) == (17, 9)
    assert len((out / "predictions.csv").read_text().splitlines()) == 1 + 5
    for kind, ending in (("matched", ""), ("mismatched", "_mm")):
        path = tmp_path / files[f"validation_{kind}"]
        flags = {"model_name_or_path": out, "validation_file": path}
        alone = run_task(TEXT, "--do_eval", out=kind, **flags)
        for name in ("accuracy", "loss"):
            assert record[name + ending] == alone[name]
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "eval"][-1]
    assert evaluation_line(last).count("accuracy") == 2


@pytest.mark.parametrize("task", GLUE_COLUMNS)
def test_a_folder_with_a_tasks_name_is_that_task(small, tmp_path, task):
    columns, folder = GLUE_COLUMNS[task], tmp_path / task.upper()
    rows = [
        {**dict.fromkeys(columns, row["sentence"]), "label": row["label"], "idx": i}
        for i, row in enumerate(tiny.sentences(6))
    ]
    inputs.write(folder / "validation.json", rows)
    flags, data = inputs.load(TEXT, small.folder, dataset_name=folder)
    assert data.text_columns == columns
    assert glue_task(flags) == task
    assert glue_task(TextArguments(task_name=task)) == task
    assert glue_task(TextArguments(dataset_name=f"some/{task}_subset")) == task
    assert glue_task(TextArguments(dataset_name="rows")) is None
    assert glue_task(TextArguments(dataset_name=f"{task}s")) is None


def test_the_figures_of_a_task_come_first(run_task, tmp_path):
    for split in ("train", "validation"):
        inputs.write(tmp_path / "cola" / f"{split}.json", tiny.sentences(24))
    record = run_task(TEXT, dataset_name=tmp_path / "cola")
    assert record["headline"] == ["matthews_correlation"]
    assert {"matthews_correlation", "accuracy", "f1"} <= set(record)
    assert set(GLUE_FIGURES) == {"cola", "mnli", "mrpc", "qqp"}
    assert GLUE_FIGURES["mrpc"] == GLUE_FIGURES["qqp"] == ("accuracy", "f1")


def test_test_data_can_be_evaluated_on(small, tmp_path):
    paths = {
        f"{split}_file": tiny.write_rows(tmp_path / f"{split}.json", tiny.sentences(n))
        for split, n in (("train", 8), ("test", 5))
    }
    _, data = inputs.load(TEXT, small.folder, **paths, eval_on_test=True)
    assert data.splits["validation"].to_list() == tiny.sentences(5)
    del paths["test_file"]
    with inputs.refused("has no test split, only train; expected"):
        inputs.load(TEXT, small.folder, **paths, eval_on_test=True)


def ranks(values):
    """Rank by counting, ties sharing the mean."""
    below = [(values < one).sum() for one in values]
    return below + np.array([((values == one).sum() + 1) / 2 for one in values])


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_figures_against_their_definitions():
    draw = np.random.default_rng(0)
    labels = draw.integers(2, size=301)
    logits = draw.normal(size=(301, 2))
    found = metrics.classification_metrics(logits, labels)
    guess = (logits[:, 1] > logits[:, 0]).astype(int)
    table = [[((guess == i) & (labels == j)).sum() for j in (0, 1)] for i in (0, 1)]
    (right_no, missed), (false_alarm, hits) = table
    assert found["accuracy"] == pytest.approx((hits + right_no) / 301)
    assert found["f1"] == pytest.approx(2 * hits / (2 * hits + missed + false_alarm))
    phi = correlation(guess.astype(float), labels.astype(float))
    assert found["matthews_correlation"] == pytest.approx(phi)
    # Of three classes neither is reported.
    wide = draw.normal(size=(301, 3))
    assert set(metrics.classification_metrics(wide, labels)) == {"accuracy"}
    scores = draw.integers(6, size=301).astype(np.float32)  # ties
    guess = (scores + draw.normal(size=301)).astype(np.float32)
    guess[:40] = guess[0]
    found = metrics.regression_metrics(guess[:, None], scores)
    doubled = guess.astype(np.float64), scores.astype(np.float64)
    assert found["pearson"] == pytest.approx(correlation(*doubled))
    spearman = correlation(ranks(guess), ranks(scores))
    assert found["spearman"] == pytest.approx(spearman)
    # Ranks that break ties by place are another figure.
    broken = correlation(guess.argsort().argsort(), scores.argsort().argsort())
    assert found["spearman"] != pytest.approx(broken, abs=1e-3)


@pytest.mark.parametrize("value", [0, 1])
def test_constants_have_no_correlation(value):
    labels = np.full(4, value)
    found = metrics.classification_metrics(np.eye(2)[labels], labels)
    assert found == {"accuracy": 1.0, "matthews_correlation": 0.0, "f1": value}
    found = metrics.regression_metrics(np.ones((4, 1)), np.arange(4.0))
    assert found == {"pearson": 0.0, "spearman": 0.0}
    never = metrics.classification_metrics(np.eye(2)[[0] * 4], np.arange(4) % 2)
    assert never["f1"] == never["matthews_correlation"] == 0.0
