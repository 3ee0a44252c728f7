"""A tokenizer, a teacher and classes that do not go with the model."""

import json
import logging

import pytest
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

from obert_modifiers.tasks.data.dataset import TextData
from obert_modifiers.tasks.data.labels import Labels, keep_known
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run.models import find
from obert_modifiers.tasks.run.teacher import load_teacher
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "model")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(folder, tmp_path):
    larger = tiny.save_model(tmp_path / "larger")
    tokens = find(ModelArguments(str(larger))).tokenizer
    highest = len(tokens) - 1
    tokens.add_tokens(["another"])
    tokens.save_pretrained(larger)
    good = ModelArguments(str(folder), tokenizer_name=str(folder))
    assert max(find(good).tokenizer.get_vocab().values()) == highest
    for arguments, flag in (
        (ModelArguments(str(folder), tokenizer_name=str(larger)), "--tokenizer_name"),
        (ModelArguments(str(larger)), "--model_name_or_path"),
    ):
        with pytest.raises(
            ValueError,
            match=f"{flag}={larger} has tokens with numbers up to {highest + 1} and "
            f"the model embeddings for {highest + 1}; expected numbers below that",
        ):
            find(arguments)


def _teacher(folder, tmp_path, names: list[str]):
    """Save a classifier whose classes have these names."""
    out = tiny.save_model(tmp_path / "-".join(names))
    config = AutoConfig.from_pretrained(
        out,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
    )
    BertForSequenceClassification(config).save_pretrained(out)
    return out


@pytest.mark.parametrize(
    ("names", "warned", "error"),
    [
        (["bad", "good"], False, None),
        (["LABEL_0", "LABEL_1"], False, None),
        (["negative", "positive"], True, None),
        (["good", "bad"], False, None),
        (["GOOD ", "Bad"], False, None),
        (["bad", "fair", "good"], False, "has the classes bad, fair, good; expected"),
    ],
)
def test_the_classes_of_a_teacher(folder, tmp_path, caplog, names, warned, error):
    teacher = _teacher(folder, tmp_path, names)
    arguments = ModelArguments(str(folder), distill_teacher=str(teacher))
    found = find(arguments)
    labels = Labels("label", {"bad": 0, "good": 1}, ("bad", "good"))
    load = (found, AutoModelForSequenceClassification, labels, arguments)
    if error:
        with pytest.raises(ValueError, match=error):
            load_teacher(*load)
        return
    with caplog.at_level(logging.WARNING, logger="obert_modifiers"):
        assert load_teacher(*load).config.num_labels == len(names)
    texts = [r.getMessage() for r in caplog.records]
    told = [text for text in texts if "calls its classes negative, positive" in text]
    assert len(told) == int(warned)


def test_a_teacher_without_enough_embeddings_is_refused(folder, tmp_path):
    teacher = _teacher(folder, tmp_path, ["bad", "good"])
    config = json.loads((teacher / "config.json").read_text())
    config["vocab_size"] -= 1
    (teacher / "config.json").write_text(json.dumps(config))
    arguments = ModelArguments(str(folder), distill_teacher=str(teacher))
    with pytest.raises(ValueError, match=f"--distill_teacher={teacher} has tokens"):
        load_teacher(
            find(arguments), AutoModelForSequenceClassification, None, arguments
        )


def test_the_model_keeps_its_order_however_the_data_writes_the_names() -> None:
    names = ("not_entailment", "entailment")
    data = Labels("label", {0: 0, 1: 1}, names)
    known = {"ENTAILMENT": 0, "Not Entailment": 1}
    found = keep_known(data, known, TextData({}, ("text",), "label", "d"))
    assert found.ids == {0: 1, 1: 0}
    assert found.names == ("ENTAILMENT", "Not Entailment")
