"""Token types of a teacher whose student has none."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run import models
from obert_modifiers.tasks.run import teacher as teaching
from tests import tiny

NAMES = ["input_ids", "attention_mask"]


def _tokenizers(tmp_path):
    folder = tiny.save_model(tmp_path / "m")
    return [models.find(ModelArguments(str(folder))).tokenizer for _ in range(2)]


def _teacher():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).eval()


def test_types_that_the_student_lacks_are_the_teachers_own(tmp_path) -> None:
    ours, theirs = _tokenizers(tmp_path)
    ours.model_input_names = NAMES
    theirs.model_input_names = [*NAMES, "token_type_ids"]
    teacher = _teacher()
    teaching.prepare_(teacher, ours, theirs, "--distill_teacher=t")
    assert teaching.lacks_types(teacher)
    pairs = (["good film", "bad"], ["a film", "good good bad"])
    wanted = theirs(*pairs, padding=True, return_tensors="pt")

    def collate(samples):
        return ours(*pairs, padding=True, return_tensors="pt")

    batch = teaching.TeacherTypes(collate, ours.sep_token_id)([])
    assert torch.equal(batch["teacher_token_type_ids"], wanted["token_type_ids"])
    assert wanted["token_type_ids"].any()  # control: zeros are another answer
    single = torch.tensor([[2, 5, 3]])
    with pytest.raises(ValueError, match="separators=1 in a pair"):
        teaching.types_of_pairs(single, torch.ones_like(single), 3)


def test_types_that_the_teacher_does_not_know_are_kept_from_it(tmp_path) -> None:
    ours, theirs = _tokenizers(tmp_path)
    ours.model_input_names = [*NAMES, "token_type_ids"]
    theirs.model_input_names = NAMES
    teacher, ids = _teacher(), torch.tensor([[2, 5, 3, 6, 3]])
    types = torch.tensor([[0, 0, 0, 1, 1]])
    plain, other = (teacher(ids).logits, teacher(ids, token_type_ids=types).logits)
    assert not torch.allclose(plain, other)  # control
    teaching.prepare_(teacher, ours, theirs, "--distill_teacher=t")
    assert torch.equal(teacher(input_ids=ids, token_type_ids=types).logits, plain)
    assert not teaching.lacks_types(teacher)


def test_an_input_that_cannot_be_made_is_named(tmp_path) -> None:
    ours, theirs = _tokenizers(tmp_path)
    theirs.model_input_names = [*NAMES, "position_ids"]
    with pytest.raises(ValueError, match="--distill_teacher=t takes position_ids"):
        teaching.prepare_(_teacher(), ours, theirs, "--distill_teacher=t")


def test_a_tokenizer_of_another_case_is_refused(tmp_path) -> None:
    ours, theirs = _tokenizers(tmp_path)
    teaching.check_tokens(ours, theirs, "--distill_teacher=t")
    theirs.backend_tokenizer.normalizer = None
    with pytest.raises(ValueError, match="--distill_teacher=t has a tokenizer that"):
        teaching.check_tokens(ours, theirs, "--distill_teacher=t")
