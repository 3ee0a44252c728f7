"""Sentence embedding: data, figures, bad input, and the folder that a run leaves."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer

from obert_modifiers import tasks
from obert_modifiers.core.embedding import MODES, Pooling, embedding_of
from obert_modifiers.tasks.sentences.metrics import HEADLINES, Measure
from obert_modifiers.training import TrainingStopped
from tests import tiny
from tests.core.test_embedding import folder
from tests.tasks import inputs
from tests.tasks.inputs import refused, write
from tests.tasks.test_resume import terminate_at
from tests.words import sentences

TASK = "sentence_embedding"
DISTIL = "  - !EmbeddingDistillationModifier\n"
QAT = "  - !QATModifier\n      start_epoch: 0.5\n      disable_observer_epoch: 1.5\n"


def texts(count: int, seed: int = 0) -> list[str]:
    return [row["sentence"] for row in sentences(count, seed)]


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Make scored pairs: a text with itself (5), or with another (by number)."""
    own, others = texts(count, seed), texts(count, seed + 1)
    return [
        {"sentence1": a, "sentence2": a if i % 3 == 0 else b, "score": 5.0 - i % 5}
        for i, (a, b) in enumerate(zip(own, others, strict=True))
    ]


@pytest.fixture
def files(tmp_path):
    """Return a file of texts, one of scored pairs and one of questions."""
    (tmp_path / "texts.txt").write_text("\n".join(texts(64)) + "\n\n", "utf-8")
    rows = pairs(24)
    found = [
        {"query": row["sentence1"], "passage": row["sentence2"]} for row in rows[:16]
    ]
    return {
        "texts": tmp_path / "texts.txt",
        "pairs": write(tmp_path / "pairs.csv", rows),
        "queries": write(tmp_path / "queries.json", found),
    }


@pytest.fixture
def train(run_in, files, tmp_path):
    """Train on texts with a recipe's modifiers, into `tmp_path/out`."""

    def train(more: str = DISTIL, out: str = "out", **flags):
        recipe = tmp_path / f"{out}.yaml"
        recipe.write_text(tiny.RECIPE + more, encoding="utf-8")
        given = {
            "train_file": files["texts"],
            "validation_file": files["pairs"],
            "recipe": recipe,
            "distill_teacher": "self",
            "per_device_train_batch_size": 8,
        }
        return run_in(tmp_path / out, TASK, "--use_cpu", **given | flags)

    return train


def prepared(files, tmp_path, small, **flags):
    given = {"train_file": files["texts"], "validation_file": files["pairs"]}
    data, _ = inputs.prepare(TASK, tmp_path, small.model, **given | flags)
    return data


# -- figures


def slow_figures(unit, first, second) -> dict[str, float]:
    """Compute the figures of retrieval query by query, from their definitions."""
    queries, passages = sorted(set(first)), sorted(set(second))
    found = {"ndcg_at_10": 0.0, "mrr_at_10": 0.0, "accuracy_at_1": 0.0}
    for query in queries:
        right = {b for a, b in zip(first, second, strict=True) if a == query}
        ranked = sorted(passages, key=lambda p: (-float(unit[query] @ unit[p]), p))
        hits = [rank for rank, p in enumerate(ranked[:10], 1) if p in right]
        gain = sum(1 / math.log2(rank + 1) for rank in hits)
        best = sum(1 / math.log2(rank + 1) for rank in range(1, len(right) + 1))
        found["ndcg_at_10"] += gain / best
        found["mrr_at_10"] += 1 / hits[0] if hits else 0.0
        found["accuracy_at_1"] += float(1 in hits)
    return {name: value / len(queries) for name, value in found.items()}


def units(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_retrieval_against_its_definition() -> None:
    unit = units(60, 0)
    draw = np.random.default_rng(1)
    # Some queries have two passages, and some passages two queries.
    first = [*range(25), *range(5)]
    second = [int(i) for i in draw.integers(30, 60, len(first))]
    found = Measure("pairs", first, second)(7.0 * unit)
    expected = slow_figures(unit, first, second)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["samples"] == 30
    turned = Measure("pairs", second, first)(unit)  # planted: passages ask
    assert turned["ndcg_at_10"] != pytest.approx(found["ndcg_at_10"], rel=1e-3)


def test_figures_beside_the_dense_model() -> None:
    dense, first, second = units(40, 0), list(range(20)), list(range(20, 40))
    same = Measure("pairs", first, second, dense=dense)(3.0 * dense)
    assert same["top10_kept"] == 1.0
    assert same["cosine_to_dense"] == pytest.approx(1.0)
    assert same["ndcg_at_10_dense"] == same["ndcg_at_10"]
    ours = dense + 0.3 * units(40, 1)
    found = Measure("texts", range(40), dense=dense)(ours)
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    cosine = float((unit * dense).sum(1).mean())
    kept = 0
    for i in range(40):
        others = [j for j in range(40) if j != i]
        near = [
            set(sorted(others, key=lambda j: -float(e[i] @ e[j]))[:10])  # noqa: B023
            for e in (unit, dense)
        ]
        kept += len(near[0] & near[1])
    assert found["top10_kept"] == pytest.approx(kept / 400) and kept < 400
    assert found["cosine_to_dense"] == pytest.approx(cosine)
    assert found["loss"] == pytest.approx(1 - cosine)
    wider = Measure("texts", range(40), dense=np.hstack([dense, dense]))(ours)
    assert "cosine_to_dense" not in wider and wider["top10_kept"] < 1


# -- data


def test_texts_are_taken_once_and_the_empty_ones_left_out(
    files, tmp_path, small, caplog
) -> None:
    data = prepared(files, tmp_path, small)
    assert len(data.train) == len(set(texts(64)))
    assert "empty texts are left out" not in caplog.text or len(data.train) > 0
    batch = data.collate([data.train[i] for i in (3, 5)])
    assert batch["sample_ids"].tolist() == [3, 5] and "labels" not in batch
    assert data.headline == HEADLINES["scores"]
    assert len(data.validation) <= 48  # each text once, of 24 pairs
    both = write(tmp_path / "two.csv", [{"a": "fine film", "b": "good film"}] * 2)
    two = prepared(files, tmp_path, small, train_file=both, text_column_names="a,b")
    assert len(two.train) == 2


@pytest.mark.parametrize("kind", ["scores", "pairs"])
def test_pairs_have_both_texts_in_a_batch(files, tmp_path, small, kind) -> None:
    names = {"scores": files["pairs"], "pairs": files["queries"]}
    data = prepared(files, tmp_path, small, train_file=names[kind], train_on=kind)
    batch = data.collate([data.train[i] for i in range(6)])
    assert len(batch["input_ids"]) == 12
    assert torch.equal(batch["labels"][::2], batch["labels"][1::2])
    assert batch["labels"].is_floating_point() == (kind == "scores")
    if kind == "scores":
        expected = [(5.0 - i % 5) / 5 for i in range(6)]
        assert batch["labels"][::2].tolist() == pytest.approx(expected)
    made = torch.randn(12, 4, requires_grad=True)
    losses = data.sample_loss({"sentence_embedding": made}, batch)
    assert losses.shape == (12,) and float(losses.detach().min()) >= 0
    # The Fisher is that of single texts.
    single = data.gradients.train
    assert "sample_ids" in single[0] and len(single) > 6


def test_prompts_are_read(files, tmp_path, small) -> None:
    model = shutil.copytree(small.model, tmp_path / "prompted")
    made = folder(tmp_path / "made", pooling_mode="mean")
    shutil.copytree(made, model, dirs_exist_ok=True)
    about = {"prompts": {"query": "fine ", "film": "poor "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(about))
    given = {"train_file": files["texts"], "validation_file": files["queries"]}
    plain, tokenizer = inputs.prepare(TASK, tmp_path, small.model, **given)
    found, _ = inputs.prepare(TASK, tmp_path, model, prompt_name=None, **given)
    own, _ = inputs.prepare(TASK, tmp_path, model, prompt_name="film", **given)
    first = [tokenizer.decode(one.validation[0]["input_ids"]) for one in (plain, found)]
    assert first[1] == first[0].replace("[CLS]", "[CLS] fine")
    assert tokenizer.decode(own.train[0]["input_ids"]).startswith("[CLS] poor")
    assert found.train[0]["input_ids"] == plain.train[0]["input_ids"]
    with refused("--prompt_name=other .*query, film"):
        inputs.prepare(TASK, tmp_path, model, prompt_name="other", **given)


# -- bad input


def rows_with(**changed) -> list[dict]:
    return [{"sentence1": "good film", "sentence2": "bad film", "score": 1.0} | changed]


@pytest.mark.parametrize(
    ("rows", "flags", "match"),
    [
        (rows_with(score=6.5), {}, r"score=6.5 in row 1 .*\[0, 5\].*--max_score"),
        (rows_with(score=-1.0), {"max_score": 5.0}, r"score=-1 in row 1 .*\[0, 5\]"),
        (rows_with(score=None), {}, "column score .*empty in 1 rows"),
        (rows_with(sentence2=None), {}, "column sentence2 .*empty in 1 rows"),
        (rows_with(sentence2="  "), {}, "column sentence2 .*no text in 1 rows.*row 1"),
        (
            [{"query": "good", "passage": "film"}] * 3,
            {},
            "one second text for all",
        ),
    ],
)
def test_pairs_that_cannot_be_used(files, tmp_path, small, rows, flags, match) -> None:
    good = rows_with() if "score" in rows[0] else []
    path = tiny.write_rows(tmp_path / "bad.json", [*good, *rows])
    with refused(match):
        prepared(files, tmp_path, small, validation_file=path, **flags)


def test_classes_are_no_scores(files, tmp_path, small) -> None:
    """GLUE's RTE and QNLI have 0 for what belongs together."""
    named = ClassLabel(names=["entailment", "not_entailment"])
    path = tmp_path / "classes.parquet"
    rows = Dataset.from_list(rows_with(label=0) * 3).remove_columns("score")
    rows.cast_column("label", named).to_parquet(path)
    with refused(r"column label .*classes \(entailment, .*--train_on pairs"):
        prepared(files, tmp_path, small, validation_file=path)


def test_a_highest_score_is_positive() -> None:
    with refused("--max_score=-1"):
        tasks.load(TASK).flags(max_score=-1.0).check()


def test_texts_that_cannot_be_used(files, tmp_path, small) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n\n", encoding="utf-8")
    with refused("no text in text"):
        prepared(files, tmp_path, small, train_file=empty)
    with refused("--train_on=pairs .*two of text"):
        prepared(files, tmp_path, small, train_on="pairs")
    columns = write(tmp_path / "many.csv", [{"a": "good", "b": "bad", "c": "fine"}])
    with refused("3 hold text.*--text_column_names"):
        prepared(files, tmp_path, small, train_file=columns)


@pytest.mark.parametrize(
    ("more", "flags", "match"),
    [
        ("  - !LogitDistillationModifier\n", {}, "!EmbeddingDistillationModifier"),
        (DISTIL, {"distill_teacher": "disable"}, "no labels and no teacher"),
        ("", {"distill_teacher": None}, "no labels and no teacher"),
    ],
)
def test_nothing_to_learn_from(train, more, flags, match) -> None:
    with refused(match):
        train(more, **flags)


def test_embeddings_are_not_distilled_into_classes(run_in, small, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.RECIPE + DISTIL, encoding="utf-8")
    given = {"train_file": small.train, "validation_file": small.validation}
    with refused("sentence_embedding, and the model gives logits"):
        run_in(
            tmp_path / "out",
            "text_classification",
            recipe=recipe,
            distill_teacher="self",
            **given,
        )


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("fisher_loss: distillation", "still its teacher.*fisher_loss: task"),
        ("fisher_loss: train", "fisher_loss=train: embeddings have no loss"),
        ("damp: auto", "damp=auto: embeddings have no loss"),
        ("first_order: true", "first_order=True: embeddings have no loss"),
    ],
)
def test_a_fisher_that_needs_a_loss_is_refused(train, tmp_path, key, match) -> None:
    # At the first step, where the student still is the teacher.
    text = tiny.RECIPE.replace("start_epoch: 0.5", "start_epoch: 0.0") + DISTIL
    text = text.replace("num_grads", f"{key}\n      num_grads")
    recipe = tmp_path / "needs.yaml"
    recipe.write_text(text, encoding="utf-8")
    with refused(match):
        train(recipe=recipe)


# -- runs


def embeddings_of(folder, given: list[str]) -> torch.Tensor:
    model = tasks.load(TASK).model_class.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(given, padding=True, return_tensors="pt")
    with torch.no_grad():
        return embedding_of(model(**batch))


def test_a_run_prunes_and_its_folder_loads_without_us(train, tmp_path, caplog) -> None:
    record = train()
    assert record["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert record["headline"] == ["spearman", "pearson"]
    assert {"spearman", "spearman_dense", "top10_kept", "loss"} <= set(record)
    assert 0.0 < record["cosine_to_dense"] < 1.0
    assert "does not say how its tokens are pooled" in caplog.text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(
        str(tmp_path / "out"), device="cpu"
    )
    given = texts(9, 5)
    found = theirs.encode(given, convert_to_tensor=True)
    torch.testing.assert_close(found, embeddings_of(tmp_path / "out", given))
    kinds = [type(module).__name__ for module in theirs]
    assert kinds == ["Transformer", "Pooling", "Normalize"]


def test_supervised_terms_are_trained(train, files, caplog) -> None:
    half = DISTIL + "      hardness: 0.5\n"
    scored = train(half, "scored", train_file=files["pairs"])
    assert "hardness=1.0" not in caplog.text
    queries = {"train_file": files["queries"], "validation_file": files["queries"]}
    found = train(DISTIL, "pairs", train_on="pairs", **queries)
    assert "hardness=1.0: what the pairs of" in caplog.text
    assert scored["pruning_events"] == found["pruning_events"] > 0
    assert 0.0 <= found["ndcg_at_10"] <= 1.0 and 0.0 <= found["mrr_at_10"] <= 1.0


def test_texts_are_measured_beside_the_dense_model(files, tmp_path, small) -> None:
    data = prepared(files, tmp_path, small, validation_file=files["texts"])
    assert data.headline == ("top10_kept", "cosine_to_dense")
    count = len(data.validation)
    with torch.no_grad():
        model = tasks.load(TASK).model_class.from_pretrained(small.model).eval()
        batch = data.collate([data.validation[i] for i in range(count)])
        ids = batch.pop("sample_ids")
        found = data.keep(model(**batch), batch)
    assert ids.tolist() == list(range(count))
    figures = data.metrics(**{name: one.numpy() for name, one in found.items()})
    assert figures["top10_kept"] == 1.0 and figures["samples"] == count
    assert figures["loss"] == pytest.approx(0.0, abs=1e-6)
    only = {"validation_file": files["texts"]}
    again, _ = inputs.prepare(
        TASK, tmp_path, small.model, dense_model=str(small.model), **only
    )
    assert again.metrics.dense is not None
    with refused("--dense_model=missing/one is no folder here"):
        inputs.prepare(TASK, tmp_path, small.model, dense_model="missing/one", **only)
    with refused("only texts and no model"):
        inputs.prepare(TASK, tmp_path, small.model, **only)


def test_kill_and_resume_are_bit_identical(train, tmp_path, monkeypatch) -> None:
    recipe = f"{DISTIL}      hidden_weight: 0.5\n{QAT}"
    saves = {"save_strategy": "epoch", "save_total_limit": 2}
    whole = train(recipe, "whole", **saves)
    with monkeypatch.context() as patched:
        terminate_at(patched, 11)
        with pytest.raises(TrainingStopped):
            train(recipe, "stopped", **saves)
    again = train(recipe, "stopped", resume_from_checkpoint="last", **saves)
    names = ("spearman", "loss", "sparsity", "steps", "cosine_to_dense")
    assert {k: again[k] for k in names} == {k: whole[k] for k in names}
    first, second = (
        load_file(tmp_path / out / "model.safetensors") for out in ("whole", "stopped")
    )
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert torch.equal(values, second[name]), name


def test_the_modes_are_those_of_sentence_transformers() -> None:
    theirs = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    for mode in MODES:
        pooling = theirs.Pooling(4, mode)
        features = {"token_embeddings": hidden, "attention_mask": mask}
        expected = pooling(features)["sentence_embedding"]
        found = Pooling((mode,), unit=False)(hidden, mask)
        torch.testing.assert_close(found, expected)
