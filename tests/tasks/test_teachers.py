"""Teachers, tokenizers and classes that do not go with the model, or need a hand."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from obert_modifiers.tasks.data.dataset import TextData
from obert_modifiers.tasks.data.labels import Labels, keep_known
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run import teacher as teaching
from obert_modifiers.tasks.run.models import find
from tests import questions, tiny
from tests.tasks.inputs import refused
from tests.tasks.test_token_classification import rows
from tests.words import TWO_EPOCHS

DISTILLED = TWO_EPOCHS + "  - !LogitDistillationModifier\n      hardness: 1.0\n"
NAMES, TYPES = ["input_ids", "attention_mask"], ["token_type_ids"]
TITLE = "--distill_teacher=t"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(DISTILLED, encoding="utf-8")
    return path


def name_classes(config, names: list[str]) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(small, tmp_path):
    larger = tiny.save_model(tmp_path / "larger")
    tokens = find(ModelArguments(str(larger))).tokenizer
    highest = len(tokens) - 1
    tokens.add_tokens(["another"])
    tokens.save_pretrained(larger)
    good = ModelArguments(str(small.model), tokenizer_name=str(small.model))
    assert max(find(good).tokenizer.get_vocab().values()) == highest
    other = ModelArguments(str(small.model), tokenizer_name=str(larger))
    own = ModelArguments(str(larger))
    for given, flag in ((other, "--tokenizer_name"), (own, "--model_name_or_path")):
        with refused(
            f"{flag}={larger} has tokens with numbers up to {highest + 1} and "
            f"the model embeddings for {highest + 1}; expected numbers below that"
        ):
            find(given)


@pytest.fixture
def load(small, tmp_path):
    """Load a teacher whose classes have these names, perhaps with fewer embeddings."""

    def load(names: list[str], labels: Labels | None, missing: int = 0):
        out = tiny.save_model(tmp_path / "teacher")
        config = AutoConfig.from_pretrained(out)
        name_classes(config, names)
        BertForSequenceClassification(config).save_pretrained(out)
        saved = json.loads((out / "config.json").read_text())
        saved["vocab_size"] -= missing
        (out / "config.json").write_text(json.dumps(saved))
        args = ModelArguments(str(small.model), distill_teacher=str(out))
        kind = AutoModelForSequenceClassification
        return teaching.load_teacher(find(args), kind, labels, args)

    return load


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["bad", "good"], False),
        (["LABEL_0", "LABEL_1"], False),
        (["negative", "positive"], True),
        (["good", "bad"], False),
        (["GOOD ", "Bad"], False),
    ],
)
def test_the_classes_of_a_teacher(load, caplog, names, warned):
    labels = Labels("label", {"bad": 0, "good": 1}, ("bad", "good"))
    with caplog.at_level(logging.WARNING, logger="obert_modifiers"):
        assert load(names, labels).config.num_labels == len(names)
    assert caplog.text.count("calls its classes negative, positive") == int(warned)


def test_a_teacher_of_other_classes_or_fewer_embeddings_is_refused(load, tmp_path):
    labels = Labels("label", {"bad": 0, "good": 1}, ("bad", "good"))
    with refused("has the classes bad, fair, good; expected"):
        load(["bad", "fair", "good"], labels)
    with refused(f"--distill_teacher={tmp_path}/teacher has tokens"):
        load(["bad", "good"], None, missing=1)


def test_the_model_keeps_its_order_however_the_data_writes_the_names() -> None:
    data = Labels("label", {0: 0, 1: 1}, ("not_entailment", "entailment"))
    known = {"ENTAILMENT": 0, "Not Entailment": 1}
    found = keep_known(data, known, TextData({}, ("text",), "label", "d"))
    assert found.ids == {0: 1, 1: 0}
    assert found.names == ("ENTAILMENT", "Not Entailment")


@pytest.fixture
def tokenizers(small):
    return [AutoTokenizer.from_pretrained(small.model) for _ in range(2)]


@pytest.fixture
def teacher():
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=200, **shape)).eval()


def test_types_that_the_student_lacks_are_the_teachers_own(tokenizers, teacher):
    ours, theirs = tokenizers
    ours.model_input_names, theirs.model_input_names = NAMES, NAMES + TYPES
    teaching.prepare_(teacher, ours, theirs, TITLE)
    assert teaching.lacks_types(teacher)
    pairs = (["good film", "bad"], ["a film", "good good bad"])
    wanted = theirs(*pairs, padding=True, return_tensors="pt")

    def collate(samples):
        return ours(*pairs, padding=True, return_tensors="pt")

    batch = teaching.TeacherTypes(collate, ours.sep_token_id)([])
    assert torch.equal(batch["teacher_token_type_ids"], wanted["token_type_ids"])
    assert wanted["token_type_ids"].any()  # control: zeros are another answer
    single = torch.tensor([[2, 5, 3]])
    with refused("separators=1 in a pair"):
        teaching.types_of_pairs(single, torch.ones_like(single), 3)


def test_types_that_the_teacher_does_not_know_are_kept_from_it(tokenizers, teacher):
    ours, theirs = tokenizers
    ours.model_input_names, theirs.model_input_names = NAMES + TYPES, NAMES
    ids = torch.tensor([[2, 5, 3, 6, 3]])
    types = torch.tensor([[0, 0, 0, 1, 1]])
    plain, other = (teacher(ids).logits, teacher(ids, token_type_ids=types).logits)
    assert not torch.allclose(plain, other)  # control
    teaching.prepare_(teacher, ours, theirs, TITLE)
    assert torch.equal(teacher(input_ids=ids, token_type_ids=types).logits, plain)
    assert not teaching.lacks_types(teacher)


def test_an_input_that_cannot_be_made_is_named(tokenizers, teacher) -> None:
    ours, theirs = tokenizers
    theirs.model_input_names = [*NAMES, "position_ids"]
    with refused(f"{TITLE} takes position_ids"):
        teaching.prepare_(teacher, ours, theirs, TITLE)


def test_a_tokenizer_of_another_case_is_refused(tokenizers) -> None:
    ours, theirs = tokenizers
    teaching.check_tokens(ours, theirs, TITLE)
    theirs.backend_tokenizer.normalizer = None
    with refused(f"{TITLE} has a tokenizer that"):
        teaching.check_tokens(ours, theirs, TITLE)


def turned(teacher, folder, named: bool):
    """Save a classifier of tokens with its classes turned, with their names or not."""
    model = AutoModelForTokenClassification.from_pretrained(teacher)
    names = [model.config.id2label[i] for i in range(model.num_labels)]
    order = [*range(1, len(names)), 0]
    with torch.no_grad():
        for values in model.classifier.parameters():
            values.copy_(values[order].clone())
    kept = [names[i] if named else f"LABEL_{n}" for n, i in enumerate(order)]
    name_classes(model.config, kept)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def test_a_teacher_with_its_classes_in_another_order(run_task, recipe, tmp_path):
    data = tiny.write_rows(tmp_path / "rows.json", rows(32))
    common = {"train_file": data, "validation_file": data, "num_train_epochs": None}
    common["per_device_train_batch_size"] = 4

    def run(name, **flags):
        task = "token_classification"
        return run_task(task, "--use_cpu", out=name, **common | flags)

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
    folders = tmp_path / "whole", tmp_path / "resumed"
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(values, two[name]) for name, values in one.items())


def test_questions_get_the_token_types_that_only_the_teacher_reads(
    small, run_task, recipe, tmp_path, monkeypatch
) -> None:
    student = tiny.save_model(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(student, model_input_names=NAMES)
    tokenizer.save_pretrained(student)
    seen: list[dict] = []
    original = teaching.load_teacher

    def load(*args):
        model = original(*args)
        take = lambda module, words, given: seen.append(given)  # noqa: E731
        model.register_forward_pre_hook(take, with_kwargs=True)
        return model

    monkeypatch.setattr(teaching, "load_teacher", load)
    data = tiny.write_rows(tmp_path / "rows.jsonl", questions.rows(12))
    record = run_task(
        "question_answering",
        "--use_cpu --max_seq_length 24 --doc_stride 6",
        model_name_or_path=student,
        distill_teacher=small.model,
        recipe=recipe,
        train_file=data,
        validation_file=data,
    )
    assert any("token types of its own" in note for note in record["notes"])
    assert len(seen) == record["steps"] and sum(len(x["input_ids"]) for x in seen) > 24
    for given in seen:
        columns = (given[name].tolist() for name in NAMES + TYPES)
        for ids, mask, types in zip(*columns, strict=True):
            # BERT's: 1 behind the question's separator, 0 before it and in padding.
            behind = ids.index(tokenizer.sep_token_id) + 1
            assert types == [0] * behind + [n and 1 for n in mask[behind:]]
            assert sum(types) > 1
