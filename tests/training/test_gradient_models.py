"""Per-sample gradients of a transformers model, as it may be set up."""

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from obert_modifiers.core.losses import classification_loss
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning.event import plan_targets
from obert_modifiers.core.pruning.fisher_state import FisherState
from obert_modifiers.kernels.packed import unpack_blocks
from obert_modifiers.modifiers._targets import encoder_weights, find_targets
from obert_modifiers.training.batches import TaskData, gradient_source
from tests import reference, tiny

WIDTH, COUNT = 16, 6


def _data(folder, **padding) -> TaskData:
    task = tiny.sentence_task(folder, tiny.sentences(COUNT), **padding)
    lengths = {len(sample["input_ids"]) for sample in task.train}
    assert len(lengths) > 1  # so that there is padding
    return task


def _model(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return model.double().eval()


def _blocks(model, data, size: int = COUNT) -> list[torch.Tensor]:
    targets = find_targets(model, encoder_weights(model))
    config = SecondOrderConfig(
        num_grads=COUNT,
        fisher_block_size=WIDTH,
        options=(("batch_size", size),),
        pattern=parse_mask_type("unstructured"),
    )
    masks = [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]
    source = gradient_source(data, model.forward, "cpu", seed=0)
    plan = plan_targets(targets, config)
    state = FisherState(model, targets, masks, plan, config, source)
    (fishers,) = list(state.sweep())
    return [unpack_blocks(fisher.sums) for fisher in fishers.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


# Their attention has layers that all samples share, which are then changed in place,
# or tokens before samples.
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
FAMILIES = {
    "DeBERTa": ("Deberta", RELATIVE, ("pos_proj", "pos_q_proj")),
    "DeBERTa-v2, shared keys": (
        "DebertaV2",
        RELATIVE | {"share_att_key": True, "position_buckets": 3},
        ("query_proj", "key_proj"),
    ),
    "DeBERTa-v2, convolution": (
        "DebertaV2",
        RELATIVE | {"conv_kernel_size": 3, "position_buckets": 4},
        ("pos_key_proj", "pos_query_proj"),
    ),
    "Longformer": (
        "Longformer",
        {"attention_window": 4, "max_position_embeddings": 40, "sep_token_id": 3},
        ("self.query", "query_global"),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_samples_share(family: str, folder) -> None:
    """By plain autograd, one loss of the batch after the other."""
    name, changes, layers = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**tiny.SHAPE | changes)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    model, data = model.double().eval(), _data(folder)
    names = encoder_weights(model)
    assert all(any(layer in one for one in names) for layer in layers)
    found = _blocks(model, data)
    batch = data.collate(data.train)
    labels = batch.pop("labels")
    losses = classification_loss(model(**batch), {"labels": labels})
    parameters = [model.get_parameter(one) for one in names]
    rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in losses]
    grads_of = [
        torch.stack([g.reshape(-1) for g in of]) for of in zip(*rows, strict=True)
    ]
    # Longformer's last layer asks only the global half for its first token.
    assert sum(bool(flat.any()) for flat in grads_of) > 0.5 * len(names)
    for sums, flat in zip(found, grads_of, strict=True):
        for at in range(2):  # blocks
            block = flat[:, at * WIDTH : (at + 1) * WIDTH].numpy()
            dense = torch.from_numpy(reference.dense_fisher(block, 0.0) * COUNT)
            # The loss itself is in float32.
            assert (sums[at] - dense).norm() <= 1e-5 * dense.norm()


@pytest.fixture
def case(folder):
    """Return a model, its data and the Fisher blocks; each test changes one thing."""
    torch.manual_seed(0)
    model, data = _model(folder), _data(folder)
    return model, data, _blocks(model, data)


def _same(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-14)


def test_against_one_sentence_at_a_time(case) -> None:
    """No padding there, and gradients by plain autograd."""
    model, data, found = case
    parameters = [model.get_parameter(name) for name in encoder_weights(model)]
    rows: list[list[torch.Tensor]] = [[] for _ in parameters]
    for sample in data.train:
        batch = data.collate([sample])
        labels = batch.pop("labels")
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        for row, grad in zip(rows, torch.autograd.grad(loss, parameters), strict=True):
            row.append(grad.reshape(-1))
    for sums, row in zip(found, rows, strict=True):
        grads = torch.stack(row).numpy()
        dense = torch.from_numpy(reference.dense_fisher(grads[:, :WIDTH], 0.0) * COUNT)
        torch.testing.assert_close(sums[0], dense, rtol=1e-6, atol=1e-10)


def test_batches_and_padding_change_nothing(case, folder) -> None:
    model, data, expected = case
    _same(_blocks(model, data, size=2), expected)
    padded = _data(folder, padding="max_length", max_length=24)
    _same(_blocks(model, padded), expected)


def test_models_that_return_tuples(case) -> None:
    model, data, expected = case
    model.config.return_dict = False
    assert isinstance(model(**data.collate(data.train[:2])), tuple)
    _same(_blocks(model, data), expected)


def test_gradient_checkpointing(case) -> None:
    model, data, expected = case
    # Its name until transformers 5.20, and since.
    new = getattr(model, "activation_checkpointing_enable", None)
    enable = new or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    _same(_blocks(model, data), expected)
    assert model.training
