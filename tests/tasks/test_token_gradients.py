"""Second-order pruning of token tasks: the gradient of each sample's own loss."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification

from obert_modifiers.modifiers._targets import encoder_weights
from tests import reference, tiny
from tests.tasks import inputs
from tests.training.test_gradient_models import COUNT, WIDTH, _blocks


def data_of(kind, small, folder):
    """Make samples of a token task, of different lengths, and a model for it."""
    sentences = [row["sentence"] for row in tiny.sentences(COUNT)]
    if kind == "words":
        task = "token_classification"
        words = [text.split() for text in sentences]
        rows = [{"tokens": text, "tags": [w[0] for w in text]} for text in words]
        options, auto = {}, AutoModelForTokenClassification
    else:
        task = "masked_language_modeling"
        rows = [{"text": text} for text in sentences]
        options, auto = {"line_by_line": True}, AutoModelForMaskedLM
    options["train_file"] = tiny.write_rows(folder / "rows.json", rows)
    samples, _ = inputs.prepare(task, folder, small.model, **options)
    labels = {w[0] for text in sentences for w in text.split()}
    count = {"num_labels": len(labels)} if kind == "words" else {}
    torch.manual_seed(0)
    return samples, auto.from_pretrained(small.model, **count).double().eval()


@pytest.mark.parametrize("kind", ["words", "masks"])
def test_against_one_sentence_at_a_time(small, tmp_path, kind) -> None:
    data, model = data_of(kind, small, tmp_path)
    parameters = [model.get_parameter(name) for name in encoder_weights(model)]
    found = _blocks(model, data)
    in_pairs = _blocks(model, data, size=2)
    samples = [data.train[i] for i in range(COUNT)]
    assert len({len(sample["input_ids"]) for sample in samples}) > 1
    rows = [[] for _ in parameters]
    sums = [[] for _ in parameters]
    for sample in samples:
        ids = torch.tensor([sample["input_ids"]])
        kept = [(t, n) for t, n in enumerate(sample["labels"]) if n >= 0]
        logits = model(input_ids=ids).logits[0, [t for t, _ in kept]]
        truth = torch.tensor([n for _, n in kept])
        for reduction, into in (("mean", rows), ("sum", sums)):
            loss = functional.cross_entropy(logits, truth, reduction=reduction)
            grads = torch.autograd.grad(loss, parameters, retain_graph=True)
            for row, grad in zip(into, grads, strict=True):
                row.append(grad.reshape(-1)[:WIDTH])

    def dense(row):
        fisher = reference.dense_fisher(torch.stack(row).numpy(), 0.0)
        return torch.from_numpy(fisher * COUNT)

    for ours, paired, row, total in zip(found, in_pairs, rows, sums, strict=True):
        torch.testing.assert_close(ours[0], dense(row), rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(paired[0], ours[0], rtol=1e-8, atol=1e-14)
        # The sum over a sample's tokens would weigh long samples more.
        if float(dense(total).abs().max()) > 1e-8:
            assert not torch.allclose(ours[0], dense(total), rtol=1e-3, atol=0)
