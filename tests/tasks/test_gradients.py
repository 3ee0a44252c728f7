"""Second-order pruning of token tasks: the gradient of each sample's own loss."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from obert_modifiers import tasks
from obert_modifiers.modifiers._targets import encoder_weights
from tests import questions, reference, tiny
from tests.tasks import inputs
from tests.training.test_gradient_models import COUNT, WIDTH, _blocks

SENTENCES = [row["sentence"].split() for row in tiny.sentences(COUNT)]
TAGGED = [{"tokens": text, "tags": [word[0] for word in text]} for text in SENTENCES]
# Rows and flags. As many samples as gradients, so that the draw has all of them.
TASKS = {
    "token_classification": (TAGGED, {}),
    "masked_language_modeling": (
        [{"text": " ".join(text)} for text in SENTENCES],
        {"line_by_line": True},
    ),
    "question_answering": (
        questions.rows(COUNT, 7),
        {"max_seq_length": 32, "doc_stride": 8},
    ),
}


def loss_of(model, sample: dict, reduction: str) -> torch.Tensor:
    """Return the loss of a sample alone, by the definition of its task."""
    names = [name for name in ("input_ids", "token_type_ids") if name in sample]
    outputs = model(**{name: torch.tensor([sample[name]]) for name in names})
    if "labels" in sample:
        kept = [(t, n) for t, n in enumerate(sample["labels"]) if n >= 0]
        logits = outputs.logits[0, [t for t, _ in kept]]
        truth = [n for _, n in kept]
    else:
        logits = torch.cat([outputs.start_logits, outputs.end_logits])
        truth = [sample["start_positions"], sample["end_positions"]]
    return cross_entropy(logits, torch.tensor(truth), reduction=reduction)


@pytest.mark.parametrize("name", TASKS)
def test_against_one_sample_at_a_time(small, tmp_path, name) -> None:
    rows, flags = TASKS[name]
    path = tiny.write_rows(tmp_path / "rows.json", rows)
    data, _ = inputs.prepare(name, tmp_path, small.model, train_file=path, **flags)
    samples = [data.train[i] for i in range(COUNT)]
    assert len({len(sample["input_ids"]) for sample in samples}) > 1
    tags = {tag for row in TAGGED for tag in row["tags"]}
    count = {"num_labels": len(tags)} if name == "token_classification" else {}
    torch.manual_seed(0)
    kind = tasks.load(name).model_class
    model = kind.from_pretrained(small.model, **count).double().eval()
    parameters = [model.get_parameter(name) for name in encoder_weights(model)]

    def dense(reduction: str) -> list[torch.Tensor]:
        losses = (loss_of(model, sample, reduction) for sample in samples)
        grads = [torch.autograd.grad(loss, parameters) for loss in losses]
        fishers = []
        for column in zip(*grads, strict=True):
            rows = torch.stack([one.reshape(-1)[:WIDTH] for one in column])
            fishers.append(COUNT * reference.dense_fisher(rows.numpy(), 0.0))
        return list(map(torch.from_numpy, fishers))

    few = replace(data, train=samples)
    found, in_pairs = _blocks(model, few), _blocks(model, few, size=2)
    expected, sums = dense("mean"), dense("sum")
    for ours, paired, mean, total in zip(found, in_pairs, expected, sums, strict=True):
        torch.testing.assert_close(ours[0], mean, rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(paired[0], ours[0], rtol=1e-8, atol=1e-14)
        # The sum over a sample's tokens would weigh long samples more.
        if float(total.abs().max()) > 1e-8:
            assert not torch.allclose(ours[0], total, rtol=1e-3, atol=0)
