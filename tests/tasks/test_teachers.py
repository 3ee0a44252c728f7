"""Teachers whose classes stand in another order, or that read other inputs."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoTokenizer

from obert_modifiers.tasks.run import teacher as teaching
from tests import questions, tiny
from tests.tasks import inputs
from tests.tasks.test_token_classification import rows
from tests.words import TWO_EPOCHS

DISTILLED = TWO_EPOCHS + "  - !LogitDistillationModifier\n      hardness: 1.0\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(DISTILLED, encoding="utf-8")
    return path


def turned(teacher, folder, named: bool):
    """Save a classifier of tokens with its classes turned, with their names or not."""
    model = AutoModelForTokenClassification.from_pretrained(teacher)
    names = [model.config.id2label[i] for i in range(model.num_labels)]
    order = [*range(1, len(names)), 0]
    with torch.no_grad():
        for values in model.classifier.parameters():
            values.copy_(values[order].clone())
    kept = [names[i] if named else f"LABEL_{n}" for n, i in enumerate(order)]
    model.config.id2label = dict(enumerate(kept))
    model.config.label2id = {name: i for i, name in enumerate(kept)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def test_a_teacher_of_words_with_its_classes_in_another_order(
    small, recipe, tmp_path
) -> None:
    data = tiny.write_rows(tmp_path / "rows.json", rows(32))

    def run(name, **flags):
        return inputs.run(
            "token_classification",
            "--use_cpu",
            train_file=data,
            validation_file=data,
            output_dir=tmp_path / name,
            cache_dir=small.cache,
            per_device_train_batch_size=4,
            **{"model_name_or_path": small.model, **flags},
        )

    run("teacher", learning_rate=5e-3)
    teacher = tmp_path / "teacher"
    taught = {"recipe": recipe, "save_strategy": "steps", "save_steps": 6}
    plain = run("plain", recipe=recipe, distill_teacher=teacher)
    other = turned(teacher, tmp_path / "turned", named=True)
    whole = run("whole", distill_teacher=other, **taught)
    assert whole["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    wrong = turned(teacher, tmp_path / "wrong", named=False)
    control = run("control", recipe=recipe, distill_teacher=wrong)
    assert control["loss"] > 1.1 * plain["loss"]
    # The order holds for a run that is resumed, too.
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    run("resumed", distill_teacher=other, resume_from_checkpoint=checkpoint, **taught)
    one, two = (
        load_file(tmp_path / name / "model.safetensors")
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(values, two[name]) for name, values in one.items())


def test_questions_get_the_token_types_that_only_the_teacher_reads(
    small, recipe, tmp_path, monkeypatch
) -> None:
    student, names = tmp_path / "student", ["input_ids", "attention_mask"]
    tiny.save_model(student)
    tokenizer = AutoTokenizer.from_pretrained(student, model_input_names=names)
    tokenizer.save_pretrained(student)
    seen: list[dict] = []

    def load(*args):
        model = original(*args)
        take = lambda module, words, given: seen.append(given)  # noqa: E731
        model.register_forward_pre_hook(take, with_kwargs=True)
        return model

    original = teaching.load_teacher
    monkeypatch.setattr(teaching, "load_teacher", load)
    data = tiny.write_rows(tmp_path / "rows.jsonl", questions.rows(12))
    record = inputs.run(
        "question_answering",
        "--use_cpu",
        model_name_or_path=student,
        distill_teacher=small.model,
        recipe=recipe,
        train_file=data,
        validation_file=data,
        output_dir=tmp_path / "out",
        cache_dir=small.cache,
        max_seq_length=24,
        doc_stride=6,
    )
    assert any("token types of its own" in note for note in record["notes"])
    assert len(seen) == record["steps"] and sum(len(x["input_ids"]) for x in seen) > 24
    for given in seen:
        for ids, mask, types in zip(
            *(given[name].tolist() for name in (*names, "token_type_ids")), strict=True
        ):
            # BERT's: 1 behind the question's separator, 0 before it and in padding.
            behind = ids.index(tokenizer.sep_token_id) + 1
            assert types == [0] * behind + [n and 1 for n in mask[behind:]]
            assert sum(types) > 1
