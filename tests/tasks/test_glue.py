"""Text classification as GLUE has it: its figures, and MNLI's two validation sets."""

import json
import random

import numpy as np
import pytest
from datasets import Dataset

from obert_modifiers.cli.progress import evaluation_line
from obert_modifiers.tasks.data import metrics
from obert_modifiers.tasks.data.columns import GLUE_COLUMNS, GLUE_FIGURES, glue_task
from obert_modifiers.tasks.text_classification import TextArguments
from tests import tiny
from tests.tasks import inputs


def mnli_rows(count, seed):
    draw = random.Random(seed)
    lists = (tiny.GOOD, tiny.BAD, tiny.OTHER)
    rows = []
    for _ in range(count):
        label = draw.randrange(3)
        words = " ".join(draw.choices(lists[label], k=4))
        rows.append({"premise": "the film", "hypothesis": words, "label": label})
    return rows


@pytest.fixture
def mnli(tmp_path):
    folder = tmp_path / "mnli"
    folder.mkdir()
    for name, count in (
        ("train", 48),
        ("validation_matched", 17),
        ("validation_mismatched", 9),
        ("test_matched", 5),
        ("test_mismatched", 6),
    ):
        rows = mnli_rows(count, seed=count)
        if name.startswith("test"):
            rows = [row | {"label": -1} for row in rows]
        Dataset.from_list(rows).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def test_both_validation_sets_of_mnli_are_measured(small, mnli, tmp_path):
    shared = {"cache_dir": small.cache, "learning_rate": 5e-3}
    out = tmp_path / "out"
    record = inputs.run(
        "text_classification",
        "--do_train --do_eval --do_predict",
        model_name_or_path=small.model,
        dataset_name=mnli,
        output_dir=out,
        **shared,
    )
    assert record["headline"] == ["accuracy", "accuracy_mm"]
    assert (record["samples"], record["samples_mm"]) == (17, 9)
    assert len((out / "predictions.csv").read_text().splitlines()) == 1 + 5
    for kind, ending in (("matched", ""), ("mismatched", "_mm")):
        alone = inputs.run(
            "text_classification",
            "--do_eval",
            model_name_or_path=out,
            validation_file=mnli / f"validation_{kind}-00000-of-00001.parquet",
            output_dir=tmp_path / kind,
            **shared,
        )
        for name in ("accuracy", "loss"):
            assert record[name + ending] == alone[name]
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "eval"][-1]
    assert evaluation_line(last).count("accuracy") == 2


@pytest.mark.parametrize("task", GLUE_COLUMNS)
def test_a_folder_with_a_tasks_name_is_that_task(small, tmp_path, task):
    columns = GLUE_COLUMNS[task]
    folder = tmp_path / task.upper()
    folder.mkdir()
    rows = [
        {**dict.fromkeys(columns, row["sentence"]), "label": row["label"], "idx": i}
        for i, row in enumerate(tiny.sentences(6))
    ]
    tiny.write_rows(folder / "validation.json", rows)
    flags, data = inputs.load(
        "text_classification", small.folder, dataset_name=str(folder)
    )
    assert data.text_columns == columns
    assert glue_task(flags) == task
    assert glue_task(TextArguments(task_name=task)) == task
    part = TextArguments(dataset_name=f"some/{task}_subset")
    assert glue_task(part) == task
    assert glue_task(TextArguments(dataset_name="rows")) is None
    assert glue_task(TextArguments(dataset_name=f"{task}s")) is None


def test_the_figures_of_a_task_come_first(run_task, tmp_path):
    folder = tmp_path / "cola"
    folder.mkdir()
    rows = tiny.sentences(24)
    tiny.write_rows(folder / "train.json", rows)
    tiny.write_rows(folder / "validation.json", rows)
    record = run_task("text_classification", dataset_name=folder)
    assert record["headline"] == ["matthews_correlation"]
    assert {"matthews_correlation", "accuracy", "f1"} <= set(record)
    assert set(GLUE_FIGURES) == {"cola", "mnli", "mrpc", "qqp"}
    assert GLUE_FIGURES["mrpc"] == GLUE_FIGURES["qqp"] == ("accuracy", "f1")


def test_test_data_can_be_evaluated_on(small, tmp_path):
    paths = {
        f"{split}_file": str(tiny.write_rows(tmp_path / f"{split}.json", rows))
        for split, rows in (("train", tiny.sentences(8)), ("test", tiny.sentences(5)))
    }
    _, data = inputs.load(
        "text_classification", small.folder, **paths, eval_on_test=True
    )
    assert data.splits["validation"].to_list() == tiny.sentences(5)
    with pytest.raises(ValueError, match="has no test split, only train; expected"):
        del paths["test_file"]
        inputs.load("text_classification", small.folder, **paths, eval_on_test=True)
    with pytest.raises(ValueError, match="exclude each other"):
        TextArguments(eval_on_test=True, validation_ratio=0.1).check()


def ranks(values):
    """Rank by counting, ties sharing the mean."""
    return np.array([
        (values < one).sum() + ((values == one).sum() + 1) / 2 for one in values
    ])


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
    logits = np.eye(2)[labels]
    found = metrics.classification_metrics(logits, labels)
    assert (found["accuracy"], found["matthews_correlation"]) == (1.0, 0.0)
    assert found["f1"] == value
    found = metrics.regression_metrics(np.ones((4, 1)), np.arange(4.0))
    assert found == {"pearson": 0.0, "spearman": 0.0}
    never = metrics.classification_metrics(np.eye(2)[[0] * 4], np.arange(4) % 2)
    assert never["f1"] == never["matthews_correlation"] == 0.0
