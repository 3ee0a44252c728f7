"""Cross-encoders: pairs of texts with one score or several outputs."""

import csv
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from obert_modifiers.resources import recipe_path
from obert_modifiers.tasks.run.models import keep_numbers
from tests import tiny
from tests.tasks import inputs

RERANKER = "minilm-l6_reranker_obert-6ep_4block80.yaml"
FEWER = {"num_epochs": 3.0, "pruning_end_epoch": 1.0, "num_grads": 64, "init_lr": 2e-3}


def pairs(count: int, seed: int) -> list[dict]:
    """Make queries and passages; the score is the share of good words in both."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words = draw.choices([*tiny.GOOD, *tiny.BAD], k=6)
        texts = {"query": " ".join(words[:2]), "passage": " ".join(words[2:])}
        rows.append({**texts, "label": sum(word in tiny.GOOD for word in words) / 6})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    named = {"train": pairs(384, 0), "validation": pairs(32, 1), "test": pairs(12, 2)}
    written = {
        f"{split}_file": tiny.write_rows(folder / f"{split}.json", rows)
        for split, rows in named.items()
    }
    texts = [(row["query"], row["passage"]) for row in named["test"]]
    return SimpleNamespace(named=written, texts=texts)


def logits_of(folder, texts) -> np.ndarray:
    """Compute the outputs with transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        *map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**tokens).logits.numpy()


def test_a_pruned_reranker_scores_as_ours_in_cross_encoder(
    files, run_in, tmp_path
) -> None:
    do = "--do_train --do_eval --do_predict"
    common = {**files.named, "input_column_names": "query,passage"}
    task = ("text_classification", do)
    dense, out = tmp_path / "dense", tmp_path / "out"
    first = run_in(dense, *task, **common, num_train_epochs=4, learning_rate=3e-3)
    record = run_in(
        out,
        *task,
        **common,
        model_name_or_path=dense,
        distill_teacher="self",
        recipe=recipe_path(RERANKER),
        recipe_args=json.dumps(FEWER),
    )
    assert record["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert record["text_columns"] == ["query", "passage"] and "spearman" in record
    model = AutoModelForSequenceClassification.from_pretrained(out)
    weight = model.bert.encoder.layer[0].output.dense.weight.detach()
    zeros = (weight.reshape(-1, 4) == 0).sum(-1)
    assert set(zeros.tolist()) <= {0, 4} and (zeros == 4).any()
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        ours = [float(row["prediction"]) for row in csv.DictReader(file)]
    encoder = CrossEncoder(str(out), device="cpu")
    assert encoder.predict(files.texts) == pytest.approx(ours, abs=1e-5)
    order = encoder.rank(files.texts[0][0], [text for _, text in files.texts[:4]])
    assert len(order) == 4
    # Distillation, and no labels: the scores are near the dense ones.
    near = np.corrcoef(logits_of(dense, files.texts)[:, 0], ours)[0, 1]
    assert near > 0.5 and min(one["spearman"] for one in (first, record)) > 0.5
    # Without what the run says of its number, it would be another.
    config = json.loads((out / "config.json").read_text())
    del config["sentence_transformers"]
    (out / "config.json").write_text(json.dumps(config))
    other = CrossEncoder(str(out), device="cpu").predict(files.texts)
    assert other == pytest.approx(1 / (1 + np.exp(-np.array(ours))), abs=1e-5)


def test_several_outputs_are_logits_in_cross_encoder(files, run_in, tmp_path) -> None:
    def classes(name: str) -> str:
        rows = map(json.loads, files.named[name].read_text().splitlines())
        rows = [row | {"label": round(2 * row["label"])} for row in rows]
        return str(inputs.write(tmp_path / f"{name}.csv", rows))

    named = {name: classes(name) for name in ("train_file", "validation_file")}
    run_in(tmp_path / "out", "text_classification", **named)
    encoder = CrossEncoder(str(tmp_path / "out"), device="cpu")
    ours = logits_of(tmp_path / "out", files.texts)
    assert ours.shape == (12, 3)
    assert encoder.predict(files.texts) == pytest.approx(ours, abs=1e-5)


def test_a_model_that_says_what_its_number_is_keeps_it() -> None:
    kept = {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.0.0"}
    config = SimpleNamespace(sentence_transformers=dict(kept))
    keep_numbers(config)
    assert config.sentence_transformers == kept
    name = "sbert_ce_default_activation_function"
    config = SimpleNamespace(**{name: "torch.nn.modules.linear.Identity"})
    keep_numbers(config)
    assert vars(config).keys() == {name}
