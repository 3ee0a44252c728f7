"""The loss of a window by its definition."""

import math

import pytest
import torch
import transformers
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast

from obert_modifiers.core.distillation import distillation_loss
from obert_modifiers.modifiers.distillation import LogitDistillationModifier
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.question_answering import answer_losses, collating
from obert_modifiers.tasks.run.models import find
from tests.tasks.test_families import FAMILIES, config_of, save


@pytest.fixture(scope="module")
def batch(small):
    """Return a model, and three windows of different lengths as one batch."""
    torch.manual_seed(0)
    tokenizer = BertTokenizerFast.from_pretrained(small.model)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 16, "initializer_range": 0.3}
    config = BertConfig(vocab_size=len(tokenizer), **shape)
    model = BertForQuestionAnswering(config).eval()
    windows = []
    for number, words in enumerate(("warm", "the film is warm", "a plot")):
        places = {"start_positions": 4, "end_positions": 4 + number}
        windows.append(dict(tokenizer("is it", words)) | places)
    return model, windows, collating(tokenizer)


def without_labels(batch: dict) -> dict:
    return {k: v for k, v in batch.items() if not k.endswith("positions")}


def by_definition(model, window: dict) -> float:
    """The mean of both negative log-likelihoods, in float64, of one window alone."""
    inputs = {k: torch.tensor([v]) for k, v in without_labels(window).items()}
    with torch.no_grad():
        outputs = model(**inputs)
    total = 0.0
    for side in ("start", "end"):
        logits = [float(x) for x in outputs[f"{side}_logits"][0]]
        label = window[f"{side}_positions"]
        total += math.log(sum(map(math.exp, logits))) - logits[label]
    return total / 2


def test_the_loss_of_a_window_does_not_depend_on_its_batch(batch) -> None:
    model, windows, collate = batch
    together = collate(windows)
    expected = torch.tensor([by_definition(model, window) for window in windows])
    outputs = model(**without_labels(together))
    for given in (outputs, outputs.to_tuple()):
        torch.testing.assert_close(answer_losses(given, together), expected)
    # The usual loss, which counts padding, is another; without padding it is this.
    usual = model(**together).loss
    assert not torch.isclose(usual, expected.mean(), rtol=1e-3)
    torch.testing.assert_close(model(**collate(windows[1:2])).loss, expected[1])


def test_a_position_past_the_sequence_adds_no_loss(batch) -> None:
    model, windows, collate = batch
    window = windows[1]
    outputs = model(**collate([window]))
    whole, start, end = (
        answer_losses(outputs, collate([window | past]))
        for past in ({}, {"end_positions": 99}, {"start_positions": 99})
    )
    torch.testing.assert_close(start + end, whole)
    start.sum().backward()
    weight = model.qa_outputs.weight.grad
    assert weight[0].abs().sum() > 0 and weight[1].abs().sum() == 0
    model.zero_grad()


def test_batches_are_padded_on_the_right(small, batch) -> None:
    _, windows, collate = batch
    left = BertTokenizerFast.from_pretrained(small.model, padding_side="left")
    one, two = collate(windows), collating(left)(windows)
    assert all((one[name] == two[name]).all() for name in one)
    assert one["attention_mask"].sum(dim=1).tolist() == [6, 9, 7]
    assert (one["attention_mask"][:, 0] == 1).all()
    assert collating(left, 24)(windows)["input_ids"].shape == (3, 24)
    assert collating(left, None, 8)(windows)["input_ids"].shape == (3, 16)


def test_distillation_compares_starts_and_ends_without_padding(batch) -> None:
    model, windows, collate = batch
    torch.manual_seed(1)
    teacher = BertForQuestionAnswering(model.config).eval()
    modifier = LogitDistillationModifier(hardness=1.0, temperature=2.0)
    modifier.initialize(model, distillation_teacher=teacher)
    together = collate(windows)
    found = modifier.sample_losses(model(**without_labels(together)), together)
    for window, loss in zip(windows, found, strict=True):
        alone = {k: torch.tensor([v]) for k, v in without_labels(window).items()}
        ours, theirs = model(**alone), teacher(**alone)
        expected = [
            distillation_loss(ours[f"{side}_logits"], theirs[f"{side}_logits"], 2.0)
            for side in ("start", "end")
        ]
        torch.testing.assert_close(loss, torch.cat(expected).mean())
    modifier.finalize(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers(tmp_path, family: str) -> None:
    """Windows hold what the model takes, and padding moves no loss."""
    folder = save(tmp_path / "model", family)
    tokenizer = find(ModelArguments(model_name_or_path=str(folder))).tokenizer
    name, config = config_of(family)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForQuestionAnswering")(config).eval()
    windows = [
        dict(tokenizer("is it", words)) | {"start_positions": 4, "end_positions": 4}
        for words in ("warm", "the film is warm")
    ]
    together = collating(tokenizer)(windows)
    expected = torch.tensor([by_definition(model, window) for window in windows])
    with torch.no_grad():
        found = answer_losses(model(**without_labels(together)), together)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
